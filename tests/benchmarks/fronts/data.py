"""CamVid's photographs and labels on a device, random crops of them, and what is done to them before restoration."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from d2sm.noise import add_noise, seed_of

CLASSES = (
    "sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car", "person", "bicycle",
)  # fmt: skip
LABEL_IDS = (23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33)  # Cityscapes' ids of these classes, as stored in the label files
VOID = 255


@dataclass
class Photographs:
    """Training photographs (N, 3, H, W) uint8 and labels (N, H, W) uint8: an index of `CLASSES` or `VOID`; evaluation
    photographs (M, 3, H, W) in [0, 1], their labels, and their names, which determine their noise."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    names: list[str]

    def crops(self, generator: torch.Generator, batch: int, side: int) -> tuple[Tensor, Tensor]:
        """(B, 3, side, side) in [0, 1] and labels (B, side, side); places and flips depend on the generator alone."""
        n, _, height, width = self.train.shape
        device = self.train.device
        drawn = torch.rand(4, batch, generator=generator, device=device)
        index = (drawn[0] * n).long().clamp(max=n - 1)
        top = (drawn[1] * (height - side + 1)).long().clamp(max=height - side)
        left = (drawn[2] * (width - side + 1)).long().clamp(max=width - side)
        along = torch.arange(side, device=device)
        ys = top[:, None] + along
        xs = left[:, None] + torch.where(drawn[3, :, None] < 0.5, along, side - 1 - along)
        index, ys, xs = index[:, None, None], ys[:, :, None], xs[:, None, :]
        pixels = self.train[index, :, ys, xs]  # (B, side, side, 3)
        return pixels.permute(0, 3, 1, 2).float() / 255, self.train_labels[index, ys, xs]


def read_photographs(camvid: Path, device: torch.device, dry: bool = False) -> Photographs:
    """Read a folder in the Cityscapes layout. dry: four photographs a split, the evaluated ones cut to 96 x 128.

    Raises:
        ValueError: there are none.
    """
    index = torch.full((256,), VOID, dtype=torch.uint8)
    index[list(LABEL_IDS)] = torch.arange(len(LABEL_IDS), dtype=torch.uint8)

    def split(name: str) -> tuple[Tensor, Tensor, list[str]]:
        files = sorted((camvid / "leftImg8bit" / name).glob("*/*_leftImg8bit.png"))[: 4 if dry else None]
        if not files:
            raise ValueError(
                f"--data: no photographs in {camvid}/leftImg8bit/{name}; give the folder that holds camvid/"
            )
        stems = [file.name.removesuffix("_leftImg8bit.png") for file in files]
        folder = camvid / "gtFine" / name
        labels = [folder / file.parent.name / f"{stem}_gtFine_labelIds.png" for file, stem in zip(files, stems)]
        with ThreadPoolExecutor() as pool:
            pixels = torch.stack(list(pool.map(lambda file: decode_image(str(file), ImageReadMode.RGB), files)))
            ids = torch.cat(list(pool.map(lambda file: decode_image(str(file)), labels)))
        return pixels.to(device), index[ids.long()].to(device), stems

    train, train_labels, _ = split("train")
    val, val_labels, names = split("val")
    if dry:
        val, val_labels = val[:, :, 100:196, :128], val_labels[:, 100:196, :128]
    return Photographs(train, train_labels, val.float() / 255, val_labels, names)


def degrade(
    task: str, clean: Tensor, *, generator: torch.Generator | None = None, names: list[str] | None = None
) -> tuple[Tensor, Tensor]:
    """What a network is given, (B, 3, H, W), and the sigma it is told, (B,).

    Args:
        task: "noise<sigma>": Gaussian noise, not clipped, drawn from the generator or for each image by its name.
            "sr<factor>": bicubic reduction with antialiasing, 8 bits, bicubic enlargement; sigma is then 0. "clean".
        clean: (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: another task.
    """
    sigma = clean.new_zeros(len(clean))
    if task.startswith("noise"):
        sigma += float(task.removeprefix("noise"))
        if names is not None:
            return add_noise(clean, sigma=sigma, seeds=[seed_of(name) for name in names]), sigma
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return clean + noise * (sigma / 255).view(-1, 1, 1, 1), sigma
    if task.startswith("sr"):
        factor, (height, width) = int(task.removeprefix("sr")), clean.shape[2:]
        small = F.interpolate(clean, size=(height // factor, width // factor), mode="bicubic", antialias=True)
        small = (small.clamp(0, 1) * 255).round() / 255
        return F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1), sigma
    if task == "clean":
        return clean, sigma
    raise ValueError(f"task={task!r}: needs noise<sigma>, sr<factor> or clean")


class Batches:
    """Crops and their degraded versions from a seed alone: the same for every objective."""

    def __init__(self, photographs: Photographs, task: str, seed: int, batch: int, side: int) -> None:
        self.photographs, self.task, self.batch, self.side = photographs, task, batch, side
        self.generator = torch.Generator(photographs.train.device).manual_seed(seed)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean (B, 3, side, side), degraded likewise, sigma (B,), labels (B, side, side)."""
        clean, labels = self.photographs.crops(self.generator, self.batch, self.side)
        return clean, *degrade(self.task, clean, generator=self.generator), labels
