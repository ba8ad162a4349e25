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
    config: Config,
    *,
    evaluates: bool = True,
    given: Collection[str] = (),
    nodes: bool = True,
    verbose: bool = False,
) -> list[Check]:
    """Check what a run needs: what this machine knows, and on the cluster at RAY_ADDRESS what every node sees.

    Args:
        evaluates: whether the run is evaluated after its training.
        given: keys whose values somebody asked for (see `splits.settled`).
        nodes: whether the cluster's nodes are asked.
        verbose: show Ray's own log.

    Raises:
        AuthError: the cluster must not be joined like this.
    """
    return preflight_all([(config, given)], evaluates=evaluates, nodes=nodes, verbose=verbose)


def preflight_all(
    runs: Sequence[tuple[Config, Collection[str]]],
    *,
    evaluates: bool = True,
    nodes: bool = True,
    verbose: bool = False,
) -> list[Check]:
    """The same for several runs, such as the rows of a table; what is found of several of them is there once.

    Args:
        runs: the configuration of each, and the keys whose values somebody asked for.
        evaluates, nodes, verbose: as in `preflight`.

    Raises:
        AuthError: see `preflight`.
    """
    of_each: list[list[Check]] = []
    configs: list[Config] = []
    said: list[str] = []
    for config, given in runs:
        checks: list[Check] = []
        with suppress(ValueError, OSError):  # each is a failed check too
            config = check(config, evaluates=evaluates, given=given, say=said.append, tell=checks.append).config
        of_each.append(checks)
        configs.append(config)
    for line in dict.fromkeys(said):
        show(line)
    found = _merged(of_each)
    if not nodes or not os.environ.get("RAY_ADDRESS"):
        return found
    # What all nodes see says more than what this machine sees, unless that is wrong already.
    asked = ask_nodes(*configs, evaluates=evaluates, verbose=verbose)
    failed = {each.name for each in found if not each.ok}
    asked = [each for each in asked if each.name not in failed]
    return [each for each in found if each.name not in {other.name for other in asked}] + asked


def ask_nodes(*configs: Config, evaluates: bool = True, verbose: bool = False) -> list[Check]:
    """Ask every node of the cluster at RAY_ADDRESS what it sees of what runs need; arguments as for `preflight`.

    Raises:
        AuthError: see `preflight`.
    """
    # Judges that do not measure are not needed, so not asked for.
    runs = [one if evaluates or one.train.validate_every is not None else one.replace(NO_JUDGES) for one in configs]
    session.start(cpus=max(map(resources.run_cpus, runs)), verbose=verbose)
    living = [node for node in ray.nodes() if node["Alive"]]
    stage(f"asking {counted(len(living), 'node')} what they have")
    alike: dict[tuple[str, str], list[Config]] = {}  # one question for all runs of the same places
    for one in runs:
        alike.setdefault((one.data.root, one.train.storage), []).append(one)
    return _merged([_ask(living, root, storage, those) for (root, storage), those in alike.items()])


def _ask(living: Sequence[Mapping[str, Any]], root: str, storage: str, runs: Sequence[Config]) -> list[Check]:
    """What the living nodes see of the data, the storage, and the files and modules that these runs need."""
    needs = [_weights(one) for one in runs]
    files = tuple(dict.fromkeys(file for of_run, _, _ in needs for file in of_run))
    modules = tuple(dict.fromkeys(module for _, of_run, _ in needs for module in of_run))
    with _trial(storage) as (trial, unwritable):
        ask = Ask(root, trial, files, modules)
        here = look(ask, "here")
        seen = _asked(ask, {node["NodeID"]: node["NodeManagerAddress"] for node in living})
    answered = {name: answer for name, answer in seen.items() if answer}
    have = [node["Resources"] for node in living]
    return [
        verdicts.nodes(seen),
        *dict.fromkeys(verdicts.workers_fit(one, have) for one in runs),
        verdicts.versions(here, answered),
        verdicts.data(root, here, answered),
        verdicts.storage(storage, unwritable, answered),
        *dict.fromkeys(verdicts.weights(trouble, answered) for _, _, trouble in needs),
    ]


def _merged(of_each: Sequence[Sequence[Check]]) -> list[Check]:
    """The checks of several runs, each that is the same of several once, those of one name together."""
    checks = dict.fromkeys(each for own in of_each for each in own)
    if len(of_each) > 1:  # a key that one run uses is used (see `check.check_used`); the runs have no names yet
        checks = dict.fromkeys(
            each
            for each in checks
            if (each.name != "keys" or all(each in own for own in of_each)) and not (each.name == "run" and each.ok)
        )
    names = list(dict.fromkeys(each.name for each in checks))
    return sorted(checks, key=lambda each: names.index(each.name))


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
