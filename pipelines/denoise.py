"""Restore a file or a folder of photographs, of any size, whole or in tiles as memory allows.

Photographs of a folder are restored side by side, one to each of torch's threads, rather than one after the other by
all of them: reading and writing keep a single thread busy, and threads that share a convolution wait for each other. On
2 cores of an AMD EPYC, 480 x 360 pixels, FFDNet 32 x 8, in megapixels a second and a second of CPU: one after the other
3.3 and 1.9, so with the next read and the last written by threads of their own 3.3 and 1.75, side by side 4.1 and 2.1.
That is twice the 2.0 of one thread, so that processes, each with a network of its own, had nothing left to gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from d2sm.inference import restore
from d2sm.noise import add_noise, seed_of
from pipelines import registry
from pipelines.data.images import ENDINGS, read_rgb, write_png
from pipelines.inference.samples import pixels, tensor
from pipelines.inference.tiling import Tile, tile_for
from pipelines.runs import checkpoint, storage
from pipelines.runtime.progress import Line
from pipelines.runtime.threads import torch_threads

ON_A_GPU = 3  # photographs side by side: one is read while another is restored and a third written


class DenoiseError(ValueError):
    """What was asked for cannot be done. One line."""


def load(model: str, *, uri: str | None = None, device: str = "cpu") -> nn.Module:
    """A model from a run's folder, a checkpoint, their URI, or a registry reference such as models:/name@alias."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        have = "cpu or cuda" if torch.cuda.is_available() else "cpu (torch finds no GPU)"
        raise DenoiseError(f"device={device}: there is {have}")
    if storage.is_uri(model) or (Path(model).exists() and not model.startswith("models:")):
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
    tile: Tile = "auto",
    quiet: bool = False,
) -> list[Path]:
    """Restore photographs.

    Args:
        source: a PNG or JPEG file, or a folder searched with its subfolders.
        target: the file to write, or the folder (names are kept, endings become .png). Never the source itself.
        model: a denoiser, see `load`.
        sigma: noise level of the photographs in 0..255; not for blind models.
        add: noise to add first, for a trial on clean photographs; sigma is then this.
        tile: side of the tiles; None: whole images; "auto": whole, or as large as memory allows (said when it is not).
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
    threads = torch.get_num_threads()
    side_by_side = min(len(jobs), threads if device.type == "cpu" else ON_A_GPU)

    def one(read: Path, write: Path) -> int | None:
        noisy = tensor(read_rgb(read))
        if add is not None:
            noisy = add_noise(noisy, sigma=torch.tensor([add]), seeds=[seed_of(read.stem)])
        chosen = tile_for(model, noisy, tile, sharing=side_by_side)
        write_png(write, pixels(restore(model, noisy.to(device), level, tile=chosen).cpu()))
        return chosen if tile == "auto" else None

    with (
        Line("denoise", len(jobs), quiet=quiet or len(jobs) == 1) as line,
        torch_threads(max(1, threads // side_by_side)),
        _pool(side_by_side) as pool,
    ):
        said = quiet
        for number, ((read, _), chosen) in enumerate(zip(jobs, pool.map(one, *zip(*jobs))), start=1):
            if chosen and not said:
                line.say(f"{read}: restored in tiles of {chosen} pixels, as the memory at hand allows")
                said = True
            line.to(number)
    return [write for _, write in jobs]


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that begin nothing more once the block ends, as it does on an error or Ctrl-C."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


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
