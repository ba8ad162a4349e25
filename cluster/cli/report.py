"""The verb `report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verb: argparse.ArgumentParser) -> None:
    """Its options."""
    verb.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders of finished runs")
    verb.add_argument("--out", type=Path, default=Path("report.html"), help="the file to write (report.html)")
    verb.add_argument("--pictures", type=int, default=4, help="photographs to show, 0 for none (4)")
    verb.add_argument("--no-figures", action="store_true", help="without curves and t-SNE, which take the longest")


def run_report(args: argparse.Namespace) -> None:
    """Write the page, and say where it is."""
    from pipelines.comparison.report.write import report
    from pipelines.tracking.run import ui_command

    done = report(args.runs, out=args.out, pictures=args.pictures, draw=not args.no_figures)
    print(f"report {done.path}  ({done.path.stat().st_size / 1e6:.1f} MB; any browser opens it, nothing is loaded)")
    print(f"MLflow {ui_command(done.uri)}  then open http://127.0.0.1:5000/{done.page}")
