"""The segmenter that a configuration names: built in, imported, or a registered model in the run's own store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from pipelines.config import Config
from pipelines.networks import segmenters
from pipelines.networks.segmenters import SegmenterError
from pipelines.text import one_line, redact
from pipelines.tracking import registered, store


def load_segmenter(
    name: str, *, weights: str | Path | None = None, resize: bool = True, uri: str | None = None
) -> nn.Module:
    """A segmenter by name, as `networks.segmenters.load` gives it, or from the registry.

    Args:
        name: "models:/name@alias" for a network that MLflow's pytorch flavour keeps as an exported program ("pt2", its
            default), so that nothing is unpickled; for other names see `networks.segmenters.load`.
        weights, resize: see `networks.segmenters.load`; a registered network has its weights, and takes any size.
        uri: of the store of registered models; None or empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        SegmenterError: (a ValueError) it cannot be found or loaded, or breaks the contract of segmenters.
    """
    if not name.startswith("models:/"):
        return segmenters.load(name, weights=weights, resize=resize)
    from mlflow import pytorch
    from mlflow.exceptions import MlflowException

    try:
        with tempfile.TemporaryDirectory(prefix="d2sm-") as scratch, _nothing_unpickled():
            folder = registered.download(registered.lookup(name, uri=uri), Path(scratch))
            # From a folder: by its reference, MLflow would look it up in the one store that is set for the process.
            program = pytorch.load_model(str(folder))
    except (registered.RegistryError, MlflowException) as error:
        raise SegmenterError(f"segmenter={name!r}: {one_line(error)}") from None
    return segmenters.checked(name, _Program(program)).eval().requires_grad_(False)


def evaluation_segmenter(config: Config) -> nn.Module | None:
    """The segmenter with which a run is evaluated; None where `evaluate.segmenter` names none.

    Raises:
        SegmenterError: see `load_segmenter`.
        TrackingError: it is a registered model, and the configuration names no store that can be used.
    """
    name = config.evaluate.segmenter
    if not name:
        return None
    uri = store.uri_of(config) if name.startswith("models:/") else None
    return load_segmenter(name, weights=config.evaluate.segmenter_weights, uri=uri)


def segmenter_store(config: Config) -> str:
    """The URI of the store, if a segmenter of this configuration is a registered model; else "".

    For processes on other nodes, whose environment need not hold this process's MLFLOW_TRACKING_URI. One with a
    database's password is not sent: those nodes have it in their own environment.

    Raises:
        TrackingError: the configuration names no store that can be used.
    """
    names = (config.evaluate.segmenter, config.loss.segmenter)
    if not any(name and name.startswith("models:/") for name in names):
        return ""
    uri = store.uri_of(config)
    return uri if redact(uri) == uri else ""


class _Program(nn.Module):
    """An exported network as a module that takes `eval()`: the program itself raises, since it has one mode."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.program(image)
        return logits

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self


@contextmanager
def _nothing_unpickled() -> Iterator[None]:
    """Within the block, MLflow refuses to load pickles."""
    name = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
