"""Restore a photograph, or a folder of them, of any size, whole or in tiles as the free memory allows.

The photographs of a folder are restored in parallel, with one of torch's threads each, rather than one after the other
with all threads: reading and writing use a single thread, and threads that share a convolution wait for each other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from d2sm.inference import restore
from d2sm.noise import add_noise, seed_of
from pipelines import registry
from pipelines.data.finding import ENDINGS, photographs
from pipelines.data.images import read_rgb, write_png
from pipelines.inference.samples import pixels, tensor
from pipelines.inference.tiling import Tile, tile_for
from pipelines.runtime.progress import Line
from pipelines.runtime.threads import torch_threads

ON_A_GPU = 3  # photographs in work at once: one is read while another is restored and a third is written


class DenoiseError(ValueError):
    """What was asked for cannot be done. One line."""


def denoise(
    source: str | Path,
    target: str | Path,
    *,
    model: nn.Module | str | Path,
    sigma: float | None = None,
    add: float | None = None,
    tile: Tile = "auto",
    quiet: bool = False,
) -> list[Path]:
    """Restore photographs.

    Args:
        source: a PNG or JPEG file, or a folder, searched with its subfolders.
        target: the file to write, or the folder to write to (names are kept, suffixes become .png). Never the source.
        model: a denoiser, or what names one (see `registry.model_folder`), which then restores on the CPU.
        sigma: noise level of the photographs in units of 0..255; not for blind models.
        add: level of Gaussian noise to add first, to try a model on clean photographs; sigma is then this level.
        tile: side of the tiles; None: whole images; "auto": whole images, or the largest tiles that fit into the free
            memory (a line says so).
        quiet: no progress line.

    Returns:
        The files written.

    Raises:
        RegistryError, CheckpointError: no such model.
        DenoiseError: nothing to restore, no noise level, or one for a blind model.
        ImageError: a file that cannot be read; those before it are written.
    """
    if not isinstance(model, nn.Module):
        model = registry.open_model(model)
    level = add if add is not None else sigma
    if level is None and not model.blind:
        raise DenoiseError(
            f"sigma: {type(model).__name__} needs the noise level; give --sigma (0 to 255), or --add-noise for a trial"
        )
    if sigma is not None and model.blind:
        raise DenoiseError(f"sigma={sigma:g}: {type(model).__name__} is blind and estimates the noise; leave it out")
    files = _files(Path(source), Path(target))
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    parallel = min(len(files), threads if device.type == "cpu" else ON_A_GPU)

    def restore_file(read: Path, write: Path) -> int | None:
        """Restore one photograph; gives the side of its tiles if that was chosen here."""
        noisy = tensor(read_rgb(read))
        if add is not None:
            noisy = add_noise(noisy, sigma=torch.tensor([add]), seeds=[seed_of(read.stem)])
        chosen = tile_for(model, noisy, tile, sharing=parallel)
        write_png(write, pixels(restore(model, noisy.to(device), level, tile=chosen).cpu()))
        return chosen if tile == "auto" else None

    pool = ThreadPoolExecutor(parallel)
    with (
        Line("denoise", len(files), quiet=quiet or len(files) == 1) as line,
        torch_threads(max(1, threads // parallel)),
    ):
        try:
            announced = quiet
            for number, ((read, _), side) in enumerate(zip(files, pool.map(restore_file, *zip(*files))), start=1):
                if side and not announced:
                    line.say(f"{read}: restored in tiles of {side} pixels, to fit into the free memory")
                    announced = True
                line.to(number)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, no further photograph is begun
    return [write for _, write in files]


def _files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each file to read, and the one to write."""
    if not source.exists():
        raise DenoiseError(f"{source}: no such file or folder; correct the path")
    if source.is_file():
        write = target / f"{source.stem}.png" if target.is_dir() else target
        if write.suffix.lower() != ".png":
            raise DenoiseError(f"{write}: restored images are PNG files; name it {write.stem}.png, or give a folder")
        files = [(source, write)]
    else:
        files = [(path, (target / path.relative_to(source)).with_suffix(".png")) for path in photographs(source)]
    if not files:
        raise DenoiseError(f"{source}: holds no {', '.join(ENDINGS)} file; give a folder of photographs")
    taken: dict[Path, Path] = {}
    for read, write in files:
        if (other := taken.setdefault(write, read)) != read:
            raise DenoiseError(f"{read}: would be written to {write}, as {other} would; rename one")
        if read.resolve() == write.resolve():
            raise DenoiseError(f"{write}: would overwrite its source; give another target")
    return files
