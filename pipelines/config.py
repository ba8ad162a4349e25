"""The one configuration: typed, validated, frozen.

Its dotted keys (`loss.queue_size`) are the same on the command line, in a sweep, in MLflow and in a saved file.
Every part of the pipeline reads its own section; nobody reads the environment instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipelines.sections import Data, Loss, Model, Noise, Section
from pipelines.text import did_you_mean, one_line


class ConfigError(ValueError):
    """A wrong key or value. The message is one line: the key, the value, what is allowed."""


class Train(Section):
    """Length, optimizer, workers, checkpoints."""

    name: str = Field("", description="run name; the same name again resumes the run. Empty: recipe and time")
    storage: str = Field(
        "runs", description="folder for runs, or its URI (s3://bucket/runs): checkpoints, configuration, results"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, order, crops and noise")
    epochs: int = Field(1, ge=1, description="passes over the training split")
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many steps; the schedule still spans all epochs"
    )
    batch_size: int = Field(16, ge=1, description="crops in a step, over all workers")
    lr: float = Field(1e-4, gt=0, description="Adam's learning rate at the start")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's betas")
    schedule: Literal["constant", "halve", "cosine"] = Field(
        "halve", description="halve: at the epochs in train.halve_at; cosine: to zero at the end, after the warm-up"
    )
    halve_at: tuple[int, ...] = Field((80, 160, 240, 320, 400), description="epochs at which the rate is halved")
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises linearly at the start")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the averaged weights, which are then the ones used; it rises to this; 0: none",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of network and Phi; the losses stay in float32")
    accumulate: int = Field(1, ge=1, description="parts in which a worker takes its crops, for less memory; same step")
    recompute: bool = Field(False, description="compute activations twice instead of keeping them, for less memory")
    compile: bool = Field(False, description="torch.compile the network")
    num_workers: int | tuple[int, int] = Field(
        1,
        description="Ray Train workers; [least, most]: goes on with fewer when a node is lost, and grows again",
    )
    use_gpu: bool = Field(False, description="workers on GPUs; otherwise CPU")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs Ray reserves for a worker")
    gpus_per_worker: float = Field(
        1.0, gt=0, le=1, description="share of a GPU for a worker, or an evaluating actor; below 1, they share one"
    )
    threads: int = Field(1, ge=1, description="torch threads of a CPU worker")
    data_cpus: float = Field(1.0, gt=0, description="CPUs left free for Ray Data")
    max_failures: int = Field(
        0,
        ge=0,
        description="how often lost workers are started again from the last checkpoint; with [least, most] of them at "
        "least 8 times",
    )
    log_every: int = Field(20, ge=1, description="steps between two entries of the log")
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most workers."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while it trains."""
        return isinstance(self.num_workers, tuple)

    @model_validator(mode="after")
    def _workers(self) -> Self:
        least, most = self.workers
        asked = list(self.num_workers) if isinstance(self.num_workers, tuple) else self.num_workers
        if not 1 <= least <= most:
            raise ValueError(f"train.num_workers={asked}: a number from 1 on, or [least, most] with the smaller first")
        if self.elastic and self.batch_size < most:
            raise ValueError(f"train.num_workers={asked}: train.batch_size={self.batch_size} has fewer crops; lower it")
        if not self.elastic and self.batch_size % least:
            raise ValueError(f"train.batch_size={self.batch_size}: must be a multiple of train.num_workers={least}")
        if self.accumulate > (share := -(-self.batch_size // least)):
            raise ValueError(
                f"train.accumulate={self.accumulate}: a worker has no more than {share} crops a step "
                "(train.batch_size / train.num_workers); lower it"
            )
        return self


class Evaluate(Section):
    """Which numbers are taken at the end, and how."""

    sigmas: tuple[float, ...] = Field((25.0, 35.0, 50.0), min_length=1, description="noise levels, in 0..255")
    segmenter: str | None = Field(
        None,
        description="espnet-cityscapes, -camvid or -scenes, module:callable or models:/name@alias; none: no MIoU",
    )
    segmenter_weights: str | None = Field(None, description="the segmenter's weights")
    actors: int = Field(1, ge=0, description="processes that evaluate side by side; 0: the one that asks does it")
    threads: int = Field(1, ge=1, description="torch threads of such a process")
    use_gpu: bool = Field(False, description="one GPU a process")
    limit: int | None = Field(None, ge=1, description="only the first so many images")
    tile: Annotated[int, Field(ge=32)] | Literal["auto"] | None = Field(
        "auto", description="side of the tiles an image is restored in; auto: whole or as memory allows; none: whole"
    )
    pictures: int = Field(2, ge=0, description="pictures drawn: noisy, restored, clean, with their segmentation")

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if min(self.sigmas) < 0 or max(self.sigmas) > 255:
            raise ValueError(f"evaluate.sigmas={list(self.sigmas)}: one or more numbers from 0 to 255")
        return self


class Tracking(Section):
    """Where MLflow keeps its records."""

    uri: str = Field("", description="tracking URI; empty: MLFLOW_TRACKING_URI, else a sqlite file in train.storage")
    experiment: str = Field("d2sm", description="MLflow experiment")
    register_as: str = Field("", description="name in the model registry; empty: not registered")
    parent: str = Field("", description="id of the MLflow run that this one is shown under, such as a sweep's")
    alias: str = Field("", description="alias set on the registered version, such as champion")


class Config(Section):
    """A whole run. Saved beside it, it reproduces it."""

    recipe: str = Field("", description="the recipe this was derived from")
    data: Data = Data()
    noise: Noise = Noise()
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        samples = self.samples_per_step
        if self.loss.patch_size and self.data.crop_size % self.loss.patch_size:
            raise ValueError(
                f"loss.patch_size={self.loss.patch_size}: must divide data.crop_size={self.data.crop_size}"
            )
        if self.data.layout == "pairs" and len(set(self.noise.sigma)) > 1:
            raise ValueError(
                f"noise.sigma={list(self.noise.sigma)}: real pairs have one noise level, which the network is told; "
                "give it, such as noise.sigma=[25] noise.draw=list"
            )
        if self.loss.judges_estimate and self.model.name != "cbdnet":
            key = "noise_asymmetry" if self.loss.noise_asymmetry else "noise_tv"
            raise ValueError(
                f"loss.{key}={self.loss.terms[key]:g}: model.name={self.model.name} gives no estimate of the noise; "
                "set it to 0, or model.name=cbdnet"
            )
        if self.loss.cross_entropy and self.data.layout != "cityscapes":
            raise ValueError(
                f"loss.cross_entropy={self.loss.cross_entropy:g}: data.layout={self.data.layout} has no labels; set it "
                "to 0, or data.layout=cityscapes"
            )
        if self.loss.weight and self.loss.queue_size < samples:
            raise ValueError(
                f"loss.queue_size={self.loss.queue_size}: smaller than the {samples} samples one step brings "
                f"(train.batch_size x patches a crop); raise it, or raise loss.patch_size"
            )
        return self

    @property
    def samples_per_step(self) -> int:
        """Rows that enter the queues in a step: crops, times patches in a crop."""
        across = self.data.crop_size // self.loss.patch_size if self.loss.patch_size else 1
        return self.train.batch_size * across * across

    def replace(self, changes: Mapping[str, Any]) -> Config:
        """A new configuration with some dotted keys changed, validated as a whole.

        Raises:
            ConfigError: on an unknown key or a value that is not allowed.
        """
        tree = self.model_dump()
        for key, value in changes.items():
            _set(tree, key, value)
        return from_tree(tree)

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value, for MLflow and for tables."""
        return dict(_leaves(self.model_dump(mode="json"), ""))

    def save(self, path: str | Path) -> None:
        """Write the YAML file that `load` reads back."""
        Path(path).write_text(self.dumps())

    def dumps(self) -> str:
        """The YAML text of this configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path) -> Config:
    """Read a saved configuration.

    Raises:
        ConfigError: when the file is missing, is no YAML, or holds a wrong key or value.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path}: {error.strerror}; give a file written by `d2sm train`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: no valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {path}: holds no sections; give a file written by `d2sm train`")
    for key, _ in _leaves(tree, ""):
        check_key(key)
    return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> Config:
    """Validate nested sections; the first error becomes one line."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None


def parse(overrides: Iterable[str]) -> dict[str, Any]:
    """`["loss.queue_size=1024"]` -> `{"loss.queue_size": 1024}`; values are read as YAML, text is taken as it is.

    Raises:
        ConfigError: when an override has no `=`, or names an unknown key.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ConfigError(f"{override}: an override is written key=value, such as train.epochs=2")
        check_key(key)
        try:
            changes[key] = text if keys()[key].annotation is str or not text else yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{key}={text}: the value is no valid YAML") from None
    return changes


def keys() -> dict[str, FieldInfo]:
    """Every dotted key with its field: type, default, description."""
    return dict(_fields(Config, ""))


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_key(key: str) -> None:
    """Make sure that a dotted key exists.

    Raises:
        ConfigError: when it does not; names the nearest.
    """
    known = keys()
    if key in known:
        return
    last = key.rsplit(".", 1)[-1]
    candidates = [k for k in known if k.rsplit(".", 1)[-1] == last] or known
    hint = did_you_mean(key, candidates, cutoff=0.0)
    raise ConfigError(f"{key}: no such key{hint} (`d2sm train --keys` lists them all)")


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    check_key(key)
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[last] = value


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":  # ours: it already names the key
        return str(first["ctx"]["error"])
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int) and str(part) in _PARTS)
    field = keys().get(key)
    about = f" ({field.description})" if field else ""
    return f"{key or first['loc'][0]}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{about}"


WEIGHTS = tuple(key for key in keys() if key.endswith(("_weights", "_heads")))  # keys that name a file of weights
_PARTS = frozenset(part for key in keys() for part in key.split("."))
