"""Train the demo's own segmenter, a small ESPNet, on the built-in scenes: plain torch, one process, CPU.

It measures MIoU where there are no published weights: `segmenters.load("espnet-scenes", weights=...)`. Its input is RGB
in [0, 1], not normalised. Like the published networks it is trained on clean images only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from d2sm.metrics import CLASSES
from d2sm.models.espnet import ESPNet
from pipelines.data.images import read_labels, read_rgb
from pipelines.runtime import files
from pipelines.runtime.threads import torch_threads

Progress = Callable[[int, int, float], None]


class SegmenterFitError(ValueError):
    """Training that cannot begin or has failed: one line with the field or folder and the remedy."""


# One thread: on a busy machine several wait for each other at each of the many small convolutions, and their number
# would change the sums, hence the weights.
@torch_threads(1)
def fit(
    root: str | Path, *, out: Path, seed: int = 0, steps: int = 1300, batch: int = 2,
    crop: tuple[int, int] = (96, 192), lr: float = 1e-2, p: int = 1, q: int = 2,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Train on the training split of a set of built-in scenes.

    The same arguments give the same weights on machines of one kind. It computes with one thread.

    Args:
        root: a set in the Cityscapes layout, all images of one size (`scenes.write_scenes`).
        out: the file to write, safetensors with metadata p, q, classes.
        seed: of the initial weights and of the crops.
        steps, batch, crop, lr: optimizer steps, crops a step, their size in pixels, peak learning rate.
        p, q: residual blocks of the ESPNet at 1/4 and 1/8.
        progress: called after every step with (step, steps, loss).

    Returns:
        `out`.

    Raises:
        SegmenterFitError: no training images, a crop larger than they are, a number out of range, a NaN loss.
    """
    if steps < 1 or batch < 1:
        raise SegmenterFitError(f"steps={steps}, batch={batch}: both need to be at least 1")
    images, labels = read_split(Path(root), "train")
    if crop[0] > images.shape[2] or crop[1] > images.shape[3]:
        raise SegmenterFitError(
            f"crop={crop} is larger than the pictures {tuple(images.shape[2:])}: give a smaller one"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ESPNet(classes=len(CLASSES), p=p, q=q)
    network.to(memory_format=torch.channels_last)
    weight = class_weights(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1, div_factor=4)
    network.train()
    for step, (image, label) in enumerate(_crops(images, labels, seed, steps, batch, crop), start=1):
        loss = _loss(network, image, label, weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        value = float(loss.detach())
        if value != value:
            raise SegmenterFitError(f"step {step}: the loss is not a number: lower lr={lr}")
        if progress is not None:
            progress(step, steps, value)
    return _save(network, Path(out), p, q)


def _loss(network: ESPNet, image: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the logits, plus half of that of the encoder's own logits at 1/8 of the size."""
    coarse: list[Tensor] = []
    hook = network.encoder.classifier.register_forward_hook(lambda *call: coarse.append(call[2]))
    fine = F.cross_entropy(network(image), label, weight=weight, ignore_index=255)
    hook.remove()
    rough = F.interpolate(label[:, None].float(), size=coarse[0].shape[2:], mode="nearest")[:, 0].long()
    return fine + 0.5 * F.cross_entropy(coarse[0], rough, weight=weight, ignore_index=255)


def class_weights(labels: Tensor) -> Tensor:
    """Weights (19,) that raise rare classes: (fraction of pixels)^-0.3, mean 1 over the pixels; 0 for absent classes.

    Args:
        labels: train ids (..., H, W), 255 ignored.
    """
    counts = torch.bincount(labels[labels != 255].flatten().long(), minlength=len(CLASSES)).float()
    share = counts / counts.sum().clamp(min=1)
    weight = torch.where(counts > 0, share.clamp(min=1e-5) ** -0.3, 0.0)
    return weight / (weight * share).sum().clamp(min=1e-12)


def read_split(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """All images (N, 3, H, W) uint8 and train ids (N, H, W) uint8 of a split, sorted by name."""
    paths = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not paths:
        raise SegmenterFitError(f"root={root} has no leftImg8bit/{split}/*/*_leftImg8bit.png: write the scenes first")
    images, labels = [], []
    for path in paths:
        stem = path.name.removesuffix("_leftImg8bit.png")
        label = root / "gtFine" / split / path.parent.name / f"{stem}_gtFine_labelIds.png"
        images.append(torch.from_numpy(read_rgb(path)).permute(2, 0, 1))
        labels.append(torch.from_numpy(read_labels(label)))
        if images[-1].shape != images[0].shape or labels[-1].shape != images[0].shape[1:]:
            raise SegmenterFitError(f"{path}: size {tuple(images[-1].shape[1:])}: all scenes and labels need one size")
    return torch.stack(images), torch.stack(labels)


def _crops(
    images: Tensor, labels: Tensor, seed: int, steps: int, batch: int, crop: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches of random crops, half of them flipped left to right."""
    random = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape
    order = torch.cat([torch.randperm(n, generator=random) for _ in range(-(-steps * batch // n))])
    for picks in order[: steps * batch].split(batch):
        image = torch.empty(len(picks), 3, *crop)
        label = torch.empty(len(picks), *crop, dtype=torch.long)
        for i, pick in enumerate(picks.tolist()):
            top = int(torch.randint(height - crop[0] + 1, (), generator=random))
            left = int(torch.randint(width - crop[1] + 1, (), generator=random))
            box = (slice(top, top + crop[0]), slice(left, left + crop[1]))
            part, target = images[pick][:, *box], labels[pick][box]
            if bool(torch.randint(2, (), generator=random)):
                part, target = part.flip(-1), target.flip(-1)
            image[i], label[i] = part.float() / 255, target
        yield image.contiguous(memory_format=torch.channels_last), label


def _save(network: nn.Module, out: Path, p: int, q: int) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    with files.replacing(out) as temporary:
        save_file(state, temporary, metadata={"p": str(p), "q": str(q), "classes": str(len(CLASSES))})
    return out
