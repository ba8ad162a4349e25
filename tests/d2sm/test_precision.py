"""Convolutions with fixed kernels are exact on a GPU too, where cuDNN would compute those of float32 in TF32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from d2sm import blur
from d2sm.objectives import SSIMLoss
from d2sm.precision import float32_convolutions


class Convolutions(TorchDispatchMode):
    """Notes the type of what is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def similarity(device: str) -> Tensor:
    restored, clean = torch.rand(2, 2, 3, 32, 32, device=device).unbind()
    loss = SSIMLoss()
    loss.check_range.passed = True  # the first call alone reads numbers, which there are none of
    return loss(restored, clean)


def blurred(device: str) -> Tensor:
    return blur._convolved(torch.rand(3, 32, 32, device=device), torch.ones(1, 5, device=device) / 5)


@pytest.mark.parametrize("compute, count", [(similarity, 2), (blurred, 1)])
def test_convolutions_on_a_gpu_are_of_float64(compute: Callable[[str], Tensor], count: int) -> None:
    """Tensors without numbers stand for those of a GPU."""
    with FakeTensorMode(), Convolutions() as there:
        result = compute("cuda")
    assert there.types == [torch.float64] * count and result.dtype == torch.float32
    with Convolutions() as here:
        compute("cpu")
    assert here.types == [torch.float32] * count


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gradient_of_ssim_on_a_gpu_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 64, 64, generator=generator)
    restored = clean + 0.01 * torch.randn(clean.shape, generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        image = restored.to(device).requires_grad_()
        SSIMLoss()(image, clean.to(device)).backward()
        assert image.grad is not None
        found.append(image.grad.cpu())
    assert (found[1] - found[0]).norm() < 1e-3 * found[0].norm()


@pytest.mark.filterwarnings("error")
def test_convolutions_in_float32_within_a_block_alone() -> None:
    """The default of cuDNN's convolutions comes back, also after an error and in a block within another."""
    setting = torch.backends.cudnn.conv
    before = setting.fp32_precision
    with float32_convolutions():
        with pytest.raises(ZeroDivisionError), float32_convolutions():
            assert setting.fp32_precision == "ieee"
            torch.nn.functional.conv2d(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 3, 3))
            _ = 1 / 0
        assert setting.fp32_precision == "ieee"
    assert setting.fp32_precision == before == "tf32"
