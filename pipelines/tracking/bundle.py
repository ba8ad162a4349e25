"""Bundles on their way into and out of MLflow: checksums, MLflow's model folder, the download cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2sm.models import BACKBONES
from d2sm.objectives import TERMS
from pipelines import config as configs
from pipelines.runtime import files
from pipelines.text import redact

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient

FILES = ("model.safetensors", "config.yaml", "meta.json")
CHECKSUMS = "checksums.json"

_META = {
    "step": "step",
    "epoch": "epoch",
    "commit": "commit",
    "dirty": "dirty",
    "data": "data_fingerprint",
}  # -> tags
SIGMA = 25.0  # noise level of a served request that names none
_INSIDE = "data/bundle"  # where MLflow puts the bundle within the model
_NEEDS = ("mlflow", "torch", "torchvision", "numpy", "safetensors", "pydantic", "PyYAML")  # to load and serve


class RegistryError(ValueError):
    """A model cannot be registered, found, verified or promoted. One line: near names, or both numbers."""


@dataclass(frozen=True)
class Record:
    """One registered version.

    Attributes:
        name, version: together they name it: "name/3".
        aliases: such as ("champion",).
        run_id: MLflow run it came from, or "".
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
        """The bundle's folder on this machine, downloaded at first use and verified each time.

        Args:
            cache: folder for downloads; none: ~/.cache/d2sm/models.

        Raises:
            RegistryError: when it cannot be downloaded, or differs from what was registered.
        """
        return fetch(self, cache)

    def load(self, device: str | torch.device = "cpu", cache: Path | None = None) -> torch.nn.Module:
        """The network in eval mode on `device`. Raises as `path` does."""
        from pipelines.runs.checkpoint import load_model

        model: torch.nn.Module = load_model(self.path(cache))[0]
        return model.to(device)


def upload(
    client: MlflowClient, bundle: Path, *, name: str, run_id: str | None, uri: str, example: np.ndarray | None
) -> tuple[str, str, dict[str, str]]:
    """Save the bundle as an MLflow model and upload it; its place, its id, and the tags that say what it is.

    Raises:
        RegistryError: when a file of the bundle is missing.
    """
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory(prefix="d2sm-") as scratch:
        copy = Path(scratch) / "bundle"
        tags = _seal(bundle, copy)
        _save(copy, Path(scratch) / "model", example)
        logged = client.create_logged_model(_experiment(client, run_id, copy, uri), name=name, source_run_id=run_id)
        try:
            client.log_model_artifacts(logged.model_id, str(Path(scratch) / "model"))
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.finalize_logged_model(logged.model_id, "READY")
        if run_id:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=int(tags.get("step", 0)))])
    return logged.artifact_location, logged.model_id, tags


def fetch(record: Record, cache: Path | None) -> Path:
    """The verified bundle of a version, from the cache or downloaded into it. See `Record.path`."""
    seal = record.tags.get("bundle.sha256", "")
    if not seal or not record.tags.get("weights.sha256"):
        raise RegistryError(f"{record.label}: has no checksums; give a model that d2sm registered")
    folder = (cache or Path.home() / ".cache" / "d2sm" / "models") / seal
    if folder.exists():
        if not _wrong(folder, record):
            return folder
        shutil.rmtree(folder)  # a cache may rot; the store has the original
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        files.replacing(folder, shared=True, keep=True) as fresh,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch,
    ):
        _download(record, Path(scratch)).rename(fresh)
        if wrong := _wrong(fresh, record):
            raise RegistryError(
                f"{record.label}: {wrong} differs from what was registered (sha256); register the model anew"
            )
    return folder


def _download(record: Record, scratch: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    from pipelines.tracking import store

    with store.plain_errors(record.uri, RegistryError):
        store.check(record.uri)
        place = store.client(record.uri).get_model_version_download_uri(record.name, str(record.version))
        return Path(
            download_artifacts(
                artifact_uri=f"{place.rstrip('/')}/{_INSIDE}",
                dst_path=str(scratch),
                tracking_uri=record.uri,
                registry_uri=record.uri,
            )
        )


def _seal(bundle: Path, copy: Path) -> dict[str, str]:
    """Copy the bundle with its checksums; the tags that follow from it."""
    copy.mkdir()
    for name in FILES:
        if not (bundle / name).is_file():
            raise RegistryError(f"{bundle}: has no {name}; give a folder written by `d2sm train`")
        shutil.copyfile(bundle / name, copy / name)
    settings = copy / "config.yaml"
    settings.write_text(redact(settings.read_text()))  # tracking.uri may hold a password
    sums = {name: _sha256(copy / name) for name in FILES}
    (copy / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    tags = _describe(copy)
    tags |= {"weights.sha256": sums["model.safetensors"], "bundle.sha256": _sha256(copy / CHECKSUMS)}
    return tags


def _describe(bundle: Path) -> dict[str, str]:
    config = configs.load(bundle / "config.yaml")
    meta = json.loads((bundle / "meta.json").read_text())
    terms, model = config.loss.terms, config.model
    size = "".join(f" {option}={getattr(model, option)}" for option in BACKBONES[model.name].options)
    return {
        "recipe": config.recipe,
        "backbone": f"{model.name}{size}",
        "objective": " + ".join(f"{weight:g} {TERMS[name].label}" for name, weight in terms.items()),
        "phi": config.loss.features if config.loss.uses_phi else "",
        "segmenter": config.evaluate.segmenter or "",
        **{tag: str(meta[key]) for key, tag in _META.items() if meta.get(key) is not None},
    }


def _save(bundle: Path, folder: Path, example: np.ndarray | None) -> None:
    """MLflow's model folder, from parts that need no pickle: a loader module by name, and plain files."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from pipelines.networks.models import build

    # A blind model takes no noise level.
    blind = build(configs.load(bundle / "config.yaml").model).blind
    params = {} if blind else {"params": ParamSchema([ParamSpec("sigma", "double", SIGMA)])}
    images = Schema([TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))])
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32), (1, 3, 16, 16))
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module="pipelines.served",
        data_path=str(bundle),
        code_paths=[_package("d2sm"), _package("pipelines")],
        signature=ModelSignature(inputs=images, outputs=images, **params),
        input_example=np.ascontiguousarray(ramp if example is None else example, dtype=np.float32),
        pip_requirements=[f"{need}=={importlib.metadata.version(need).split('+')[0]}" for need in _NEEDS],
    )


def _package(name: str) -> str:
    found = importlib.util.find_spec(name)
    assert found is not None and found.submodule_search_locations  # this very package
    return next(iter(found.submodule_search_locations))


def _experiment(client: MlflowClient, run_id: str | None, bundle: Path, uri: str) -> str:
    from pipelines.tracking.run import experiment_of

    if run_id:
        return str(client.get_run(run_id).info.experiment_id)
    return experiment_of(client, configs.load(bundle / "config.yaml").tracking.experiment, uri)


def _wrong(folder: Path, record: Record) -> str:
    """The first file that is not what was registered, or ""."""
    sums = folder / CHECKSUMS
    if not sums.is_file() or _sha256(sums) != record.tags["bundle.sha256"]:
        return CHECKSUMS
    expected: dict[str, str] = json.loads(sums.read_text())
    for name in FILES:
        if not (folder / name).is_file() or _sha256(folder / name) != expected.get(name):
            return name
    return "" if expected["model.safetensors"] == record.tags["weights.sha256"] else "model.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
