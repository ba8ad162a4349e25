"""Registered models: add one, find it again from any program, promote it, compare two.

    open_model("models:/d2sm-ffdnet@champion", device="cuda")

A version keeps a checkpoint's model.safetensors, config.yaml and meta.json, and their checksums. Nothing is pickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config import PAIR
from pipelines.runs.results import (
    EvaluationError,
    Results,
    convention_of,
    facts_of,
    higher_is_better,
    identity,
    level_key,
)
from pipelines.runs.trust import check_servers
from pipelines.runtime.progress import stage
from pipelines.text import did_you_mean, listed
from pipelines.tracking import bundle as bundles
from pipelines.tracking import location, registered, store
from pipelines.tracking.registered import Record, RegistryError, lookup, model_folder, models

if TYPE_CHECKING:
    from d2sm.models import Denoiser

__all__ = [
    "Record",
    "RegistryError",
    "check_names",
    "compare",
    "lookup",
    "model_folder",
    "models",
    "open_model",
    "promote",
    "register",
    "register_run",
]

_LONGEST_NAME = 256  # of a registered model, in the database of a server
_ALWAYS = ("evaluated_on", "convention", "segmenter")  # tags of an evaluation that every version of d2sm has written


def open_model(reference: str | Path, *, uri: str | None = None, device: str = "cpu", trust: bool = False) -> Denoiser:
    """The network of a run, a checkpoint or a registered model, in eval mode.

    Args:
        reference: see `model_folder`.
        uri: see `model_folder`.
        device: "cpu" or "cuda".
        trust: import a backbone that the model names as module:callable, even if this user did not train it here.

    Raises:
        RegistryError, CheckpointError, RemoteError, TrustError: there is no such model or device, or it
            cannot be read. One line.
    """
    import torch

    from pipelines.runs.checkpoint import load_model

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        have = "cpu or cuda" if torch.cuda.is_available() else "cpu (torch finds no GPU)"
        raise RegistryError(f"device={device}: there is {have}")
    return load_model(model_folder(reference, uri=uri), trust=trust)[0].to(device)


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
    """Make a checkpoint a new version of the registered model `name`.

    Args:
        bundle: folder with model.safetensors, config.yaml and meta.json.
        name: of the registered model; made if new.
        run_id: of the MLflow run it came from.
        uri: of the store.
        alias: moved to the new version, such as champion.
        results: numbers such as "psnr.sigma25", and what they depend on: the facts of `results.identity`, such as
            "convention", "segmenter" and "data" (fingerprint of the images it was evaluated on, the tag
            "evaluated_on"); nested mappings are joined with dots. They become tags.
        example: noisy float32 (B, 3, H, W) in [0, 1], kept with the model; None: a small grey ramp.

    Raises:
        RegistryError: the checkpoint, the name or the alias cannot be used, or the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    check_names(name, alias)
    uri = store.absolute(uri)
    client = registered.connect(uri, writes=True)
    with store.plain_errors(uri, RegistryError):
        source, model_id, tags = bundles.upload(client, bundle, name=name, run_id=run_id, uri=uri, example=example)
        tags |= _flat(results or {})
        evaluated_on = tags.pop("data", "")
        if results:
            tags["evaluated_on"] = evaluated_on or tags.get("data_fingerprint", "")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = client.create_model_version(
            name,
            source,
            run_id=run_id,
            tags={key: value[:4000] for key, value in tags.items() if value},
            await_creation_for=60,
            # A server needs the model's id. With a database and no run, MLflow would look the id up in the store that
            # is set for the whole process.
            model_id=model_id if run_id or uri.startswith("http") else None,
        )
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
        return registered.record_of(client.get_model_version(name, made.version), uri)


def register_run(run: str | Path, name: str, *, alias: str = "", uri: str | None = None, trust: bool = False) -> Record:
    """Register the model of a finished run without training it again, as `tracking.register_as` does after a training.

    Args:
        run: its folder, or its URI.
        name: of the registered model; made if new.
        alias: moved to the new version, such as champion.
        uri: of the store; None or empty: the run's own.
        trust: send MLflow's password or token to the server that the run names, even if it was not trained here.

    Returns:
        The new version; its `run_id` is empty where the store does not hold the run.

    Raises:
        RunsError: it is no run, or was not trained to its last step and evaluated there.
        RegistryError, TrackingError, TrustError: the name or the alias cannot be used, or the store.
    """
    from pipelines.comparison.rows import read_run

    check_names(name, alias, asked_by="--as")
    found = read_run(run, trust=trust)
    if not uri:
        check_servers(found.config, found.folder, given=None, trust=found.trusted)
    uri = store.absolute(uri) if uri else found.uri
    client = registered.connect(uri)
    run_id = found.run_id if found.run_id and location.holds(client, found.run_id, uri) else None
    results = numbers_of(found.results)
    return register(found.checkpoint, name=name, run_id=run_id, uri=uri, alias=alias, results=results)


def numbers_of(results: Results) -> dict[str, Any]:
    """An evaluation as `register` takes it."""
    return {**results.flat(), **identity(results)}


def check_names(name: str, alias: str = "", *, asked_by: str = "tracking.register_as") -> None:
    """Check the name of a registered model, and an alias unless it is empty.

    Args:
        asked_by: the key or option that gave the name, for the message.

    Raises:
        RegistryError: MLflow would not take it, or could not tell it from a version.
    """
    plain = name.strip() and name.isprintable() and not re.search(r"[/@:]", name)
    if not plain or {"'", '"'} <= set(name) or len(name) > _LONGEST_NAME:
        raise RegistryError(
            f"{asked_by}={name[:300]!r}: a name holds no /, @ or :, one kind of quotes at most, and at most "
            f"{_LONGEST_NAME} characters; give one such as d2sm-ffdnet"
        )
    if alias:
        _check_alias(alias)


def promote(reference: str, alias: str, *, if_better: str | None = None, uri: str | None = None) -> Record:
    """Move an alias to a version.

    Args:
        reference: see `lookup`.
        alias: such as champion.
        if_better: a metric such as "miou.sigma25": only if the version is better in it than the one that has the alias
            now. If none has it yet, it is moved. What versions that were registered earlier do not say of their
            evaluation is shown, and taken to be the same.
        uri: see `lookup`.

    Raises:
        RegistryError: it is not better (with both numbers), or the two were not evaluated alike.
    """
    _check_alias(alias)
    record = lookup(reference, uri=uri)
    client = registered.connect(record.uri, writes=True)
    if if_better:
        with store.plain_errors(record.uri, RegistryError):
            holder = registered.aliases_of(client, record.name, record.uri).get(alias)
        _number(record, if_better)
        if holder and holder != record.version:
            _check_better(record, lookup(f"{record.name}/{holder}", uri=record.uri), if_better, alias)
    with store.plain_errors(record.uri, RegistryError):
        client.set_registered_model_alias(record.name, alias, str(record.version))
        return registered.record_of(client.get_model_version(record.name, str(record.version)), record.uri)


def compare(a: Record, b: Record) -> list[dict[str, str | float | None]]:
    """Two versions side by side: a row for each tag, {"what", "a", "b", "difference"}; the last is b - a of metrics."""
    rows: list[dict[str, str | float | None]] = []
    for key in sorted({*a.tags, *b.tags}):
        left, right = a.tags.get(key, ""), b.tags.get(key, "")
        difference = None
        if "." in key:  # a metric; other tags, such as a commit, may look like numbers too
            with suppress(ValueError):
                difference = float(right) - float(left)
        rows.append({"what": key, "a": left, "b": right, "difference": difference})
    return rows


def _check_better(record: Record, holder: Record, metric: str, alias: str) -> None:
    """Check that a version is better than the one that holds the alias; both were evaluated alike."""
    refused = f"{record.label} not promoted to {alias}"
    unknown: dict[str, list[str]] = {}
    for fact in facts_of(metric):
        tag = "evaluated_on" if fact == "data" else fact
        ours, theirs = (_taken(each, tag, metric) for each in (record, holder))
        if ours != theirs and ((ours and theirs) or tag in _ALWAYS):
            raise RegistryError(
                f"{refused}: {metric} {record.tags[metric]} and {holder.label}'s {holder.tags.get(metric, 'none')} "
                f"cannot be compared ({tag}: {ours or 'none'}, {theirs or 'none'}); evaluate both alike"
            )
        for each, value in ((record, ours), (holder, theirs)):
            if not value:
                unknown.setdefault(each.label, []).append(tag)
    new, old = _number(record, metric), _number(holder, metric)
    try:
        better = new > old if higher_is_better(metric) else new < old
    except EvaluationError as error:
        raise RegistryError(f"{refused}: {error}") from None
    if not better:
        raise RegistryError(f"{refused}: {metric} {new:g} does not beat {holder.label}'s {old:g}")
    if unknown:
        lacking = "; ".join(f"{label} does not say {', '.join(tags)}" for label, tags in unknown.items())
        stage(f"{metric} of {record.label} and {holder.label} was taken to be measured alike: {lacking}")


def _taken(record: Record, tag: str, metric: str) -> str:
    """What a version says of how a metric was measured; "" if it was registered without that."""
    found = record.tags.get(tag, "")
    return convention_of(found, [PAIR]) if tag == "convention" and metric.endswith(f".{level_key(PAIR)}") else found


def _number(record: Record, metric: str) -> float:
    try:
        return float(record.tags[metric])
    except (KeyError, ValueError):
        numbers = [key for key in record.tags if re.match(r"(noisy\.)?(psnr|ssim|miou(-[\w-]+)?|lpips)\.", key)]
        have, hint = listed(numbers) or "none", did_you_mean(metric, numbers)
        raise RegistryError(f"{metric}: {record.label} has no such number; it has {have}{hint}") from None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested results as tags: {"psnr": {"sigma25": 30.0}} -> {"psnr.sigma25": "30"}; None is left out."""
    tags: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            tags |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            tags[prefix + key] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return tags


def _check_alias(alias: str) -> None:
    if not re.fullmatch(r"[\w\-]{1,255}", alias) or alias == "latest" or re.fullmatch(r"v?\d+", alias):
        raise RegistryError(f"alias {alias!r}: letters, digits, - and _, and neither latest nor a number")
