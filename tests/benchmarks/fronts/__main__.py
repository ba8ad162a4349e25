"""Run the jobs, or read their results: see the package's docstring."""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import sys
import time
from pathlib import Path

import tests.benchmarks.fronts as package
from tests.benchmarks.fronts import reader


def run(args: argparse.Namespace) -> int:
    """Let processes do jobs until all are done or the time is up; collect what there is every 20 seconds."""
    from tests.benchmarks.fronts.worker import Settings, work

    settings = Settings(args.data, args.out, args.device, args.dry, tuple(args.only))
    deadline, collected = time.time() + args.seconds, time.time()
    for name in ("results", "networks", "weights", "claims", "failed"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    for failure in (args.out / "failed").iterdir():  # tried again
        failure.unlink()
    for claim in (args.out / "claims").iterdir():  # of jobs that failed or were cut off
        if not settings.result(claim.name).exists():
            claim.unlink()

    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(settings,)) for _ in range(args.processes)]
    for process in processes:
        process.start()
    while time.time() < deadline and any(process.is_alive() for process in processes):
        time.sleep(0.2)
        if time.time() > collected + 20:
            collect(args.out)
            collected = time.time()
    for process in processes:
        process.kill()
        process.join()
    failed = sorted(path.name for path in (args.out / "failed").iterdir())
    print(f"{collect(args.out)} results in {args.out / 'results.jsonl.gz'}; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def collect(out: Path) -> int:
    """Write all results into one file, the first that ended first; how many there are."""
    files = sorted((out / "results").glob("*.json"), key=lambda path: path.stat().st_mtime)
    part = out / "results.part"
    with gzip.open(part, "wt") as file:
        file.writelines(f"{path.read_text()}\n" for path in files)
    part.rename(out / "results.jsonl.gz")
    return len(files)


def read(args: argparse.Namespace) -> int:
    print(reader.tables(reader.load(args.files)))
    return 0


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.fronts", description=package.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("run", help="do the jobs for some time; goes on where the folder stands")
    one.add_argument("--data", type=Path, required=True, help="folder with camvid/ and weights/")
    one.add_argument("--out", type=Path, required=True, help="folder of the results")
    one.add_argument(
        "--seconds", type=float, required=True, help="the time after which to stop; jobs cut off start again"
    )
    one.add_argument("--processes", type=int, default=4, help="processes that share the device (default: 4)")
    one.add_argument("--device", default="cuda", help='"cuda" (default) or "cpu"')
    one.add_argument("--dry", action="store_true", help="tiny networks, few photographs, 3 steps: to try the code")
    one.add_argument("--only", nargs="+", default=[], metavar="PART", help="jobs with one of these parts in their ids")
    one.set_defaults(call=run)
    one = verbs.add_parser("read", help="print the tables")
    one.add_argument("files", type=Path, nargs="+", metavar="FILE", help="results.jsonl.gz")
    one.set_defaults(call=read)
    args = parser.parse_args(words)
    return int(args.call(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
