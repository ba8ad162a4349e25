"""Training, evaluation, denoising and the model registry, on Ray and MLflow; README.md is the map of this folder.

    from pipelines import Config, fit, lookup, open_model, recipe

The verbs are modules: `train.fit`, `evaluate.evaluate`, `restore.restore`, `experiment.run`, ... The names above are
imported when they are first used, so that importing this package loads nothing heavy.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

# MLflow puts the code that a registered model brings along in front of the path. Without d2sm in place by then, this
# package would be used with that model's older one. Importing d2sm loads no torch.
import d2sm as d2sm

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.recipes import recipe
    from pipelines.registry import lookup, open_model
    from pipelines.train import fit

__all__ = ["Config", "fit", "lookup", "open_model", "recipe"]

_EXPORTS = {
    "Config": "pipelines.config:Config",
    "fit": "pipelines.train:fit",
    "lookup": "pipelines.registry:lookup",
    "open_model": "pipelines.registry:open_model",
    "recipe": "pipelines.recipes:recipe",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return resolve_name(_EXPORTS[name])
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
