"""A checkpoint: a folder of five files, written whole or not at all.

    model.safetensors   the weights of the model (the EMA weights if there are any)
    config.yaml         the configuration of the run
    state.pt            what training resumes from: weights, EMA, optimizer, schedule, queues, random generators
    log.json            the latest log entries, and the running sums of the next one
    meta.json           step, epoch, commit, fingerprint of the data, and the size of every other file

A checkpoint is complete when every file has the size that meta.json names. model.safetensors, config.yaml and meta.json
make a bundle: enough to use the model, and what the registry keeps.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from d2sm.models import Denoiser
from pipelines import config as configs
from pipelines.config import Config
from pipelines.networks.models import build
from pipelines.runs import storage

MODEL, CONFIG, STATE, LOG, META = "model.safetensors", "config.yaml", "state.pt", "log.json", storage.META


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or holds weights of another model. One line."""


def name_of(step: int) -> str:
    """The name of a step's checkpoint; names sort by step."""
    return f"step-{step:08d}"


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
        OSError: it cannot be written. One line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / CONFIG)
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, folder / MODEL)
        torch.save(dict(state), folder / STATE)
    except (SafetensorError, RuntimeError) as error:  # a full disk is "iostream error" to torch
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"{folder}: a checkpoint cannot be written: no space left? {free:.0f} MiB are free ({str(error)[:100]})"
        ) from None
    (folder / LOG).write_text(json.dumps(log or {}))
    sizes = {name: (folder / name).stat().st_size for name in (MODEL, CONFIG, STATE, LOG)}
    (folder / META).write_text(json.dumps({**meta, "sizes": sizes}, indent=2))


def meta(folder: Path) -> dict[str, Any]:
    """The content of meta.json.

    Raises:
        CheckpointError: the folder is no checkpoint or bundle.
    """
    try:
        found = dict(json.loads((folder / META).read_text()))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"{folder}: no checkpoint (no readable {META}); give a folder written by `d2sm train`"
        ) from None
    return found


def is_complete(folder: Path) -> bool:
    """Whether every file is there in full; a write that was killed or ran out of space never counts."""
    try:
        sizes = meta(folder)["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (CheckpointError, OSError, KeyError, AttributeError):
        return False


def latest(run_dir: Path) -> Path | None:
    """The last complete checkpoint in a run's folder; None: there is none."""
    complete = (folder for folder in sorted(run_dir.glob("step-*"), reverse=True) if is_complete(folder))
    return next(complete, None)


def is_of(folder: Path, name: str) -> bool:
    """Whether the run of this name wrote a checkpoint. Population-based training starts runs from another's."""
    return bool(meta(folder).get("name") == name)


def log(folder: Path) -> dict[str, Any]:
    """The state of the log at a checkpoint; empty: none was saved."""
    path = folder / LOG
    return dict(json.loads(path.read_text())) if path.exists() else {}


def resolve(path: str | Path) -> Path:
    """A checkpoint on this disk: that of a folder, or the last complete one of a run's folder; either may be a URI.

    Raises:
        CheckpointError: there is none.
        RemoteError: the URI cannot be read.
    """
    folder = storage.local(path)
    if (folder / META).exists():
        return folder
    found = latest(folder) if folder.is_dir() else None
    if found is None:
        raise CheckpointError(f"{path}: no complete checkpoint there; give a run's folder or one of its step-* folders")
    return found


def load_model(folder: Path) -> tuple[Denoiser, Config]:
    """The model of a checkpoint or bundle, in eval mode on the CPU, and its configuration.

    Its weights are in channels_last order, in which the CPU's convolutions need no copies in between; restored pixels
    differ from those in the default order by float32 rounding.

    Raises:
        CheckpointError: files are missing or damaged, or the weights are those of another model.
    """
    if not (folder / MODEL).exists() or not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder}: holds no {MODEL} with {CONFIG}; give a checkpoint of `d2sm train`")
    config = configs.load(folder / CONFIG)
    model = build(config.model)
    try:
        weights = load_file(folder / MODEL)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / MODEL}: is damaged ({error}); copy it again") from None
    fill(model, weights, folder / MODEL)
    return model.eval().to(memory_format=torch.channels_last), config


def load_state(folder: Path) -> dict[str, Any]:
    """The training state: tensors and plain values only, so that loading it runs no code.

    Raises:
        CheckpointError: it is damaged or holds anything else.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{folder / STATE}: cannot be read as plain tensors ({type(error).__name__}); remove the folder to go on "
            "from the checkpoint before it"
        ) from None
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
