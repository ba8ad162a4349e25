"""The paper's numbers, to stand beside ours: Cityscapes val, from arXiv 2207.09302 and its poster.

PSNR in dB, SSIM, MIoU over the 19 classes, by recipe and noise level. A row and some ranks are missing in the poster's
text. The numbers of cross-entropy and of FFDNet with D2SM w/o internal are therefore a reading of what is left, which
agrees with the remaining ranks and with Table 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.config import Config
from pipelines.recipes import recipes
from pipelines.runs.results import metric_name

_Numbers = tuple[float, float, float]
_TABLE_1: dict[str, tuple[_Numbers, _Numbers, _Numbers]] = {  # sigma 25, 35, 50
    "ffdnet_l1": ((35.033, 0.925, 0.605), (34.074, 0.912, 0.537), (32.845, 0.895, 0.451)),
    "ffdnet_ssim": ((35.567, 0.935, 0.642), (34.469, 0.922, 0.584), (33.180, 0.906, 0.450)),
    "ffdnet_perceptual": ((34.319, 0.912, 0.629), (33.486, 0.899, 0.582), (32.383, 0.881, 0.509)),
    "ffdnet_lpips": ((35.551, 0.929, 0.613), (34.463, 0.916, 0.541), (33.138, 0.899, 0.452)),
    "ffdnet_contextual": ((25.115, 0.762, 0.628), (24.938, 0.758, 0.583), (24.775, 0.753, 0.509)),
    "ffdnet_cross_entropy": ((35.543, 0.929, 0.612), (34.475, 0.916, 0.546), (33.167, 0.899, 0.463)),
    "ffdnet_d2sm": ((35.913, 0.932, 0.630), (34.800, 0.919, 0.565), (33.477, 0.903, 0.491)),
    "cbdnet_own": ((36.152, 0.936, 0.655), (34.964, 0.923, 0.599), (33.613, 0.907, 0.539)),
    "cbdnet_d2sm": ((36.254, 0.935, 0.679), (35.158, 0.925, 0.631), (33.904, 0.911, 0.550)),
    "cbdnet_d2sm_internal": ((36.899, 0.941, 0.691), (35.596, 0.929, 0.652), (34.172, 0.914, 0.600)),
    "sadnet_own": ((36.310, 0.936, 0.674), (35.081, 0.924, 0.637), (33.730, 0.908, 0.581)),
    "sadnet_d2sm": ((36.822, 0.940, 0.691), (35.247, 0.924, 0.655), (34.133, 0.912, 0.600)),
    "sadnet_d2sm_internal": ((37.130, 0.943, 0.701), (35.839, 0.931, 0.670), (34.440, 0.916, 0.634)),
}
_TABLE_2: dict[str, _Numbers] = {  # sigma 25 alone
    "ffdnet_d2sm_internal": (36.45, 0.936, 0.644),
    "ffdnet_inverse_kl": (35.97, 0.931, 0.638),
    "ffdnet_jsd": (36.31, 0.935, 0.640),
    "ffdnet_gan": (35.55, 0.931, 0.621),
}


def published(config: Config) -> Mapping[str, float]:
    """The paper's numbers for a recipe, under MLflow's names (psnr.sigma25, ...); empty where it has no such row.

    A reduced recipe (`_gpu`, `_cpu`) gets the numbers of the full one: same objective, but other data, size and length.
    A recipe with another backbone, or with another objective, gets none.
    """
    recipe = recipes().get(config.recipe)
    if recipe is None or not config.degradation.is_noise or _objective(config) != _objective(recipe):
        return {}
    row = config.recipe.removesuffix("_cpu").removesuffix("_gpu")
    levels: Mapping[str, _Numbers] = {}
    if row in _TABLE_1:
        levels = dict(zip(("25", "35", "50"), _TABLE_1[row]))
    elif row in _TABLE_2:
        levels = {"25": _TABLE_2[row]}
    return {
        metric_name(metric, level): value
        for level, numbers in levels.items()
        for metric, value in zip(("psnr", "ssim", "miou"), numbers)
    }


def _objective(config: Config) -> tuple[str, frozenset[str], str, bool, bool]:
    """What makes a row of the paper: backbone, terms of the loss, divergence, and what the samples are."""
    loss = config.loss
    of_regions = loss.class_regions is not None
    return config.model.name, frozenset(loss.terms), loss.divergence, loss.patch_size is not None, of_regions
