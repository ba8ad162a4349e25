"""The verbs of the command line."""

from __future__ import annotations

import argparse


def verb_names(one: argparse.ArgumentParser, before: str = "") -> set[str]:
    """Every verb, and verb of a verb, such as "jobs" and "jobs list"."""
    names = set()
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                names |= {f"{before}{name}"} | verb_names(inner, f"{before}{name} ")
    return names
