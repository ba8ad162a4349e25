"""The GPU command on a machine without a GPU: small sizes on the CPU, the table of goals, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.config import Config
from tests.gpu.__main__ import PARTS, TOTAL, limit, main
from tests.gpu.results import GOALS, Number, page


def test_small_sizes_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    assert main(["--device", "cpu", "--small", "--out", str(out), "matching"]) == 0
    found = json.loads((out / "gpu.json").read_text())
    assert found["outcomes"]["matching"].startswith("done in")
    numbers = {number["what"]: number["value"] for number in found["numbers"]}
    assert all(value > 0 for value in numbers.values())
    assert numbers["N 4, D 256, q 16: GFLOP of products in float32"] == pytest.approx(2 * 16 * 256 * 5 * 4 / 1e9)
    # Three passes over queues of 16 x 256 float32, and 4 rows that enter and leave both, read and written.
    least = 3 * 16 * 256 * 4 + 8 * 4 * 256 * 4
    assert numbers["N 4, D 256, q 16: GB read and written at least"] == pytest.approx(least / 1e9)
    assert numbers["N 4, D 256, q 16, restored differs by 0.5: relative error of the value"] < 1e-5
    assert "small sizes" in found["machine"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_left_out_where_its_packages_are_not(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PARTS[part].needs:
        pytest.skip("needs torch alone")
    monkeypatch.setattr("tests.gpu.__main__.find_spec", lambda name: None)
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path), part]) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["outcomes"][part].startswith("left out, needs ")


def test_all_parts_fit_into_eight_minutes() -> None:
    """If each takes all that it may, the last ones have less than their own time, and no part begins after the end."""
    passed = 0
    for part in PARTS:
        passed += limit(part, passed, "cuda")
    assert passed == TOTAL
    assert limit("checks", TOTAL, "cuda") == limit("checks", TOTAL + 9.5, "cuda") == 0
    assert limit("checks", TOTAL, "cpu") == 10 * PARTS["checks"].seconds


def test_a_part_for_which_no_time_is_left_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gpu.__main__.TOTAL", 0)
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path), "matching"]) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["outcomes"] == {"matching": "not begun, no time was left"}


def test_parts_need_no_ray_and_no_mlflow_but_those_that_start_them() -> None:
    """In a process that cannot import them, as on a machine where nothing can be installed."""
    light = [part for part, its in PARTS.items() if "ray" not in its.needs]
    block = "import sys; sys.modules.update(dict.fromkeys(('ray', 'mlflow')))"  # None: an import of it fails
    code = f"{block}; " + "; ".join(f"import tests.gpu.{part}" for part in light)
    code += "; from tests.gpu.checks import files; assert len(files()) >= 4, files()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"matching", "steps", "modes", "shares", "checks"} == set(light)


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
    small = page("a card", numbers, {"steps": "done in 3 s"}, small=True).splitlines()
    assert "| ffdnet_d2sm_gpu: step, ms | 24 | <= 15 | 14.9 |  |" in small
    assert not any("| yes |" in line or "| NO |" in line for line in small)


def test_the_segmenter_beside_the_photographs(tmp_path: Path) -> None:
    from tests.gpu.runs import segmenter

    data, weights = tmp_path / "camvid", tmp_path / "weights" / "espnet_p2_q8_camvid.pth"
    assert segmenter(None) == segmenter(data) == ["evaluate.segmenter=null"]
    weights.parent.mkdir()
    weights.touch()
    keys = dict(key.split("=", 1) for key in segmenter(data))
    config = Config().replace(keys)
    assert (config.evaluate.segmenter, config.evaluate.segmenter_weights) == ("espnet-camvid", str(weights))


def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in ((["speed"], "speed: not a part; there are matching, steps"), ([], "torch sees no GPU here")):
        if not words and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--out", str(tmp_path)])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
