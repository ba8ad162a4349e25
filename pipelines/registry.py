"""Registered models: put one in, find it again from any program, promote it, compare two.

    lookup("d2sm-ffdnet@champion").load("cuda")

A version carries a bundle: model.safetensors, config.yaml, meta.json and their checksums. Nothing is pickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config import Config
from pipelines.runs.results import EvaluationError, higher_is_better
from pipelines.text import did_you_mean, listed, redact
from pipelines.tracking import bundle as bundles
from pipelines.tracking import store
from pipelines.tracking.bundle import Record, RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

__all__ = ["Record", "RegistryError", "check_names", "compare", "lookup", "models", "promote", "register"]

_SAME = ("evaluated_on", "convention")  # tags that must agree before two numbers may be compared


def register(
    bundle: Path,
    *,
    name: str,
    run_id: str | None,
    uri: str,
    alias: str = "",
    results: Mapping[str, Any] | None = None,
    example: np.ndarray | None = None,
) -> Record:
    """Make a bundle a new version of the model `name`.

    Args:
        bundle: folder with model.safetensors, config.yaml and meta.json.
        name: of the registered model; made if new.
        run_id: MLflow run it came from.
        uri: of the store.
        alias: moved to the new version, such as champion.
        results: numbers such as "psnr.sigma25", and "convention", "segmenter", "data" (fingerprint of what
            was evaluated); nested mappings are joined with dots. They become tags.
        example: noisy float32 (B, 3, H, W) in [0, 1], kept with the model; none: a small grey ramp.

    Raises:
        RegistryError: when the bundle or the name is not usable, or the store does not answer.
    """
    check_names(name, alias)
    uri = store.absolute(uri)
    client = _reach(uri, writes=True)
    with _plain(uri):
        source, model_id, tags = bundles.upload(client, bundle, name=name, run_id=run_id, uri=uri, example=example)
        tags |= _texts(results or {})
        tags["evaluated_on"] = tags.pop("data", "") or tags.get("data_fingerprint", "")
        tags = {key: value[:4000] for key, value in tags.items() if value}
        _make_model(client, name)
        # A server asks for the model's id; a database without a run looks it up in MLflow's global store.
        known = model_id if run_id or uri.startswith("http") else None
        made = client.create_model_version(
            name, source, run_id=run_id, tags=tags, await_creation_for=60, model_id=known
        )
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
        return _record(client.get_model_version(name, made.version), uri)


def check_names(name: str, alias: str = "") -> None:
    """Check the name of a registered model, and an alias unless it is empty.

    Raises:
        RegistryError: MLflow would not take it, or could not tell it from a version.
    """
    if not name or re.search(r"[/@:]", name):
        raise RegistryError(f"tracking.register_as={name!r}: a name without / @ : such as d2sm-ffdnet")
    if alias:
        _check_alias(alias)


def lookup(reference: str, *, uri: str | None = None) -> Record:
    """Find one version.

    Args:
        reference: "name@alias", "name/3" or "name" (the newest version); "models:/" may stand before it.
        uri: of the store; none: MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        RegistryError: when there is no such name, version or alias (it names the near ones), or no answer.
    """
    name, version, alias = _parse(reference)
    uri = store.absolute(uri) if uri else store.uri_of(Config())
    client = _reach(uri)
    with _plain(uri):
        model = _model(client, name, uri)
        held: dict[str, str] = {key: str(value) for key, value in model.aliases.items()}
        if alias and alias not in held:
            raise RegistryError(
                f"{name}@{alias}: no such alias; {name} has {listed(held) or 'none'}{did_you_mean(alias, held)}"
            )
        versions = [int(found.version) for found in _pages(client.search_model_versions, _filter(name))]
        wanted = int(held[alias]) if alias else version or max(versions, default=0)
        if wanted not in versions:
            raise RegistryError(
                f"{name}/{wanted}: no such version; {name} has {listed(map(str, sorted(versions))) or 'none yet'}"
            )
        return _record(client.get_model_version(name, str(wanted)), uri)


def models(uri: str) -> list[Record]:
    """Every version of every model of a store, by name, the newest version first.

    Raises:
        RegistryError: when the store does not answer.
    """
    uri = store.absolute(uri)
    client = _reach(uri)
    records = []
    with _plain(uri):
        for model in _pages(client.search_registered_models, None):
            for found in _pages(client.search_model_versions, _filter(model.name)):
                record = _record(found, uri)
                held = (key for key, value in model.aliases.items() if int(value) == record.version)
                records.append(replace(record, aliases=tuple(sorted(held))))
    return sorted(records, key=lambda record: (record.name, -record.version))


def promote(reference: str, alias: str, *, if_better: str | None = None, uri: str | None = None) -> Record:
    """Move an alias to a version.

    Args:
        reference: as for `lookup`.
        alias: such as champion.
        if_better: a metric such as "miou.sigma25": only when it beats the version that has the alias now.
            Where none has it yet, there is nothing to beat.

    Raises:
        RegistryError: when it is not better (with both numbers), or was not evaluated the same way.
    """
    _check_alias(alias)
    record = lookup(reference, uri=uri)
    client = _reach(record.uri, writes=True)
    if if_better:
        with _plain(record.uri):
            holder = _model(client, record.name, record.uri).aliases.get(alias)
        new = _number(record, if_better)
        if holder and int(holder) != record.version:
            _beats(new, record, lookup(f"{record.name}/{holder}", uri=record.uri), if_better, alias)
    with _plain(record.uri):
        client.set_registered_model_alias(record.name, alias, str(record.version))
        return _record(client.get_model_version(record.name, str(record.version)), record.uri)


def compare(a: Record, b: Record) -> list[dict[str, str | float | None]]:
    """Rows for a table, one a tag: {"what", "a", "b", "difference"}; the last is b - a of numbers."""
    rows: list[dict[str, str | float | None]] = []
    for key in sorted({*a.tags, *b.tags}):
        left, right = a.tags.get(key, ""), b.tags.get(key, "")
        difference = None
        if "." in key:  # metrics; a commit or a checksum may look like a number
            with suppress(ValueError):
                difference = float(right) - float(left)
        rows.append({"what": key, "a": left, "b": right, "difference": difference})
    return rows


def _beats(new: float, record: Record, holder: Record, metric: str, alias: str) -> None:
    about = f"{record.label} not promoted to {alias}"
    same = (*_SAME, "segmenter") if metric.startswith("miou") else _SAME
    for tag in same:
        ours, theirs = record.tags.get(tag, ""), holder.tags.get(tag, "")
        if ours != theirs:
            raise RegistryError(
                f"{about}: {metric} {new:g} and {holder.label}'s {holder.tags.get(metric, 'none')} were not "
                f"taken the same way ({tag}: {ours or 'none'}, {theirs or 'none'}); evaluate both alike"
            )
    old = _number(holder, metric)
    try:
        better = new > old if higher_is_better(metric) else new < old
    except EvaluationError as error:
        raise RegistryError(f"{about}: {error}") from None
    if not better:
        raise RegistryError(f"{about}: {metric} {new:g} does not beat {holder.label}'s {old:g}")


def _number(record: Record, metric: str) -> float:
    try:
        return float(record.tags[metric])
    except (KeyError, ValueError):
        numbers = [key for key in record.tags if re.search(r"\.sigma", key)]
        hint = did_you_mean(metric, numbers)
        raise RegistryError(
            f"{metric}: {record.label} has no such number; it has {listed(numbers) or 'none'}{hint}"
        ) from None


def _texts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    texts: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            texts |= _texts(value, f"{prefix}{key}.")
        elif value is not None:
            texts[prefix + key] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return texts


def _parse(reference: str) -> tuple[str, int | None, str]:
    """Name, version or None, alias or ""."""
    text = reference.removeprefix("models:/")
    if found := re.fullmatch(r"([^/@:]+)(?:/(\d+)|@([^/@:]+))?", text):
        return found[1], int(found[2]) if found[2] else None, found[3] or ""
    raise RegistryError(f"{reference}: a model is named name, name/3 or name@alias")


def _reach(uri: str, *, writes: bool = False) -> MlflowClient:
    """A client of a store that answers. Reading makes no new database."""
    path = store.sqlite_file(uri)
    if path and not writes and not path.exists():
        raise RegistryError(
            f"{redact(uri)}: no such file, so no models; give another by tracking.uri or MLFLOW_TRACKING_URI"
        )
    try:
        return store.prepare(uri)
    except store.TrackingError as error:
        raise RegistryError(str(error)) from None


@contextmanager
def _plain(uri: str) -> Iterator[None]:
    with store.plain_errors(uri, RegistryError):
        yield


def _model(client: MlflowClient, name: str, uri: str) -> RegisteredModel:
    """The registered model; its aliases map to versions."""
    known: dict[str, RegisteredModel] = {m.name: m for m in _pages(client.search_registered_models, None)}
    if name not in known:
        raise RegistryError(
            f"{name}: no such model in {redact(uri)}; it has {listed(known) or 'none'}{did_you_mean(name, known)}"
        )
    return known[name]


def _make_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _pages(search: Any, text: str | None) -> Iterator[Any]:
    token = None
    while True:
        page = search(filter_string=text, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _record(found: ModelVersion, uri: str) -> Record:
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


def _check_alias(alias: str) -> None:
    if not re.fullmatch(r"[\w\-]{1,255}", alias) or alias == "latest" or re.fullmatch(r"v?\d+", alias):
        raise RegistryError(f"alias {alias!r}: letters, digits, - and _, and neither latest nor a number")


def _filter(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"
