"""The verb `report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verb: argparse.ArgumentParser) -> None:
    """Its options."""
    verb.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders of finished runs")
    verb.add_argument("--out", type=Path, default=Path("report.html"), help="the file to write (report.html)")
    verb.add_argument("--pictures", type=int, default=4, help="photographs to show, 0 for none (4)")


def run_report(args: argparse.Namespace) -> None:
    """Write the page, and say where it is."""
    from pipelines.report.write import report

    path = report(args.runs, out=args.out, pictures=args.pictures)
    print(f"report {path}  ({path.stat().st_size / 1e6:.1f} MB, opens in any browser, needs nothing beside it)")
