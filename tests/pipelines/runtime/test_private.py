"""The names of Ray and MLflow that they do not promise to keep: they exist and mean what the project takes them for."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import signal
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import ray
import ray.data
from packaging.requirements import Requirement
from packaging.version import Version
from ray import tune
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining

from pipelines.runtime import private
from pipelines.runtime.session import cause
from pipelines.tracking import store

ROOT = Path(__file__).resolve().parents[3]
# Private names of modules and objects, but for one's own, torch's, and namedtuple's _replace, os._exit and a tensor's
# _version, which are documented; and names without an underscore that are not documented.
PRIVATE = re.compile(
    r"(?<!\bself)(?<!\bcls)(?<!\bsuper\(\))(?<!\btorch)(?<!\btorch\.utils)\._(?!replace\(|exit\(|version\b)[a-z]|node:__|\.to_proto\(|system_metrics_monitor"
)


def test_no_other_file_uses_private_names() -> None:
    files = [path for floor in ("d2sm", "pipelines", "tuning", "cluster") for path in (ROOT / floor).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if PRIVATE.search(path.read_text())}
    assert found == {"pipelines/runtime/private.py"}


@pytest.mark.parametrize("name", ["ray", "mlflow"])
def test_the_next_version_is_not_installed_before_it_was_tried(name: str) -> None:
    """Its requirement ends before the version that follows the pinned one, with which the tests of this file pass."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(one) for one in project["optional-dependencies"]["pipelines"]]
    (allowed,) = (one.specifier for one in wanted if one.name == name)
    pins = dict(line.split("==") for line in (ROOT / "pins.txt").read_text().splitlines() if "==" in line)
    pinned = Version(pins[name])
    assert allowed.contains(pinned) and allowed.contains(f"{pinned.major}.{pinned.minor}.99")
    assert not allowed.contains(f"{pinned.major}.{pinned.minor + 1}.0")
    assert allowed.contains(metadata.version(name)), "the installed one was not tried"


def test_the_head_node_has_a_resource_of_its_own(ray_session: None) -> None:
    assert [node["Resources"].get(private.HEAD_NODE) for node in ray.nodes() if node["Alive"]] == [1.0]


def test_ray_asks_for_a_token(ray_session: None) -> None:
    assert private.asks_for_token(ray.get_runtime_context().gcs_address) is True


@pytest.mark.parametrize("name", private.JOB_LOGGERS)
def test_the_job_client_writes_to_these_loggers(name: str) -> None:
    values = vars(importlib.import_module(name)).values()
    assert name in {value.name for value in values if isinstance(value, logging.Logger)}


@pytest.fixture
def nodes_to_start(ray_session: None) -> Iterator[None]:
    """Ray is told of up to 4 more nodes of 8 CPUs, as an autoscaler tells it, and again of none afterwards."""
    from ray.core.generated import autoscaler_pb2

    def report(config: autoscaler_pb2.ClusterConfig) -> None:
        ray._private.worker.global_worker.gcs_client.report_cluster_config(config.SerializeToString())

    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "cpu", 4
    group.resources["CPU"] = 8
    report(config)
    yield
    report(autoscaler_pb2.ClusterConfig())


def test_what_an_autoscaler_may_start_is_known(nodes_to_start: None) -> None:
    assert private.autoscaler_limits() == {"CPU": 32}


def test_without_an_autoscaler_there_is_no_limit_to_know(ray_session: None) -> None:
    assert private.autoscaler_limits() == {}


@pytest.mark.parametrize("ahead", [2, 12])
def test_a_task_of_ray_data_makes_blocks_ahead(ray_session: None, tmp_path: Path, ahead: int) -> None:
    """A task of 12 blocks, of which Ray fetches but a few: it ends only where it may make all of them ahead."""
    finished = tmp_path / "finished"

    def make(batch: object) -> Iterator[dict[str, object]]:
        for number in range(12):
            yield {"number": [number], "pixels": np.zeros((1, 2**21), np.uint8)}
        finished.touch()

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # every row a block
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=2, object_store_memory=2**22)
    private.let_blocks_wait(context, ahead)
    with ray.data.DataContext.current(context):
        made = ray.data.from_items([{"task": 0}]).map_batches(make)
    rows = iter(made.iter_batches(batch_size=1, prefetch_batches=0))
    assert next(rows)["number"] == [0]
    end = time.monotonic() + (2 if ahead == 2 else 30)
    while not finished.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert finished.exists() == (ahead == 12)
    assert [int(row["number"][0]) for row in rows] == list(range(1, 12))


class Stamps:
    """Writes the time of each step of Ray Data's scheduler to a file, from within the process that it runs in."""

    file: Path

    def on_execution_step(self, executor: object) -> None:
        with self.file.open("a") as file:
            print(time.monotonic(), file=file)

    def before_execution_starts(self, executor: object) -> None:
        pass

    def after_execution_succeeds(self, executor: object) -> None:
        pass

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        pass


def test_ray_datas_scheduler_pauses_while_blocks_wait_for_their_reader(ray_session: None, tmp_path: Path) -> None:
    """It would take thousands of steps a second otherwise; all rows then come in order."""

    class Before(Stamps):
        file = tmp_path / "before"

    class After(Stamps):
        file = tmp_path / "after"

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=2, object_store_memory=2**22)
    private.let_blocks_wait(context, 20)
    context.custom_execution_callback_classes.append(Before)
    private.pause_when_idle(context)
    context.custom_execution_callback_classes.append(After)
    with ray.data.DataContext.current(context):
        source = ray.data.from_items([{"task": task} for task in range(30)], override_num_blocks=30)
        made = source.map_batches(_rows, batch_size=1, num_cpus=0.5)
    (split,) = made.streaming_split(1)
    rows = iter(split.iter_batches(batch_size=1, prefetch_batches=1))
    next(rows)
    time.sleep(3)  # until as many blocks are made as have room
    idle = time.monotonic()
    time.sleep(1)
    before, after = ([float(line) for line in each.file.read_text().splitlines()] for each in (Before, After))
    pauses = [end - begin for begin, end in zip(before, after, strict=False) if begin > idle]
    assert pauses and sum(pause >= 0.01 for pause in pauses) > len(pauses) / 2
    assert [int(row["number"][0]) for row in rows] == [*range(1, 20), *(list(range(20)) * 29)]


def _rows(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for number in range(20):
        yield {"number": np.array([number]), "crops": np.zeros((1, 100, 100, 3), np.uint8)}


def test_the_reason_within_rays_errors() -> None:
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    reason = ValueError("data.root=nowhere")
    task = RayTaskError("step", "Traceback ...", reason)
    assert cause(task) is reason
    assert cause(WorkerGroupError("a worker failed", {0: task})) is reason
    assert cause(ControllerError(reason)) is reason
    outer = RuntimeError("outer")
    outer.__cause__ = task
    assert cause(outer) is reason
    assert cause(reason) is reason


def test_the_records_of_a_database(tmp_path: Path) -> None:
    client = store.prepare(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = client.create_run(client.create_experiment("one", artifact_location=tmp_path.as_uri())).info.run_id
    for step in (1, 7):
        client.log_metric(run_id, "loss", 1 / step, step=step)
    client.log_metric(run_id, "lr", 0.1, step=3)
    assert private.newest_steps(client.get_run(run_id)) == {"loss": 7, "lr": 3}
    database = tmp_path / "mlflow.db"
    assert private.database_run(database, run_id) == private.database_run(database, None) == "active"
    assert private.database_run(database, "0" * 32) == private.database_run(tmp_path / "none", None) == ""
    client.delete_run(run_id)
    assert private.database_run(database, run_id) == "deleted"
    assert tmp_path.as_uri() in private.artifact_locations(database)
    private.move_artifacts(database, tmp_path.as_uri(), "file:///moved")  # (the columns: tracking/test_location.py)
    assert "file:///moved" in private.artifact_locations(database)
    assert client.get_run(run_id).info.artifact_uri == f"file:///moved/{run_id}/artifacts"


def test_the_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2.5")
    seconds, read = private.system_gauges("0" * 32, f"sqlite:///{tmp_path}/mlflow.db")
    assert seconds == 2.5
    for _ in range(2):  # a reading starts afresh
        found = read()
        assert 0 < found["system_memory_usage_percentage"] < 100
        assert "cpu_utilization_percentage" in found


def test_a_task_and_an_actor_are_known_to_be_such(ray_session: None) -> None:
    class Actor:
        def asked(self) -> bool:
            return private.in_a_worker()

    assert not private.in_a_worker()
    assert ray.get(ray.remote(num_cpus=0)(private.in_a_worker).remote())
    assert ray.get(ray.remote(num_cpus=0)(Actor).remote().asked.remote())


def test_a_trainer_without_the_actor_that_asks_a_dashboard() -> None:
    """Which one it is of a trainer's callbacks, and that the trainer asks this method for them."""

    def names(trainer: TorchTrainer) -> list[str]:
        return [type(each).__name__ for each in trainer._create_default_callbacks()]

    trainer = TorchTrainer(print)
    usual = names(trainer)
    assert "PlacementGroupCleanerCallback" in usual
    private.without_cleaner(trainer)
    assert names(trainer) == [name for name in usual if name != "PlacementGroupCleanerCallback"]
    assert "self._create_default_callbacks()" in inspect.getsource(DataParallelTrainer.fit)


def test_ray_tune_can_be_asked_to_stop(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    handlers: list[object] = []

    class Endless(tune.Trainable):
        def step(self) -> dict[str, float]:
            time.sleep(0.05)
            return {"loss": 1.0}

    class Stop(tune.Callback):
        def on_trial_result(self, *_: object, **__: object) -> None:
            handlers.append(signal.getsignal(signal.SIGINT))
            assert private.stop_tune()

    class Noting(FIFOScheduler):
        added: ClassVar[list[Trial]] = []

        def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
            self.added.append(trial)

    assert not private.stop_tune()
    run_config = tune.RunConfig(name="endless", storage_path=str(tmp_path), verbose=0, callbacks=[Stop()])
    try:
        tune.Tuner(tune.with_resources(Endless, {private.HEAD_NODE: 0.1}), run_config=run_config).fit()
        restored = tune.Tuner.restore(str(tmp_path / "endless"), trainable=Endless)
        searcher, callbacks = private.parts_of(restored)
        assert searcher is None and [type(each).__name__ for each in callbacks] == ["Stop"]
        assert set(handlers) == {before[signal.SIGINT]}  # Tune leaves SIGINT alone
        private.replace_scheduler(restored, Noting())
        assert not Noting.added
        restored.fit()
        assert len(Noting.added) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not private.stop_tune()


def test_population_based_training_is_told_what_was_before_a_resume() -> None:
    scheduler = PopulationBasedTraining(
        "budget", "loss", "min", perturbation_interval=1, hyperparam_mutations={"lr": [0.1, 0.2]}, synch=True
    )
    trials = [Trial("t", stub=True, config={"lr": 0.1}) for _ in range(2)]
    controller = SimpleNamespace(search_alg=None, get_trials=lambda: trials, get_live_trials=lambda: trials)
    for trial, budget in zip(trials, (3, 2), strict=True):
        trial.set_status(Trial.PAUSED)
        scheduler.on_trial_add(controller, trial)
        private.remember_report(scheduler, trial, {"budget": budget, "loss": 0.5})
    assert scheduler.last_scores(trials) == [-0.5, -0.5] and scheduler.choose_trial_to_run(controller) is None
    private.begin_round(scheduler, trials)
    assert scheduler.choose_trial_to_run(controller) is trials[1]
