"""Restoring images of any size, whole or in tiles, with the same result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, product

import torch
from torch import Tensor, nn

from d2sm.models.base import label_of, noise_levels
from d2sm.probing import evaluated
from d2sm.tiles import round_up


def restore(
    model: nn.Module,
    noisy: Tensor,
    sigma: float | Tensor | None = None,
    *,
    tile: int | None = None,
    halo: int | None = None,
) -> Tensor:
    """Run a denoiser over a batch without gradients and in eval mode, whole or in tiles.

    With `tile`, the network is run on windows of about `tile + 2 * halo` pixels a side, one at a time, so the memory it
    needs does not grow with the image. A window takes its margin from the image and starts at a multiple of the model's
    stride; at the image's border there is no margin, and the network pads as it does on the whole image. Hence the
    result equals that of the whole image, up to float32 rounding. The image may stay on the CPU while the model is on a
    GPU: only windows are copied.

    Args:
        model: a denoiser with the attributes `blind`, `stride` and `receptive_field`, see `models.Denoiser`.
        noisy: (B, 3, H, W), nominally in [0, 1], any H and W.
        sigma: standard deviation of the noise in units of 0..255, one number or (B,). Not passed to a blind model.
        tile: side of the square that is restored at once, in pixels, rounded up to a multiple of the stride;
            None: the whole image.
        halo: margin around a tile in pixels, rounded up likewise, at least the receptive field; None: the receptive
            field.

    Returns:
        restored, (B, 3, H, W) on the device of `noisy`, not clamped.

    Raises:
        ValueError: images of another shape or type, sigma missing or not a noise level, tile not positive, halo below
            the receptive field or without a tile, a model that does not state whether it is blind, its stride or its
            receptive field, or that fails on images of another type than its weights.
    """
    if noisy.dim() != 4 or noisy.shape[1] != 3:
        raise ValueError(f"restore: noisy has shape {tuple(noisy.shape)}: needs (B, 3, H, W)")
    if not noisy.is_floating_point():
        raise ValueError(f"restore: noisy holds {noisy.dtype}: needs floating point in [0, 1]; divide by 255 first")
    _check_denoiser(model)
    levels = None if model.blind else _levels(sigma, noisy)
    with evaluated(model), torch.no_grad():
        if tile is None:
            if halo is not None:
                raise ValueError(f"restore: halo={halo} without a tile: give tile, or leave halo out")
            return _run(model, noisy, levels)
        restored = torch.empty_like(noisy)
        for core, window in windows(model, noisy.shape[2:], tile, halo):
            (top, bottom), (left, right) = core
            (above, below), (before, after) = window
            piece = _run(model, noisy[..., above:below, before:after], levels)
            restored[..., top:bottom, left:right] = piece[
                ..., top - above : bottom - above, left - before : right - before
            ]
    return restored


def _check_denoiser(model: nn.Module) -> None:
    if isinstance(getattr(model, "blind", None), bool):
        return
    wrapper = isinstance(getattr(model, "module", None), nn.Module)  # as DataParallel and DistributedDataParallel are
    remedy = "give its .module" if wrapper else "wrap it: d2sm.models.WrappedNetwork(network)"
    raise ValueError(
        f"restore: {type(model).__name__} does not state whether it is blind, as a Denoiser does; {remedy}"
    )


def _levels(sigma: float | Tensor | None, noisy: Tensor) -> Tensor:
    levels = noise_levels(sigma, noisy, "restore").float()
    if not bool(((levels >= 0) & (levels <= 255)).all()):
        raise ValueError(f"restore: sigma={levels.tolist()}: needs a noise level in 0..255")
    return levels


def _run(model: nn.Module, noisy: Tensor, levels: Tensor | None) -> Tensor:
    weight = next(chain(model.parameters(), model.buffers()), noisy)  # a network may have neither
    inputs = [noisy.to(weight.device)] if levels is None else [noisy.to(weight.device), levels.to(weight.device)]
    try:
        restored: Tensor = model(*inputs)
    except RuntimeError as error:
        if weight.dtype == noisy.dtype or not weight.is_floating_point() or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"restore: noisy is {noisy.dtype} and the weights of {label_of(model)} are {weight.dtype}, with which it "
            f"fails; give noisy.to({weight.dtype})"
        ) from error
    return restored.to(noisy.device)


Span = tuple[int, int]


def windows(
    model: nn.Module, size: Sequence[int], tile: int, halo: int | None = None
) -> Iterator[tuple[tuple[Span, Span], tuple[Span, Span]]]:
    """The tiles of an image, for callers that hold it in another form than a tensor.

    Args:
        model: as in `restore`.
        size: height and width of the image.
        tile, halo: as in `restore`.

    Yields:
        For each tile the rows and columns it covers, and the rows and columns of the window that the network needs.

    Raises:
        ValueError: as `restore`.
    """
    stride, receptive_field = _pixels(model, "stride"), _pixels(model, "receptive_field")
    halo = receptive_field if halo is None else halo
    if tile < 1:
        raise ValueError(f"restore: tile={tile}: needs at least 1 pixel")
    if halo < receptive_field:
        raise ValueError(f"restore: halo={halo}: needs at least the model's receptive field, {receptive_field} pixels")
    tile, halo = (round_up(side, stride) for side in (tile, halo))
    spans = [[(start, min(start + tile, side)) for start in range(0, side, tile)] for side in size]
    for rows, columns in product(*spans):
        yield (rows, columns), (_widened(rows, halo, size[0]), _widened(columns, halo, size[1]))


def _pixels(model: nn.Module, name: str) -> int:
    value = getattr(model, name, None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"restore: {type(model).__name__}.{name} is {value!r}: tiles need a number of pixels")
    return value


def _widened(span: Span, halo: int, side: int) -> Span:
    return max(0, span[0] - halo), min(side, span[1] + halo)
