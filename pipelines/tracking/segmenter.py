"""The segmenter that a configuration names: built in, imported, or a registered model in the run's own store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from d2sm.label_names import CLASSES
from pipelines.config import Config
from pipelines.data import labels
from pipelines.networks import exported, phi_names, segmenters
from pipelines.networks.segmenters import SegmenterError
from pipelines.text import more, one_line, redact
from pipelines.tracking import registered, store

_PROGRAM = "data/model.pt2"
# What MLflow's pytorch flavour writes for an exported program. All but the program describe it, and are not read.
_FILES = (
    "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta", "input_example.json",
    "serving_input_example.json", _PROGRAM,
)  # fmt: skip


def load_segmenter(
    name: str,
    *,
    weights: str | Path | None = None,
    resize: bool = True,
    uri: str | None = None,
    classes: Sequence[str] = CLASSES,
) -> nn.Module:
    """A segmenter by name, as `networks.segmenters.load` gives it, or from the registry.

    Args:
        name: "models:/name@alias" for a network that MLflow's pytorch flavour keeps as an exported program ("pt2", its
            default). Nothing in its files is executed or unpickled (`networks.exported`). For other names see
            `networks.segmenters.load`.
        weights, resize: see `networks.segmenters.load`; a registered network has its weights, and takes any size.
        classes: see `networks.segmenters.load`.
        uri: of the store of registered models; None or empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        SegmenterError: (a ValueError) it cannot be found or loaded, or breaks the contract of segmenters.
    """
    if not name.startswith("models:/"):
        return segmenters.load(name, weights=weights, resize=resize, classes=classes)
    try:
        with tempfile.TemporaryDirectory(prefix="d2sm-") as scratch:
            program = exported.load(_program_in(registered.download(registered.lookup(name, uri=uri), Path(scratch))))
    except (registered.RegistryError, exported.ProgramError) as error:
        raise SegmenterError(f"segmenter={name!r}: {one_line(error)}") from None
    return segmenters.checked(name, program, len(classes)).eval().requires_grad_(False)


def for_phi(uri: str = "", classes: Sequence[str] = CLASSES) -> Callable[[str, str | None], nn.Module]:
    """What loads a segmenter of which Phi is a part, by name and file of weights.

    Args:
        uri, classes: see `load_segmenter`. The published networks are taken as they are, whatever the classes.
    """

    def load(name: str, file: str | None) -> nn.Module:
        return load_segmenter(name, weights=file, resize=False, uri=uri, classes=classes if ":" in name else CLASSES)

    return load


def evaluation_judges(config: Config) -> dict[str, nn.Module]:
    """The segmenters with which a run is evaluated, by their names in results, the first one first.

    Raises:
        SegmenterError: one cannot be loaded: names its keys, and the remedy.
        TrackingError: one is a registered model, and the configuration names no store that can be used.
    """
    found: dict[str, nn.Module] = {}
    classes = labels.of(config).like
    for number, (label, (name, weights)) in enumerate(config.evaluate.judges.items()):
        key, nothing = ("segmenters", "[]") if number else ("segmenter", "null")
        uri = store.uri_of(config) if name.startswith("models:/") else None
        try:
            found[label] = load_segmenter(name, weights=weights, uri=uri, classes=classes)
        except SegmenterError as error:
            given = f" evaluate.{key}_weights={weights}" if weights else ""
            without = "without it" if number else "without MIoU"
            raise SegmenterError(
                f"evaluate.{key}={name}{given}: {error}; correct the keys, or evaluate {without}: "
                f"evaluate.{key}={nothing}"
            ) from error
    return found


def evaluation_segmenter(config: Config) -> nn.Module | None:
    """The first segmenter with which a run is evaluated; None where `evaluate.segmenter` names none.

    Raises:
        SegmenterError, TrackingError: see `evaluation_judges`.
    """
    alone = config.replace({"evaluate.segmenters": [], "evaluate.segmenters_weights": []})
    return next(iter(evaluation_judges(alone).values()), None)


def segmenter_store(config: Config) -> str:
    """The URI of the store, if a segmenter of this configuration is a registered model; else "".

    For processes on other nodes, whose environment need not hold this process's MLFLOW_TRACKING_URI. One with a
    database's password is not sent: those nodes have it in their own environment.

    Raises:
        TrackingError: the configuration names no store that can be used.
    """
    names = [config.evaluate.segmenter, *config.evaluate.segmenters, config.loss.segmenter]
    names += [phi.network for phi in map(phi_names.parse, config.loss.phi_names) if phi.kind == "segmenter"]
    if not any(name and name.startswith("models:/") for name in names):
        return ""
    uri = store.uri_of(config)
    return uri if redact(uri) == uri else ""


def _program_in(model: Path) -> Path:
    """The exported program among the files of a model that MLflow's pytorch flavour saved.

    MLflow itself does not load it: before its own check it imports what the files name, and code that lies beside them.

    Raises:
        ProgramError: a file is there that such a model does not need, or the program is not.
    """
    names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if not path.is_dir())
    if strange := [name for name in names if name not in _FILES]:
        raise exported.ProgramError(
            f"{strange[0]}{more(strange)}: not allowed in a registered segmenter, which is an exported program and "
            'runs no code of its own; log it with mlflow.pytorch.log_model(..., serialization_format="pt2")'
        )
    if _PROGRAM not in names:
        raise exported.ProgramError(
            f'{_PROGRAM}: not there; log the network with mlflow.pytorch.log_model(..., serialization_format="pt2")'
        )
    return model / _PROGRAM
