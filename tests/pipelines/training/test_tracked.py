"""The MLflow run of a training, which is opened while the workers of a new one start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.config import Config
from pipelines.runs.folder import RunFolder
from pipelines.tracking.store import TrackingError
from pipelines.training import tracked
from pipelines.training.tracked import Opening
from tests.helpers.stores import new_store


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config().replace(
        {"train.storage": str(tmp_path), "train.name": "first", "tracking.uri": new_store(tmp_path)}
    )


@pytest.fixture
def folder(config: Config) -> RunFolder:
    made = RunFolder.of(config)
    made.path.mkdir()
    return made


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, no run is opened."""
    event, open_run = threading.Event(), tracked.open_run

    def later(*args: Config | RunFolder) -> tracking.Run:
        assert event.wait(60)
        return open_run(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tracked, "open_run", later)
    return event


def test_a_new_training_does_not_wait_for_its_run(config: Config, folder: RunFolder, held: threading.Event) -> None:
    """What needs the run waits; the process does not end before the database is set up."""
    with Opening(config, folder) as opening:
        opening.check()
        (thread,) = (each for each in threading.enumerate() if each.name == "open MLflow run")
        assert not thread.daemon and folder.read_info() == {}
        held.set()
        opening.run.log(1, {"loss": 0.5})
    found = MlflowClient(config.tracking.uri).get_run(opening.run.id)
    assert found.info.status == "FINISHED" and found.data.metrics == {"loss": 0.5}
    assert folder.read_info()["run_id"] == opening.run.id


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_how_a_training_ended(config: Config, folder: RunFolder, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), Opening(config, folder) as opening:
        assert opening.run.id
        raise error
    assert MlflowClient(config.tracking.uri).get_run(opening.run.id).info.status == status


def test_ctrl_c_waits_for_no_run_that_does_not_open(
    config: Config, folder: RunFolder, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "_CLOSING", 0.1)
    with pytest.raises(KeyboardInterrupt), Opening(config, folder):
        raise KeyboardInterrupt
    held.set()


def delete_experiment(config: Config, folder: RunFolder) -> str:
    client = MlflowClient(config.tracking.uri)
    client.delete_experiment(client.create_experiment(config.tracking.experiment))
    return "tracking.experiment=d2sm: deleted in .*restore it"


def lose_run(config: Config, folder: RunFolder) -> str:
    folder.write_info(run_id="deadbeef")
    return "holds no run deadbeef"


@pytest.mark.parametrize(("refuse", "reached"), [(delete_experiment, True), (lose_run, False)])
def test_a_store_that_refuses_the_run(
    config: Config, folder: RunFolder, refuse: Callable[[Config, RunFolder], str], reached: bool
) -> None:
    """It is told while the workers of a new training start, and before those of a resumed one do."""
    reason, began = refuse(config, folder), False
    with pytest.raises(TrackingError, match=reason) as caught, Opening(config, folder) as opening:
        began = True
        for ask in (lambda: opening.run, opening.check):
            with pytest.raises(TrackingError, match=reason):
                ask()
    assert began is reached and "\n" not in str(caught.value)


def test_the_reason_of_the_block_is_told(config: Config, folder: RunFolder) -> None:
    delete_experiment(config, folder)
    with pytest.raises(ValueError, match="the block's"), Opening(config, folder):
        raise ValueError("the block's")
