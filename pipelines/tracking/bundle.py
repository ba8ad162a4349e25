"""A checkpoint on its way into the registry: its files with their checksums, saved as a model that MLflow can serve."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2sm import __version__
from d2sm.models import BACKBONES
from d2sm.objectives import TERMS
from d2sm.weights import fingerprint
from pipelines import config as configs
from pipelines.callables import is_imported
from pipelines.runs import checkpoint, integrity
from pipelines.runtime import files
from pipelines.sections import SPANDREL
from pipelines.text import redact
from pipelines.tracking.registered import CHECKSUMS, FILES, INSIDE, RegistryError
from pipelines.tracking.run import experiment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

SIGMA = 25.0  # noise level of a served request that names none
_META_TAGS = {"step": "step", "epoch": "epoch", "commit": "commit", "dirty": "dirty", "data": "data_fingerprint",
              "init": "init"}  # fmt: skip
_REQUIREMENTS = ("mlflow", "torch", "torchvision", "numpy", "safetensors", "pydantic", "PyYAML")  # to load and serve


def default_sigma(config: configs.Config) -> float:
    """The noise level that a request for a model stands for if it names none: 0 if its training had no noise."""
    return SIGMA if config.degradation.has_noise else 0.0


def upload(
    client: MlflowClient, bundle: Path, *, name: str, run_id: str | None, uri: str, example: np.ndarray | None
) -> tuple[str, str, dict[str, str]]:
    """Save a checkpoint as an MLflow model and upload it.

    Args:
        bundle: the checkpoint's folder.
        name: of the registered model.
        run_id: of the MLflow run that the model belongs to; None: the model stands in the configured experiment.
        uri: of the store.
        example: noisy float32 (B, 3, H, W) in [0, 1], kept with the model; None: a small grey ramp.

    Returns:
        Where MLflow keeps the model, MLflow's id of it, and the tags that describe it.

    Raises:
        RegistryError: a file of the checkpoint is missing or damaged.
    """
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory(prefix="d2sm-") as scratch:
        copy, model = Path(scratch) / Path(INSIDE).name, Path(scratch) / "model"
        _copy(bundle, copy)
        config = configs.load(copy / "config.yaml")
        tags = describe(config, checkpoint.meta(copy))
        tags["weights.fingerprint"] = fingerprint(checkpoint.read_weights(copy))
        tags["weights.sha256"] = files.sha256(copy / "model.safetensors")
        tags["bundle.sha256"] = files.sha256(copy / CHECKSUMS)
        _save_model(copy, model, config, example)
        if run_id:
            experiment = str(client.get_run(run_id).info.experiment_id)
        else:
            experiment = experiment_of(client, config.tracking.experiment, uri)
        logged = client.create_logged_model(experiment, name=name, source_run_id=run_id)
        try:
            client.log_model_artifacts(logged.model_id, str(model))
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.finalize_logged_model(logged.model_id, "READY")
        if run_id:  # the run's page then shows the model
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=int(tags.get("step", 0)))])
    return logged.artifact_location, logged.model_id, tags


def describe(config: configs.Config, meta: dict[str, object]) -> dict[str, str]:
    """The tags that say what a model is: recipe, backbone, objective, Phi, segmenter, step, commit, data.

    Args:
        config: the checkpoint's configuration.
        meta: its meta.json.
    """
    terms = config.loss.terms
    imported = meta.get("imported")
    backbone = config.model.title
    if isinstance(imported, dict):  # `pipelines.import_weights` wrote it: nothing is known of the training
        return {"backbone": backbone, **{f"imported.{key}": str(value) for key, value in imported.items()}}
    return {
        "recipe": config.recipe,
        "backbone": backbone,
        "objective": " + ".join(f"{weight:g} {TERMS[name].label}" for name, weight in terms.items()),
        "phi": ", ".join(config.loss.phi_names) if config.loss.uses_phi else "",
        "segmenter": config.evaluate.segmenter or "",
        **{tag: str(meta[key]) for key, tag in _META_TAGS.items() if meta.get(key) is not None},
    }


def _copy(bundle: Path, copy: Path) -> None:
    """Copy the files that the registry keeps, without a password, and write their checksums beside them."""
    copy.mkdir()
    for name in FILES:
        if not (bundle / name).is_file():
            raise RegistryError(f"{bundle}: has no {name}; give a folder written by `d2sm train`")
        shutil.copyfile(bundle / name, copy / name)
    meta = checkpoint.meta(copy)
    if why := integrity.fault(copy, meta, FILES):
        raise RegistryError(f"{bundle}: {why}, so it is damaged; copy it again, or use another checkpoint of the run")
    settings = copy / checkpoint.CONFIG
    stored = settings.read_text()
    if (text := redact(stored)) != stored:  # earlier versions left a password in tracking.uri
        settings.write_text(text)
        (copy / checkpoint.META).write_text(integrity.sealed(meta, copy, (checkpoint.MODEL, checkpoint.CONFIG)))
    (copy / CHECKSUMS).write_text(json.dumps({name: files.sha256(copy / name) for name in FILES}, indent=1))


def _save_model(bundle: Path, folder: Path, config: configs.Config, example: np.ndarray | None) -> None:
    """Write MLflow's folder of a model: the files, and the name of the module that loads them. No code, no pickle."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from pipelines.networks.models import build

    # Of a network that would have to be imported it is not asked whether it is blind; a blind one ignores sigma.
    blind = config.model.name in BACKBONES and build(config.model).blind
    params = {} if blind else {"params": ParamSchema([ParamSpec("sigma", "double", default_sigma(config))])}
    needed = [*_REQUIREMENTS, *([SPANDREL] if config.model.name == SPANDREL else [])]
    images = Schema([TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))])
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32), (1, 3, 16, 16))
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module="pipelines.served",
        data_path=str(bundle),
        signature=ModelSignature(inputs=images, outputs=images, **params),
        input_example=np.ascontiguousarray(ramp if example is None else example, dtype=np.float32),
        metadata={"needs": f"the Python package d2sm, installed where the model is served (written by {__version__})"}
        | ({"code": config.model.name} if is_imported(config.model.name) else {}),
        pip_requirements=[f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in needed],
    )
