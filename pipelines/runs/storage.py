"""Runs whose `train.storage` is a URI (s3://bucket/runs): their files there, and the copy on this disk that is read.

A copy is a folder like any run's, with one more file that names the URI. `pull` brings it up to date and `push` sends
what was written to it; `folder.RunFolder` calls both, so that the rest of the code knows folders only. A checkpoint at
a URI counts once its meta.json is there, which names the size of every other file and is sent last.
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

SOURCE = ".d2sm-uri"  # in a copy: the URI of the run
META = "meta.json"  # of a checkpoint
_STEP = "step-"
_CHUNK = 2**22  # bytes


class RemoteError(OSError):
    """What is at a URI cannot be read or written. One line."""


def is_uri(text: str | Path) -> bool:
    """Whether this is a URI rather than a path. A registry's models:/name is neither."""
    return "://" in str(text)


def check(uri: str, *, asked_by: str) -> str:
    """The URI, once it is known to be usable: it is written into files, and some file system must know its kind.

    Args:
        asked_by: the key that holds it, for the message.

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
    """A place below a URI; its query (?region=...) stays at the end."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(path="/".join([parts.path.rstrip("/"), *names])).geturl()


def name_of(uri: str) -> str:
    """The last part of a URI's path."""
    parts = urllib.parse.urlsplit(uri)
    return PurePosixPath(parts.path).name or parts.netloc


def copy_of(uri: str) -> Path:
    """The folder on this disk for the copy of a run at a URI; made if need be, but not filled."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "d2sm" / hashlib.sha256(uri.encode()).hexdigest()[:12] / name_of(uri)
    folder.mkdir(parents=True, exist_ok=True)
    if uri_of(folder) != uri:
        files.write_text(folder / SOURCE, uri, shared=True)
    return folder


def uri_of(folder: Path) -> str | None:
    """The URI that a folder is a copy of; None for an ordinary folder."""
    source = folder / SOURCE
    return source.read_text() if source.exists() else None


def local(place: str | Path) -> Path:
    """A run's folder, or one of its checkpoints, on this disk: a path as it is; for a URI, an up-to-date copy.

    Raises:
        RemoteError: nothing is there, or it cannot be read.
    """
    if not is_uri(place):
        return Path(place)
    uri = str(place).rstrip("/")
    if not name_of(uri).startswith(_STEP):
        folder = copy_of(uri)
        pull(uri, folder)
        return folder
    parts = urllib.parse.urlsplit(uri)
    run = parts._replace(path=str(PurePosixPath(parts.path).parent)).geturl()
    folder = copy_of(run)
    with _locked(folder):
        _fetch(run, folder, name_of(uri))
    return folder / name_of(uri)


def pull(uri: str, folder: Path) -> None:
    """Bring a copy up to date: the run's files, and its newest complete checkpoint.

    Raises:
        RemoteError: it cannot be read.
    """
    with _locked(folder):
        names, steps = _listed(uri)
        for name in names:
            _download(uri, name, folder / name)
        newest = next((step for step in sorted(steps, reverse=True) if _fetch(uri, folder, step)), None)
        for checkpoint in folder.glob(f"{_STEP}*"):
            if newest is None or checkpoint.name > newest:  # of a run that was begun anew since
                shutil.rmtree(checkpoint)


def push(uri: str, folder: Path, *paths: Path) -> None:
    """Send files and folders of a copy to its URI; of a checkpoint, the meta file last.

    Raises:
        RemoteError: it cannot be written.
    """
    for path in paths:
        found = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        for file in sorted(found, key=lambda file: (file.name == META, file)):
            _upload(file, joined(uri, *file.relative_to(folder).parts))


def prune(uri: str, keep: int) -> None:
    """Remove all but the newest complete checkpoints, and the incomplete ones.

    Raises:
        RemoteError: it cannot be written.
    """
    _, steps = _listed(uri)
    complete = [step for step in sorted(steps) if _sizes(joined(uri, step)) is not None]
    with _reaching(uri) as (system, path):
        for step in set(steps) - set(complete[-keep:]):
            system.delete_dir(f"{path}/{step}")


def opened(uri: str, *, asked_by: str) -> tuple[FileSystem, str]:
    """The file system of a URI, Arrow's own or else that of fsspec, and the path in it.

    Raises:
        ConfigError: there is none.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(uri)
        return system, path.rstrip("/")
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
            f"{asked_by}={uri}: no file system for it ({one_line(error, 200)}); install its fsspec package on every "
            "node, or give s3://, gs:// or a folder"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), str(path).rstrip("/")


def _fetch(run: str, folder: Path, step: str) -> bool:
    """Download a checkpoint into a run's copy unless it is there already; whether there is a complete one."""
    uri, target = joined(run, step), folder / step
    sizes = _sizes(uri)
    if sizes is None:
        return False
    meta = _read(uri, META)
    if (target / META).exists() and (target / META).read_bytes() == meta and _have(target, sizes):
        return True
    with files.replacing(target, temporary=folder / f".{step}") as temporary:
        temporary.mkdir()
        for name in sizes:
            _download(uri, name, temporary / name)
        (temporary / META).write_bytes(meta)
    return True


def _sizes(uri: str) -> dict[str, int] | None:
    """The files of a checkpoint and their sizes, as its meta file names them; None: it is not complete."""
    try:
        sizes = dict(json.loads(_read(uri, META))["sizes"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    with _reaching(uri) as (system, path):
        found = system.get_file_info([f"{path}/{name}" for name in sizes])
    there = {info.base_name: info.size for info in found if info.is_file}
    return sizes if there == sizes else None


def _have(folder: Path, sizes: dict[str, int]) -> bool:
    return all((folder / name).exists() and (folder / name).stat().st_size == size for name, size in sizes.items())


def _listed(uri: str) -> tuple[list[str], list[str]]:
    """The names of the files in a run's folder, and those of its checkpoints, complete or not."""
    from pyarrow import fs

    with _reaching(uri) as (system, path):
        found: list[FileInfo] = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = [info.base_name for info in found if info.is_file]
    folders = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return names, [name for name in folders if name.startswith(_STEP)]


def _read(uri: str, name: str) -> bytes:
    with _reaching(uri) as (system, path), system.open_input_stream(f"{path}/{name}") as stream:
        return bytes(stream.read())


def _download(uri: str, name: str, target: Path) -> None:
    with (
        _reaching(uri) as (system, path),
        files.replacing(target) as temporary,
        system.open_input_stream(f"{path}/{name}") as stream,
        temporary.open("wb") as out,
    ):
        shutil.copyfileobj(stream, out, _CHUNK)


def _upload(source: Path, uri: str) -> None:
    with _reaching(uri) as (system, path):
        if system.type_name not in ("s3", "gcs", "abfs"):  # object stores have no folders to make
            system.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with source.open("rb") as stream, system.open_output_stream(path) as out:
            shutil.copyfileobj(stream, out, _CHUNK)


@contextmanager
def _reaching(uri: str) -> Iterator[tuple[FileSystem, str]]:
    """The file system of a URI and the path in it; its errors become one line, but for a file that is not there."""
    system, path = opened(uri, asked_by="train.storage")
    try:
        yield system, path
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RemoteError(f"{uri}: {one_line(error)}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time fills a copy: the workers of a node share it."""
    with FileLock(f"{folder}.lock", timeout=600):
        yield
