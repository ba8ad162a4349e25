"""What a run is, on disk: a folder a checkpoint, written whole or not at all.

    model.safetensors   the weights to use (the averaged ones where there are any)
    config.yaml         the configuration that made them
    state.pt            what training needs to go on: weights, average, optimizer, schedule, queues, randomness
    log.json            the last entries of the log, and the sums of the one in the making
    meta.json           step, epoch, commit, data, and the size of every other file, which must agree

The first, second and last make a bundle: enough to use the model, and what the registry keeps.
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

from pipelines import config as configs
from pipelines.config import Config
from pipelines.networks.models import build
from pipelines.runs import storage

MODEL, CONFIG, STATE, LOG, META = "model.safetensors", "config.yaml", "state.pt", "log.json", storage.META
RAYS = "checkpoint_manager_snapshot.json"  # Ray Train's own list, which earlier versions left in a run's folder


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or one of another model. One line."""


def name_of(step: int) -> str:
    """The folder of a step's checkpoint; sorts by step."""
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
    """Write a checkpoint into an empty folder; the meta file, which vouches for the others, comes last.

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
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: when the folder is no checkpoint or bundle.
    """
    try:
        found = dict(json.loads((folder / META).read_text()))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"{folder}: no checkpoint (no readable {META}); give a folder written by `d2sm train`"
        ) from None
    return found


def is_complete(folder: Path) -> bool:
    """Whether every file is there in full, so that a killed or full-disk write never counts."""
    try:
        sizes = meta(folder)["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (CheckpointError, OSError, KeyError, AttributeError):
        return False


def latest(run: str | Path) -> Path | None:
    """The last complete checkpoint of a run, from its folder or its URI; a folder on this disk in either case."""
    run_dir = storage.local(run)
    complete = (folder for folder in sorted(run_dir.glob("step-*"), reverse=True) if is_complete(folder))
    return next(complete, None)


def is_of(folder: Path, name: str) -> bool:
    """Whether the run of this name wrote a checkpoint; population-based training begins runs with another's."""
    return bool(meta(folder).get("name") == name)


def log(folder: Path) -> dict[str, Any]:
    """The log as it stood at a checkpoint; empty where it holds none."""
    path = folder / LOG
    return dict(json.loads(path.read_text())) if path.exists() else {}


def sweep(run_dir: Path) -> list[Path]:
    """Remove half-written checkpoints, and what an earlier version's Ray kept of them; gives those removed."""
    (run_dir / RAYS).unlink(missing_ok=True)
    broken = [folder for folder in run_dir.glob("step-*") if not is_complete(folder)]
    broken += run_dir.glob(".step-*")
    for folder in broken:
        shutil.rmtree(folder)
    return broken


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for folder in sorted(run_dir.glob("step-*"))[:-keep]:
        shutil.rmtree(folder)


def resolve(path: str | Path) -> Path:
    """A checkpoint from its own folder, or the last one of a run's folder; either may be a URI.

    Raises:
        CheckpointError: when there is none.
        RemoteError: the URI cannot be read.
    """
    folder = storage.local(path)
    if (folder / META).exists():
        return folder
    found = latest(folder) if folder.is_dir() else None
    if found is None:
        raise CheckpointError(f"{path}: no complete checkpoint there; give a run's folder or one of its step-* folders")
    return found


def load_model(folder: Path) -> tuple[nn.Module, Config]:
    """The model to use, in eval mode on the CPU, its weights in channels_last order, and its configuration.

    In that order its maps need no copies between convolutions: FFDNet 24 x 7, FFDNet 96 x 12 and CBDNet take 0.59,
    0.87 and 0.78 of the CPU time on 480 x 360 pixels, SADNet the same. Restored pixels change by float32 rounding.

    Raises:
        CheckpointError: when files are missing or the weights are those of another model.
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
    """The training state, tensors only (nothing is unpickled that could run).

    Raises:
        CheckpointError: when it is damaged or holds anything else.
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
    """Strictly load weights; another model's give one line."""
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = str(error).split("\n")[1:2] or [str(error)]
        raise CheckpointError(
            f"{source}: weights of another model than {type(model).__name__} as configured ({reason[0].strip()[:160]})"
        ) from None
