"""Validation while training: its numbers are the evaluation's, it changes nothing, and it selects the run's model."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from pipelines import experiment
from pipelines.check import check
from pipelines.comparison.rows import read_run
from pipelines.config import Config, ConfigError
from pipelines.evaluate import evaluate
from pipelines.runs import checkpoint
from pipelines.runs.best import Best
from pipelines.train import Trained, _validation_set, fit
from pipelines.training.finite import TrainingError
from pipelines.training.log import Log
from pipelines.training.messages import ValidationSet
from pipelines.training.standing import KEPT, Standing
from pipelines.training.validation import Validation, _undisturbed
from tests.conftest import tiny_config
from tests.helpers.checkpoints import CONFIG, bundle_of
from tests.helpers.equality import same_run
from tests.helpers.stores import new_store
from tests.helpers.sweeps import tiny_base

# A rate at which PSNR rises to step 2 and falls then.
WATCHED = {
    "train__validate_every": 1, "train__best": "psnr.sigma25", "train__lr": 6e-4, "train__schedule": "constant",
    "train__checkpoint_every": 4, "train__log_every": 2, "train__keep": 1, "train__ema": 0.5,
    "evaluate__segmenter": "tests.helpers.segmenters:mortal",
}  # fmt: skip
STEPS = [1, 2, 3, 4, 5, 6]
FIRST, CALLS = 3 * 2, 2  # of the segmenter: clean, noisy and restored version of two scenes; later the restored alone


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    new_store(folder)
    return folder


def watched(root: Path, storage: Path, name: str, *, killed_at: int = 0, slow_from: int = 0, **changes: Any) -> Config:
    """Six steps, validated after each.

    Args:
        killed_at: call of the segmenter at which the worker is killed; 0: it is not.
        slow_from: call of the segmenter from which it takes two seconds; 0: it does not.
    """
    file = storage / f"{name}.txt"
    file.write_text(str(killed_at or -slow_from))
    given = {"train__num_workers": 1, "train__name": name, "evaluate__segmenter_weights": str(file), **changes}
    return tiny_base(root, storage, **(WATCHED | given))


@pytest.fixture(scope="module")
def whole(ray_session: None, scenes_root: Path, storage: Path) -> Trained:
    """In one go, on one worker."""
    return fit(watched(scenes_root, storage, "whole"), quiet=True)


def curve(trained: Trained, metric: str = "psnr.sigma25") -> dict[int, float]:
    """A metric of the validation by step, as MLflow has it; no step is logged twice."""
    history = MlflowClient(trained.uri).get_metric_history(trained.run_id, f"val.{metric}")
    found = {point.step: point.value for point in history}
    assert len(found) == len(history)
    return dict(sorted(found.items()))


def last(run: Trained) -> Trained:
    """The run at its last checkpoint, whatever was best."""
    folder = run.folder.latest()
    assert folder is not None
    return replace(run, checkpoint=folder, step=checkpoint.step(folder))


@pytest.mark.slow
def test_the_numbers_are_the_evaluations_and_the_best_is_the_model(whole: Trained) -> None:
    psnr = curve(whole)
    assert list(psnr) == list(curve(whole, "miou.sigma25")) == STEPS
    best = max(psnr, key=lambda step: psnr[step])
    assert (whole.step, whole.reached) == (best, 6) and whole.validated["psnr.sigma25"] == psnr[6]
    assert min(psnr.values()) < psnr[best] > psnr[6]  # so that best and last are two
    numbers = evaluate(whole.checkpoint, quiet=True).flat()  # of both scenes, as train.validate_images=16 has no more
    for metric in ("psnr.sigma25", "ssim.sigma25", "miou.sigma25"):
        assert numbers[metric] == pytest.approx(curve(whole, metric)[best], abs=1e-6)
    entry = {"metric": "psnr.sigma25", "step": best, "value": psnr[best]}
    assert whole.folder.read_info()["best"] == checkpoint.meta(last(whole).checkpoint)["best"] == entry
    tags = MlflowClient(whole.uri).get_run(whole.run_id).data.tags
    assert tags["d2sm.best"] == f"psnr.sigma25 {psnr[best]:.4f} at step {best}"
    assert tags["d2sm.checkpoint"] == str(whole.checkpoint)


@pytest.mark.slow
def test_the_best_is_evaluated_and_registered(whole: Trained) -> None:
    """The training is finished, so the same command does what comes after it."""
    outcome = experiment.run(whole.config.replace({"tracking.register_as": "watched"}), quiet=True)
    assert outcome.record is not None and outcome.record.tags["step"] == str(whole.step)
    assert outcome.results.flat()["psnr.sigma25"] == pytest.approx(curve(whole)[whole.step], abs=1e-6)
    found = read_run(whole.run_dir)
    assert (found.step, found.checkpoint) == (whole.step, whole.checkpoint)


@pytest.mark.slow
@pytest.mark.long
def test_it_does_not_change_training(whole: Trained, scenes_root: Path, storage: Path) -> None:
    """Bit for bit: weights, optimizer, random generator, queues and history."""
    off = dict.fromkeys(("train__validate_every", "train__best"))
    same_run(fit(watched(scenes_root, storage, "off", **off), quiet=True), last(whole))


@pytest.mark.slow
def test_a_worker_killed_within_a_validation_changes_nothing(
    whole: Trained, scenes_root: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fourth one: the training goes on from a checkpoint before it, and repeats at least that validation."""
    config = watched(scenes_root, storage, "killed", killed_at=FIRST + 2 * CALLS + 2, train__max_failures=2)
    killed = fit(config)
    said = capsys.readouterr().err
    assert "killed: restarted at step" in said and "val.psnr.sigma25=" in said and "best=" in said
    same_run(last(killed), last(whole))
    assert curve(killed) == curve(whole) and killed.step == whole.step
    assert checkpoint.log(last(killed).checkpoint)["validation"] == checkpoint.log(last(whole).checkpoint)["validation"]


@pytest.mark.slow
@pytest.mark.long
def test_a_stop_within_a_validation_ends_it_and_the_resumed_run_makes_up_for_it(
    whole: Trained, scenes_root: Path, storage: Path
) -> None:
    """Ctrl-C does not wait for hours of validation: the checkpoint is that of the step, and nothing is lost."""
    config = watched(scenes_root, storage, "stopped", slow_from=FIRST + 2 * CALLS + 1)
    marker = storage / "stopped.txt"
    ended = threading.Event()
    stopper = threading.Thread(target=_interrupt, args=(marker, ended))
    stopper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(config, quiet=True)
    finally:  # whatever fails, no Ctrl-C reaches a later test
        ended.set()
        stopper.join()
    newest = checkpoint.latest(storage / "stopped")
    assert newest is not None and checkpoint.step(newest) == 4
    assert [entry["step"] for entry in checkpoint.log(newest)["validation"]["recent"]] == [1, 2, 3]
    resumed = fit(config, quiet=True)
    same_run(last(resumed), last(whole))
    assert curve(resumed) == curve(whole) and resumed.step == whole.step


def _interrupt(marker: Path, ended: threading.Event) -> None:
    """Ctrl-C as soon as the worker says that it is within the validation."""
    while marker.read_text() != "0":
        if ended.wait(0.1):
            return
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.long
def test_two_workers_share_the_images(whole: Trained, scenes_root: Path, storage: Path) -> None:
    """Their weights differ from one worker's by rounding; the numbers are those of the weights."""
    both = fit(watched(scenes_root, storage, "both", train__num_workers=2), quiet=True)
    assert list(curve(both).values()) == pytest.approx(list(curve(whole).values()), abs=0.005)  # dB
    assert curve(both)[6] == pytest.approx(evaluate(last(both).checkpoint, quiet=True).flat()["psnr.sigma25"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_patience_ends_a_run_which_goes_on_only_if_asked(
    whole: Trained, scenes_root: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standing = Standing("psnr.sigma25", 1, {})
    for step, psnr in curve(whole).items():
        standing.add(step, {"psnr.sigma25": psnr})
        if standing.exhausted:
            break
    assert standing.best is not None and step < 6
    config = watched(scenes_root, storage, "patient", train__patience=1)
    stopped = fit(config)
    said = f"patient: stopped early at step {step} of 6: no better psnr.sigma25 in 1 validations (train.patience=1)"
    assert said in capsys.readouterr().out
    assert (stopped.reached, stopped.step) == (step, standing.best.step)
    assert MlflowClient(stopped.uri).get_run(stopped.run_id).info.status == "FINISHED"
    again = fit(config)
    assert (again.reached, again.step) == (step, stopped.step) and said in capsys.readouterr().out
    on = fit(config.replace({"train.patience": None}), quiet=True)
    same_run(last(on), last(whole))
    assert curve(on) == curve(whole)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train__best": "psnr.sigma52"}, "train.best=psnr.sigma52.*did you mean psnr.sigma25"),
        ({"train__best": "loss"}, "train.best=loss"),
        ({"train__best": "noisy.psnr.sigma25"}, "train.best=noisy.psnr.sigma25.*did you mean psnr.sigma25"),
        ({"train__best": "miou.sigma25", "evaluate__segmenter": None}, "train.best=miou.sigma25.*evaluate.segmenter"),
        ({"data__val_split": "nowhere"}, "split 'nowhere' is unknown"),
    ],
)
def test_a_wrong_metric_is_refused_before_anything_starts(
    scenes_root: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = watched(scenes_root, tmp_path, "wrong", **changes)
    with pytest.raises(ValueError, match=words) as error:
        check(config, evaluates=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train.best": "psnr.sigma25"}, "train.best=psnr.sigma25: .*train.validate_every"),
        ({"train.patience": 3}, "train.patience=3: .*train.best"),
        ({"train.patience": 3, "train.validate_every": 5}, "train.patience=3: .*train.best"),
        ({"train.validate_every": 0}, "train.validate_every=0: "),
    ],
)
def test_keys_that_need_each_other(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config().replace(changes)


def test_the_best_is_the_first_of_equals_and_patience_counts_from_it() -> None:
    standing = Standing("ssim.sigma25", 2, {})
    took = [
        standing.add(step, {"ssim.sigma25": value}) for step, value in enumerate((0.5, 0.7, 0.7, 0.6, 0.8), start=1)
    ]
    assert took == [True, True, False, False, True] and standing.best == Best("ssim.sigma25", 5, 0.8)
    assert standing.since == 0 and not standing.exhausted
    for step in (6, 7):
        standing.add(step, {"ssim.sigma25": 0.1})
    assert standing.exhausted and standing.best.step == 5
    with pytest.raises(TrainingError, match="step 8: train.best=ssim.sigma25 has no finite value"):
        standing.add(8, {"psnr.sigma25": 30.0})


def test_a_gradient_that_was_not_finite_is_said_before_anything_is_measured() -> None:
    """On a GPU a validation may come before the log entry that would find it."""
    validation = Validation.__new__(Validation)  # outside of Ray Train
    validation.images = ValidationSet(pa.table({}), segmented=False, every=None, about={})
    validation.task = SimpleNamespace(steps=3)  # type: ignore[assignment]
    validation.log = Log(None, 0, 0, CONFIG.loss)
    for norm in (1.0, float("nan"), 1.0):
        validation.log.add({"loss": torch.tensor(1.0), "gradient_norm": torch.tensor(norm)})
    with pytest.raises(TrainingError, match="^steps 0 to 2: the gradient is not finite; .*train.lr"):
        validation.after(3)


def test_without_a_metric_nothing_is_best() -> None:
    standing = Standing(None, None, {})
    assert not any(standing.add(step, {"psnr.sigma25": float(step)}) for step in range(KEPT + 5))
    assert standing.best is None and not standing.exhausted and len(standing.recent) == KEPT
    assert standing.validated(KEPT + 4) == {"psnr.sigma25": KEPT + 4} and standing.validated(1) == {}


ABOUT = {"images": "abc", "levels": ["25"], "segmenter": "", "lpips_weights": "abc", "labels": "mine-abc"}


def saved(folder: Path, name: str = "run") -> tuple[Path, Config]:
    """A checkpoint at step 20 whose best is that of step 10, and the configuration of its run."""
    standing = Standing("psnr.sigma25", 3, ABOUT)
    for step, value in ((10, 30.0), (20, 29.0)):
        standing.add(step, {"psnr.sigma25": value})
    assert standing.best is not None
    config = CONFIG.replace({"train.name": "run", "train.validate_every": 10, "train.best": "psnr.sigma25"})
    written = bundle_of(folder / "step-00000020", config, log=standing.state(), name=name, **standing.best.entry())
    return written, config.replace({"train.patience": 3})


def test_the_standing_is_a_part_of_a_checkpoint(tmp_path: Path) -> None:
    folder, config = saved(tmp_path)
    found = Standing.at(folder, config, ABOUT)
    assert (found.best, found.since, found.patience) == (Best("psnr.sigma25", 10, 30.0), 1, 3)
    assert [entry["step"] for entry in found.recent] == [10, 20]
    assert Standing.at(None, config, ABOUT).best is None


def test_the_checkpoint_of_another_run_has_no_standing(tmp_path: Path) -> None:
    """Population-based training starts a run from it."""
    folder, config = saved(tmp_path, name="other")
    found = Standing.at(folder, config, ABOUT)
    assert found.best is None and found.since == 0 and found.recent == ()


@pytest.mark.parametrize(
    "key, value",
    [
        ("images", "def"),
        ("levels", ["25", "50"]),
        ("segmenter", "other"),
        ("lpips_weights", "def"),
        ("labels", "mine-def"),
    ],
)
def test_other_images_levels_or_segmenter_cannot_go_on(tmp_path: Path, key: str, value: Any) -> None:
    folder, config = saved(tmp_path)
    with pytest.raises(ConfigError, match=f"train.best=psnr.sigma25: .*step 10 .*{key}") as error:
        Standing.at(folder, config, {**ABOUT, key: value})
    assert "\n" not in str(error.value)


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It did not write down everything that can differ."""
    folder, config = saved(tmp_path)
    assert Standing.at(folder, config, {**ABOUT, "something": "new"}).best == Best("psnr.sigma25", 10, 30.0)


def test_weights_of_lpips_and_label_set_are_a_part_of_what_is_compared(scenes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(
        scenes_root, tmp_path, train__validate_every=1, evaluate__segmenter="tests.helpers.segmenters:segmenter"
    )
    ready = check(config, say=lambda line: None)
    assert ready.subject is not None
    for weights in ("abc", "def"):
        found = _validation_set(replace(ready, subject=replace(ready.subject, lpips_weights=weights)), False)
        assert found is not None and (found.about["lpips_weights"], found.about["labels"]) == (weights, "cityscapes")


@pytest.mark.parametrize("entry", [[], {"since": "x"}, {"since": 0, "about": {}, "recent": [{"step": "a"}]}])
def test_a_damaged_standing_is_one_line(tmp_path: Path, entry: Any) -> None:
    folder, config = saved(tmp_path)
    text = json.dumps({"validation": entry})
    bundle_of(folder, config, log={"validation": entry}, name="run")
    assert (folder / checkpoint.LOG).read_text() == text
    with pytest.raises(checkpoint.CheckpointError, match=r"log\.json") as error:
        Standing.at(folder, config, ABOUT)
    assert "\n" not in str(error.value)


def test_a_network_is_as_it_was_after_a_validation() -> None:
    """In eval mode meanwhile; modes of single parts, running statistics and random numbers stay."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn, images = torch.get_rng_state(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with _undisturbed(network, torch.device("cpu")), torch.no_grad():
        assert torch.equal(network(images), network(images))  # nothing is dropped
        torch.rand(5)
    assert [part.training for part in network.modules()] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
