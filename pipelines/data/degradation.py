"""Whether the degradations of a configuration can be used, found out on a small image before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from d2sm.chain import Chain, Step
from d2sm.degradations import DEGRADATIONS, Degrade
from pipelines.callables import import_callable
from pipelines.config import Config, ConfigError
from pipelines.text import one_line

_SHAPE = (2, 3, 33, 47)  # sides that are neither even nor equal
_CONTRACT = "(images, *, level, seeds) -> images of the same shape and type; see d2sm/README.md"


class DegradationError(ConfigError):
    """A `module:callable` that cannot be imported, or does not keep the contract of a degradation. One line."""


def check(config: Config) -> None:
    """Import every `module:callable` among the degradations of training and evaluation, and try it.

    Raises:
        DegradationError: it cannot be imported or fails, changes shape, type or device, gives values that are not
            finite, or is not a function of each image, level and seed alone.
    """
    if config.data.layout == "pairs":
        return
    for key, chain in _chains(config):
        for step in chain.steps:
            if step.degradation.name not in DEGRADATIONS:
                _try(step, f"{key}={chain}: {step.degradation.name}")


def _chains(config: Config) -> Iterator[tuple[str, Chain]]:
    yield "degrade.chain", config.degradation
    for chain in config.levels:
        yield "evaluate.levels" if config.evaluate.levels is not None else "degrade.chain", chain


def _try(step: Step, where: str) -> None:
    degrade = import_callable(step.degradation.target, asked_by=where, error=DegradationError)
    images = torch.rand(_SHAPE, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([min(step.levels), max(step.levels)])
    try:
        _keeps_contract(degrade, images, level, where)
    except DegradationError:
        raise
    except Exception as error:  # somebody else's function may raise anything
        raise DegradationError(
            f"{where} fails on images of {_SHAPE} at levels {level.tolist()}: {one_line(error)}; needs {_CONTRACT}"
        ) from error


def _keeps_contract(degrade: Degrade, images: Tensor, level: Tensor, where: str) -> None:
    before = images.clone()
    found = degrade(images, level=level, seeds=[1, 2])
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (images.shape, images.dtype):
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DegradationError(f"{where} gives {what} for {images.dtype} {_SHAPE}; needs {_CONTRACT}")
    if not torch.equal(images, before):
        raise DegradationError(f"{where} writes into the images it is given; return new ones")
    if not found.isfinite().all():
        raise DegradationError(f"{where} gives values that are not finite at levels {level.tolist()}")
    alone = degrade(images[1:], level=level[1:], seeds=[2])
    if not torch.equal(alone, found[1:]):
        raise DegradationError(
            f"{where} gives an image other values in another batch; make them a function of its level and seed alone"
        )
