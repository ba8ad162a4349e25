"""Python that a configuration names: "module:callable", imported when it is needed.

Whether a configuration that somebody else wrote may name any is decided by `pipelines.runs.trust`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.text import one_line


def is_imported(name: object) -> bool:
    """Whether a name is Python to import, "module:callable", which runs whatever it says."""
    return isinstance(name, str) and ":" in name and "/" not in name


def own_source(name: str) -> Path | None:
    """The file or folder that holds the module of "module:callable"; None if it is installed, or cannot be found.

    For a module within a package it is the package's folder.
    """
    _look_here()
    try:
        spec = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    found = places[0] if places else spec.origin if spec.has_location else None
    path = Path(found).resolve() if found else None
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]
    return None if path is None or any(path.is_relative_to(folder) for folder in installed) else path


def import_callable(name: str, *, asked_by: str, error: type[ValueError]) -> Callable[..., Any]:
    """Import what a name stands for.

    Its module is looked for where Python looks, and in the current folder last, as Ray's workers do.

    Args:
        name: "module:callable".
        asked_by: the beginning of the message, such as "model.name=mine:network".
        error: type of the error.

    Raises:
        error: it cannot be imported, or is nothing to call. One line.
    """
    module_name, _, attribute = name.partition(":")
    _look_here()
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as reason:  # somebody else's module may raise anything
        remedy = "correct the name, or put the folder of its module on PYTHONPATH"
        raise error(f"{asked_by} cannot be imported: {one_line(reason)}; {remedy}") from reason
    if not callable(found):
        raise error(f"{asked_by} is a {type(found).__name__}: needs a callable")
    return found


def _look_here() -> None:
    """Let Python look for modules in the current folder too, last."""
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
