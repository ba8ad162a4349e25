"""D2SM: deep semantic statistics matching for image restoration. On torch and torchvision alone: no Ray, no MLflow.

Importing this package loads no torch: names are imported when they are first used, so that a command line or a
configuration can read the lists in `d2sm.models`, `d2sm.objectives` and `d2sm.degradations` at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2sm.loss import D2SMLoss
    from d2sm.matching import StatisticsMatching

    __version__: str

__all__ = ["D2SMLoss", "StatisticsMatching", "__version__"]

_EXPORTS = {"D2SMLoss": "d2sm.loss", "StatisticsMatching": "d2sm.matching"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version(Path(__file__).resolve().parent)
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'd2sm' has no attribute {name!r}")


def _version(package: Path) -> str:
    """The version of the code in this folder; its single source is pyproject.toml.

    In a checkout the file itself is read, since the metadata of an editable install may be older. Elsewhere the
    installed metadata counts, but only if it describes this very folder: a copy of the code on PYTHONPATH may shadow an
    installed release. A copy without either has the version "0+unknown".
    """
    import tomllib
    from importlib import metadata

    project = package.parent / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text()).get("project", {})
        if table.get("name") == "d2sm":
            return str(table["version"])
    for found in metadata.distributions(name="d2sm"):
        if Path(str(found.locate_file("d2sm"))).resolve() == package:
            return found.version
    return "0+unknown"
