"""Several runs on one Ray: checked together, and trained and evaluated side by side, as many as fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray

from pipelines import experiment, tracking
from pipelines.check import NotReady, check, refuse
from pipelines.comparison.rows import FinishedRun, RunsError, check_measured_alike, label, read_run
from pipelines.config import Config, ConfigError
from pipelines.data import plan, splits
from pipelines.evaluate import Subject, without_numbers
from pipelines.evaluate import check as check_evaluation
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import FILES_READ
from pipelines.runtime import leaving, resources, session
from pipelines.runtime.owner import InUseError
from pipelines.runtime.progress import Line
from pipelines.text import one_line, show
from pipelines.training import tracked
from pipelines.training.messages import QueueReader, RunProgress

# After Ctrl-C; in all less than the 60 s that `d2sm jobs stop` waits.
_STOP_SECONDS = 40.0  # that a run has to write its checkpoint
_SETTLE_SECONDS = 10.0  # for the records in MLflow, and for the end of Ray


def finished(config: Config) -> FinishedRun | None:
    """The run, if it is finished: trained as configured, and evaluated as it is asked for now."""
    try:
        found = read_run(RunFolder.of(config).path)
    except (RunsError, checkpoint.CheckpointError):
        return None
    return None if found.config.differences(config, "results", "length", "run", "evaluation") else found


def is_done(config: Config) -> bool:
    """Whether `finished` gives this run, and all that follows its evaluation was done too."""
    return finished(config) is not None and bool(RunFolder.of(config).read_info().get("completed", True))


def refuse_names(changes: Mapping[str, Any], what: str) -> None:
    """Refuse keys that are set for each run of a table, a study or a sweep: a value that was asked for would be lost.

    And those that register the model of each run of a table or a study: the alias would be that of whichever ends last.

    Args:
        changes: dotted keys with the values that were asked for.
        what: "table", "study" or "sweep".

    Raises:
        ConfigError: names the first such key.
    """
    for key, remedy in (("train.name", f"name the {what} with --name"), ("tracking.parent", "leave it out")):
        if changes.get(key):
            raise ConfigError(f"{key}={changes[key]}: a {what} sets it for each of its runs; {remedy}")
    for key in ("tracking.register_as", "tracking.alias"):
        if changes.get(key) and what != "sweep":  # which registers its best point alone
            raise ConfigError(
                f"{key}={changes[key]}: a {what} registers no model; leave it out, and register the best run "
                "afterwards: `d2sm models register RUN --as NAME --alias ALIAS`"
            )


@dataclass(frozen=True)
class Training:
    """What is known of a run before it starts.

    Attributes:
        config: with what was settled by itself (`splits.settled`).
        steps: of its training.
        fingerprint: of its training images.
        subject: of its evaluation.
    """

    config: Config
    steps: int
    fingerprint: str
    subject: Subject


def check_all(settings: Mapping[str, Config]) -> dict[str, Training]:
    """Check before the first run starts whatever a run of each setting will need.

    Args:
        settings: settled (`splits.settled`), by any name; a run of each, since its other seeds need the same.

    Raises:
        NotReady: all reasons, of all settings; a single one is raised as it is.
    """
    found: dict[str, Training] = {}
    reasons: list[Exception] = []
    said: dict[str, None] = {}
    for name, config in settings.items():
        try:
            ready = check(config, given=splits.SETTLED, say=lambda line: said.update({line: None}))
            assert ready.subject is not None  # each is evaluated
            steps = plan.total_steps(config, ready.training.num_rows)
            found[name] = Training(ready.config, steps, ready.fingerprint, ready.subject)
        except NotReady as error:
            reasons += map(ValueError, error.reasons)
        except (ValueError, OSError) as error:
            reasons.append(error)
    refuse(reasons)
    for line in said:
        show(line)
    return found


def check_compared(done: Sequence[tuple[Config, FinishedRun]], missing: Mapping[str, Training]) -> None:
    """Make sure, before the first run starts, that what the runs will give can be compared with what is finished.

    Args:
        done: the finished runs, each with the configuration that is asked for now.
        missing: the runs that will be trained, by the name that people see.

    Raises:
        RunsError: two of them are not evaluated in the same way; or a finished one was evaluated on other images, or
            with other weights, than those that a changed path names. One line.
        DataError, SegmenterError, ...: such a path cannot be used, as `evaluate.check`.
    """
    damaged = done[0][1].results.skipped if done else {}
    measured = [(str(run.folder), run.results) for _, run in done]
    moved = {label(config): (config, run) for config, run in done if _names_other_files(config, run.config)}
    for config, run in moved.values():
        asked = without_numbers(config, check_evaluation(config), damaged=damaged)
        check_measured_alike([(str(run.folder), run.results), (f"{run.folder}, as asked for now", asked)])
    measured += [(name, without_numbers(one.config, one.subject, damaged=damaged)) for name, one in missing.items()]
    check_measured_alike(measured)


def _names_other_files(asked: Config, own: Config) -> bool:
    """Whether an evaluation as asked for reads images or weights at other places than the run's own did."""
    now, then = asked.flat(), own.flat()
    changed = (key for key in FILES_READ if now[key] != then[key])
    return any(Path(name).exists() for key in changed for name in asked.names(key))


@contextmanager
def record(first: Config, folder: RunFolder, *, tag: str) -> Iterator[tracking.Run]:
    """The MLflow run of a table or a study, in its folder; those of its runs are shown below it.

    Args:
        first: one of its runs, which says where MLflow is.
        tag: that holds the folder's name, such as "d2sm.table".
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    tags, run_id = {tag: folder.path.name}, folder.read_info().get("run_id")
    with tracking.open_run(first, run_dir=folder.path, tags=tags, run_id=run_id, log_config=False) as parent:
        folder.write_info(run_id=parent.id, page=parent.page)
        yield parent


def send_waiting(done: Iterable[Config]) -> dict[str, str]:
    """Send what MLflow did not take when these runs ended; gives what it still lacks of each, by run name."""
    left = {config.train.name: tracked.send_waiting(RunFolder.of(config), tracking.uri_of(config)) for config in done}
    return {name: lacks for name, lacks in left.items() if lacks}


class Ended(NamedTuple):
    """Runs of `run_all` of which something is left to do, by run name.

    Attributes:
        failed: why.
        untracked: what MLflow lacks of one that has finished, see `tracked.untracked`.
    """

    failed: dict[str, str]
    untracked: dict[str, str]


def run_all(missing: Mapping[str, Config], most: int, line: Line, write: Callable[[], object]) -> Ended:
    """Run them all, `most` at once, and call `write` after each.

    Args:
        missing: by the name that people see; their run names differ.
    """
    shown = {config.train.name: name for name, config in missing.items()}
    failed: dict[str, str] = {}
    untracked: dict[str, str] = {}
    reached: dict[str, int] = {}  # run -> its last step

    def watch(progress: RunProgress) -> None:
        reached[progress.name] = progress.step
        line.to(sum(reached.values()), {f"{shown[progress.name]}: loss": progress.loss})

    with QueueReader(watch) as reader:
        waiting = list(missing.values())
        running: dict[Any, Config] = {}  # by Ray's reference to its task
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    config = waiting.pop(0)
                    own = resources.process_resources(config)
                    # Made anew, because Ray starts a process for each task of a function declared with GPUs, and CUDA
                    # keeps the GPU that a process has first used.
                    run = ray.remote(num_cpus=own["CPU"], num_gpus=own["GPU"], max_retries=0)(_run_experiment)
                    running[run.remote(config.model_dump(mode="json"), reader.queue)] = config
                ended, _ = ray.wait(list(running), num_returns=1)
                config = running.pop(ended[0])
                name = config.train.name
                why, lacks = _ended(ended[0])
                if lacks:
                    untracked[name] = lacks
                if why:
                    failed[name] = why
                    line.say(f"failed    {shown[name]}: {why}")
                    _settle(config, "FAILED", line)
                else:
                    results = read_run(RunFolder.of(config).path).results
                    line.say(f"finished  {shown[name]}: {' / '.join(results.titles)} at {results.line()}")
                write()
        except KeyboardInterrupt:
            leaving.grace(_STOP_SECONDS + _SETTLE_SECONDS)
            raise
        finally:  # after Ctrl-C or an error some are left; each resumes from its last checkpoint
            if running:
                for task in running:
                    ray.cancel(task)
                _, left = ray.wait(list(running), num_returns=len(running), timeout=_STOP_SECONDS)
                for task in left:  # no other: Ray aborts this process if it cancels a task that is just ending
                    ray.cancel(task, force=True)
                if left:  # until their processes, which own their folders, have ended
                    ray.wait(left, num_returns=len(left), timeout=_SETTLE_SECONDS / 2)
                for config in running.values():
                    _settle(config, "KILLED", line)
    return Ended(failed, untracked)


def _run_experiment(tree: Mapping[str, Any], messages: Any) -> str:
    """One run, in a process of its own. Gives what MLflow lacks of it."""
    session.quiet()
    config = Config.model_validate(tree)

    def watch(step: int, metrics: Mapping[str, float]) -> None:
        messages.send.remote(RunProgress(config.train.name, step, metrics["loss"]))

    folder, begun = RunFolder.of(config), time.monotonic()
    with folder.owned():  # before anything is written to it, also below
        try:
            return experiment.run(config, quiet=True, watch=watch, given=splits.SETTLED).untracked
        finally:
            if folder.info_file.exists():
                folder.write_info(seconds=folder.read_info().get("seconds", 0.0) + time.monotonic() - begun)


def _ended(task: Any) -> tuple[str, str]:
    """Why a task that has ended failed, "" if it did not; and what MLflow lacks of its run."""
    try:
        return "", ray.get(task)
    except ray.exceptions.WorkerCrashedError:
        return "its process died, perhaps for lack of memory", ""
    except Exception as error:  # Ray wraps the original exception in several layers
        return one_line(session.cause(error), 600), ""


def _settle(config: Config, status: tracking.Status, line: Line) -> None:
    """Note in a run's MLflow record how it ended; the process that would have done so may be gone.

    The other runs go on, and are noted, if MLflow does not answer. The record of a run that another process has taken
    up is that one's.
    """
    folder = RunFolder.of(config)
    try:
        if run_id := folder.read_info().get("run_id"):
            with folder.owned():
                tracking.end_runs(tracking.uri_of(config), {run_id: status})
    except InUseError:
        pass
    except (tracking.TrackingError, ConfigError, OSError) as error:
        line.say(f"{config.train.name}: MLflow does not show it as {status}: {one_line(error)}")
