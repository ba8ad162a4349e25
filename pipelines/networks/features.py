"""What a configuration must suit of Phi, the network whose features the objectives compare."""

from __future__ import annotations

from functools import cache

from d2sm.features import features
from pipelines.config import ConfigError
from pipelines.sections import Loss


@cache
def stride(name: str) -> int:
    """The stride of Phi's layer, in pixels.

    Args:
        name: network and layer, such as "vgg19.conv5_4".

    Raises:
        ValueError: no such network or layer.
    """
    return features(name, weights="random").stride


def check_patch_size(loss: Loss) -> None:
    """Make sure that internal patches consist of whole cells of Phi's feature map, if D2SM is on and uses them.

    Raises:
        ConfigError: the stride of Phi's layer does not divide their side.
        ValueError: no such Phi.
    """
    side, phi = loss.patch_size, loss.features
    if "d2sm" in loss.terms and side and side % stride(phi):
        raise ConfigError(f"loss.patch_size={side}: must be a multiple of {phi}'s stride, {stride(phi)}")
