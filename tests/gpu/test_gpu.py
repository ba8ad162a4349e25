"""The GPU command on a machine without a GPU: small sizes on the CPU, the table of goals, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import main
from tests.gpu.results import GOALS, Number, page


def test_small_sizes_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    assert main(["--device", "cpu", "--small", "--out", str(out), "matching"]) == 0
    found = json.loads((out / "gpu.json").read_text())
    assert found["outcomes"]["matching"].startswith("done in")
    numbers = {number["what"]: number["value"] for number in found["numbers"]}
    assert len(numbers) == 6 and all(value > 0 for value in numbers.values())
    assert numbers["N 4, D 256, q 16, restored differs by 0.5: relative error of the value"] < 1e-5
    assert "| yes |" not in (out / "gpu.md").read_text()


def test_goals_are_met_or_not() -> None:
    numbers = [
        Number("steps", "ffdnet_d2sm_gpu: step, ms", 14.9),
        Number("steps", "ffdnet_d2sm_gpu: matching, ms", 1.6),
        Number("runs", "Ray Train to a plain loop, steps a second", 0.97),
    ]
    lines = page("a card", numbers, {"steps": "done in 3 s", "runs": "stopped after 9 s"}).splitlines()
    assert "| ffdnet_d2sm_gpu: step, ms | 24 | <= 15 | 14.9 | yes |" in lines
    assert "| ffdnet_d2sm_gpu: matching, ms | 6.9 | <= 1.5 | 1.6 | NO |" in lines
    assert "| Ray Train to a plain loop, steps a second |  | >= 0.97 | 0.97 | yes |" in lines
    assert sum("| not measured |" in line for line in lines) == len(GOALS) - 3
    assert "## runs: stopped after 9 s" in lines


def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in ((["speed"], "speed: not a part; there are checks, matching"), ([], "torch sees no GPU here")):
        if not words and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--out", str(tmp_path)])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
