"""What tiling and padding must know of a network that does not state it: found by running copies of it on small images.

Nothing here draws from torch's random numbers or changes the network. Whatever was measured is checked by restoring an
image whole and in windows; a network for which that does not agree counts as one that cannot be restored in tiles.
"""

from __future__ import annotations

import copy
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from d2sm.tiles import round_up

Run = Callable[[nn.Module, Tensor], Tensor]
"""(network, noisy (B, 3, H, W)) -> restored; passes sigma on where the network takes it."""

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_SIDES = (64, 128, 256, 512)  # lengths of the images on which a receptive field is looked for, in pixels
_NARROW = 16  # their width
_EQUAL = 1e-9  # relative difference, in float64, below which two results are the same
_GROWS = 1.3  # memory that grows by more than this factor more than the pixels is not proportional to them
_UNSEEN = 3.0  # factor on the measured memory, for what operations allocate within themselves


def takes_sigma(network: nn.Module) -> bool:
    """Whether a network's `forward` is (noisy, sigma) rather than (noisy).

    A second argument that has a default counts if it is called sigma.

    Raises:
        ValueError: it takes none or more than two arguments. One line.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [each for each in inspect.signature(network.forward).parameters.values() if each.kind in kinds]
    needed = [each.name for each in parameters if each.default is inspect.Parameter.empty]
    if not parameters or len(needed) > 2:
        raise ValueError(f"its forward takes ({', '.join(needed)}): needs (noisy) or (noisy, sigma)")
    return len(needed) == 2 or (len(parameters) > 1 and parameters[1].name == "sigma")


def size_multiple(network: nn.Module, run: Run, minimum: int = 0) -> int:
    """The smallest of `MULTIPLES` so that images whose sides are multiples of it come back at their size.

    Args:
        minimum: smallest side that the network takes, in pixels.

    Raises:
        ValueError: there is none; one line that says what becomes of an image of odd sides.
    """
    why = ""
    with undisturbed(network), torch.no_grad():
        weight = next(network.parameters(), torch.zeros((), dtype=torch.float32, device="cpu"))
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        for multiple in MULTIPLES:
            height, width = (multiple * _odd(max(side, minimum) / multiple) for side in (33, 41))
            noisy = _image(height, width).to(weight.device, dtype)
            try:
                restored = run(network, noisy)
            except Exception as error:  # somebody else's network may raise anything
                why = why or f"fails on an image of {height}x{width}: {type(error).__name__}: {error}"
                continue
            if isinstance(restored, Tensor) and restored.shape == noisy.shape:
                return multiple
            found = tuple(restored.shape) if isinstance(restored, Tensor) else type(restored).__name__
            why = why or f"gives {found} for an image of {height}x{width}: needs {tuple(noisy.shape)}"
    raise ValueError(why)


def receptive_field(network: nn.Module, run: Run, multiple: int, minimum: int = 0) -> tuple[int, int] | None:
    """The receptive field of a network and the stride of its windows, both in pixels, as `Denoiser` has them.

    Args:
        multiple: of the sides that the network takes.
        minimum: smallest side that it takes.

    Returns:
        None: an output pixel depends on the whole image, or on more than `_SIDES` could show; or windows cut from an
        image do not give the result of the whole image.
    """
    try:
        # Whatever the caller's mode is: `restore` asks for this without gradients, and the answer is kept.
        with undisturbed(network), torch.inference_mode(False), torch.enable_grad():
            twins = [_copy(network, _positive), _copy(network)]
            reach = _reach(twins[0], run, multiple, minimum)
            if reach is None:
                return None
            for stride in (multiple * factor for factor in MULTIPLES if multiple * factor <= MULTIPLES[-1]):
                if all(_windows_agree(twin, run, reach, stride, minimum) for twin in twins):
                    return reach, stride
    except Exception:  # a network that cannot be copied, or not run in float64, has not been measured
        return None
    return None


def bytes_per_pixel(network: nn.Module, run: Run, multiple: int, minimum: int = 0) -> int | None:
    """Peak memory of restoring an image in float32 without gradients, per pixel of the image, rather too large.

    Args:
        multiple, minimum: as for `receptive_field`.

    Returns:
        None: it is not proportional to the number of pixels, or could not be measured.
    """
    try:
        with undisturbed(network), torch.inference_mode(False), torch.no_grad():
            twin = copy.deepcopy(network).to("cpu", torch.float32).eval()
            small, large = (_peak_bytes(twin, run, round_up(max(side, minimum), multiple)) for side in (64, 128))
    except Exception:  # as above
        return None
    return None if large > _GROWS * small else int(_UNSEEN * max(small, large)) + 1


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """In eval mode, and without a change of torch's random numbers on the CPU."""
    with evaluated(network), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """In eval mode; afterwards every module has the mode it had."""
    modes = {module: module.training for module in network.modules()}
    if any(modes.values()):
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _copy(network: nn.Module, weights: Callable[[Tensor], Tensor] = lambda weight: weight) -> nn.Module:
    twin = copy.deepcopy(network).to("cpu", torch.float64).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(weights(parameter))
    return twin


def _positive(weight: Tensor) -> Tensor:
    """Positive weights: no path through the network is cut off by a ReLU or by weights that start at zero."""
    generator = torch.Generator("cpu").manual_seed(weight.numel())
    drawn = torch.rand(weight.shape, generator=generator, dtype=weight.dtype, device="cpu") + 0.5
    return drawn / max(1, weight[0].numel()) if weight.dim() > 1 else drawn


def _image(height: int, width: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64, device="cpu")


def _odd(number: float) -> int:
    """The smallest odd number that is not smaller."""
    return 2 * math.ceil((number - 1) / 2) + 1


def _reach(twin: nn.Module, run: Run, multiple: int, minimum: int) -> int | None:
    """The side of the square of pixels around an output pixel that change it, with a margin of `multiple`.

    It is looked for along strips, which take less time than squares. The two output pixels tried are neighbours on
    either side of a line between the cells of every grid up to 64 pixels, where windows and pooled cells end.
    """
    for side in _SIDES:
        farthest = 0
        for upright in (False, True):
            noisy = _strip(side, upright, multiple, minimum).requires_grad_()
            restored = run(twin, noisy)
            lines = restored[0].sum((0, 2 if upright else 1))  # along the strip
            for at in (len(lines) // 2 - 1, len(lines) // 2):
                (gradient,) = torch.autograd.grad(lines[at], noisy, retain_graph=True)
                seen = gradient[0].abs().sum((0, 2 if upright else 1)).nonzero()
                if not len(seen):
                    return None
                farthest = max(farthest, int((seen - at).abs().max()))
        if farthest + multiple < side // 2 - 1:
            return 2 * (farthest + multiple) + 1
    return None


def _windows_agree(twin: nn.Module, run: Run, reach: int, stride: int, minimum: int) -> bool:
    """Whether windows that start or end at odd multiples of the stride give what the whole image gives there.

    What lies outside of a window is unlike the rest, in its mean and its extremes: a network that looks at these of the
    whole image, for which a gradient need not show, gives something else.
    """
    halo = round_up(reach, stride)
    side = round_up(max(halo + 4 * stride, minimum), stride)
    with torch.no_grad():
        for upright in (False, True):
            axis = 2 if upright else 3
            # Where the window begins, the pixels outside of it, and which of its own are compared.
            for start, outside, compared in ((stride, 0, halo), (0, side, 0)):
                noisy = _strip(side + stride, upright, stride, minimum)
                noisy.narrow(axis, outside, stride).mul_(3).sub_(1)
                whole = run(twin, noisy)
                window = run(twin, noisy.narrow(axis, start, side))
                there = whole.narrow(axis, start + compared, side - halo)
                most = _EQUAL * max(1.0, float(whole.abs().max()))
                if not bool((window.narrow(axis, compared, side - halo) - there).abs().max() <= most):
                    return False
    return True


def _strip(length: int, upright: bool, multiple: int, minimum: int) -> Tensor:
    """An image of this length, and as narrow as the network takes it, with sides that are multiples of `multiple`."""
    length, width = (round_up(max(side, minimum), multiple) for side in (length, _NARROW))
    return _image(length, width) if upright else _image(width, length)


def _peak_bytes(twin: nn.Module, run: Run, side: int) -> float:
    with _LiveBytes() as live:
        run(twin, _image(side, side).float())
    return live.peak / side**2


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make and that still exist, and the most of them at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, int] = {}  # tensors by the address of their memory, which views share

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return result

    def _hold(self, tensor: Tensor) -> None:
        address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self._held[address] = self._held.get(address, 0) + 1
        if self._held[address] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]
            self.now -= size
