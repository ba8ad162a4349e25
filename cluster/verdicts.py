"""From the answers of all nodes to checks: each is ok or failed, and a failed one names the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.probe import Seen
from pipelines.check import Check
from pipelines.config import Config
from pipelines.runtime import resources
from pipelines.text import counted, listed


def nodes(seen: Mapping[str, Seen | None]) -> Check:
    if silent := [name for name, answer in seen.items() if answer is None]:
        return Check(
            "nodes", False, f"{listed(silent, 1)} of {len(seen)}: no answer; see its log, or take it out of the cluster"
        )
    return Check("nodes", True, f"{len(seen)} answer")


def workers_fit(config: Config, living: Sequence[Mapping[str, float]]) -> Check:
    train = config.train
    each = resources.worker_resources(config)
    least, most = train.workers
    workers = f"{least} to {most} workers" if train.elastic else counted(least, "worker")
    for_data = "" if train.elastic else f" + {train.data_cpus:g} CPU for data"
    wanted = f"{workers} x {resources.listed(each)}{for_data}"
    try:
        resources.check(config)
    except resources.ResourceError as error:
        return Check("resources", False, str(error))
    have = {name: sum(node.get(name, 0) for node in living) for name in each}
    places = sum(int(min(node.get(name, 0) / amount for name, amount in each.items())) for node in living)
    enough = have["CPU"] >= resources.training_cpus(config, least) and places >= least
    if enough:
        return Check(
            "resources", True, f"{wanted}; there are {resources.listed(have)} on {counted(len(living), 'node')}"
        )
    grown = {name: resources.capacity().get(name, 0) for name in each}
    if any(grown[name] > have[name] for name in each):
        return Check(
            "resources",
            True,
            f"{wanted}; there are {resources.listed(have)}, up to {resources.listed(grown)} by autoscaling",
        )
    return Check(
        "resources",
        False,
        f"{wanted}: only {places} workers find a node with {resources.listed(each)} free of its own; lower "
        "train.cpus_per_worker or train.num_workers, or add nodes",
    )


def versions(here: Seen, seen: Mapping[str, Seen]) -> Check:
    for name, answer in seen.items():
        for package, version in here.versions.items():
            there = answer.versions.get(package, "another")  # of a node whose code is too old to tell
            if there != version:
                return Check(
                    "versions", False, f"{package} is {there} on {name}, {version} here; use one image for all nodes"
                )
    return Check("versions", True, ", ".join(f"{name} {version}" for name, version in here.versions.items()))


def data(root: str, here: Seen, seen: Mapping[str, Seen]) -> Check:
    remedy = "mount it there, or give a data.root that every node sees"
    for name, answer in {"the driver's node": here, **seen}.items():
        if answer.root_error:
            return Check("data", False, f"data.root={root}: {answer.root_error} on {name}; {remedy}")
        if not answer.root:
            return Check("data", False, f"data.root={root}: is empty on {name}; {remedy}")
        if answer.root != here.root:
            return Check("data", False, f"data.root={root}: holds other files on {name} than here; {remedy}")
    return Check("data", True, f"{root} is the same on all nodes")


def storage(storage: str, trouble: str, seen: Mapping[str, Seen]) -> Check:
    remedy = "give a train.storage that every node can write to, such as a shared folder"
    if trouble:
        return Check("storage", False, f"train.storage={storage}: {trouble} on the driver's node; {remedy}")
    for name, answer in seen.items():
        if answer.storage_error:
            return Check("storage", False, f"train.storage={storage}: {answer.storage_error} on {name}; {remedy}")
    return Check("storage", True, f"{storage} is one place, writable from all nodes")


def weights(trouble: str, seen: Mapping[str, Seen]) -> Check:
    if trouble:
        return Check("weights", False, trouble)
    remedy = "put it into the image, or give a path that every node sees (loss.features_weights, "
    for name, answer in seen.items():
        lacking = [file for file, size in answer.files.items() if size is None]
        lacking += [f"module {module}" for module, found in answer.modules.items() if not found]
        if lacking:
            return Check("weights", False, f"{lacking[0]}: not on {name}; {remedy}evaluate.segmenter_weights)")
    any_answer = next(iter(seen.values()), None)
    names = [*any_answer.files, *any_answer.modules] if any_answer else []
    return Check("weights", True, ", ".join(names) or "none needed")
