"""The environment of processes that a benchmark starts in another folder."""

from __future__ import annotations

import os
from pathlib import Path


def environment(checkout: Path) -> dict[str, str]:
    """This process's environment, for one that runs the code of a checkout in any folder.

    The checkout comes first on PYTHONPATH. The other entries become absolute, since the child would look for relative
    ones in its own folder.
    """
    given = os.environ.get("PYTHONPATH")
    entries = [checkout, *(Path(entry) for entry in given.split(os.pathsep))] if given else [checkout]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(entry.absolute()) for entry in entries)}
