"""`make gpu`: everything that needs a GPU, in at most 8 minutes, most important first.

    python -m tests.gpu [--out gpu] [--data FOLDER] [PART ...]

Writes OUT/gpu.jsonl as numbers come, and OUT/gpu.md and OUT/gpu.json after every part. A part that fails or runs over
its time is reported, and the next one starts; the exit code is then 1. A part may take what the earlier ones have left
of the eight minutes, less the own time of the later ones. A part whose packages are not installed is left out: torch
alone is enough for the first.

Needs neither make nor a virtual environment: PYTHONPATH=site:project python3 -m tests.gpu.

FOLDER holds photographs in the Cityscapes layout. Without --data it is CamVid, if `shared/data/camvid` or `data/camvid`
beside the checkout holds its PNG files; else scenes are drawn, as many and as large as CamVid's. ESPNet-CamVid judges
them, with FOLDER/../weights/espnet_p2_q8_camvid.pth or, without this file, with random weights, which cost the same.
`--device cpu --small` tries the script out on a machine without a GPU, on drawn scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks.children import environment
from tests.benchmarks.timing import SHARED, machine
from tests.gpu.options import ROOT
from tests.gpu.results import FILE, goals, page, read


@dataclass(frozen=True)
class Part:
    """A module of this package.

    Attributes:
        seconds: its own time, which no earlier part may use.
        needs: packages beside torch, without which it is left out.
    """

    seconds: int
    needs: tuple[str, ...] = ()


CONFIG = ("pydantic", "yaml", "safetensors", "pyarrow", "imagecodecs", "PIL", "psutil")
SERVICES = (*CONFIG, "ray", "mlflow")
TOTAL = 480  # seconds
PARTS = {
    "matching": Part(30),
    "steps": Part(80, CONFIG),
    "shares": Part(25),
    "checks": Part(45, (*CONFIG, "pytest", "hypothesis", "skimage", "scipy")),
    "runs": Part(220, SERVICES),
    "ingest": Part(25, SERVICES),
    "modes": Part(45, CONFIG),
}


def main(arguments: list[str]) -> int:
    """Run the parts; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the results (default: gpu)")
    parser.add_argument("--data", type=Path, help="photographs (default: CamVid if found, else drawn scenes)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script out (default: cuda)")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script out; goals mean nothing")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"{unknown[0]}: not a part; there are {', '.join(PARTS)}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; to try the script out: --device cpu --small")
    if options.data and not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; without --data scenes are drawn")
    options.data = options.data or (None if options.small else photographs(SHARED, ROOT.parent / "data"))
    options.out.mkdir(parents=True, exist_ok=True)
    kept = (options.out / "gpu.jsonl").absolute()
    kept.unlink(missing_ok=True)
    about = f"{machine(torch.device(options.device))}; {options.data or 'drawn scenes, no photographs'}"
    about += "; small sizes" if options.small else ""
    print(about, flush=True)
    outcomes: dict[str, str] = {}
    start = time.monotonic()
    parts = options.parts or list(PARTS)
    for index, part in enumerate(parts):
        most = limit(parts[index + 1 :], time.monotonic() - start, options.device)
        print(f"\n## {part} (at most {most} s)", flush=True)
        lacking = [name for name in PARTS[part].needs if find_spec(name) is None]
        outcomes[part] = f"left out, needs {', '.join(lacking)}" if lacking else run(part, options, kept, most)
        print(outcomes[part], flush=True)
        numbers = read(kept)
        (options.out / "gpu.md").write_text(page(about, numbers, outcomes, small=options.small))
        whole = {"machine": about, "outcomes": outcomes, "numbers": [asdict(number) for number in numbers]}
        (options.out / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(f"\n## Goals (every number: {options.out / 'gpu.md'})\n\n{goals(numbers, small=options.small)}")
    return int(any(not outcome.startswith(("done", "left out")) for outcome in outcomes.values()))


def photographs(*folders: Path) -> Path | None:
    """CamVid in the first of the folders that has its PNG files; None: in none."""
    found = (folder / "camvid" for folder in folders if any(folder.glob("camvid/leftImg8bit/val/*/*.png")))
    return next(found, None)


def limit(later: Sequence[str], passed: float, device: str) -> int:
    """Seconds that a part may take, after so many and before the later parts; on a CPU ten times as many."""
    factor = 10 if device == "cpu" else 1
    return max(0, int(factor * (TOTAL - sum(PARTS[part].seconds for part in later)) - passed))


def run(part: str, options: argparse.Namespace, kept: Path, most: int) -> str:
    """Run a part in a process of its own; gives how it ended."""
    if most == 0:
        return "not begun, no time was left"
    command = [sys.executable, "-m", f"tests.gpu.{part}", "--device", options.device]
    command += ["--small"] if options.small else []
    command += ["--data", str(options.data.absolute())] if options.data else []
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment(ROOT) | {FILE: str(kept)}, start_new_session=True)
    try:
        code = process.wait(most)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the processes it started
        process.wait()
        return f"stopped after {most} s"
    passed = time.monotonic() - start
    return f"done in {passed:.0f} s" if code == 0 else f"failed with exit code {code} after {passed:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
