"""`make gpu`: everything that needs a GPU, in at most 8 minutes, most important first.

    python -m tests.gpu [--out gpu] [--data FOLDER] [PART ...]

Writes OUT/gpu.jsonl as numbers come, and OUT/gpu.md and OUT/gpu.json after every part. A part that fails or runs over
its time is reported, and the next one starts; the exit code is then 1. Needs neither make nor a virtual environment:
PYTHONPATH=site:project python3 -m tests.gpu. Without --data, street scenes are drawn; FOLDER is in the Cityscapes
layout, such as CamVid. `--device cpu --small` tries the script out on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tests.benchmarks.timing import machine
from tests.gpu.results import FILE, page, read

PARTS = {  # name: seconds that it may take
    "checks": 70,
    "matching": 40,
    "steps": 110,
    "shares": 40,
    "runs": 220,
}


def main(arguments: list[str]) -> int:
    """Run the parts; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the results (default: gpu)")
    parser.add_argument("--data", type=Path, help="photographs in the Cityscapes layout (default: drawn scenes)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script out (default: cuda)")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script out; goals mean nothing")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"{unknown[0]}: not a part; there are {', '.join(PARTS)}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; to try the script out: --device cpu --small")
    options.out.mkdir(parents=True, exist_ok=True)
    kept = (options.out / "gpu.jsonl").absolute()
    kept.unlink(missing_ok=True)
    about = machine(torch.device(options.device)) + ("; small sizes" if options.small else "")
    print(about, flush=True)
    outcomes: dict[str, str] = {}
    for part in options.parts or PARTS:
        print(f"\n## {part} (at most {PARTS[part]} s)", flush=True)
        outcomes[part] = run(part, options, kept)
        numbers = read(kept)
        (options.out / "gpu.md").write_text(page(about, numbers, outcomes, small=options.small))
        whole = {"machine": about, "outcomes": outcomes, "numbers": [asdict(number) for number in numbers]}
        (options.out / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
    print("\n" + (options.out / "gpu.md").read_text())
    return int(any(not outcome.startswith("done") for outcome in outcomes.values()))


def run(part: str, options: argparse.Namespace, kept: Path) -> str:
    """Run a part in a process of its own; gives how it ended."""
    command = [sys.executable, "-m", f"tests.gpu.{part}", "--device", options.device]
    command += ["--small"] if options.small else []
    command += ["--data", str(options.data.absolute())] if options.data else []
    start = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {FILE: str(kept)}, start_new_session=True)
    try:
        code = process.wait(PARTS[part])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the processes it started
        process.wait()
        return f"stopped after {PARTS[part]} s"
    passed = time.monotonic() - start
    return f"done in {passed:.0f} s" if code == 0 else f"failed with exit code {code} after {passed:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
