"""Checks before a long run: every node is asked what it sees, and each check becomes a line."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import verdicts
from cluster.probe import OURS, Ask, Seen, look
from pipelines.check import Check, NotReady, check
from pipelines.config import NO_JUDGES, WEIGHTS, Config
from pipelines.data.labels import BUILT_IN
from pipelines.runs import storage as remote
from pipelines.runs.trust import named_code
from pipelines.runtime import resources, session
from pipelines.runtime.progress import stage
from pipelines.text import counted, one_line, show

_PATIENCE = 60.0  # seconds for a node to answer; the first task on a node has to start a process


def preflight(
    config: Config, *, evaluates: bool = True, given: Collection[str] = (), verbose: bool = False
) -> list[Check]:
    """Check what a run needs: what this machine knows, and on the cluster at RAY_ADDRESS what every node sees.

    Args:
        evaluates: whether the run is evaluated after its training.
        given: keys whose values somebody asked for (see `splits.settled`).
        verbose: show Ray's own log.

    Raises:
        AuthError: the cluster must not be joined like this.
    """
    checks: list[Check] = []
    with suppress(ValueError, OSError):  # each is a failed check too
        config = check(config, evaluates=evaluates, given=given, tell=checks.append).config
    if not os.environ.get("RAY_ADDRESS"):
        return checks
    # What all nodes see says more than what this machine sees, unless that is wrong already.
    asked = ask_nodes(config, evaluates=evaluates, verbose=verbose)
    failed = {each.name for each in checks if not each.ok}
    asked = [each for each in asked if each.name not in failed]
    return [each for each in checks if each.name not in {other.name for other in asked}] + asked


def ask_nodes(config: Config, *, evaluates: bool = True, verbose: bool = False) -> list[Check]:
    """Ask every node of the cluster at RAY_ADDRESS what it sees of what a run needs; arguments as for `preflight`.

    Raises:
        AuthError: see `preflight`.
    """
    if not evaluates and config.train.validate_every is None:
        config = config.replace(NO_JUDGES)  # not needed, so not asked for
    session.start(cpus=resources.run_cpus(config), verbose=verbose)
    living = [node for node in ray.nodes() if node["Alive"]]
    stage(f"asking {counted(len(living), 'node')} what they have")
    files, modules, trouble = _weights(config)
    with _trial(config.train.storage) as (trial, unwritable):
        ask = Ask(config.data.root, trial, files, modules)
        here = look(ask, "here")
        seen = _asked(ask, {node["NodeID"]: node["NodeManagerAddress"] for node in living})
    answered = {name: answer for name, answer in seen.items() if answer}
    return [
        verdicts.nodes(seen),
        verdicts.workers_fit(config, [node["Resources"] for node in living]),
        verdicts.versions(here, answered),
        verdicts.data(config.data.root, here, answered),
        verdicts.storage(config.train.storage, unwritable, answered),
        verdicts.weights(trouble, answered),
    ]


def refuse_failed(checks: Sequence[Check]) -> None:
    """Raise NotReady if some of these checks failed."""
    if failed := [each.answer for each in checks if not each.ok]:
        raise NotReady(*failed)


def passes(checks: Sequence[Check], out: TextIO | None = None) -> bool:
    """Print a line for each check; return whether all are ok."""
    for each in checks:
        show(each, file=out or sys.stdout)
    return all(each.ok for each in checks)


def _asked(ask: Ask, addresses: Mapping[str, str]) -> dict[str, Seen | None]:
    """Every node's answer by the node's name; None for a node that did not answer."""
    hosts = list(addresses.values())
    names = {node: host if hosts.count(host) == 1 else f"{host}/{node[:6]}" for node, host in addresses.items()}
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    pending = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(ask, node): name
        for node, name in names.items()
    }
    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_PATIENCE)
    found: dict[str, Seen | None] = dict.fromkeys(pending.values())
    for answer in done:
        try:
            found[pending[answer]] = ray.get(answer)
        except ray.exceptions.RayError:
            found[pending[answer]] = None
    return found


@contextmanager
def _trial(storage: str) -> Iterator[tuple[str, str]]:
    """A temporary folder in the storage that holds a file of the driver's; and why it could not be made, or ""."""
    name = f".d2sm-check-{uuid.uuid4().hex[:8]}"
    if "://" in storage:
        with _trial_at(remote.joined(storage, name)) as made:
            yield made
        return
    top = Path(storage).expanduser().absolute()
    trial, trouble = top / name, ""
    missing = [folder for folder in (top, *top.parents) if not folder.exists()]  # from the storage upwards
    try:
        trial.mkdir(parents=True)
        (trial / OURS).touch()
    except OSError as error:
        trouble = error.strerror or str(error)
    try:
        yield str(trial), trouble
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        with suppress(OSError):  # one that is not empty by now is somebody's
            for folder in missing:
                folder.rmdir()


@contextmanager
def _trial_at(uri: str) -> Iterator[tuple[str, str]]:
    place: Any = None
    try:
        place, path = remote.opened(uri, asked_by="train.storage")
        place.create_dir(path)
        place.open_output_stream(f"{path}/{OURS}").close()
    except (OSError, ValueError) as error:
        yield uri, one_line(error, 200)
        return
    try:
        yield uri, ""
    finally:
        place.delete_dir(path)


def _weights(config: Config) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The files and modules that every node must have, and why they cannot be loaded here, or ""."""
    no_objective = _trouble(lambda: _load_objective(config))
    trouble = no_objective or _trouble(lambda: _load_segmenter(config))
    files = [file for key in WEIGHTS for file in config.names(key)]
    modules: list[str] = []
    if not no_objective:
        from pipelines.networks.features import needed

        of_phi, modules = needed(config.loss)
        files += of_phi
    if config.data.labels not in BUILT_IN:
        files.append(config.data.labels)
    modules += [name.partition(":")[0] for _, name in named_code(config)]
    return tuple(file for file in files if file != "random"), tuple(modules), trouble


def _trouble(load: Callable[[], object]) -> str:
    try:
        load()
    except (ValueError, OSError) as error:
        return one_line(error, None)
    return ""


def _load_objective(config: Config) -> None:
    from pipelines.training.objective import check_objective

    check_objective(config)


def _load_segmenter(config: Config) -> None:
    from pipelines.tracking.segmenter import evaluation_judges

    evaluation_judges(config)
