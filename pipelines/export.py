"""Export: a model as a file for programs that have neither d2sm nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from d2sm import __version__
from d2sm.weights import fingerprint
from pipelines import registry
from pipelines.networks import onnx_file
from pipelines.networks.onnx_file import Compared, ExportError
from pipelines.runs import checkpoint, names
from pipelines.runtime import files
from pipelines.tracking import bundle, registered

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """The file that `export` wrote, and how far it is from the model."""

    path: Path
    compared: Compared


def export(
    model: str | Path, target: str | Path | None = None, *, uri: str | None = None, trust: bool = False
) -> Exported:
    """Write a model as an ONNX file.

    Args:
        model: what names a model, see `registry.model_folder`.
        target: the file; None: NAME.onnx here, by the run's or the registered model's name.
        uri: of the store of registered models; None or empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.
        trust: import a backbone that the model names as module:callable, even if this user did not train it here.

    Raises:
        TrustError: it names such code, and is not trusted.
        RegistryError, CheckpointError, RemoteError: there is no such model.
        ExportError: it cannot be written as ONNX, differs from the model when run, or a package is missing.
        OSError: the file cannot be written.
    """
    onnx_file.check_packages()
    path = Path(target).expanduser() if target is not None else Path(f"{_name(str(model))}.onnx")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: {'is a folder' if path.is_dir() else 'its folder does not exist'}; give a file")
    folder = registry.model_folder(model, uri=uri)
    network, config = checkpoint.load_model(folder, trust=trust)
    tags = bundle.describe(config, checkpoint.meta(folder))
    about = {"d2sm.model": str(model), "d2sm.version": __version__, **{f"d2sm.{key}": tags[key] for key in tags}}
    about["d2sm.weights"] = fingerprint(checkpoint.read_weights(folder))
    with files.replacing(path) as temporary:
        compared = onnx_file.write(network, temporary, about)
    return Exported(path, compared)


def _name(model: str) -> str:
    """A file's name for what names a model."""
    if registered.is_reference(model):
        return model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    parts = [part for part in Path(model.partition("?")[0]).parts if not names.is_checkpoint(part)]
    return parts[-1] if parts and names.is_plain(parts[-1]) else "model"
