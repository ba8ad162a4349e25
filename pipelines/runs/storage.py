"""Runs whose `train.storage` is a URI (s3://bucket/runs): their files there, and the copy on this disk that is read.

A copy is a folder like any run's, with one more file that names the URI. `pull` brings it up to date and `push` sends
what was written to it; `folder.RunFolder` calls both, so that the rest of the code knows folders only. A checkpoint at
a URI counts once its meta.json is there, which names size and SHA-256 of every other file and is sent last. One that is
written to a copy has another name (`names.unsent_name`) until then: every node then reads the same newest checkpoint.

Whatever a bucket holds may be a stranger's: its names are checked before they become paths, hidden files are left
there, and the file that names the URI counts only in this user's cache, in the folder that is made for that URI.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from pipelines import parsing, secrets
from pipelines.config import ConfigError
from pipelines.runs import best, integrity, names
from pipelines.runtime import files, owner
from pipelines.text import one_line

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

SOURCE = ".d2sm-uri"  # in a copy: the URI of the run
_CHUNK = 2**22  # bytes
_IN_A_PATH = "!$&'()*+,;=:@"  # beside letters, digits and -_.~, what stands for itself in the path of a URI (RFC 3986)
_OBJECT_STORES = ("s3", "gcs", "abfs")  # which have no folders to make
_UNFINISHED = f"it has no {integrity.META}"  # not written to its end
_log = logging.getLogger(__name__)


class RemoteError(OSError):
    """What is at a URI cannot be read or written. One line."""


class _Damaged(Exception):
    """A checkpoint that was downloaded is not the one that was written."""


class _Listed(NamedTuple):
    """A checkpoint at a URI whose files have the sizes that its meta.json names."""

    text: bytes  # of meta.json
    meta: dict[str, Any]
    sizes: dict[str, int]


def is_uri(text: str | Path) -> bool:
    """Whether this is a URI rather than a path. A registry's models:/name is neither."""
    return "://" in str(text)


def check(uri: str, *, asked_by: str) -> str:
    """The URI, once it is known to be usable: it is written into files, and some file system must know its kind.

    Args:
        asked_by: the key that holds it, for the message.

    Raises:
        ConfigError: it holds a secret, or no file system knows its kind.
    """
    opened(uri, asked_by=asked_by)
    return uri


def _split(uri: str) -> urllib.parse.SplitResult:
    """The parts of a URI. Raises ConfigError: it is none, or holds what no path may."""
    try:
        uri.encode()
        parts = urllib.parse.urlsplit(uri)
    except ValueError as error:
        raise ConfigError(f"{uri}: not a valid URI ({one_line(error, 100)}); correct it") from None
    if "#" in uri:
        raise ConfigError(f"{uri}: holds a #, behind which nothing is read; leave it out, or write %23")
    return parts


def run_at(runs: str, name: str, *, asked_by: str) -> str:
    """The URI of a run of this name in the folder of all runs at a URI.

    Args:
        asked_by: the key that gave the name, for the message.

    Raises:
        ConfigError: the name would be read as another one, or not at all, within a URI.
    """
    if urllib.parse.quote(name, safe=_IN_A_PATH) != name:
        raise ConfigError(
            f"{asked_by}={name}: cannot be part of a URI as it is, and train.storage={secrets.redact(runs)} is one; "
            f"give a name of unaccented letters, digits and -_.~{_IN_A_PATH}"
        )
    return joined(runs, name)


def joined(uri: str, *names: str) -> str:
    """A place below a URI; its query (?region=...) stays at the end. The names are those of `run_at`, or ours."""
    parts = _split(uri)
    return parts._replace(path="/".join([parts.path.rstrip("/"), *names])).geturl()


def name_of(uri: str) -> str:
    """The last part of a URI's path."""
    parts = _split(uri)
    return PurePosixPath(parts.path).name or parts.netloc


def place_of_copy(uri: str) -> Path:
    """The folder on this disk for the copy of a run at a URI, which need not exist.

    Raises:
        ConfigError: the URI's last part is no plain name, or it holds a secret.
    """
    _no_secret(uri, asked_by="URI")
    return _place_of_copy(uri)


def copy_of(uri: str) -> Path:
    """The same folder, made if need be, but not filled.

    Raises:
        ConfigError: as above.
        OSError: the folder cannot be made.
    """
    folder = place_of_copy(uri)
    with files.caching(folder):
        if uri_of(folder) != uri:
            files.write_text(folder / SOURCE, uri, shared=True)
    return folder


def _no_secret(uri: str, *, asked_by: str) -> None:
    if line := secrets.problem(uri, asked_by=asked_by):
        raise ConfigError(line)


def uri_of(folder: Path) -> str | None:
    """The URI that a folder is a copy of; None for any folder that `copy_of` did not make for the URI that it names."""
    source = folder / SOURCE
    if not source.is_file():
        return None
    try:
        uri = source.read_text(encoding="utf-8")
        own = is_uri(uri) and _place_of_copy(uri).resolve() == folder.resolve()
    except ValueError:  # no text, or no name at its end
        return None
    return uri if own else None


def _place_of_copy(uri: str) -> Path:
    name = name_of(uri)
    names.check_name(name, uri)
    return files.cache() / hashlib.sha256(uri.encode()).hexdigest()[:12] / name


def local(place: str | Path) -> Path:
    """A run's folder, or one of its checkpoints, on this disk: a path as it is; for a URI, an up-to-date copy.

    Raises:
        RemoteError: nothing is there, it cannot be read, or the checkpoint is damaged.
    """
    if not is_uri(place):
        return Path(place)
    uri = str(place).rstrip("/")
    step = name_of(uri)
    if not names.is_checkpoint(step):
        folder = place_of_copy(uri)
        pull(uri, folder)
        return folder
    parts = _split(uri)
    run = parts._replace(path=str(PurePosixPath(parts.path).parent)).geturl()
    folder = place_of_copy(run)
    if folder.exists() or _inspected(uri) != _UNFINISHED:  # else nothing is there, and no copy is begun
        with _locked(copy_of(run)):
            why = _fetch(run, folder, step)
            if why and why != _UNFINISHED:
                raise RemoteError(f"{uri}: is damaged ({why}); give another of the run")
    return folder / step


def pull(uri: str, folder: Path) -> None:
    """Bring a copy up to date: the run's files, and its newest complete checkpoint.

    If this thread owns the run, what an earlier process could not send is sent first. A newer checkpoint that is not at
    the URI any more is moved aside, as that of a run that was begun anew since. Of a URI where nothing is, no copy is
    begun: a check of a run that was never started leaves no file.

    Raises:
        RemoteError: it cannot be read, or there are checkpoints, but all are damaged.
    """
    if not folder.exists() and not any(_listed(uri)):
        return
    with _locked(copy_of(uri)):
        here = names.checkpoints(folder)  # first, so that one that is sent meanwhile is not taken for one that is gone
        found, steps = _listed(uri)
        for name in found:
            _download(uri, name, folder / name)
        newest, faults = None, dict[str, str]()
        for step in sorted(steps, reverse=True):
            if why := _fetch(uri, folder, step):
                faults[step] = why
                continue
            newest = step
            break
        if owner.is_owned(folder):
            newest = _send_left(uri, folder, newest, run_of(folder) if names.INFO in found else "")
        damaged = {step: why for step, why in faults.items() if why != _UNFINISHED}
        if newest is None and damaged:
            reasons = ", ".join(f"{step}: {why}" for step, why in damaged.items())
            raise RemoteError(f"{uri}: no complete checkpoint there ({reasons}); copy one back")
        for step, why in damaged.items():
            _report(joined(uri, step), why, str(newest))
        for checkpoint in here:
            if newest is None or checkpoint.name > newest:
                _move_aside(uri, checkpoint)


def push(uri: str, folder: Path, *paths: Path) -> None:
    """Send files and folders of a copy to its URI. A checkpoint is sent by `send`.

    Raises:
        RemoteError: it cannot be written.
    """
    for path in paths:
        _upload_all(path, uri, *path.relative_to(folder).parts)


def run_of(folder: Path) -> str:
    """Hexadecimal digits that tell a run from another one of its name; "": the folder's run.json does not say."""
    try:
        info = parsing.read_json(folder / names.INFO)
    except parsing.ParseError:
        return ""
    known = str(info.get("run_id") or info.get("fingerprint") or "")
    return hashlib.sha256(known.encode()).hexdigest()[:12] if known else ""


def unsent(folder: Path, checkpoint: str) -> Path:
    """The folder in a copy that a checkpoint is written to, for `send`."""
    return folder / names.unsent_name(checkpoint, run_of(folder))


def send(uri: str, written: Path, checkpoint: str) -> None:
    """Send a checkpoint that was written to `unsent`, the meta file last; then it gets its name in the copy.

    Raises:
        RemoteError: it cannot be written; the checkpoint stays where it is.
    """
    _upload_all(written, uri, checkpoint)
    target = written.with_name(checkpoint)
    files.remove(target)  # it did not count, or is the same one, which another process has downloaded by now
    os.replace(written, target)


def _send_left(uri: str, folder: Path, newest: str | None, run: str) -> str | None:
    """Send the checkpoints that an earlier process wrote to this copy and could not send.

    Args:
        newest: the newest complete checkpoint at the URI.
        run: of the URI, see `run_of`.

    Returns:
        The newest complete checkpoint there now.
    """
    for written, checkpoint, of in names.unsent(folder):
        if not run or of != run:
            _log.warning("%s: was never sent, and is of another run of this name; remove it, or keep it", written)
        elif newest is not None and checkpoint <= newest:  # the run has trained past it
            shutil.rmtree(written)
        elif why := _fault(written):
            _log.warning("%s: was never sent, and is damaged (%s); remove it, or mend it", written, one_line(why))
        else:
            send(uri, written, checkpoint)
            newest = checkpoint
            _log.warning("%s: was not yet at the URI; it is now", joined(uri, checkpoint))
    return newest


def _fault(checkpoint: Path) -> str | None:
    try:
        return integrity.fault(checkpoint, parsing.read_json(checkpoint / integrity.META))
    except parsing.ParseError:
        return f"{integrity.META} cannot be read"


def _move_aside(uri: str, checkpoint: Path) -> None:
    """Rename a checkpoint of a copy that its URI does not have, so that no run goes on from it; it is not removed."""
    if not (checkpoint / integrity.META).is_file():
        shutil.rmtree(checkpoint)
        return
    aside = checkpoint.with_name(f"aside-{checkpoint.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    os.replace(checkpoint, aside)
    _log.warning(
        "%s: is not there, so the run does not go on from it; the copy on this disk is %s now: send it there to use "
        "it, or remove it",
        joined(uri, checkpoint.name),
        aside,
    )


def prune(uri: str, keep: int) -> None:
    """Remove all but the newest complete checkpoints (see `names.outdated`); complete is one whose sizes agree.

    Raises:
        RemoteError: it cannot be written.
    """
    _, steps = _listed(uri)
    complete: dict[str, _Listed] = {}

    def is_complete(step: str) -> bool:
        if isinstance(there := _inspected(joined(uri, step)), _Listed):
            complete[step] = there
        return step in complete

    outdated = names.outdated(
        steps, is_complete, keep, lambda kept: best.names_of(complete[step].meta for step in kept)
    )
    with _reaching(uri) as (system, path):
        for step in outdated:
            system.delete_dir(f"{path}/{step}")


def read_object(uri: str, name: str) -> str | None:
    """The text of a small object of a run; None: there is none. Raises RemoteError."""
    try:
        return _read(uri, name, limit=10_000).decode(errors="replace")
    except FileNotFoundError:
        return None


def write_object(uri: str, name: str, text: str) -> None:
    """Write a small object of a run. Raises RemoteError."""
    with _reaching(uri) as (system, path):
        if system.type_name not in _OBJECT_STORES:
            system.create_dir(path, recursive=True)
        with system.open_output_stream(f"{path}/{name}") as out:
            out.write(text.encode())


def remove_object(uri: str, name: str) -> None:
    """Remove a small object of a run. Raises RemoteError."""
    with _reaching(uri) as (system, path):
        system.delete_file(f"{path}/{name}")


def opened(uri: str, *, asked_by: str) -> tuple[FileSystem, str]:
    """The file system of a URI, Arrow's own or else that of fsspec, and the path in it.

    Some connect here already, so what they raise may pass.

    Raises:
        ConfigError: there is none, or the URI holds a secret.
        RemoteError: it does not answer.
    """
    _no_secret(uri, asked_by=asked_by)
    import pyarrow as pa
    from pyarrow import fs

    _split(uri)  # Arrow takes some that Python cannot take apart
    try:
        system, path = fs.FileSystem.from_uri(uri)
        return system, path.rstrip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if "nrecognized filesystem" not in str(error):
            raise ConfigError(f"{asked_by}={uri}: {one_line(error, 200)}") from None
    except ValueError as error:  # text that is no URI
        raise ConfigError(f"{asked_by}={uri}: {one_line(error, 200)}") from None
    except OSError as error:
        raise RemoteError(f"{asked_by}={uri}: {one_line(error, 200)}") from None
    import fsspec

    try:
        found, path = fsspec.url_to_fs(uri)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{asked_by}={uri}: no file system for it ({one_line(error, 200)}); install its fsspec package on every "
            "node, or give s3://, gs:// or a folder"
        ) from None
    except Exception as error:  # each kind is somebody else's class, which may raise anything
        raise RemoteError(f"{asked_by}={uri}: {one_line(error, 200)}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), str(path).rstrip("/")


def _fetch(run: str, folder: Path, step: str) -> str | None:
    """Download a checkpoint into a run's copy unless it is there already; gives why there is no complete one."""
    uri, target = joined(run, step), folder / step
    there = _inspected(uri)
    if isinstance(there, str):
        return there
    known = (target / integrity.META).is_file() and (target / integrity.META).read_bytes() == there.text
    if known and integrity.fault(target, there.meta) is None:
        return None
    try:
        with files.replacing(target, temporary=folder / f".{step}") as temporary:
            temporary.mkdir()
            for name in there.sizes:
                _download(uri, name, temporary / name)
            (temporary / integrity.META).write_bytes(there.text)
            if why := integrity.fault(temporary, there.meta):
                raise _Damaged(why)
    except _Damaged as error:
        return str(error)
    return None


def _inspected(uri: str) -> _Listed | str:
    """A checkpoint's meta.json and the sizes that it names, or why the checkpoint is not complete."""
    try:
        text = _read(uri, integrity.META)
    except FileNotFoundError:
        return _UNFINISHED
    try:
        meta = parsing.parse_json(text, source=uri)
        sizes = integrity.sizes(meta)
    except ValueError:
        return f"{integrity.META} does not name the files"
    with _reaching(uri) as (system, path):
        found = system.get_file_info([f"{path}/{name}" for name in sizes])
    there = {info.base_name: info.size for info in found if info.is_file}
    wrong = next((name for name in sizes if there.get(name) != sizes[name]), None)
    if wrong is None:
        return _Listed(text, meta, sizes)
    return f"{wrong} has {there[wrong]} bytes instead of {sizes[wrong]}" if wrong in there else f"{wrong} is missing"


def _listed(uri: str) -> tuple[list[str], list[str]]:
    """The names of the files in a run's folder that are not hidden, and those of its checkpoints, complete or not."""
    from pyarrow import fs

    with _reaching(uri) as (system, path):
        found: list[FileInfo] = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    plain = [info.base_name for info in found if info.is_file and names.is_plain(info.base_name)]
    folders = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return plain, [name for name in folders if names.is_checkpoint(name)]


def _read(uri: str, name: str, limit: int | None = None) -> bytes:
    with _reaching(uri) as (system, path), system.open_input_stream(f"{path}/{name}") as stream:
        return bytes(stream.read(limit))


def _download(uri: str, name: str, target: Path) -> None:
    with (
        _reaching(uri) as (system, path),
        files.replacing(target) as temporary,
        system.open_input_stream(f"{path}/{name}") as stream,
        temporary.open("wb") as out,
    ):
        shutil.copyfileobj(stream, out, _CHUNK)


def _upload_all(path: Path, uri: str, *below: str) -> None:
    """Send a file, or a folder with all in it, to a place below a URI, a meta file last.

    Their names may hold anything (a picture has that of a photograph), so they are added to the opened path.
    """
    found = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    with _reaching(uri) as (system, top):
        for file in sorted(found, key=lambda file: (file.name == integrity.META, file)):
            _upload(file, system, "/".join([top, *below, *file.relative_to(path).parts]))


def _upload(source: Path, system: FileSystem, path: str) -> None:
    if system.type_name not in _OBJECT_STORES:
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
    except Exception as error:  # file systems of fsspec raise their own classes, which are no OSError
        raise RemoteError(f"{uri}: {one_line(error)}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time fills a copy: the workers of a node share it."""
    with FileLock(f"{folder}.lock", timeout=600):
        yield


@functools.cache  # once a process
def _report(damaged: str, why: str, used: str) -> None:
    _log.warning("%s; %s is used instead", one_line(f"{damaged}: {why}"), used)
