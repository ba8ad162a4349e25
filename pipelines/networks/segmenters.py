"""Segmentation networks by name, with one contract.

`load(name, weights=...)` returns a frozen module in eval mode: (B, 3, H, W) RGB in [0, 1] -> logits (B, C, H, W) of
the C classes of the label set, 19 for Cityscapes, at the input's size, its own normalisation inside. Its parameters
take no gradient; the input does. It leaves its input as it is, and gives the same logits again for the same input.
Registered networks ("models:/name@alias") are loaded by
`pipelines.tracking.segmenter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2sm.frozen import unchanged
from d2sm.metrics import CLASSES
from d2sm.models import ESPNet
from d2sm.objectives.segmentation import ABSENT
from d2sm.weights import WeightsError, read_safetensors, read_state_dict
from d2sm.weights import fingerprint as weights_fingerprint
from pipelines.callables import import_callable, is_imported
from pipelines.text import did_you_mean, listed, more, one_line

_MOST_BLOCKS = 64  # of an ESPNet, of each kind; the published ones have 2 and 8
# The classes of CamVid's outputs, in order; a twelfth output, void, is not used.
_CAMVID = (
    "sky", "building", "pole", "road", "sidewalk", "vegetation",
    "traffic sign", "fence", "car", "person", "bicycle",
)  # fmt: skip


class SegmenterError(ValueError):
    """A segmenter that cannot be loaded, or breaks the contract. One line."""


class Segmenter(nn.Module):
    """A published network with its preprocessing, and its outputs as Cityscapes train ids.

    Args:
        network: normalised (B, 3, h, w) -> (B, C, h, w).
        channels: the train ids that the first outputs of the network stand for, in turn. Further outputs are dropped;
            train ids that are not among them get the logit `ABSENT`.
        mean: of each channel, in units of 0..255, in BGR order, as the published networks were trained.
        std: likewise; the normalised image is divided by 255 afterwards.
        size: (h, w) to which the image is resized for the network; None: it keeps its size.
    """

    channels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        channels: list[int],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.register_buffer("channels", torch.tensor(channels), persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 19, H, W) of RGB images (B, 3, H, W) in [0, 1]."""
        normal = (image.flip(1) * 255 - self.mean) / self.std / 255
        scores = self.network(_resized(normal, self.size or image.shape[2:]))[:, : len(self.channels)]
        logits: Tensor = scores.new_full((image.shape[0], len(CLASSES), *image.shape[2:]), ABSENT)
        return logits.index_copy_(1, self.channels, _resized(scores, image.shape[2:]))


def classes(segmenter: nn.Module, image: Tensor) -> Tensor:
    """The segmentation of images (B, 3, H, W) in [0, 1]: train ids (B, H, W) int64, on the images' device.

    Of equal scores the first wins, as with `argmax`, which is slower on a CPU.
    """
    with torch.no_grad():
        return segmenter(image).max(1).indices


def fingerprint(segmenter: nn.Module) -> str:
    """That of a segmenter's weights, see `d2sm.weights.fingerprint`."""
    return weights_fingerprint(segmenter.state_dict())


class OfClasses(nn.Module):
    """A segmenter of Cityscapes' classes, as one of another label set: the logits of the classes that are alike.

    Args:
        segmenter: (B, 3, H, W) -> logits (B, 19, H, W) of the Cityscapes train ids.
        classes: for each class of the label set the Cityscapes class that it is like; others get the logit `ABSENT`.
    """

    def __init__(self, segmenter: nn.Module, classes: Sequence[str]) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.outputs = [CLASSES.index(name) if name in CLASSES else None for name in classes]

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of RGB images (B, 3, H, W) in [0, 1]."""
        logits = self.segmenter(image)
        absent = torch.full_like(logits[:, 0], ABSENT)
        return torch.stack([absent if output is None else logits[:, output] for output in self.outputs], dim=1)


def load(
    name: str, *, weights: str | Path | None = None, resize: bool = True, classes: Sequence[str] = CLASSES
) -> nn.Module:
    """Load a segmenter by name.

    Args:
        name: "espnet-cityscapes" or "espnet-camvid" (the published networks), "espnet-scenes" (the small one that the
            demo trains), or "module:callable", which is imported, called with `weights=`, and returns a module that
            keeps the contract of this file.
        weights: file of weights. The ESPNets need one: a plain state dict (.pth) or safetensors.
        resize: whether the published networks resize their input to the size of a whole photograph. False for crops,
            whose objects then keep their scale.
        classes: for each class of the label set the Cityscapes class that it is like (`LabelSet.like`). The published
            networks give the logits of those that they have.

    Raises:
        SegmenterError: (a ValueError) no such name; weights missing, unreadable or of another network; a callable that
            cannot be imported or breaks the contract; a published network that has none of the classes.
    """
    path = None if weights is None else Path(weights)
    if name in _BUILT_IN:
        if path is None:
            remedy = "the demo writes one" if name == "espnet-scenes" else "sacmehta/ESPNet publishes it"
            raise SegmenterError(f"segmenter {name} needs weights: give the path of its file ({remedy})")
        if not path.is_file():
            raise SegmenterError(f"segmenter {name}: weights={path}: no such file")
        segmenter = _BUILT_IN[name](name, path)
        if isinstance(segmenter, Segmenter) and not resize:
            segmenter.size = None
        if tuple(classes) != CLASSES:
            if not set(classes) & set(_CAMVID if name == "espnet-camvid" else CLASSES):
                raise SegmenterError(
                    f"segmenter {name}: has none of the classes of data.labels ({listed(classes, 4)}); give a "
                    "segmenter of these classes, or name in the label set what they are like"
                )
            segmenter = OfClasses(segmenter, classes)
    elif is_imported(name):
        segmenter = _imported(name, path, len(classes))
    else:
        hint = did_you_mean(name, _BUILT_IN, cutoff=0.4)
        raise SegmenterError(
            f"segmenter={name!r}: needs {', '.join(_BUILT_IN)}, module:callable or models:/name@alias{hint}"
        )
    return segmenter.eval().requires_grad_(False)


def checked(name: str, segmenter: nn.Module, classes: int = len(CLASSES)) -> nn.Module:
    """The segmenter, after it has kept the contract on one small image.

    Args:
        classes: how many the label set has.

    Raises:
        SegmenterError: it fails on the image, changes it in place, gives a result of another shape, or does not give
            the same result again.
    """
    expected = (1, classes, 64, 96)
    image = torch.rand(1, 3, *expected[2:], generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), unchanged(image, "it"):
            logits = segmenter(image)
            # After a first image, for which a network may keep what depends on the size.
            before = {name: buffer.clone() for name, buffer in segmenter.named_buffers()}
            again = segmenter(image)
    except Exception as error:  # somebody else's network may raise anything
        raise SegmenterError(f"segmenter={name!r} fails on an image of (1, 3, 64, 96): {one_line(error)}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise SegmenterError(
            f"segmenter={name!r} gives {found} for an image of 64x96: needs logits {expected}, one for each class of "
            "data.labels"
        )
    changes = any(not _same(buffer, before[name]) for name, buffer in segmenter.named_buffers() if name in before)
    if changes or not _same(logits, again):
        what = "changes with every image" if changes else "gives two results for one image"
        raise SegmenterError(
            f"segmenter={name!r} {what}, as in training mode (dropout, BatchNorm); call its eval() before it is "
            "exported, or correct it"
        )
    return segmenter


def _same(first: Tensor, second: Tensor) -> bool:
    """But for rounding: threads may add in another order."""
    if first.shape != second.shape or not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True)


def _cityscapes(name: str, path: Path) -> Segmenter:
    network = _with_weights(name, ESPNet(classes=20, p=2, q=8, shallow="conv"), path)
    mean, std = (72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307)
    return Segmenter(network, list(range(len(CLASSES))), mean, std, size=(512, 1024))


def _camvid(name: str, path: Path) -> Segmenter:
    network = _with_weights(name, ESPNet(classes=12, p=2, q=8, shallow="pyramid"), path)
    mean, std = (110.4, 109.0, 106.1), (71.6, 72.3, 69.7)  # known to three digits only
    return Segmenter(network, [CLASSES.index(c) for c in _CAMVID], mean, std, size=(360, 480))


def _scenes(name: str, path: Path) -> nn.Module:
    """The network that the demo trains: it takes RGB in [0, 1] at any size and has the 19 classes already."""
    if path.suffix != ".safetensors":
        raise SegmenterError(f"segmenter {name}: weights={path}: needs a .safetensors file")
    try:
        found = read_safetensors(path)[1]
    except WeightsError as error:
        raise SegmenterError(f"segmenter {name}: weights={path} cannot be read: {error}") from None
    try:
        sizes: dict[str, Any] = {key: int(found[key]) for key in ("p", "q", "classes")}
        if not all(0 < sizes[key] <= _MOST_BLOCKS for key in ("p", "q")):
            raise ValueError
    except (KeyError, ValueError):
        raise SegmenterError(
            f"segmenter {name}: weights={path}: its metadata {one_line(found, 200)} needs whole numbers p, q and "
            f"classes, p and q from 1 to {_MOST_BLOCKS}"
        ) from None
    if sizes["classes"] != len(CLASSES):
        raise SegmenterError(f"{name}: {path} has classes={sizes['classes']}: needs {len(CLASSES)}")
    return _with_weights(name, ESPNet(**sizes), path)


_BUILT_IN: dict[str, Callable[[str, Path], nn.Module]] = {
    "espnet-cityscapes": _cityscapes,
    "espnet-camvid": _camvid,
    "espnet-scenes": _scenes,
}


def _with_weights(name: str, network: ESPNet, path: Path) -> ESPNet:
    state = _state(name, path)
    own = network.state_dict()
    # Old state dicts have no counter of batches, and nothing reads it in eval mode.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    wrong = [key for key in state if key in own and state[key].shape != own[key].shape]
    for keys, what in ((missing, "lacks"), (unknown, "has the unknown"), (wrong, "has another shape of")):
        if keys:
            raise SegmenterError(
                f"segmenter {name}: weights={path} is of another network: it {what} {keys[0]}{more(keys)}"
            )
    network.load_state_dict(state, strict=True)
    return network


def _state(name: str, path: Path) -> dict[str, Tensor]:
    try:
        return read_state_dict(path)
    except WeightsError as error:
        raise SegmenterError(f"segmenter {name}: weights={path} cannot be read: {error}") from None


def _imported(name: str, path: Path | None, classes: int) -> nn.Module:
    segmenter = import_callable(name, asked_by=f"segmenter={name!r}", error=SegmenterError)(weights=path)
    if not isinstance(segmenter, nn.Module):
        raise SegmenterError(f"segmenter={name!r} returned a {type(segmenter).__name__}: needs a torch module")
    return checked(name, segmenter.eval(), classes)


def _resized(maps: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    if maps.shape[2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
