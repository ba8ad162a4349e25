"""Objectives that the paper compares D2SM with, one a file. All take `restored=` and `clean=`, RGB in [0, 1]."""

from __future__ import annotations

from d2sm.objectives.adversarial import Adversarial
from d2sm.objectives.contextual import Contextual
from d2sm.objectives.lpips import LPIPS
from d2sm.objectives.noise_level import asymmetry, total_variation
from d2sm.objectives.perceptual import Perceptual
from d2sm.objectives.segmentation import CrossEntropy
from d2sm.objectives.ssim import dissimilarity

__all__ = [
    "LPIPS",
    "Adversarial",
    "Contextual",
    "CrossEntropy",
    "Perceptual",
    "asymmetry",
    "dissimilarity",
    "total_variation",
]
