"""What MLflow loads for a registered model: `mlflow.pyfunc.load_model`, `mlflow models serve`.

The model's MLmodel file names this module; the weights are safetensors and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.tracking.bundle import SIGMA

_WHOLE = 1024  # larger images are restored in tiles, to bound the memory
_TILE = 512


class ServedError(ValueError):
    """The input is no batch of images. One line."""


class Restorer:
    """A denoiser behind MLflow's predict."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Restore a batch.

        Args:
            model_input: noisy, numpy float32 (B, 3, H, W), RGB, in [0, 1] but for the noise.
            params: {"sigma": noise level in 0..255}; 25 when absent.

        Returns:
            restored, float32 (B, 3, H, W), clamped to [0, 1].

        Raises:
            ServedError: on another type, shape or range.
        """
        from d2sm.inference import restore

        noisy = torch.from_numpy(np.ascontiguousarray(_checked(model_input)))
        tile = _TILE if max(noisy.shape[2:]) > _WHOLE else None
        restored = restore(self.model, noisy, _sigma(params), tile=tile)
        return restored.clamp(0.0, 1.0).cpu().numpy()


def _load_pyfunc(path: str) -> Restorer:
    """MLflow's entry: `path` is the bundle folder inside the model."""
    from pipelines.runs.checkpoint import load_model

    return Restorer(load_model(Path(path))[0])


def _checked(noisy: Any) -> np.ndarray:
    wanted = "a numpy float32 array (B, 3, H, W) in [0, 1]"
    if not isinstance(noisy, np.ndarray):
        raise ServedError(f"noisy: got a {type(noisy).__name__}; give {wanted}")
    if noisy.dtype != np.float32 or noisy.ndim != 4 or noisy.shape[1] != 3 or 0 in noisy.shape:
        raise ServedError(f"noisy: got {noisy.dtype} of shape {noisy.shape}; give {wanted}")
    largest = float(np.abs(noisy).max())
    if not largest < 16:  # noise of sigma 255 stays far below; NaN fails here as well
        raise ServedError(f"noisy: values up to {largest:g}; give {wanted}, divided by 255")
    return noisy


def _sigma(params: Mapping[str, Any] | None) -> float:
    sigma = float((params or {}).get("sigma", SIGMA))
    if not 0 <= sigma <= 255:
        raise ServedError(f"sigma={sigma:g}: a noise level from 0 to 255")
    return sigma
