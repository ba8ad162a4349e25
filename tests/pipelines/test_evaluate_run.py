"""Evaluating a run: its results.json and MLflow run hold its own numbers; others go elsewhere by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from cluster.cli.main import main
from pipelines.config import ConfigError
from pipelines.data.images import write_png
from pipelines.data.index import fingerprint
from pipelines.data.splits import training_images
from pipelines.experiment import Evaluated, configuration_of, evaluate_run
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import RESULTS, Results, metric_name
from pipelines.tracking import store
from pipelines.tracking.outbox import UNSENT
from pipelines.tracking.store import TrackingError
from tests.helpers.checkpoints import CONFIG, bundle_of

LABELS = np.repeat(np.array([[23], [26], [7], [0]], np.uint8), 6, axis=0)  # sky, car, road, void


def city(root: Path, *, width: int = 32) -> Path:
    """Two images of 24 x `width` pixels in each split, with labels."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(2):
            name = f"{split}/ulm/{number}"
            write_png(root / f"leftImg8bit/{name}_leftImg8bit.png", rng.integers(0, 256, (24, width, 3), np.uint8))
            write_png(root / f"gtFine/{name}_gtFine_labelIds.png", LABELS.repeat(width, axis=1))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained run that was evaluated and tracked. Copy it, never write to it."""
    project = tmp_path_factory.mktemp("project")
    (project / "weights").write_text("0")
    config = CONFIG.replace(
        {
            "data.root": str(city(project / "city")), "data.crop_size": 16, "train.batch_size": 2,
            "train.name": "first", "train.storage": str(project / "runs"), "evaluate.actors": 0,
            "evaluate.segmenter": "tests.helpers.segmenters:from_file",
            "evaluate.segmenter_weights": str(project / "weights"), "evaluate.sigmas": [25],
        }
    )  # fmt: skip
    folder = RunFolder.of(config)
    for step in (1, 2):
        bundle_of(folder.path / checkpoint.name_of(step), config, step=step)
    config.save(folder.config_file)
    folder.write_info(fingerprint=fingerprint(training_images(config)))
    assert evaluate_run(folder.path, trust=True, quiet=True).path == folder.results_file
    return project


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    """A copy of the run, with a store of its own; its images and weights are those of `made`."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "first")


def evaluated(run: RunFolder, model: Path | None = None, **changes: Any) -> Evaluated:
    config = configuration_of(run.latest() or Path())
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return evaluate_run(model or run.path, config.replace(changed), quiet=True)


def tracked(run: RunFolder) -> dict[str, Any]:
    """What MLflow has of the run that a folder names."""
    client = store.client(f"sqlite:///{run.path.parents[0 if run.path.parent.name == 'runs' else 2]}/mlflow.db")
    found = client.get_run(run.read_info()["run_id"])
    return {**found.data.metrics, "tags": found.data.tags, "status": found.info.status, "params": found.data.params}


def test_the_own_numbers_are_the_results_of_the_run(run: RunFolder) -> None:
    """Measured again they replace the former ones in the file and in MLflow, also of the same images elsewhere."""
    before = Results.load(run.results_file)
    assert run.read_info()["evaluated"] == 2 and run.read_info()["store"] == "sqlite:///../mlflow.db"
    assert tracked(run)["psnr.sigma25"] == before.restored["25"].psnr
    run.results_file.unlink()
    done = evaluated(run)
    assert done.path == run.results_file and done.notes == () and done.untracked == ""
    assert Results.load(run.results_file) == before == done.results
    shutil.copytree(configuration_of(run.latest() or Path()).data.root, run.path / "copy")
    assert evaluated(run, data__root=str(run.path / "copy")).path == run.results_file
    run.results_file.unlink()  # then the training images tell that it is the same data set
    assert evaluated(run, data__root=str(run.path / "copy")).path == run.results_file
    run.results_file.unlink()
    assert evaluated(run, data__root=str(city(run.path / "city", width=40))).path != run.results_file


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"evaluate__sigmas": [15]}, "evaluate.sigmas=[15.0], the run has [25.0]"),
        ({"evaluate__levels": ["blur:2+noise:5"]}, 'evaluate.levels=["blur:2+noise:5"], the run has null'),
        ({"evaluate__limit": 1}, "evaluate.limit=1, the run has null"),
        ({"evaluate__segmenter": None}, "evaluate.segmenter=null, the run has tests.helpers"),
        ({"data__val_split": "test"}, "data.val_split=test, the run has val"),
        ({"evaluate__segmenter_weights": "{0}/other"}, "other weights of the segmenter"),
        ({"data__root": "{0}/city"}, "other images than the run's"),
    ],
)
def test_other_numbers_go_elsewhere(run: RunFolder, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    city(tmp_path / "city", width=40)
    (tmp_path / "other").write_text("0.5")
    changes = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in changes.items()}
    before, mlflow_before = run.results_file.read_bytes(), tracked(run)
    done = evaluated(run, **changes)
    (note,) = done.notes
    assert why in note and str(run.results_file) in note
    assert run.results_file.read_bytes() == before and tracked(run) == mlflow_before and done.untracked == ""
    aside = RunFolder(done.path.parent)
    assert aside.path.parent == run.path / "evaluations" and Results.load(done.path) == done.results
    found = tracked(aside)
    assert found["tags"]["mlflow.parentRunId"] == run.read_info()["run_id"] and found["status"] == "FINISHED"
    (level,) = done.results.restored
    assert found[metric_name("psnr", level)] == done.results.restored[level].psnr
    assert found["params"]["evaluate.limit"] == ("1" if "evaluate__limit" in changes else "null")
    assert evaluated(run, **changes).path == done.path  # again: the same file and the same MLflow run
    assert RunFolder(done.path.parent).read_info()["run_id"] == aside.read_info()["run_id"]


def test_images_that_changed_in_their_place_are_other_images(made: Path, run: RunFolder, tmp_path: Path) -> None:
    root = shutil.copytree(made / "city", tmp_path / "city")
    config = configuration_of(run.latest() or Path()).replace({"data.root": str(root)})
    config.save(run.config_file)
    (root / "leftImg8bit/val/ulm/0_leftImg8bit.png").unlink()
    done = evaluated(run)
    assert done.path != run.results_file and "other images" in done.notes[0]


def test_keys_that_an_evaluation_does_not_use_are_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.results_file.read_bytes()
    assert main(["evaluate", str(run.path), "loss.weight=3", "tracking.register_as=net", "--trust"]) == 2
    first, second = sorted(capsys.readouterr().err.splitlines())
    assert "loss.weight=3.0: " in first and "tracking.register_as=net: " in second and "models register" in second
    assert run.results_file.read_bytes() == before


def test_an_earlier_checkpoint_is_not_the_run(run: RunFolder) -> None:
    before = run.results_file.read_bytes()
    done = evaluated(run, run.path / checkpoint.name_of(1))
    assert "step 1, the run's last is 2" in done.notes[0]
    assert run.results_file.read_bytes() == before and run.read_info()["evaluated"] == 2


def test_results_are_on_disk_while_mlflow_is_away(run: RunFolder) -> None:
    """What MLflow lacks waits in the run's folder, and the same command sends it."""
    expected, place = Results.load(run.results_file), run.read_info()["store"]
    run.results_file.unlink()
    run.write_info(store="http://127.0.0.1:9")
    done = evaluated(run)
    assert Results.load(run.results_file) == expected
    assert "wait in" in done.untracked and "127.0.0.1:9" in done.untracked and "\n" not in done.untracked
    assert (run.path / UNSENT).exists()
    aside = evaluated(run, evaluate__limit=1)
    assert Results.load(aside.path).images == 1
    assert "not in MLflow" in aside.untracked and "127.0.0.1:9" in aside.untracked
    run.write_info(store=place)
    assert evaluated(run).untracked == "" and not (run.path / UNSENT).exists()


def test_a_run_that_mlflow_no_longer_has_is_refused_before_it_is_measured(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.client(f"sqlite:///{tmp_path}/runs/mlflow.db").delete_run(run.read_info()["run_id"])
    out = tmp_path / "out.json"
    evaluate_run(run.path, out=out, trust=True, quiet=True)  # the remedy
    assert Results.load(out) == Results.load(run.results_file)
    monkeypatch.setattr("pipelines.experiment.evaluate", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(TrackingError, match=r"MLflow run \w+ of .*first was deleted; restore it: .*--out FILE"):
        evaluated(run)


def test_the_file_of_out_is_made_sure_of_before_anything_is_measured(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "folder" / "out.json"
    assert evaluate_run(run.path, out=out, trust=True, quiet=True).path == out and out.is_file()
    monkeypatch.setattr("pipelines.experiment.evaluate", lambda *_, **__: pytest.fail("measured"))
    for wrong, why in ((out / "x.json", "is a file, not a folder"), (out.parent, "is a folder; give a file")):
        with pytest.raises(OSError, match=f"^--out .*{why}"):
            evaluate_run(run.path, out=wrong, trust=True, quiet=True)


def test_another_store_is_used_if_it_is_asked_for(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "runs/mlflow.db").rename(tmp_path / "kept.db")
    uri = f"sqlite:///{tmp_path}/kept.db"
    assert evaluated(run, tracking__uri=uri).untracked == ""
    assert run.read_info()["store"] == "sqlite:///../../kept.db"
    assert evaluated(run).path == run.results_file  # from now on it is found


def test_damaged_files_of_a_run(run: RunFolder) -> None:
    """A results.json is written anew, as the message says that names it; a run.json is one line."""
    run.results_file.write_text('{"images": ')
    assert Results.load(evaluated(run).path).images == 2
    run.info_file.write_text("{")
    with pytest.raises((ConfigError, ValueError), match=r"^[^\n]*run\.json: [^\n]*; [^\n]*$"):
        evaluated(run)
    run.info_file.unlink()  # as the line says
    assert evaluated(run).path == run.results_file and run.read_info()["evaluated"] == 2


def test_no_file_beside_a_model_without_a_run_is_overwritten(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = shutil.copytree(RunFolder(made / "runs/first").latest() or Path(), tmp_path / "bundle")
    assert evaluate_run(bundle, trust=True, quiet=True).path == Path(RESULTS)
    before = Path(RESULTS).read_bytes()
    second = evaluate_run(bundle, trust=True, quiet=True)
    assert second.path == Path("results-2.json") and "results.json exists here" in second.notes[0]
    assert Path(RESULTS).read_bytes() == before


def test_of_two_evaluations_at_once_neither_overwrites_the_other(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one ends while the first measures: here its segmenter writes what the other leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "meanwhile_segmenter.py").write_text(
        "from pathlib import Path\n"
        "from tests.helpers.segmenters import by_brightness\n"
        f"def build(weights):\n    Path({RESULTS!r}).write_text('the other')\n    return by_brightness(weights)\n"
    )
    bundle = shutil.copytree(RunFolder(made / "runs/first").latest() or Path(), tmp_path / "bundle")
    own = {"evaluate.segmenter": "meanwhile_segmenter:build", "evaluate.segmenter_weights": None}
    done = evaluate_run(bundle, configuration_of(bundle).replace(own), quiet=True)
    assert done.path == Path("results-2.json") and Results.load(done.path) == done.results
    assert Path(RESULTS).read_text() == "the other" and "results.json exists here" in done.notes[0]


THREE = """
classes:
- {name: above, id: 23, colour: [70, 130, 180]}
- {name: things, id: 26, colour: [0, 0, 142]}
- {name: ground, id: 7, colour: [128, 64, 128]}
ignore: [0]
"""


@pytest.mark.parametrize(
    ("keys", "changes", "why"),
    [
        (
            "segmenters",
            {"evaluate__segmenters_weights": ["{0}/other"]},
            "other weights of tests-helpers-segmenters-fro",
        ),
        ("labels", {}, "another label set than the run's"),
        ("lpips", {"evaluate__lpips_weights": "{0}/other.pth"}, "other weights of LPIPS than the run's"),
    ],
)
def test_other_contents_of_a_file_are_other_numbers(
    made: Path, run: RunFolder, tmp_path: Path, keys: str, changes: dict[str, Any], why: str
) -> None:
    """Whichever file it is, as with the first segmenter's; and not where nothing changed."""
    labels = tmp_path / "three.yaml"
    labels.write_text(THREE)
    (tmp_path / "other").write_text("0.5")
    for seed, name in enumerate(("trunk.pth", "other.pth")):
        torch.manual_seed(seed)
        torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / name)
    own = {
        "segmenters": {
            "evaluate.segmenters": ["tests.helpers.segmenters:from_file"],
            "evaluate.segmenters_weights": [str(made / "weights")],
        },
        "labels": {
            "data.labels": str(labels), "evaluate.segmenter": "tests.helpers.segmenters:of_three",
            "evaluate.segmenter_weights": None,
        },
        "lpips": {"evaluate.lpips": "squeezenet1_1", "evaluate.lpips_weights": str(tmp_path / "trunk.pth")},
    }  # fmt: skip
    config = configuration_of(run.latest() or Path()).replace(own[keys])
    config.save(run.config_file)
    run.results_file.unlink()
    assert evaluated(run).path == evaluated(run).path == run.results_file
    before, mlflow_before = run.results_file.read_bytes(), tracked(run)
    if keys == "labels":
        labels.write_text(THREE.replace("ignore: [0]", "ignore: [0, 1]"))
    changes = {
        key: value.format(tmp_path) if isinstance(value, str) else [each.format(tmp_path) for each in value]
        for key, value in changes.items()
    }
    done = evaluated(run, **changes)
    assert done.path != run.results_file and why in done.notes[0]
    assert run.results_file.read_bytes() == before and tracked(run) == mlflow_before
    if keys != "labels":  # without former results the files tell; the label set has but one file
        run.results_file.unlink()
        assert evaluated(run, **changes).path == done.path
        assert evaluated(run).path == run.results_file
