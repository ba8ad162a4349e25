"""A checkpoint: a folder of five files, written whole or not at all.

    model.safetensors   the weights of the model (the EMA weights if there are any)
    config.yaml         the configuration of the run
    state.pt            what training resumes from: weights, EMA, optimizer, schedule, queues, random generators
    log.json            the latest log entries, and the running sums of the next one
    meta.json           step, epoch, commit, fingerprint of the data, the best checkpoint so far (`train.best`), and
                        size and SHA-256 of every other file

A checkpoint is complete when every file has the size and the digest that meta.json names; one written before there were
digests, when the sizes agree. model.safetensors, config.yaml and meta.json make a bundle: enough to use the model, and
what the registry keeps.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from d2sm.models import BACKBONES, Denoiser
from d2sm.weights import WeightsError, read_plain, read_safetensors
from pipelines import config as configs
from pipelines import parsing
from pipelines.config import Config
from pipelines.networks.models import ModelError, build
from pipelines.runs import integrity, names, storage
from pipelines.runs.best import Best
from pipelines.runs.trust import check_backbone
from pipelines.runtime import files
from pipelines.text import more, one_line, printable

MODEL, CONFIG, STATE, LOG, META = "model.safetensors", "config.yaml", "state.pt", "log.json", integrity.META

name_of = names.checkpoint_name
_FULL = 2**20  # bytes: less is free where torch, whose error does not say why, met a full disk
_log = logging.getLogger(__name__)


REMEDY = "remove its folder to go on from the checkpoint before it"


class _Meta(TypedDict, total=False):
    """What meta.json says beside the sizes and digests of the files; `integrity` checks these."""

    name: str
    data: str
    commit: str
    dirty: bool
    steps: int
    step: int
    final: bool
    best: Best


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or holds weights of another model. One line."""


def write(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: Config,
    meta: Mapping[str, Any],
    log: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint into an empty folder, meta.json last.

    Args:
        weights: of the model.
        state: what training resumes from: tensors and plain values, which `torch.load(weights_only=True)` reads back.
        meta: what meta.json says beside the sizes.
        log: what log.json holds.

    Raises:
        OSError: it cannot be written; `files.DiskFullError` where there is no space. One line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / CONFIG)
    try:
        save_weights(weights, folder / MODEL)
        torch.save(dict(state), folder / STATE)
    except (SafetensorError, RuntimeError) as error:  # a full disk is "iostream error" to torch
        if shutil.disk_usage(folder).free < _FULL:
            raise files.disk_full(folder) from None
        raise OSError(f"{folder}: a checkpoint cannot be written ({str(error)[:100]})") from None
    (folder / LOG).write_text(json.dumps(log or {}))
    (folder / META).write_text(integrity.sealed(meta, folder, (MODEL, CONFIG, STATE, LOG)))


def write_bundle(folder: Path, *, weights: Mapping[str, Tensor], config: Config, meta: Mapping[str, Any]) -> None:
    """Write what is enough to use a model, and nothing to resume a training from, into a new folder.

    Args:
        weights: of the model.
        meta: what meta.json says beside the sizes.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir()
    config.save(folder / CONFIG)
    save_weights(weights, folder / MODEL)
    (folder / META).write_text(integrity.sealed(meta, folder, (MODEL, CONFIG)))


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors. Raises SafetensorError, OSError."""
    # Copies, because safetensors holds no tensor under two names, as tied weights have.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    save_file(copies, path)


def meta(folder: Path) -> dict[str, Any]:
    """The content of meta.json.

    Raises:
        CheckpointError: the folder is no checkpoint or bundle.
    """
    try:
        found = parsing.read_json(folder / META)
        parsing.shaped(found, _Meta, source=META)
    except parsing.ParseError as error:
        raise CheckpointError(
            f"{folder}: no checkpoint (no readable {META}: {one_line(error, 120)}); give a folder written by "
            "`d2sm train`"
        ) from None
    return found


def step(folder: Path) -> int:
    """The step of a checkpoint.

    Raises:
        CheckpointError: the folder is no checkpoint, or meta.json names no step.
    """
    found = meta(folder).get("step")
    if type(found) is not int or found < 0:
        raise CheckpointError(f"{folder / META}: names no step; give a folder written by `d2sm train`")
    return found


def fault(folder: Path) -> str | None:
    """Why a checkpoint does not count, beginning with a file's name; None: every file is as it was written.

    Raises:
        OSError: a file that is there cannot be read.
    """
    try:
        return integrity.fault(folder, meta(folder))
    except CheckpointError:
        return f"{META} cannot be read"


def is_finished(folder: Path) -> bool:
    """Whether a checkpoint was written to its end: meta.json is the last of its files. It may be damaged since."""
    return os.path.lexists(folder / META)


def is_complete(folder: Path) -> bool:
    """Whether every file is as it was written; a write that was killed or ran out of space never counts."""
    return fault(folder) is None


def latest(run_dir: Path) -> Path | None:
    """The last complete checkpoint in a run's folder; None: there is none. Later ones that do not count are logged."""
    faults: dict[Path, str] = {}
    for folder in reversed(names.checkpoints(run_dir)):
        why = fault(folder)
        if why is None:
            for damaged, reason in faults.items():
                _report(damaged, reason, folder.name)
            return folder
        faults[folder] = why
    return None


def best(folder: Path) -> Best | None:
    """The best checkpoint up to this one by `train.best`, as its meta.json names it; None: training selects none.

    Raises:
        CheckpointError: the folder is no checkpoint.
    """
    return Best.named_in(meta(folder), folder / META, CheckpointError)


def selected(run_dir: Path) -> Path | None:
    """The checkpoint in a run's folder whose weights are the run's model; None: there is none. See `selected_by`."""
    last = latest(run_dir)
    return None if last is None else selected_by(last)


def selected_by(last: Path) -> Path:
    """The checkpoint whose weights are the model of the run whose last complete checkpoint is given.

    It is the last one itself or, if training selects by `train.best`, the best that the last one names. That is
    downloaded if the folder is the copy of a run at a URI and lacks it.

    Raises:
        CheckpointError: the best one is missing or damaged.
        RemoteError: it cannot be downloaded.
    """
    if (named := best(last)) is None or named.name == last.name:
        return last
    folder = last.parent / named.name
    if not is_complete(folder) and (uri := storage.uri_of(last.parent)):
        storage.local(storage.joined(uri, named.name))
    if why := fault(folder):
        raise CheckpointError(
            f"{folder}: the best checkpoint ({named}) cannot be used ({why}); copy it back, or remove the later ones, "
            "to train again from before it"
        )
    return folder


def damaged(run_dir: Path) -> str:
    """The checkpoints in a run's folder that do not count, and why, in one line; "": all do."""
    faults = ((folder.name, fault(folder)) for folder in reversed(names.checkpoints(run_dir)))
    return ", ".join(f"{name}/{why}" for name, why in faults if why)


def is_of(folder: Path, name: str) -> bool:
    """Whether the run of this name wrote a checkpoint. Population-based training starts runs from another's."""
    return bool(meta(folder).get("name") == name)


def log(folder: Path) -> dict[str, Any]:
    """The state of the log at a checkpoint; empty: none was saved.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / LOG
    _verify(folder, LOG)
    remedy = "copy it again, or use another checkpoint of the run"
    return parsing.read_json(path, error=CheckpointError, remedy=remedy) if path.exists() else {}


def resolve(path: str | Path) -> Path:
    """A checkpoint on this disk: that of a folder, or of a run's folder the `selected` one; either may be a URI.

    Raises:
        CheckpointError: there is none.
        RemoteError: the URI cannot be read.
    """
    folder = storage.local(path)
    if (folder / META).exists():
        return folder
    found = selected(folder)
    if found is None:
        why = f" ({faults})" if (faults := damaged(folder)) else ""
        raise CheckpointError(
            f"{path}: no complete checkpoint there{why}; give a run's folder or one of its step-* folders"
        )
    return found


def load_model(folder: Path, *, trust: bool = False, named: str = "") -> tuple[Denoiser, Config]:
    """The model of a checkpoint or bundle, in eval mode on the CPU, and its configuration.

    Its weights are in channels_last order, in which the CPU's convolutions need no copies in between; restored pixels
    differ from those in the default order by float32 rounding.

    Args:
        trust: import a backbone that its configuration names as module:callable, even if this user did not train the
            model here.
        named: see `trust.check_backbone`.

    Raises:
        CheckpointError: files are missing or damaged, the weights are those of another model, or the code of its
            backbone cannot be imported.
        TrustError: its backbone would be imported on the word of its own configuration.
    """
    if not (folder / MODEL).exists() or not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder}: holds no {MODEL} with {CONFIG}; give a checkpoint of `d2sm train`")
    _verify(folder, CONFIG)
    config = configs.load(folder / CONFIG)
    weights = read_weights(folder)
    if not trust:
        check_backbone(config, folder, named=named)
    known = config.model.name in BACKBONES
    try:
        # Without memory, because the configuration may name a larger network than its weights are of.
        with torch.device("meta") if known else nullcontext():
            described = build(config.model, weights=weights)
    except ModelError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    shapes = {name: tensor.shape for name, tensor in described.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if differing := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        first = differing[0]
        raise CheckpointError(
            f"{folder / MODEL}: weights of another model than {described.label} as configured in {CONFIG} "
            f"({printable(first[:80])} is {_shape(found.get(first))}, not {_shape(shapes.get(first))}{more(differing)})"
        )
    model = build(config.model) if known else described
    fill(model, weights, folder / MODEL)
    return model.eval().to(memory_format=torch.channels_last), config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the model of a checkpoint or bundle.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    if not (folder / MODEL).exists():
        raise CheckpointError(f"{folder}: holds no {MODEL}; give a checkpoint of `d2sm train`")
    _verify(folder, MODEL)
    try:
        return read_safetensors(folder / MODEL)[0]
    except WeightsError as error:
        raise CheckpointError(f"{folder / MODEL}: is damaged ({error}); copy it again") from None


def load_state(folder: Path) -> dict[str, Any]:
    """The training state: tensors and plain values only, so that loading it runs no code.

    Raises:
        CheckpointError: it is damaged or holds anything else.
    """
    _verify(folder, STATE)
    try:
        state = read_plain(folder / STATE)
        if not isinstance(state, dict):
            raise WeightsError(f"a {type(state).__name__} in place of a state")
    except WeightsError as error:
        raise CheckpointError(f"{folder / STATE}: cannot be read: {error}; {REMEDY}") from None
    return state


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a model; names and shapes must be the same.

    Args:
        source: the file they are from, for the message.

    Raises:
        CheckpointError: they are those of another model.
    """
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = str(error).split("\n")[1:2] or [str(error)]
        raise CheckpointError(
            f"{source}: weights of another model than {type(model).__name__} as configured ({reason[0].strip()[:160]})"
        ) from None


def _shape(found: torch.Size | None) -> str:
    return "missing" if found is None else f"{tuple(found)}"


def _verify(folder: Path, *wanted: str) -> None:
    """Make sure that files of a checkpoint or bundle are as they were written, as far as meta.json tells."""
    if (folder / META).exists() and (why := integrity.fault(folder, meta(folder), wanted)):
        raise CheckpointError(f"{folder}/{why}, so it is damaged; copy it again, or use another checkpoint of the run")


@functools.cache  # once a process, which may ask for the checkpoint many times
def _report(damaged: Path, why: str, used: str) -> None:
    _log.warning("%s; %s is used instead", printable(f"{damaged}/{why}"), used)
