"""Restore a file or a folder of photographs, of any size, in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from d2sm.inference import restore
from d2sm.noise import add_noise, seed_of
from pipelines import checkpoint, registry, remote
from pipelines.evaluate import tensor
from pipelines.images import ENDINGS, read_rgb, write_png
from pipelines.pictures import pixels
from pipelines.progress import Line


class DenoiseError(ValueError):
    """What was asked for cannot be done. One line."""


def load(model: str, *, uri: str | None = None, device: str = "cpu") -> nn.Module:
    """A model from a run's folder, a checkpoint, their URI, or a registry reference such as models:/name@alias."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        have = "cpu or cuda" if torch.cuda.is_available() else "cpu (torch finds no GPU)"
        raise DenoiseError(f"device={device}: there is {have}")
    if remote.is_uri(model) or (Path(model).exists() and not model.startswith("models:")):
        return checkpoint.load_model(checkpoint.resolve(model))[0].to(device)
    if model.startswith(("models:", "/", ".")) or "@" in model:
        return registry.lookup(model, uri=uri).load(device)
    raise DenoiseError(f"model={model}: no such folder, and no reference like models:/name@alias")


def denoise(
    source: str | Path,
    target: str | Path,
    *,
    model: nn.Module,
    sigma: float | None = None,
    add: float | None = None,
    tile: int | None = 512,
    quiet: bool = False,
) -> list[Path]:
    """Restore photographs.

    Args:
        source: a PNG or JPEG file, or a folder searched with its subfolders.
        target: the file to write, or the folder (names are kept, endings become .png). Never the source itself.
        model: a denoiser, see `load`.
        sigma: noise level of the photographs in 0..255; not for blind models.
        add: noise to add first, for a trial on clean photographs; sigma is then this.
        tile: side of the tiles; None: whole images.
        quiet: no progress line.

    Returns:
        The files written.

    Raises:
        DenoiseError: nothing to restore, or the noise level is missing, or given to a blind model.
        ImageError: a file that cannot be read; those before it are written.
    """
    level = add if add is not None else sigma
    if level is None and not model.blind:
        raise DenoiseError(
            f"sigma: {type(model).__name__} is told the noise level; give --sigma (0 to 255) or --add-noise"
        )
    if sigma is not None and model.blind:
        raise DenoiseError(f"sigma={sigma:g}: {type(model).__name__} is blind and finds the noise itself; leave it out")
    jobs = list(_jobs(Path(source), Path(target)))
    device = next(model.parameters()).device
    with Line("denoise", len(jobs), quiet=quiet or len(jobs) == 1) as line:
        for number, (read, write) in enumerate(jobs, start=1):
            noisy = tensor(read_rgb(read))
            if add is not None:
                noisy = add_noise(noisy, sigma=torch.tensor([add]), seeds=[seed_of(read.stem)])
            write.parent.mkdir(parents=True, exist_ok=True)
            write_png(write, pixels(restore(model, noisy.to(device), level, tile=tile).cpu()))
            line.to(number)
    return [write for _, write in jobs]


def _jobs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    if not source.exists():
        raise DenoiseError(f"{source}: no such file or folder")
    if source.is_file():
        write = target / f"{source.stem}.png" if target.is_dir() else target
        if write.suffix.lower() != ".png":
            raise DenoiseError(f"{write}: restored pictures are PNG files; name it {write.stem}.png, or give a folder")
        pairs = [(source, write)]
    else:
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS)
        pairs = [(path, (target / path.relative_to(source)).with_suffix(".png")) for path in found]
    if not pairs:
        raise DenoiseError(f"{source}: holds no {', '.join(ENDINGS)} file")
    taken: dict[Path, Path] = {}
    for read, write in pairs:
        if (other := taken.setdefault(write, read)) != read:
            raise DenoiseError(f"{read}: would be written to {write}, as {other} is; rename one")
        if read.resolve() == write.resolve():
            raise DenoiseError(f"{write}: would be written over its source; choose another target")
    yield from pairs
