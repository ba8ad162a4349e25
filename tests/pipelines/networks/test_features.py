"""Whether internal patches suit Phi."""

from __future__ import annotations

import pytest

from pipelines.config import Config, ConfigError
from pipelines.networks.features import check_patch_size, stride

PHI = "squeezenet1_0.fire3"  # of stride 4


def test_the_stride_is_that_of_the_layer() -> None:
    assert (stride(PHI), stride("vgg19.conv1_1")) == (4, 1)
    with pytest.raises(ValueError, match="fire33"):
        stride("squeezenet1_0.fire33")


@pytest.mark.parametrize("changes", [{}, {"loss.patch_size": 32}, {"loss.patch_size": 2, "loss.weight": 0.0}])
def test_patches_that_suit(changes: dict[str, object]) -> None:
    check_patch_size(Config().replace({"loss.features": PHI, "loss.queue_size": 10**6, **changes}).loss)


def test_patches_that_cut_a_cell_of_the_map() -> None:
    loss = Config().replace({"loss.features": PHI, "loss.queue_size": 10**6, "loss.patch_size": 2}).loss
    with pytest.raises(ConfigError, match=rf"^loss.patch_size=2: .*{PHI}'s stride, 4"):
        check_patch_size(loss)
