"""`make gpu`: everything that needs a GPU, in at most 8 minutes, most important first.

    python -m tests.gpu [--out gpu] [--data FOLDER] [PART ...]

Writes OUT/gpu.jsonl as numbers come, and OUT/gpu.md and OUT/gpu.json after every part. A part that fails or runs over
its time is reported, and the next one starts; the exit code is then 1. A part may take its own time at most, and no
more than is left of the eight minutes: the last parts need what earlier ones have not used. A part whose packages are
not installed is left out: torch alone is enough for the first. Needs neither make nor a virtual environment:
PYTHONPATH=site:project python3 -m tests.gpu. Without --data, street scenes are drawn; FOLDER is in the Cityscapes
layout, such as CamVid, and ESPNet judges it if FOLDER/../weights holds espnet_p2_q8_camvid.pth. `--device cpu --small`
tries the script out on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks.timing import machine
from tests.gpu.results import FILE, page, read


@dataclass(frozen=True)
class Part:
    """A module of this package.

    Attributes:
        seconds: that it may take, if so much is left of `TOTAL`.
        needs: packages beside torch, without which it is left out.
    """

    seconds: int
    needs: tuple[str, ...] = ()


CONFIG = ("pydantic", "yaml", "safetensors", "pyarrow", "imagecodecs", "PIL", "psutil")
SERVICES = (*CONFIG, "ray", "mlflow")
TOTAL = 480  # seconds
PARTS = {
    "matching": Part(40),
    "steps": Part(95, CONFIG),
    "runs": Part(250, SERVICES),
    "modes": Part(90, CONFIG),
    "shares": Part(30),
    "ingest": Part(30, SERVICES),
    "checks": Part(90, (*CONFIG, "pytest", "hypothesis", "skimage", "scipy")),
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
    start = time.monotonic()
    for part in options.parts or PARTS:
        most = limit(part, time.monotonic() - start, options.device)
        print(f"\n## {part} (at most {most} s)", flush=True)
        lacking = [name for name in PARTS[part].needs if find_spec(name) is None]
        outcomes[part] = f"left out, needs {', '.join(lacking)}" if lacking else run(part, options, kept, most)
        print(outcomes[part], flush=True)
        numbers = read(kept)
        (options.out / "gpu.md").write_text(page(about, numbers, outcomes, small=options.small))
        whole = {"machine": about, "outcomes": outcomes, "numbers": [asdict(number) for number in numbers]}
        (options.out / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
    print("\n" + (options.out / "gpu.md").read_text())
    return int(any(not outcome.startswith(("done", "left out")) for outcome in outcomes.values()))


def limit(part: str, passed: float, device: str) -> int:
    """Seconds that a part may take, after so many; ten times as many where the script is tried out on a CPU."""
    factor = 10 if device == "cpu" else 1
    return max(0, min(factor * PARTS[part].seconds, int(factor * TOTAL - passed)))


def run(part: str, options: argparse.Namespace, kept: Path, most: int) -> str:
    """Run a part in a process of its own; gives how it ended."""
    if most == 0:
        return "not begun, no time was left"
    command = [sys.executable, "-m", f"tests.gpu.{part}", "--device", options.device]
    command += ["--small"] if options.small else []
    command += ["--data", str(options.data.absolute())] if options.data else []
    start = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {FILE: str(kept)}, start_new_session=True)
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
