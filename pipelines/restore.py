"""Restore a photograph, or a folder of them, of any size and kind, whole or in tiles as the free memory allows.

A photograph comes back as it was: grey or RGB, of 8 or 16 bits, with its transparency, colour profile, density and
EXIF, upright. A folder goes on after a photograph that cannot be restored, and at the end says which were skipped, and
why.

The photographs of a folder are restored in parallel, with one of torch's threads each, rather than one after the other
with all threads: reading and writing use a single thread, and threads that share a convolution wait for each other.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from d2sm.models.base import label_of
from d2sm.noise import add_noise, seed_of
from d2sm.precision import float32_convolutions
from d2sm.probing import evaluated
from pipelines import registry
from pipelines.data.finding import ENDINGS, is_foreign, photographs, walk
from pipelines.data.images import ImageError
from pipelines.data.photofile import SUFFIXES, Photo, check_fits, check_suffix, pixels_of, read_photo, write_photo
from pipelines.inference import noise_level
from pipelines.inference.samples import tensor
from pipelines.inference.tiling import (
    Tile,
    has_tiles,
    needs_tiles,
    restore_pixels,
    smallest_tile,
    tile_for_size,
    without_tiles,
)
from pipelines.runtime import files, memory
from pipelines.runtime.files import unwritable
from pipelines.runtime.progress import Line
from pipelines.runtime.threads import torch_threads
from pipelines.text import listed, one_line

Format = Literal["png", "jpg", "tif", "webp", "same"]

ON_A_GPU = 3  # photographs in work at once: one is read while another is restored and a third is written
_LARGE = 32_000_000  # pixels; of larger photographs one is in work at a time, so that the memory need hold only one
_LISTED = 8  # reasons in the last line on a folder; each is said in full when it comes up


class RestoreError(ValueError):
    """What was asked for cannot be done. One line."""


class Incomplete(ImageError):
    """Some photographs of a folder could not be restored; the others are written.

    Attributes:
        written: the files written.
        skipped: each file or folder that was skipped, and the line that says why.
    """

    def __init__(self, source: Path, written: Sequence[Path], skipped: Sequence[tuple[Path, str]]) -> None:
        self.written, self.skipped = list(written), list(skipped)
        reasons = []
        for path, line in skipped:
            name = path.relative_to(source) if path.is_relative_to(source) else path
            reason = line.removeprefix(f"{path}: ").rpartition("; ")  # without the remedy
            reasons.append(f"{name}: {reason[0] or reason[2]}")
        left = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
        super().__init__(f"{len(written)} restored, {len(skipped)} skipped: {'; '.join(reasons[:_LISTED])}{left}")


def restore(
    source: str | Path,
    target: str | Path,
    *,
    model: nn.Module | str | Path,
    sigma: float | Literal["auto"] | None = None,
    add: float | None = None,
    clip: bool = True,
    tile: Tile = "auto",
    format: Format = "png",
    uri: str | None = None,
    device: str = "cpu",
    trust: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Restore photographs.

    Args:
        source: a photograph (PNG, JPEG, TIFF, WebP or BMP), or a folder, searched with its subfolders (see
            `pipelines.data.finding`).
        target: the file to write, in the format that its suffix names; or the folder to write to, where names are kept
            and suffixes become that of `format`. Of two names that become one, the one that changes keeps its suffix
            too (`x.jpg` beside `x.png` becomes `x.jpg.png`). A text that ends in "/" names a folder. Never the source,
            and not inside it.
        model: a denoiser, or what names one (see `registry.model_folder`).
        sigma: noise level of the photographs in units of 0..255; "auto": estimated for each, and said (see
            `inference.noise_level`). Not for blind models.
        add: level of Gaussian noise to add first, to try a model on clean photographs; sigma is then this level.
        clip: of `add`: whether the noise is clipped and rounded as a file of the photograph's depth holds it. False: as
            most models are trained and evaluated.
        tile: side of the tiles; None: whole images; "auto": whole images, or the largest tiles that fit into the free
            memory. A line says which tiles were chosen, or that a side was raised to `tiling.smallest_tile`.
        format: of the files in a target folder; "same": as the source (PNG for BMP).
        uri: MLflow's store, where a name is to be looked up in another than the usual one.
        device: where a model that is named restores; a denoiser stays where it is.
        trust: import a backbone that the model names as module:callable, even if this user did not train it here.
        quiet: no progress line, no line on tiles and skipped photographs.

    Returns:
        The files written.

    Raises:
        RegistryError, CheckpointError: no such model.
        RestoreError: nothing to restore, no noise level, one outside 0..255 or for a blind model; `clip` without `add`;
            no such tile; a target that cannot be written.
        ImageError: the file cannot be read, or not be written in this format; the model fails on it, or its result is
            not finite.
        Incomplete: this was so for some files of a folder; the others are written.
    """
    _check_levels(sigma, add, clip)
    if tile is not None and tile != "auto" and not (isinstance(tile, int) and tile > 0):
        raise RestoreError(
            f"--tile={tile}: give a side in pixels, auto, or None for whole images (0 on the command line)"
        )
    source, target = os.path.expanduser(source), os.path.expanduser(target)
    found, unreadable = _files(source, target, format)
    if not isinstance(model, nn.Module):
        model = registry.open_model(model, uri=uri, device=device, trust=trust)
    level, label = add if add is not None else sigma, label_of(model)
    if level is None and not model.blind:
        raise RestoreError(
            f"sigma: {label} needs the noise level; give --sigma (0 to 255, or auto for an estimate), or --add-noise "
            "for a trial"
        )
    if sigma is not None and model.blind:
        shown = sigma if isinstance(sigma, str) else f"{sigma:g}"
        raise RestoreError(f"sigma={shown}: {label} is blind and estimates the noise; leave it out")
    threads = torch.get_num_threads()
    parallel = min(len(found), threads if next(model.parameters()).device.type == "cpu" else ON_A_GPU)
    job = _Job(model, level, add=add, clip=clip, tile=tile, parallel=parallel, quiet=quiet)
    if isinstance(tile, int) and not has_tiles(model):
        job.say_once(f"tile={tile}: {without_tiles(model)}")
    elif isinstance(tile, int) and tile < (least := smallest_tile(model)):
        job.say_once(
            f"tile={tile}: raised to {least}, the receptive field of {label}; smaller tiles compute the "
            "same pixels again and again"
        )
    # In eval mode here already: threads that each switched to it and back would disturb one another.
    with evaluated(model), torch_threads(max(1, threads // parallel)), float32_convolutions():
        if Path(source).is_dir():
            return _restore_folder(job, Path(source), found, unreadable)
        return [job.restore(*found[0], show_tiles=True)]


def _check_levels(sigma: float | str | None, add: float | None, clip: bool) -> None:
    """Check the noise levels, which blind models would take at any value."""
    if sigma is not None and sigma != "auto" and not _is_level(sigma):
        shown = sigma if isinstance(sigma, str) else f"{sigma:g}"
        raise RestoreError(f"--sigma={shown}: give a noise level from 0 to 255, or auto")
    if add is not None and not _is_level(add):
        raise RestoreError(f"--add-noise={add:g}: give a noise level from 0 to 255")
    if add is None and not clip:
        raise RestoreError("--unclipped: is for --add-noise, which is not given; give both or neither")


def _is_level(value: float | str) -> bool:
    return not isinstance(value, str) and 0 <= value <= 255  # False for NaN


class _Stopped(Exception):
    """The photographs in work were given up because the run ends."""


class _Job:
    """How photographs are restored: the model, its noise level and its tiles."""

    def __init__(
        self,
        model: nn.Module,
        level: float | Literal["auto"] | None,
        *,
        add: float | None,
        clip: bool,
        tile: Tile,
        parallel: int,
        quiet: bool,
    ) -> None:
        self.model, self.level, self.add, self.clip, self.tile = model, level, add, clip, tile
        self.parallel, self.quiet = parallel, quiet
        self.stop = threading.Event()
        self._large, self._once, self._said = threading.Lock(), threading.Lock(), False

    def restore(self, read: Path, write: Path, *, show_tiles: bool = False) -> Path:
        """Restore one photograph.

        Args:
            show_tiles: whether to show a progress line of its tiles.

        Returns:
            The file written.

        Raises:
            ImageError: it cannot be read, or not be written in this format or under this name; or the model fails on
                it, as for lack of memory; or the result is not finite.
            RestoreError: the file cannot be written.
        """
        with self._large if pixels_of(read) > _LARGE else nullcontext():
            photo = read_photo(read)
            check_fits(photo, write)
            restored = Photo(self._restored(photo, read, show_tiles), photo.alpha, photo.about)
            try:
                write_photo(write, restored)
            except files.DiskFullError as error:
                raise RestoreError(str(error)) from None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:  # the fault of this photograph, not of the target
                    raise ImageError(
                        f"{read}: the name or path of its result in {write.parent} is too long; shorten it"
                    ) from None
                raise RestoreError(f"{write}: cannot be written ({error.strerror}); give another target") from None
        return write

    def _restored(self, photo: Photo, read: Path, show_tiles: bool) -> NDArray[Any]:
        noisy, level = None, self._level_of(photo, read)
        if self.add is not None:
            noisy = add_noise(tensor(photo.pixels), sigma=torch.tensor([self.add]), seeds=[seed_of(read.stem)])
            if photo.pixels.ndim == 2:  # the noise of a grey photograph is grey
                noisy = noisy[:, :1].expand(-1, 3, -1, -1)
            if self.clip:
                most = float(np.iinfo(photo.pixels.dtype).max)
                noisy = (noisy.clamp(0, 1) * most).round() / most
        height, width = photo.pixels.shape[:2]
        tile = tile_for_size(self.model, (height, width), self.tile, sharing=self.parallel)
        if tile is None and self.tile == "auto" and needs_tiles(self.model, (height, width), sharing=self.parallel):
            self.say_once(f"{read}: {without_tiles(self.model)}; it may not fit into the free memory")
        if tile is not None and self.tile == "auto":
            self.say_once(f"{read}: restored in tiles of {tile} pixels, to fit into the free memory")
        tiles = 1 if tile is None else -(-height // tile) * -(-width // tile)
        failed = f"{read}: {label_of(self.model)} failed on it"
        with Line("restore tile", tiles, quiet=self.quiet or not show_tiles or tiles == 1) as line:

            def progress(done: int, total: int) -> None:
                line.to(done)
                if self.stop.is_set():
                    raise _Stopped

            try:
                return restore_pixels(self.model, photo.pixels, level, tile=tile, noisy=noisy, progress=progress)
            except _Stopped:
                raise
            except FloatingPointError as error:
                raise ImageError(f"{failed}, {error}; give another model or noise level") from None
            except Exception as error:  # somebody else's network may raise anything
                short = memory.is_out_of_memory(error)
                remedy = "give a smaller --tile, or another device" if short else "give another model"
                raise ImageError(f"{failed}: {one_line(error)}; {remedy}") from error

    def _level_of(self, photo: Photo, read: Path) -> float | None:
        """The noise level that the model is told."""
        if not isinstance(self.level, str):
            return self.level
        if min(photo.pixels.shape[:2]) < noise_level.SMALLEST:
            raise ImageError(
                f"{read}: its noise level cannot be estimated, a side has fewer than {noise_level.SMALLEST} pixels; "
                "give --sigma a number"
            )
        level = min(255.0, noise_level.estimate(photo.pixels))
        self.say(f"{read}: sigma {level:.1f} (estimated)")
        return level

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            Line("restore", 0, quiet=True).say(one_line(text, limit=None))

    def say_once(self, text: str) -> None:
        """Print the first line on tiles; the photographs of a folder would repeat it."""
        with self._once:
            if not self._said:
                self.say(text)
            self._said = True


def _restore_folder(
    job: _Job, source: Path, files: Sequence[tuple[Path, Path]], unreadable: Sequence[tuple[Path, str]]
) -> list[Path]:
    written, skipped = [], list(unreadable)
    pool = ThreadPoolExecutor(job.parallel)
    with Line("restore", len(files), quiet=job.quiet or len(files) == 1) as line:

        def say(text: str) -> None:
            if not job.quiet:
                line.say(f"skipped: {one_line(text, limit=None)}")

        foreign = [] if job.quiet else list(filter(is_foreign, walk(source, unreadable=lambda *folder: None)))
        if foreign:
            names = listed((path.name for path in foreign), 3)
            line.say(f"left out: {names}: of formats that are not read")
        try:
            for _, why in unreadable:
                say(why)
            futures = [pool.submit(job.restore, read, write) for read, write in files]
            for number, ((read, _), future) in enumerate(zip(files, futures), start=1):
                try:
                    written.append(future.result())
                except ImageError as error:
                    skipped.append((read, str(error)))
                    say(str(error))
                line.to(number)
        except RestoreError as error:
            raise RestoreError(f"{error} ({len(written)} of {len(files)} are restored)") from None
        finally:
            job.stop.set()  # after an error or Ctrl-C, photographs in work end with their tile, and no other is begun
            pool.shutdown(cancel_futures=True)
    if skipped:
        raise Incomplete(source, written, skipped)
    return written


def _files(
    source: str | Path, target: str | Path, format: Format
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """Each file to read with the one to write; and the folders that cannot be read, with the line that says so."""
    for name, given in (("source", source), ("target", target)):
        if not str(given):
            raise RestoreError(f"{name}: is empty; give the path of a photograph, or of a folder")
    source, is_folder, target = Path(source), str(target).endswith("/"), Path(target)
    if not source.exists():
        raise RestoreError(f"{source}: no such file or folder; correct the path")
    unreadable: list[tuple[Path, str]] = []
    if source.is_dir():
        found = photographs(source, unreadable=lambda *folder: unreadable.append(folder))
        if not found:
            nothing = f"{source}: holds no {', '.join(ENDINGS)} file; give a folder of photographs"
            raise RestoreError(unreadable[0][1] if unreadable else nothing)
        files = [(read, target / name) for read, name in _named(source, found, format)]
    elif is_folder or os.path.isdir(target):
        files = [(source, target / name) for _, name in _named(source.parent, [source], format)]
    else:
        check_suffix(target)
        files = [(source, target)]
    if not source.is_dir():
        pixels_of(source)  # no photograph, or one that is too large, shows before the model is loaded
    _check_targets(source, target, files)
    return files, unreadable


def _named(top: Path, found: Sequence[Path], format: Format) -> list[tuple[Path, Path]]:
    """Each file with its name in the target folder. Of two that would become one, x.jpg beside x.png, the one whose
    suffix changes keeps it: x.jpg.png."""
    names: dict[Path, Path] = {}
    for path in found:
        suffix = f".{format}"
        if format == "same":
            suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".png"
        names[path] = path.relative_to(top).with_suffix(suffix)
    wanted = Counter(names.values())
    for path, name in names.items():
        relative = path.relative_to(top)
        if wanted[name] > 1 and relative != name:
            names[path] = relative.with_name(relative.name + name.suffix)
    return list(names.items())


def _check_targets(source: Path, target: Path, files: Sequence[tuple[Path, Path]]) -> None:
    """Check that no photograph is overwritten, by its own result or another's, and that the target can be written."""
    sources = {read.resolve() for read, _ in files}
    taken: dict[Path, Path] = {}
    for read, write in files:
        if (other := taken.setdefault(write, read)) != read:
            raise RestoreError(f"{read}: would be written to {write}, as {other} would; rename one")
        if write.resolve() in sources:
            raise RestoreError(f"{write}: would overwrite its source, or another photograph; give another target")
        if os.path.isdir(write):  # False, too, for a name that is too long; writing it says so
            raise RestoreError(f"{write}: is a folder, and {read} would be written there; give another target")
    if source.is_dir():
        inside, top = target.resolve(), source.resolve()
        named_inside = Path(os.path.abspath(target)).is_relative_to(os.path.abspath(source))
        linked = not top.is_relative_to(inside) and any(read.is_relative_to(inside) for read in sources)
        if inside.is_relative_to(top) or named_inside or linked:
            raise RestoreError(
                f"{target}: lies inside {source}, whose next run would restore its own results; give a folder outside, "
                f"such as {source if source.name else top}-restored"
            )
    there = next(folder for folder in (files[0][1].parent, *files[0][1].absolute().parents) if os.path.exists(folder))
    if not there.is_dir():
        raise RestoreError(f"{there}: is a file, not a folder; give another target than {target}")
    if why := unwritable(there):
        raise RestoreError(f"{there}: cannot be written to ({why}); give another target than {target}")
