"""The options that `python -m tests.gpu` gives to its parts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """The device; small sizes, to try the script out; and photographs, if any were given."""

    device: torch.device
    small: bool
    data: Path | None


def options(description: str) -> Options:
    """Those of this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    return Options(given.device, given.small, given.data.absolute() if given.data else None)
