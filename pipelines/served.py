"""What MLflow loads for a registered model: `mlflow.pyfunc.load_model`, `mlflow models serve`.

The files of every registered model name this module, so it keeps its name. It has to be installed where a model is
served: models bring no code along (those of earlier versions do). The weights are safetensors; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2sm.inference import restore
from pipelines.inference.tiling import has_tiles, smallest_tile
from pipelines.runs.checkpoint import load_model
from pipelines.tracking.bundle import SIGMA, default_sigma
from pipelines.tracking.registered import RegistryError, changed_file

_LARGEST_WHOLE = 1024  # pixels: images with a longer side are restored in tiles, which bounds the memory
_TILE = 512


class ServedError(ValueError):
    """The input is no batch of images, the noise level is out of range, or the result is not finite. One line."""


class Restorer:
    """A denoiser with the `predict` that MLflow calls.

    Args:
        model: in eval mode.
        sigma: noise level of a request that names none.
    """

    def __init__(self, model: torch.nn.Module, sigma: float = SIGMA) -> None:
        self.model, self.sigma = model, sigma

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Restore a batch.

        Args:
            model_input: noisy images, numpy float32 (B, 3, H, W), RGB, in [0, 1] but for the noise.
            params: {"sigma": noise level in units of 0..255}; 25 if it is absent, 0 if there was no noise in the
                model's training (degrade.chain). Blind models ignore it.

        Returns:
            restored, float32 (B, 3, H, W), clamped to [0, 1].

        Raises:
            ServedError: another type, shape or range; or the result is not finite.
        """
        noisy = _checked(model_input)
        sigma = float((params or {}).get("sigma", self.sigma))
        if not 0 <= sigma <= 255:
            raise ServedError(f"sigma={sigma:g}: a noise level from 0 to 255")
        in_tiles = max(noisy.shape[2:]) > _LARGEST_WHOLE and has_tiles(self.model)
        tile = max(_TILE, smallest_tile(self.model)) if in_tiles else None
        restored = restore(self.model, torch.from_numpy(np.ascontiguousarray(noisy)), sigma, tile=tile)
        if not restored.isfinite().all():  # the clamp keeps NaN
            raise ServedError("restored: not finite (NaN or infinite); give another noise level, or another model")
        return restored.clamp(0.0, 1.0).cpu().numpy()


def _load_pyfunc(path: str) -> Restorer:
    """Called by MLflow with the folder of the model's own files.

    Raises:
        RegistryError: a file is missing or does not have its checksum. MLflow passes no tags on, so the checksums are
            those that lie beside the files: this finds damage, not forgery. `pipelines.lookup` finds both.
    """
    folder = Path(path)
    if changed := changed_file(folder):
        raise RegistryError(f"{folder}: {changed} is missing or damaged (sha256); download the model again")
    model, config = load_model(folder, trust=True)  # MLflow's loader runs whatever module the files name
    return Restorer(model, default_sigma(config))


def _checked(noisy: Any) -> np.ndarray:
    wanted = "a numpy float32 array (B, 3, H, W) in [0, 1]"
    if not isinstance(noisy, np.ndarray):
        raise ServedError(f"noisy: got a {type(noisy).__name__}; give {wanted}")
    if noisy.dtype != np.float32 or noisy.ndim != 4 or noisy.shape[1] != 3 or 0 in noisy.shape:
        raise ServedError(f"noisy: got {noisy.dtype} of shape {noisy.shape}; give {wanted}")
    largest = float(np.abs(noisy).max())
    if not largest < 16:  # far more than noise of sigma 255 adds; NaN is refused too
        raise ServedError(f"noisy: values up to {largest:g}; give {wanted}, divided by 255")
    return noisy
