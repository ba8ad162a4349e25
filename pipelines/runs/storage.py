"""Runs whose `train.storage` is a URI (s3://bucket/runs): their files there, and a copy of what is needed on this disk.

A copy is a folder like any run's, with one file more that names the URI. Whoever reads a run reads the copy, brought up
to date by `refresh`; whoever changes it sends what changed with `push`. Both do nothing to an ordinary folder, so the
rest of the code knows folders only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filelock import FileLock

from pipelines.config import ConfigError
from pipelines.runtime import files
from pipelines.text import one_line, redact

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

SOURCE = ".d2sm-uri"  # in a copy: the URI that it is of
META = "meta.json"  # of a checkpoint: vouches for its other files, so it comes last
_STEP = "step-"


class RemoteError(OSError):
    """What is at a URI cannot be read or written. One line."""


def is_uri(text: str | Path) -> bool:
    """Whether this is a URI and no path. A registry's models:/name is neither."""
    return "://" in str(text)


def check(uri: str, *, asked_by: str) -> str:
    """The URI, without a slash at its end.

    Raises:
        ConfigError: it holds a password, or no file system knows its kind.
    """
    if redact(uri) != uri or "secret_key=" in uri:
        raise ConfigError(
            f"{asked_by}={redact(uri).partition('?')[0]}: would be written into files with its secret; give "
            "that in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or as the node's role"
        )
    opened(uri, asked_by=asked_by)
    return uri


def joined(uri: str, *names: str) -> str:
    """A place below a URI, its query kept."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(path="/".join([parts.path.rstrip("/"), *names])).geturl()


def name_of(uri: str) -> str:
    """The last part of a URI's path."""
    parts = urllib.parse.urlsplit(uri)
    return PurePosixPath(parts.path).name or parts.netloc


def copy_of(uri: str) -> Path:
    """The folder on this disk that stands for a run at a URI. Made if need be, but not filled."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "d2sm" / hashlib.sha256(uri.encode()).hexdigest()[:12] / name_of(uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(uri)
    return folder


def uri_of(run_dir: Path) -> str | None:
    """The URI that a folder is a copy of; None for an ordinary folder."""
    source = run_dir / SOURCE
    return source.read_text() if source.exists() else None


def local(place: str | Path) -> Path:
    """The folder to read: a path as it is; for a URI, a copy that is up to date.

    Raises:
        RemoteError: nothing is there, or it cannot be read.
    """
    if not is_uri(place):
        return Path(place)
    uri = str(place).rstrip("/")
    if not name_of(uri).startswith(_STEP):
        return refresh(copy_of(uri))
    parts = urllib.parse.urlsplit(uri)
    run = copy_of(parts._replace(path=str(PurePosixPath(parts.path).parent)).geturl())
    with _locked(run):
        _fetch(run, name_of(uri))
    return run / name_of(uri)


def refresh(run_dir: Path) -> Path:
    """Bring a copy up to date: its files, and the newest complete checkpoint. Gives the folder.

    Raises:
        RemoteError: it cannot be read.
    """
    uri = uri_of(run_dir)
    if uri is None:
        return run_dir
    with _locked(run_dir):
        files, steps = _listed(uri)
        for name in files:
            _download(uri, name, run_dir / name)
        newest = next((step for step in sorted(steps, reverse=True) if _fetch(run_dir, step)), None)
        for folder in run_dir.glob(f"{_STEP}*"):
            if newest is None or folder.name > newest:  # of a run that was begun anew
                shutil.rmtree(folder)
    return run_dir


def push(run_dir: Path, *names: str) -> None:
    """Send files or folders of a copy to where it is from; nothing for an ordinary folder.

    Raises:
        RemoteError: it cannot be written.
    """
    uri = uri_of(run_dir)
    if uri is None:
        return
    for name in names:
        source = run_dir / name
        paths = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        for path in paths:
            _upload(path, joined(uri, str(path.relative_to(run_dir))))


def put_checkpoint(folder: Path, uri: str) -> None:
    """Send a checkpoint; the file that vouches for the others comes last.

    Raises:
        RemoteError: it cannot be written.
    """
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == META)
    for name in names:
        _upload(folder / name, joined(uri, name))


def prune(uri: str, keep: int) -> None:
    """Remove all but the newest complete checkpoints, and whatever was left half-written.

    Raises:
        RemoteError: it cannot be written.
    """
    _, steps = _listed(uri)
    complete = [step for step in sorted(steps) if _sizes(joined(uri, step)) is not None]
    with _reaching(uri) as (place, path):
        for step in set(steps) - set(complete[-keep:]):
            place.delete_dir(f"{path}/{step}")


def _fetch(run_dir: Path, step: str) -> bool:
    """Have a complete checkpoint in the copy; whether it is there now."""
    uri = uri_of(run_dir)
    assert uri is not None
    there, target = joined(uri, step), run_dir / step
    sizes = _sizes(there)
    if sizes is None:
        return False
    meta = _read(there, META)
    if (target / META).exists() and (target / META).read_bytes() == meta and _have(target, sizes):
        return True
    with files.replacing(target, temporary=run_dir / f".{step}") as temporary:
        temporary.mkdir()
        for name in sizes:
            _download(there, name, temporary / name)
        (temporary / META).write_bytes(meta)
    return True


def _sizes(uri: str) -> dict[str, int] | None:
    """The files of a checkpoint and their sizes, as its meta file has them; None: it is not complete."""
    try:
        sizes = dict(json.loads(_read(uri, META))["sizes"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    with _reaching(uri) as (place, path):
        found = place.get_file_info([f"{path}/{name}" for name in sizes])
    there = {info.base_name: info.size for info in found if info.is_file}
    return sizes if there == sizes else None


def _have(folder: Path, sizes: dict[str, int]) -> bool:
    return all((folder / name).exists() and (folder / name).stat().st_size == size for name, size in sizes.items())


def _listed(uri: str) -> tuple[list[str], list[str]]:
    """The names of the files in a run's folder, and those of its checkpoints, complete or not."""
    from pyarrow import fs

    with _reaching(uri) as (place, path):
        found: list[FileInfo] = place.get_file_info(fs.FileSelector(path, allow_not_found=True))
    files = [info.base_name for info in found if info.is_file]
    folders = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return files, [name for name in folders if name.startswith(_STEP)]


def _read(uri: str, name: str) -> bytes:
    with _reaching(uri) as (place, path), place.open_input_stream(f"{path}/{name}") as stream:
        return bytes(stream.read())


def _download(uri: str, name: str, target: Path) -> None:
    with (
        _reaching(uri) as (place, path),
        files.replacing(target) as temporary,
        place.open_input_stream(f"{path}/{name}") as stream,
        temporary.open("wb") as out,
    ):
        shutil.copyfileobj(stream, out, 2**22)


def _upload(source: Path, uri: str) -> None:
    with _reaching(uri) as (place, path):
        if place.type_name not in ("s3", "gcs", "abfs"):  # there folders are but parts of names
            place.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with source.open("rb") as stream, place.open_output_stream(path) as out:
            shutil.copyfileobj(stream, out, 2**22)


def opened(uri: str, *, asked_by: str) -> tuple[FileSystem, str]:
    """Arrow's own file system for a URI, else that of fsspec."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        place, path = fs.FileSystem.from_uri(uri)
        return place, path.rstrip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if "nrecognized filesystem" not in str(error):
            raise ConfigError(f"{asked_by}={uri}: {one_line(error, 200)}") from None
    except OSError as error:  # a library that is not there
        raise ConfigError(f"{asked_by}={uri}: {one_line(error, 200)}") from None
    import fsspec

    try:
        found, path = fsspec.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{asked_by}={uri}: no file system for it ({one_line(error, 200)}); install its fsspec "
            "package on every node, or give s3://, gs:// or a folder"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), str(path).rstrip("/")


@contextmanager
def _reaching(uri: str) -> Iterator[tuple[FileSystem, str]]:
    """The file system and the path in it; what goes wrong there is one line."""
    place, path = opened(uri, asked_by="train.storage")
    try:
        yield place, path
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RemoteError(f"{uri}: {one_line(error)}") from None


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """One process at a time fills a copy: workers of one node share it."""
    with FileLock(f"{run_dir}.lock", timeout=600):
        yield
