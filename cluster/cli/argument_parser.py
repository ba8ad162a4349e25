"""argparse as `d2sm` uses it: options and words in any order, and every mistake on one line with a suggestion."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from pipelines.text import did_you_mean

# What a word that says where something is may be: a path; a path, a URI or models:/NAME; a URI of an MLflow store; the
# name of a label set or its file. `cluster.cli.arguments` refuses relative paths in those that are sent to a cluster.
Place = Literal["path", "model", "store", "labels"]
_CHOICE = re.compile(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)$")


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose sub-commands are parsers of this class too.

    Attributes:
        intermixed: options may stand between positional words. argparse allows it only for a parser without
            sub-commands and without a REMAINDER, so a verb sets it.
        places: the words and options that say where something is, in the parsed options too.
    """

    intermixed = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        # An option has one spelling: what looks for secrets and for files to send looks for that.
        super().__init__(*args, **{"allow_abbrev": False, **settings})
        self.places: list[tuple[argparse.Action, Place]] = []

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(args or [])
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self._check_options(words[: words.index("--")] if "--" in words else words)
        if "--" in words:  # Python 3.11 forgets it between the two passes
            return super().parse_known_args(args, namespace)
        self.intermixed = False  # parse_known_intermixed_args calls this function twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True

    def error(self, message: str) -> NoReturn:
        """End with one line instead of argparse's usage and line."""
        if found := _CHOICE.search(message):
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        self.exit(2, f"{self.prog}: error: {message.removesuffix('?')}; see `{self.prog} --help`\n")

    def _check_options(self, args: Sequence[str]) -> None:
        """Refuse a misspelt option before argparse finds out what else is missing because of it."""
        for word in args:
            name = word.partition("=")[0]
            if name.startswith("--") and name != "--" and name not in self._option_string_actions:
                self.error(f"{name}: no such option{did_you_mean(name, self._option_string_actions)}")


def without_equals(what: str) -> Any:
    """The type of an option that takes several words, and so would take the key=value words behind it."""

    def word(text: str) -> str:
        if "=" in text:
            raise argparse.ArgumentTypeError(f"{text}: is no {what}; put key=value words before this option")
        return text

    return word
