"""The GPU command on a machine without a GPU: small sizes on the CPU, the table of goals, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from pipelines.config import Config
from tests.gpu.__main__ import PARTS, TOTAL, limit, main, photographs
from tests.gpu.options import ROOT, Options
from tests.gpu.results import GOALS, Number, goals, page


def test_small_sizes_on_the_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
    assert "; drawn scenes, no photographs; small sizes" in found["machine"]
    assert capfd.readouterr().out.splitlines()[-len(GOALS) :] == goals([], small=True).splitlines()[2:]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_left_out_where_its_packages_are_not(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PARTS[part].needs:
        pytest.skip("needs torch alone")
    monkeypatch.setattr("tests.gpu.__main__.find_spec", lambda name: None)
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path), part]) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["outcomes"][part].startswith("left out, needs ")


@pytest.mark.parametrize("used", ["all that it may", "its own time", "nothing"])
def test_every_part_has_its_own_time_and_all_fit_into_eight_minutes(used: str) -> None:
    passed, parts = 0, list(PARTS)
    for index, part in enumerate(parts):
        most, own = limit(parts[index + 1 :], passed, "cuda"), PARTS[part].seconds
        assert most >= own
        passed += {"all that it may": most, "its own time": own, "nothing": 0}[used]
    assert passed <= TOTAL
    assert limit([], TOTAL, "cuda") == limit([], TOTAL + 9.5, "cuda") == 0
    assert limit([], TOTAL, "cpu") == 9 * TOTAL


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
    assert goals(numbers, small=True).splitlines() == small[4 : len(GOALS) + 6]
    assert not any("| yes |" in line or "| NO |" in line for line in small)


def test_the_segmenter_has_the_weights_beside_the_photographs_or_random_ones(tmp_path: Path) -> None:
    from pipelines.networks import segmenters
    from tests.gpu.runs import segmenter

    data, weights = tmp_path / "camvid", tmp_path / "weights" / "espnet_p2_q8_camvid.pth"
    random = segmenter(None, tmp_path)
    assert segmenter(data, tmp_path) == random
    found = dict(key.split("=", 1) for key in random)
    loaded = segmenters.load("espnet-camvid", weights=found["evaluate.segmenter_weights"])
    # What is cached by the weights' fingerprint is found again by the next evaluation.
    segmenter(None, tmp_path)
    again = segmenters.load("espnet-camvid", weights=found["evaluate.segmenter_weights"])
    assert segmenters.fingerprint(loaded) == segmenters.fingerprint(again)
    weights.parent.mkdir()
    weights.touch()
    config = Config().replace(dict(key.split("=", 1) for key in segmenter(data, tmp_path)))
    assert (config.evaluate.segmenter, config.evaluate.segmenter_weights) == ("espnet-camvid", str(weights))


def test_the_goals_of_evaluation_are_named_as_its_rows(tmp_path: Path) -> None:
    """Also where scenes are drawn: as many as the goals' photographs."""
    from pipelines.data.index import index
    from tests.gpu.runs import ACTORS, Runs, evaluated

    runs = Runs(tmp_path, Options(torch.device("cpu"), small=True, data=None))
    count = len(index(runs.root, "val", labels="ignore"))
    rows = {evaluated(count, actors) for actors in ACTORS}
    assert rows == {what for what in GOALS if what.startswith("evaluate")}
    assert {what for what in GOALS if "from the command" in what} == {
        f"from the command to step {runs.log_every}{way}, s" for way in ("", " without workers")
    }


def test_goals_of_steps_are_named_as_their_cases() -> None:
    from tests.gpu import matching, modes, steps

    names = [f"{name}: {what}" for name in steps.CASES for what in ("step, ms", "of the best rate, %", "matching, ms")]
    names += [f"{name}, {mode}: step, ms" for name in modes.CASES for mode in modes.MODES]
    names += ["N {}, D {}, q {}: matching, ms".format(*shape) for shape in matching.SHAPES]
    assert {what for what in GOALS if ", ms" in what or ", %" in what} < set(names)


@pytest.mark.long
def test_runs_measure_all_their_goals(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path), "runs"]) == 0
    found = {number["what"] for number in json.loads((tmp_path / "gpu.json").read_text())["numbers"]}
    assert found > {what for what in GOALS if "evaluate" in what or "from the command" in what or "plain loop" in what}
    assert "bf16 against fp32: largest relative difference of a logged loss" in found


def test_camvid_is_found_where_it_lies_unpacked(tmp_path: Path) -> None:
    val = tmp_path / "data/camvid/leftImg8bit/val/city"
    val.mkdir(parents=True)
    (val / "a_leftImg8bit.jxl").touch()  # packed: nothing reads it
    assert photographs(tmp_path / "shared", tmp_path / "data") is None
    (val / "a_leftImg8bit.png").touch()
    assert photographs(tmp_path / "shared", tmp_path / "data") == tmp_path / "data/camvid"


def test_runs_are_started_where_the_project_is_found_by_a_relative_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH=site:project, in a Python that has no d2sm installed."""
    venv.create(tmp_path / "bare", symlinks=True)
    (tmp_path / "site").symlink_to(sysconfig.get_path("purelib"))
    (tmp_path / "project").symlink_to(ROOT)
    (tmp_path / "runs").mkdir()
    code = (
        "import pathlib, torch; from tests.gpu.options import Options; from tests.gpu.runs import Runs, wait; "
        "runs = Runs(pathlib.Path('runs').absolute(), Options(torch.device('cpu'), True, pathlib.Path('none'))); "
        "wait(runs.start('--version'))"
    )
    monkeypatch.setenv("PYTHONPATH", "site:project")
    done = subprocess.run([tmp_path / "bare/bin/python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("d2sm ")


def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in (
        (["speed"], "speed: not a part; there are matching, steps"),
        (["--device", "cpu", "--data", f"{tmp_path}/none"], f"--data {tmp_path}/none: no such folder"),
        ([], "torch sees no GPU here"),
    ):
        if not words and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--out", str(tmp_path)])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
