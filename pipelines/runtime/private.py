"""Every name of Ray and MLflow that the project uses although their documentation does not promise it.

One small function each, so that an upgrade of Ray or MLflow opens this file alone. tests/pipelines/runtime has a test
for each of them (test_private.py), which fails when the name is gone or its meaning has changed, and one that no other
file uses such a name. Nothing heavy is imported before a function is called: the command line's help loads no Ray,
Ray's workers no MLflow, ingest tasks no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Run
    from ray.data import DataContext
    from ray.job_config import JobConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.tune import Tuner
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

HEAD_NODE = "node:__internal_head__"
"""A resource of which Ray gives 1.0 to the head node and none to others: who reserves some of it runs there."""

JOB_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""The loggers with which Ray's job client announces every upload."""


def autoscaler_limits() -> dict[str, float]:
    """The most of each resource that the cluster would have once its autoscaler had started every node it may start.

    Empty if no autoscaler has reported them to the cluster. Ray is up.
    """
    from ray._private.state import state  # Ray's own trainer asks here

    return dict(state.get_max_resources_from_cluster_config() or {})


def asks_for_token(address: str, *, timeout: float = 4.0) -> bool | None:
    """Whether the cluster at host:port refuses who sends no token of Ray's: asked without one, which joins nothing.

    None where it cannot be told: the cluster uses TLS, or gives another answer.
    """
    import grpc  # of ray[default]

    if "://" in address or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return None
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=timeout)
        except grpc.RpcError as error:
            return True if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return False


def in_a_worker() -> bool:
    """Whether this process runs a task or an actor of Ray's; a task has no id of an actor."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def stay_on_loopback() -> None:
    """Let the Ray that this process starts listen on loopback alone. To be called before `ray.init`.

    Ray takes the address of the network interface as its own, and replaces a loopback address that it is given, unless
    it is told that there are no clusters, as it is by default on Windows and macOS.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def cluster_on_this_machine() -> str | None:
    """The host:port of the cluster that RAY_ADDRESS=auto means; None if no cluster runs on this machine."""
    from ray._private import services

    try:
        return services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None


def without_cleaner(trainer: DataParallelTrainer) -> None:
    """Let a trainer start no actor that removes its placement group once its controller is dead.

    That actor asks the dashboard of the first cluster that it finds on the machine. For a Ray without a dashboard this
    is another one. If that is up, the answer is that the controller is dead: the actor removes the placement group that
    it was told of, with its workers. If it was killed and has left its address, the end of a training waits 12 s for
    the actor.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    callbacks = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [  # type: ignore[method-assign]
        each for each in callbacks() if not isinstance(each, PlacementGroupCleanerCallback)
    ]


def stop_tune() -> bool:
    """Let the Ray Tune run of this process save its state, end its trials and return; False: no run has begun.

    Its own handler of SIGUSR1 does that; it is set for as long as a run goes on. To be called in the main thread.
    """
    handler = signal.getsignal(signal.SIGUSR1)
    if not callable(handler) or getattr(handler, "__module__", "") != "ray.tune.tune":
        return False
    handler(signal.SIGUSR1, None)
    return True


def parts_of(tuner: Tuner) -> tuple[Any, list[Any]]:
    """The searcher (None: Ray Tune's own) and the callbacks of a restored `Tuner`, as it will use them.

    They were pickled when the sweep was started, and `Tuner.restore` takes no others.
    """
    inner = tuner._local_tuner
    return inner._tune_config.search_alg, list(inner.get_run_config().callbacks or [])


def replace_scheduler(tuner: Tuner, scheduler: TrialScheduler) -> None:
    """Let a restored `Tuner` use this scheduler, and not the one that was pickled when the sweep was started."""
    tuner._local_tuner._tune_config.scheduler = scheduler


def remember_report(scheduler: PopulationBasedTraining, trial: Trial, result: dict[str, Any]) -> None:
    """Let population-based training know the report that a trial had made, and was compared by, before a resume."""
    state, time = scheduler._trial_state[trial], result[scheduler._time_attr]
    scheduler._save_trial_state(state, time, result, trial)
    state.last_perturbation_time = time


def begin_round(scheduler: PopulationBasedTraining, trials: Collection[Trial]) -> None:
    """Let synchronous population-based training run these trials until each has made one report more."""
    reached = min(scheduler._trial_state[trial].last_train_time for trial in trials)
    scheduler._next_perturbation_sync = reached + scheduler._perturbation_interval


def import_as_here(config: JobConfig) -> JobConfig:
    """Let Ray's workers look for modules where this process does, and in the current folder last.

    Ray puts the current folder first, where a folder called pipelines, or a file called torch.py, would be imported
    instead of the real one. In a submitted job, whose code Ray has put on the path itself, nothing is changed.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        places = [os.path.abspath(place) for place in sys.path if place]
        # A worker puts one after the other in front of its path.
        config._py_driver_sys_path = _Fixed([os.getcwd(), *reversed(places)])
    return config


class _Fixed(list[str]):
    """A list to which Ray adds nothing."""

    def extend(self, _: object) -> None:
        pass


def let_blocks_wait(context: DataContext, blocks: int) -> None:
    """Let each task of Ray Data make so many blocks before any of them is fetched; by default it waits after two."""
    context._max_num_blocks_in_streaming_gen_buffer = blocks


def pause_when_idle(context: DataContext) -> None:
    """Let Ray Data's scheduler sleep for 10 ms where nothing has changed since it last looked.

    Without that its thread keeps a CPU busy while the blocks that are made wait for their reader, which in training is
    nearly always.
    """
    context.custom_execution_callback_classes.append(_PauseWhenIdle)


class _PauseWhenIdle:
    """What Ray Data calls an execution callback; it takes any class with these methods."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_execution_step(self, executor: Any) -> None:
        found = []
        for op, state in executor._topology.items():
            counts = op.metrics
            found += [
                op.num_active_tasks(),
                len(state.output_queue),
                counts.num_tasks_submitted,
                counts.num_outputs_taken,
            ]
        if found == self.seen:
            time.sleep(0.01)
        self.seen = found

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass


def wrapped(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error of Ray's was raised for: a task's, those of Ray Train's workers, its controller's."""
    yield from (getattr(error, "worker_failures", None) or {}).values()
    for name in ("cause", "controller_failure", "__cause__"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException) and inner is not error:
            yield inner


def newest_steps(run: Run) -> dict[str, int]:
    """The newest step of every metric of an MLflow run, as the run came from the store."""
    return {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}


def database_run(database: Path, run_id: str | None) -> str:
    """Whether an MLflow database in a sqlite file has a run: "active", "deleted", or "" for no. The file is read only.

    Args:
        run_id: None: "active" if the file is an MLflow database at all.
    """
    query = "SELECT lifecycle_stage FROM runs" + (" WHERE run_uuid = ?" if run_id else " LIMIT 1")
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            found = db.execute(query, (run_id,) if run_id else ()).fetchone()
    except sqlite3.Error:  # no database, or somebody else's
        return ""
    return "active" if run_id is None else str(found[0]) if found else ""


_ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def artifact_locations(database: Path) -> set[str]:
    """Where the experiments in a sqlite file of MLflow's keep their artifacts: URIs, absolute.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            return {str(uri) for (uri,) in db.execute("SELECT artifact_location FROM experiments") if uri}
    except sqlite3.Error as error:
        raise OSError(f"{database}: {error}") from None


def move_artifacts(database: Path, old: str, new: str) -> None:
    """Rewrite the beginning of every artifact's URI in a sqlite file of MLflow's, which offers no way to do it.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as db, db:
            for table, column in _ARTIFACT_COLUMNS:
                db.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
    except sqlite3.Error as error:
        raise OSError(f"{database}: {error}") from None


def system_gauges(run_id: str, uri: str) -> tuple[float, Callable[[], dict[str, float]]]:
    """MLflow's measurements of this machine: CPU, memory, disk, network, GPUs.

    MLflow's own thread, which would read them, ends at its first failure; so the caller reads and sends them.

    Args:
        run_id, uri: of the MLflow run and its store, which MLflow's class asks for.

    Returns:
        Seconds between two readings as MLflow's settings have them, and a function that takes a reading: by name.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor: Any = SystemMetricsMonitor(run_id, tracking_uri=uri)  # type: ignore[no-untyped-call]

    def read() -> dict[str, float]:
        monitor.collect_metrics()
        found = dict(monitor.aggregate_metrics())
        for gauge in monitor.monitors:
            gauge.clear_metrics()
        return found

    return float(monitor.sampling_interval), read
