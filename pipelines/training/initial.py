"""The weights that a run starts from (`train.init`): found, compared with the network, put into the run's folder.

The process that starts a run reads them once and writes a copy into the run's folder. Workers read that copy, as they
read checkpoints, so they need not see the file or the registry, and a run that begins again begins with the same
weights. Once there is a checkpoint, neither is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from d2sm.models import BACKBONES
from d2sm.weights import WeightsError, fingerprint, read_safetensors
from pipelines.config import Config, ConfigError
from pipelines.networks import published
from pipelines.networks.models import build
from pipelines.runs import checkpoint, names, storage
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files
from pipelines.text import more, one_line, printable
from pipelines.tracking import registered, store

ENTRY = "init"  # in run.json: {"given": the key's value, "source": what it meant then, "fingerprint": of the weights}
SUFFIX = ".safetensors"
FILE = f"init{SUFFIX}"
_FILES = ".init"  # in train.storage: copies of the files that a sweep or a table starts from, by fingerprint
ONLY = "its weights alone: no optimizer state, no feature queues"


class MisfitError(ConfigError):
    """Weights of another network than the run's. One line."""


@dataclass(frozen=True)
class Initial:
    """Weights that fit the network of a run.

    Attributes:
        source: where they are from, as it can be found again: models:/NAME/VERSION, a path or a URI.
    """

    weights: Mapping[str, Tensor]
    source: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits, the same for the same weights wherever they are from."""
        return fingerprint(self.weights)


def read(config: Config) -> Initial:
    """The weights that `train.init` names, under the names of the run's network.

    Raises:
        ConfigError: nothing is there, or it cannot be read. One line.
        MisfitError: it does not fit the network.
    """
    wanted = {name: tensor.shape for name, tensor in build(config.model).state_dict().items()}
    reference = _reference(config)
    try:
        if isinstance(reference, Path) and reference.is_file():
            weights, _ = published.read(reference, own=wanted)
            source = str(reference)
        elif registered.is_reference(str(reference)):
            record = registered.lookup(str(reference), uri=store.uri_of(config))
            weights, source = checkpoint.read_weights(record.path()), f"models:/{record.label}"
        else:
            folder = registered.model_folder(reference)
            weights = checkpoint.read_weights(folder)
            source = RunFolder.at(folder.parent).place_of(folder.name)
    except (ValueError, OSError) as error:
        raise ConfigError(f"train.init={config.train.init}: {one_line(error, None)}") from None
    _check_fits(config, weights, wanted)
    return Initial(weights, source)


def pinned(config: Config) -> str:
    """`train.init` as it means the same to a process elsewhere, later: with versions for aliases, absolute paths.

    A file is copied into `train.storage`, where all nodes see it.

    Raises:
        ConfigError: see `read`.
    """
    reference = _reference(config)
    if isinstance(reference, Path) and reference.is_dir():
        return str(reference)
    initial = read(config)
    if not isinstance(reference, Path):
        return initial.source if registered.is_reference(reference) else reference
    copy = Path(config.train.storage).expanduser().absolute() / _FILES / f"{initial.fingerprint}{SUFFIX}"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        _write(initial.weights, copy)
    return str(copy)


def prepare(config: Config, folder: RunFolder) -> None:
    """Put the initial weights of a run that has no checkpoint into its folder, and note in run.json what they are.

    Raises:
        ConfigError: see `read`.
        RemoteError: the folder is at a URI that cannot be written.
    """
    if not config.train.init or folder.latest() is not None:
        return
    known = folder.read_info().get(ENTRY, {})
    if known.get("given") == config.train.init and (folder.path / FILE).exists():
        return  # it began with these, and has not come to a checkpoint
    initial = read(config)
    _write(initial.weights, folder.path / FILE)
    folder.push(folder.path / FILE)
    entry = {"given": config.train.init, "source": initial.source, "fingerprint": initial.fingerprint}
    folder.write_info(**{ENTRY: entry})


def load(config: Config, folder: RunFolder) -> dict[str, Tensor] | None:
    """The initial weights in a run's folder, for its workers; None: the network is initialised from the seed.

    Raises:
        ConfigError: they are missing, or not those that the run began with.
    """
    if not config.train.init:
        return None
    file, entry = folder.path / FILE, folder.read_info().get(ENTRY, {})
    try:
        weights, _ = read_safetensors(file)
    except WeightsError as error:
        raise ConfigError(f"{file}: {one_line(error)}; {_ANEW}") from None
    if fingerprint(weights) != entry.get("fingerprint"):
        raise ConfigError(f"{file}: not the weights that run.json names ({entry.get('fingerprint')}); {_ANEW}")
    return weights


_ANEW = "remove the run's folder to begin anew, or choose another train.name"


def note(config: Config, folder: RunFolder) -> str:
    """What a run started from, for people and tags: the source and the fingerprint; "": from random weights.

    Where run.json is lost, the last checkpoint in the run's folder says it.
    """
    if not config.train.init:
        return ""
    if entry := folder.read_info().get(ENTRY):
        return f"{entry['source']} (weights {entry['fingerprint']})"
    last = folder.latest()
    return str(checkpoint.meta(last).get("init", "")) if last else ""


def _reference(config: Config) -> Path | str:
    """What `train.init` names: a path for what lies on this disk, a URI, or a registered model.

    Raises:
        ConfigError: nothing of that name is there.
    """
    text = config.train.init
    path = Path(text).expanduser()
    if storage.is_uri(text) or text.startswith("models:"):
        return text
    if path.exists():  # before name@alias, as wherever a model is named: net@2x.pth
        return path.absolute()
    if registered.is_reference(text):
        return text
    if names.is_plain(text):
        runs = config.train.storage
        if storage.is_uri(runs):
            return storage.run_at(runs, text, asked_by="train.init")
        if (run := Path(runs).expanduser().absolute() / text).exists():
            return run
    raise ConfigError(
        f"train.init={text}: no such file, folder, or run in train.storage={config.train.storage}; give a run, a file "
        "of weights, or a registered model such as models:/name@alias"
    )


def _check_fits(config: Config, weights: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> None:
    found = {name: tensor.shape for name, tensor in weights.items()}
    if not (differing := sorted(name for name in wanted.keys() | found if wanted.get(name) != found.get(name))):
        return
    first = differing[0]
    here, there = (f"{tuple(shapes[first])}" if first in shapes else "missing" for shapes in (found, wanted))
    try:
        fitting = published.identify(weights, config.train.init)
        keys = ("name", *BACKBONES[fitting.name].options)
        remedy = f"they fit {' '.join(f'model.{key}={getattr(fitting, key)}' for key in keys)}"
    except published.PublishedError:
        remedy = "give weights of this network, or set the model's keys to those of the weights"
    raise MisfitError(
        f"train.init={config.train.init}: weights of another network than model.name={config.model.name} as "
        f"configured: {printable(first[:80])} is {here} there and {there} here{more(differing)}; {remedy}"
    )


def _write(weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        with files.replacing(path, shared=True) as temporary:
            checkpoint.save_weights(weights, temporary)
    except SafetensorError as error:
        raise OSError(f"{path}: the initial weights cannot be written ({one_line(error)})") from None
