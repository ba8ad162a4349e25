"""Registered models: found by what a user types, downloaded, verified. `pipelines.registry` adds and promotes them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import parsing
from pipelines.config import Config
from pipelines.runs import checkpoint, storage
from pipelines.runtime import files
from pipelines.text import did_you_mean, listed, one_line, redact
from pipelines.tracking import store

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from d2sm.models import Denoiser

FILES = ("model.safetensors", "config.yaml", "meta.json")  # of a checkpoint: those that the registry keeps
CHECKSUMS = "checksums.json"  # beside them: the SHA-256 of each
INSIDE = "data/bundle"  # where MLflow puts the four within the files of a model


class RegistryError(ValueError):
    """A model cannot be registered, found, verified or promoted. One line."""


@dataclass(frozen=True)
class Record:
    """One version of a registered model.

    Attributes:
        name, version: the version's reference is "name/version".
        aliases: that point to it, such as ("champion",).
        run_id: of the MLflow run it came from, or "".
        tags: what it is: recipe, backbone, objective, psnr.sigma25, ... all as text.
        uri: of the store, with its password if it has one.
        source: where MLflow keeps the files.
        created: UTC.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    tags: Mapping[str, str]
    uri: str
    source: str
    created: datetime

    @property
    def label(self) -> str:
        """The reference of exactly this version, such as "d2sm-ffdnet/3"."""
        return f"{self.name}/{self.version}"

    def __repr__(self) -> str:
        return f"Record({self.label}, aliases={list(self.aliases)}, uri={redact(self.uri)})"

    def path(self, cache: Path | None = None) -> Path:
        """The folder with the model's files on this machine, downloaded at first use and verified each time.

        Args:
            cache: folder for downloads; None: ~/.cache/d2sm/models (XDG_CACHE_HOME in place of ~/.cache).

        Raises:
            RegistryError: it cannot be downloaded, or differs from what was registered.
        """
        digest, weights = (self._digest(tag) for tag in ("bundle.sha256", "weights.sha256"))
        folder = (cache or files.cache() / "models") / digest
        if folder.is_symlink() or folder.exists():
            if not folder.is_symlink() and not changed_file(folder, digest, weights):
                return folder
            files.remove(folder)  # damaged on this disk; the store has the original
        with (
            files.caching(folder.parent),
            files.replacing(folder, shared=True, keep=True) as fresh,
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch,
        ):
            download(self, Path(scratch), inside=INSIDE).rename(fresh)
            if changed := changed_file(fresh, digest, weights):
                raise RegistryError(
                    f"{self.label}: {changed} differs from what was registered (sha256); register the model anew"
                )
        return folder

    def load(self, device: str | torch.device = "cpu", cache: Path | None = None, *, trust: bool = False) -> Denoiser:
        """The network in eval mode on `device`.

        Args:
            cache: as for `path`.
            trust: import a backbone that it names as module:callable.

        Raises:
            RegistryError, CheckpointError, TrustError: as `path` and `checkpoint.load_model` do.
        """
        return checkpoint.load_model(self.path(cache), trust=trust)[0].to(device)

    def _digest(self, tag: str) -> str:
        """A checksum among the tags. It becomes the name of a folder that may be removed, so nothing else is taken."""
        found = self.tags.get(tag, "")
        if not re.fullmatch(r"[0-9a-f]{64}", found):
            raise RegistryError(
                f"{self.label}: its tag {tag}={one_line(found, 80)!r} is no SHA-256 (64 hexadecimal digits); give a "
                "model that d2sm registered"
            )
        return found


def changed_file(folder: Path, digest: str = "", weights: str = "") -> str:
    """The first of a model's files that is missing or does not have its checksum, or "".

    Args:
        folder: with `FILES` and `CHECKSUMS`.
        digest: the SHA-256 of checksums.json; "": it is not known, so the files are compared with each other alone.
        weights: the SHA-256 of the weights; "": likewise.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file() or (digest and files.sha256(sums) != digest):
        return CHECKSUMS
    try:
        expected = parsing.read_json(sums, source=str(sums), error=RegistryError, remedy="register the model anew")
    except RegistryError:
        return CHECKSUMS
    for name in FILES:
        if not (folder / name).is_file() or files.sha256(folder / name) != expected.get(name):
            return name
    return "" if not weights or expected["model.safetensors"] == weights else "model.safetensors"


def download(record: Record, target: Path, *, inside: str = "") -> Path:
    """Download a version's files, or those of one folder within them, into the folder `target`; gives their folder.

    Raises:
        RegistryError: the store does not answer, or the files are gone.
    """
    from mlflow.artifacts import download_artifacts

    with store.plain_errors(record.uri, RegistryError):
        store.check(record.uri)
        source = store.client(record.uri).get_model_version_download_uri(record.name, str(record.version))
        return Path(
            download_artifacts(
                artifact_uri=f"{source.rstrip('/')}/{inside}".rstrip("/"),
                dst_path=str(target),
                tracking_uri=record.uri,
                registry_uri=record.uri,
            )
        )


def lookup(reference: str, *, uri: str | None = None) -> Record:
    """Find one version of a registered model.

    Args:
        reference: "name@alias", "name/3" or "name" (the newest version); "models:/" may stand before it.
        uri: of the store; None or empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        RegistryError: there is no such name, version or alias (the message suggests one), or the store does not answer.
    """
    parsed = re.fullmatch(r"(?:models:/)?([^/@:]+)(?:/(\d+)|@([^/@:]+))?", reference)
    if parsed is None:
        raise RegistryError(f"{reference}: a registered model is given as name, name/3 or name@alias")
    name, version, alias = parsed[1], int(parsed[2]) if parsed[2] else None, parsed[3]
    uri = store.absolute(uri) if uri else store.uri_of(Config())
    client = connect(uri)
    with store.plain_errors(uri, RegistryError):
        held = aliases_of(client, name, uri)
        if alias and alias not in held:
            hint = did_you_mean(alias, held)
            raise RegistryError(f"{name}@{alias}: no such alias; {name} has {listed(held) or 'none'}{hint}")
        versions = sorted(int(found.version) for found in _pages(client.search_model_versions, _named(name)))
        wanted = held[alias] if alias else max(versions, default=0) if version is None else version
        if wanted not in versions:
            have = listed(map(str, versions)) or "none yet"
            raise RegistryError(f"{name}/{wanted}: no such version; {name} has {have}")
        return record_of(client.get_model_version(name, str(wanted)), uri)


def is_reference(text: str) -> bool:
    """Whether this names a registered model, whatever lies on the disk: "models:/..." or "name@alias"."""
    return text.startswith("models:") or re.fullmatch(r"[^/@:]+@[^/@:]+", text) is not None


def model_folder(reference: str | Path, *, uri: str | None = None) -> Path:
    """The folder with a model's files on this machine, for whatever names the model.

    Args:
        reference: the folder of a run (the checkpoint that is its model is meant: the best one by `train.best`, else
            the last) or of a checkpoint, the URI of either, or a registered model: "models:/" followed by name@alias,
            name/3 or name (the newest version), or name@alias.
        uri: of the store of registered models; None or empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        RegistryError: nothing has this name, or the registered model cannot be had.
        CheckpointError: the folder holds no complete checkpoint.
        RemoteError: the URI cannot be read.
    """
    text = str(reference)
    if storage.is_uri(text) or (not text.startswith("models:") and Path(text).exists()):
        return checkpoint.resolve(text)
    if is_reference(text):
        return lookup(text, uri=uri).path()
    raise RegistryError(
        f"model={reference}: no such folder; give the folder or URI of a run or of a checkpoint, or a registered model "
        "such as models:/name@alias"
    )


def models(uri: str) -> list[Record]:
    """Every version of every model of a store, by name, the newest version first.

    Raises:
        RegistryError: the store does not answer.
    """
    uri = store.absolute(uri)
    client = connect(uri)
    records = []
    with store.plain_errors(uri, RegistryError):
        for model in _pages(client.search_registered_models, None):
            for found in _pages(client.search_model_versions, _named(model.name)):
                record = record_of(found, uri)
                # A version that was searched for does not hold its aliases; its model does.
                held = (alias for alias, version in model.aliases.items() if int(version) == record.version)
                records.append(replace(record, aliases=tuple(sorted(held))))
    return sorted(records, key=lambda record: (record.name, -record.version))


def connect(uri: str, *, writes: bool = False) -> MlflowClient:
    """A client of a store that answers. Without `writes`, no database is made where there is none.

    Raises:
        RegistryError: the store does not answer, or its file does not exist.
    """
    path = store.sqlite_file(uri)
    if path and not writes and not path.exists():
        raise RegistryError(
            f"{redact(uri)}: no such file, so no models; give another by tracking.uri or MLFLOW_TRACKING_URI"
        )
    try:
        return store.prepare(uri)
    except store.TrackingError as error:
        raise RegistryError(str(error)) from None


def aliases_of(client: MlflowClient, name: str, uri: str) -> dict[str, int]:
    """The aliases of a registered model, and the version that each points to.

    Raises:
        RegistryError: no such model.
    """
    known: dict[str, RegisteredModel] = {model.name: model for model in _pages(client.search_registered_models, None)}
    if name not in known:
        hint = did_you_mean(name, known)
        raise RegistryError(f"{name}: no such model in {redact(uri)}; it has {listed(known) or 'none'}{hint}")
    return {alias: int(version) for alias, version in known[name].aliases.items()}


def record_of(found: ModelVersion, uri: str) -> Record:
    """MLflow's record of a version as ours."""
    return Record(
        name=found.name,
        version=int(found.version),
        aliases=tuple(sorted(found.aliases or ())),
        run_id=found.run_id or "",
        tags=dict(found.tags),
        uri=uri,
        source=found.source or "",
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
    )


def _pages(search: Any, text: str | None) -> Iterator[Any]:
    """Everything that one of MLflow's searches finds, which gives it page by page."""
    token = None
    while True:
        page = search(filter_string=text, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _named(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"
