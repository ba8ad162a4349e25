"""What measures images as a configuration says: with its segmenters, which may be registered models, and LPIPS."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from d2sm.objectives.lpips import LPIPS
from pipelines.config import Config
from pipelines.inference.known import Known
from pipelines.inference.measuring import Measurer
from pipelines.runs.results import EvaluationError
from pipelines.text import one_line
from pipelines.tracking.segmenter import evaluation_judges


def measurer_of(
    config: Config,
    network: nn.Module,
    *,
    device: torch.device,
    segmented: bool = True,
    sharing: int = 1,
    known: Mapping[str, Known] | None = None,
) -> Measurer:
    """The measurer of an evaluation, and of a validation while training.

    Args:
        segmented: whether to load the segmenters that the configuration names.
        network, device, sharing, known: see `Measurer`.

    Raises:
        SegmenterError, TrackingError: see `evaluation_judges`.
        EvaluationError: see `evaluation_lpips`.
    """
    judges = evaluation_judges(config) if segmented else {}
    first = judges.pop(next(iter(judges)), None) if judges else None
    lpips = evaluation_lpips(config)
    return Measurer(config, network, first, device=device, sharing=sharing, judges=judges, lpips=lpips, known=known)


def evaluation_lpips(config: Config) -> LPIPS | None:
    """What measures LPIPS; None where it is not asked for.

    Raises:
        EvaluationError: its heads or the trunk's weights are not at hand.
    """
    trunk = config.evaluate.lpips
    if trunk is None:
        return None
    try:
        return LPIPS(trunk=trunk, weights=config.evaluate.lpips_weights).eval().requires_grad_(False)
    except ValueError as error:
        raise EvaluationError(
            f"evaluate.lpips={trunk}: {one_line(error, None)} (the key is evaluate.lpips_weights); or evaluate without "
            "it: evaluate.lpips=null"
        ) from None
