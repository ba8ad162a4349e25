"""What does not depend on the model is measured once: the numbers of clean and noisy images, kept on disk.

A number is found again by a digest of the very pixels and labels that it was measured of, so no change of a file, of
the noise or of the labels can give a wrong one. The file that it is in belongs to one data set, judges and device:
another segmenter, other weights, another version of torch or another processor has another file, since its numbers
may differ in the last digit.

A file that is damaged, that somebody else wrote or could have written, or that holds anything else is not believed:
its numbers are measured again, and it is replaced.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines import parsing
from pipelines.runtime import files

VERSION = 2  # of what is measured, and of the file: another one makes all files of earlier versions useless
_FILES = 32  # kept: the last that were used
_BYTES = 2**26  # of a file: 10,000 images at three levels
_DIGEST = 32  # hexadecimal digits


_Stored = tuple[float | None, float | None, float | None, list[list[int]]]


class Known(NamedTuple):
    """The numbers of an image: as in `measuring.Measurement`; the confusion matrices of all segmenters, in turn."""

    psnr: float
    ssim: float
    lpips: float
    confusions: list[list[int]]


def digest(clean: Tensor, noisy: Tensor | None, label: Tensor | None) -> str:
    """What an image's numbers are found by: its pixels (of the clean one if `noisy` is None), and its labels."""
    found = hashlib.blake2b(digest_size=_DIGEST // 2)
    for tensor in (clean, noisy, label):
        if tensor is None:
            found.update(b"none")
            continue
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(np.ascontiguousarray(tensor.numpy()).data)
    return found.hexdigest()


def about(data: str, judges: Sequence[str], device: torch.device, threads: int) -> dict[str, Any]:
    """What all numbers of a file have in common.

    Args:
        data: fingerprint of the images.
        judges: fingerprints of all networks that measure, and what they are told of the labels.
        device, threads: with which they are measured.
    """
    processor = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda" and torch.cuda.is_available():
        processor = torch.cuda.get_device_name(device)
    where = [device.type, processor, threads, str(torch.__version__)]
    return {"version": VERSION, "data": data, "judges": list(judges), "measured_by": where}


class KnownFile:
    """The numbers of one data set, judges and device on this disk.

    Args:
        common: what `about` gives.
        folder: of all such files; None: `scores` in the user's cache.
    """

    def __init__(self, common: Mapping[str, Any], folder: Path | None = None) -> None:
        self.common = dict(common)
        self.folder = folder or files.cache() / "scores"
        name = hashlib.sha256(json.dumps(self.common, sort_keys=True).encode()).hexdigest()[:32]
        self.path = self.folder / f"{name}.json"

    def load(self) -> dict[str, Known]:
        """The numbers by digest; none where there is no file that can be believed."""
        try:
            about = self.path.lstat()
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
                return {}
            tree = parsing.read_json(self.path, limit=_BYTES)
            if tree.get("about") != self.common or tree.get("sha256") != _sha256(tree["numbers"]):
                return {}
            numbers = parsing.shaped(tree["numbers"], dict[str, _Stored], source=self.path)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        with suppress(OSError):
            os.utime(self.path)  # it was used
        return {
            key: Known(_of_stored(psnr), _of_stored(ssim), _of_stored(lpips), confusions)
            for key, (psnr, ssim, lpips, confusions) in numbers.items()
        }

    def add(self, found: Mapping[str, Known]) -> None:
        """Keep these numbers too. Where they cannot be kept, as in a read-only home, they are measured again."""
        before = self.load()
        if found.keys() <= before.keys():
            return
        # An infinite PSNR, of equal images, is measured again: JSON has no such number.
        all_known = {key: one for key, one in {**before, **found}.items() if not math.isinf(one.psnr)}
        numbers = {key: [*map(_stored, one[:3]), one.confusions] for key, one in all_known.items()}
        text = json.dumps({"about": self.common, "sha256": _sha256(numbers), "numbers": numbers})
        if len(text) > _BYTES:
            return
        with suppress(OSError):
            with files.caching(self.folder):
                files.write_text(self.path, text, shared=True)
                self.path.chmod(0o600)
            _keep_newest(self.folder.glob("*.json"))


def _stored(number: float) -> float | None:
    """JSON has no nan, which stands for what is not measured."""
    return None if math.isnan(number) else number


def _of_stored(number: float | None) -> float:
    return math.nan if number is None else number


def _keep_newest(paths: Iterable[Path]) -> None:
    aged = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in aged[_FILES:]:
        files.remove(path)


def _sha256(numbers: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
