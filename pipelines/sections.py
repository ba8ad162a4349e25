"""The sections of the configuration: every key with its type, default, allowed values, meaning and effect.

A key's effect says what another value changes. Whoever has to know that (resuming a run, naming a row of a table,
deciding whether a run is done already, searching a space) asks `Config.differences` or `config.effect`, so that a new
key is classified once, here.
"""

from __future__ import annotations

import json
import math
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain as chained
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator, model_validator

from d2sm.chain import Chain, ChainError, noise, parse
from d2sm.degradations import DEGRADATIONS
from d2sm.models import BACKBONES
from d2sm.objectives import TERMS, Input
from pipelines import parsing, secrets
from pipelines.callables import is_imported
from pipelines.text import did_you_mean, listed

Effect = Literal["results", "length", "run", "evaluation", "speed", "place", "record"]
"""What another value of a key changes:

results     the weights that the run ends with
length      how many steps are done; a longer run can go on from a shorter one
run         which run of a setting it is: its name and its seed
evaluation  the numbers measured of the weights
speed       time, memory and what happens on failures; no number beyond rounding
place       nothing, as long as the same content is found there: a path or a URI
record      what is written down about the run: labels, log entries, pictures
"""


LARGEST = 2**31 - 1
# What takes memory or threads by a number alone: a configuration of somebody else's may say any.
WIDEST, DEEPEST, LARGEST_CROP, MOST_SAMPLES, MOST_IMAGES, MOST_THREADS = 8192, 1000, 2**14, 2**24, 2**16, 1024
SMALLEST_TILE = 32  # pixels
NULL = ("none", "null")
LpipsTrunk = Literal["vgg16", "alexnet", "squeezenet1_1"]
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Epoch = Annotated[int, Field(ge=0, le=LARGEST)]
SPANDREL = "spandrel"  # as model.name: one of the networks that this package knows


def setting(
    default: Any,
    description: str,
    *,
    effect: Effect,
    code: bool | Literal["chain", "features"] = False,
    only_for: str | Sequence[str] = (),
    **constraints: Any,
) -> Any:
    """A field of a section.

    Args:
        default: its value unless configured.
        description: for `d2sm train --keys` and error messages.
        effect: what another value changes.
        code: whether the value may name Python to import: as `module:callable`, ("chain") as steps of a chain of
            degradations, or ("features") as layers of Phi; see `pipelines.runs.trust`.
        only_for: a dotted key, or several of which one is enough, that must be set, and be no weight of 0, for anything
            to use this one; none: it is always used. See `pipelines.check.unused`.
        constraints: of the value, as pydantic has them: ge, gt, le, lt, min_length. A whole number with `ge` alone is
            at most `LARGEST`, so that no library's integers overflow.
    """
    if (
        isinstance(constraints.get("ge"), int)
        and not isinstance(default, float)
        and not {"le", "lt"} & set(constraints)
    ):
        constraints["le"] = LARGEST
    others = [only_for] if isinstance(only_for, str) else [*only_for]
    about: dict[str, Any] = {"effect": effect, "code": code, "only_for": others}
    return Field(default, description=description, json_schema_extra=about, **constraints)


class Section(BaseModel):
    """What all sections share: no unknown keys, no change after construction, no secrets; `none` means null.

    A configuration is written to files, to MLflow and to Ray's workers, so none that holds a secret can be made.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _null(cls, given: Any) -> Any:
        """YAML, and so the command line, reads `null` and `~`; people also write `none` and `None`."""
        if not isinstance(given, dict):
            return given
        may_be_null = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {
            name: None if name in may_be_null and isinstance(value, str) and value.lower() in NULL else value
            for name, value in given.items()
        }

    @field_validator("*", mode="before")
    @classmethod
    def _no_secret(cls, value: Any, info: ValidationInfo) -> Any:
        whole = cls.__name__ == "Config"  # its sections check their own values
        section = "" if whole else f"{cls.__name__.lower()}."
        for text in [value] if whole else plain_values(value):
            if line := secrets.problem(text, asked_by=f"{section}{info.field_name}"):
                raise ValueError(line)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Else true and false are 1 and 0: train.clip=true clips at 1, evaluate.limit=true measures a single image."""
        field = cls.model_fields[info.field_name or ""]
        taken = set(_types(field.annotation))
        if taken & {int, float} and bool not in taken:
            for part in plain_values(value):
                if isinstance(part, bool):
                    key = f"{cls.__name__.lower()}.{info.field_name}"
                    raise ValueError(f"{key}={json.dumps(part)}: is no number; give one ({field.description})")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_saved(cls, value: Any, info: ValidationInfo) -> Any:
        """What no file of ours can hold is refused, such as the name of a folder that is no UTF-8."""
        whole = cls.__name__ == "Config"
        tree = {info.field_name: value} if whole else {cls.__name__: {info.field_name: value}}
        if (not whole or isinstance(value, str)) and (why := parsing.unusable(tree)):
            key = f"{info.field_name}" if whole else f"{cls.__name__.lower()}.{info.field_name}"
            raise ValueError(f"{key}: {why}, which no saved configuration can hold; give another (rename such a file)")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _at_home(cls, value: Any, info: ValidationInfo) -> Any:
        """A path that begins with ~ lies in the user's home folder: a shell expands it in no key=~/path.

        `train.init` and `data.labels` are expanded where they are read, since a resumed run compares them as typed.
        """
        about = cls.model_fields[info.field_name or ""].json_schema_extra
        if not isinstance(about, dict) or about["effect"] != "place":
            return value
        if isinstance(value, (list, tuple)):
            return [os.path.expanduser(each) if isinstance(each, str) else each for each in value]
        return os.path.expanduser(value) if isinstance(value, str) else value


def plain_values(value: Any) -> Iterator[Any]:
    """What a value holds at any depth: the values of lists and mappings, and the names of mappings."""
    if isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for part in value:
        yield from plain_values(part)


def _names(value: Any) -> Iterator[Any]:
    """The names of the mappings that a value holds at any depth."""
    if isinstance(value, Mapping):
        yield from value
        value = list(value.values())
    for part in value if isinstance(value, (list, tuple)) else ():
        yield from _names(part)


def _types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _types(part)


def _named_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The plain values that a value holds at any depth, each with the dotted names that lead to it."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named_values(f"{name}.{key}", part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _named_values(name, part)
    else:
        yield name, value


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


class Data(Section):
    """Where the photographs are, and how crops are cut from them."""

    root: str = setting("", "folder of the photographs, or of what `d2sm prepare` made from them", effect="place")
    layout: Literal["cityscapes", "folder", "pairs"] = setting(
        "cityscapes",
        "cityscapes: leftImg8bit and gtFine; folder: images without labels; pairs: noisy/ and clean/",
        effect="results",
    )
    labels: str = setting(
        "cityscapes",
        "label set: cityscapes, camvid, or a YAML file of classes, ids, colours (see pipelines/README.md, Label sets)",
        effect="results",
    )
    train_split: str = setting("train", "split used for training", effect="results")
    val_split: str = setting("val", "split used for evaluation", effect="evaluation")
    crop_size: int = setting(128, "side of a training crop, in pixels", effect="results", ge=16, le=LARGEST_CROP)
    crops_per_image: int = setting(
        1, "crops cut from each decoded image per epoch", effect="results", ge=1, le=MOST_IMAGES
    )
    shuffle_images: int = setting(
        32,
        "images whose crops are shuffled together; one ingest task decodes this many",
        effect="results",
        ge=1,
        le=MOST_IMAGES,
    )
    flip: bool = setting(True, "flip crops left to right, each with probability 1/2", effect="results")
    bad_images: Literal["stop", "skip"] = setting(
        "stop", "stop: an unreadable image ends the run; skip: it is left out, counted and listed", effect="speed"
    )


class Noise(Section):
    """The sigma of Gaussian noise in training, where `degrade.chain` names no other degradation."""

    sigma: tuple[float, ...] = setting(
        (0.0, 75.0),
        "sigma of Gaussian noise, its standard deviation on the scale 0..255: the two ends of a uniform distribution, "
        "or a list to draw from",
        effect="results",
    )
    draw: Literal["uniform", "list"] = setting("uniform", "how noise.sigma is drawn for each crop", effect="results")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if not self.sigma or min(self.sigma) < 0 or max(self.sigma) > 255:
            raise ValueError(f"noise.sigma={list(self.sigma)}: give one or more numbers from 0 to 255")
        if self.draw == "uniform" and (len(self.sigma) != 2 or self.sigma[0] > self.sigma[1]):
            raise ValueError(
                f"noise.sigma={list(self.sigma)}: noise.draw=uniform needs two ends, the low one first; give these, "
                "or noise.draw=list"
            )
        return self


class Degrade(Section):
    """How clean images become degraded ones, where that is not by Gaussian noise alone."""

    chain: str = setting(
        "",
        "steps and their levels, such as blur:0.5..3+noise:0..50+jpeg:30/60/90; empty: noise of noise.sigma; steps: "
        + ", ".join(f"{entry.name} ({entry.summary}; {entry.unit})" for entry in DEGRADATIONS.values())
        + ", or module:callable",
        effect="results",
        code="chain",
    )

    @model_validator(mode="after")
    def _chain(self) -> Self:
        if self.chain:
            _parsed("degrade.chain", self.chain)
        return self


def _parsed(key: str, text: str) -> Chain:
    """A chain from a key's value. Raises ValueError with the key."""
    try:
        return parse(text)
    except ChainError as error:
        raise ValueError(f"{key}={text}: {error}") from None


class Model(Section):
    """The restoration network."""

    name: str = setting(
        "ffdnet",
        "backbone: "
        + ", ".join(f"{backbone.name} ({backbone.summary})" for backbone in BACKBONES.values())
        + f", {SPANDREL} (what model.weights holds), or module:callable (your own network)",
        effect="results",
        code=True,
    )
    width: int = setting(96, "channels of the hidden layers (ffdnet only)", effect="results", ge=4, le=WIDEST)
    depth: int = setting(12, "number of convolutions (ffdnet only)", effect="results", ge=3, le=DEEPEST)
    options: dict[str, Any] = setting(
        {},
        "keyword arguments of model.name=module:callable: model.options.width=32, or model.options={width: 32}",
        effect="results",
    )
    weights: str | None = setting(
        None, f"file of the weights that model.name={SPANDREL} makes its network of", effect="place"
    )

    def __hash__(self) -> int:  # configurations are keys of caches, and a mapping has no hash of its own
        return hash(json.dumps(self.model_dump(), sort_keys=True))

    @property
    def estimates_noise(self) -> bool:
        """Whether the network also gives an estimate of the noise."""
        return self.name in BACKBONES and BACKBONES[self.name].estimates_noise

    @property
    def title(self) -> str:
        """The name, and what makes this network out of all of that name: "ffdnet width=96 depth=12"."""
        if self.name in BACKBONES:
            options = {option: getattr(self, option) for option in BACKBONES[self.name].options}
        else:
            options = self.options
        return " ".join([self.name, *(f"{option}={value}" for option, value in options.items())])

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in BACKBONES or name == SPANDREL or is_imported(name):
            return name
        known = [*BACKBONES, SPANDREL]
        hint = did_you_mean(name, known)
        raise ValueError(f"model.name={name}: give {', '.join(known)}, or module:callable{hint}")

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for option, value in options.items():
            if not option.isidentifier():
                raise ValueError(f"model.options.{option}={value!r}: is no name of an argument; give one such as width")
            for name, part in _named_values(option, value):
                if line := secrets.in_option(name, part, asked_by=f"model.options.{name}"):
                    raise ValueError(line)
            if others := [name for name in _names(value) if not isinstance(name, str)]:
                raise ValueError(
                    f"model.options.{option}={value!r}: the key {others[0]!r} of a mapping is no text, and files hold "
                    f"no other; put it in quotes, '{others[0]}'"
                )
            for part in plain_values(value):
                if not (part is None or isinstance(part, (str, bool, int)) or _is_finite(part)):
                    raise ValueError(
                        f"model.options.{option}={part!r}: is a {type(part).__name__}; give text, numbers, true, "
                        "false, null, or lists and mappings of them"
                    )
        return options

    @model_validator(mode="after")
    def _options(self) -> Self:
        foreign = self.name not in BACKBONES
        own = () if foreign else BACKBONES[self.name].options
        for name in {option for backbone in BACKBONES.values() for option in backbone.options} - {*own}:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                instead = f", or give model.options.{name}" if is_imported(self.name) else ""
                raise ValueError(
                    f"model.{name}={value}: model.name={self.name} has no such option; leave it at {default}{instead}"
                )
        if self.options and not is_imported(self.name):
            raise ValueError(
                f"model.options={self.options}: are for model.name=module:callable; model.name={self.name} has "
                + (listed(f"model.{option}" for option in own) or "no options")
            )
        if self.weights and self.name != SPANDREL:
            raise ValueError(
                f"model.weights={self.weights}: is for model.name={SPANDREL}; model.name={self.name} starts from "
                "weights by train.init"
            )
        return self


# The weights of the objectives: a key for each entry of the list in `d2sm.objectives`.
if TYPE_CHECKING:
    _Weights = Section  # code reads the weights from `Loss.terms`, so mypy need not know the keys
else:
    _Weights = create_model(
        "_Weights",
        __base__=Section,
        **{
            term.weight_key: (
                float,
                setting(term.default_weight, f"weight of {term.description}", effect="results", ge=0),
            )
            for term in TERMS.values()
        },
    )


_OF_PHI = [f"loss.{term.weight_key}" for term in TERMS.values() if term.uses_phi]


class Loss(_Weights):
    """L1 + weight * D2SM, and the other objectives, each with a weight of its own; 0 leaves a term out."""

    gradient_ratio: float | None = setting(
        None,
        "gradient norm of all terms but loss.l1, loss.mse and CBDNet's loss.noise_*, over that of loss.l1 and "
        "loss.mse, both with respect to the restored images; every step multiplies the weights of those other terms by "
        "one factor that gives this ratio on average over the last steps, so that only the proportions of these "
        "weights matter; null: no factor",
        effect="results",
        gt=0,
    )
    features: str | tuple[str, ...] = setting(
        "vgg19.conv5_4",
        "Phi, the frozen feature network: NETWORK.LAYER, timm:NETWORK.LAYER, torchvision:NETWORK.LAYER, "
        "segmenter:NAME.LAYER or module:callable; a list of several compares each layer in queues of its own "
        "(d2sm train --layers NETWORK lists its layers)",
        effect="results",
        only_for=_OF_PHI,
        code="features",
        min_length=1,
    )
    features_weights: str | tuple[str | None, ...] | None = setting(
        None,
        "file with Phi's weights, or a list with one for each of loss.features; null: those installed (the cache of "
        "torch or Hugging Face, or the network's Python package)",
        effect="place",
        only_for=_OF_PHI,
    )
    layer_weights: tuple[float, ...] = setting(
        (),
        "weight of each layer of loss.features in D2SM, which is their weighted mean; empty: all 1",
        effect="results",
        only_for="loss.weight",
    )
    kernel: Literal["cosine", "exp"] = setting(
        "cosine",
        "kernel of D2SM: cosine: (cos + 1) / 2, the paper's; exp: exp(cos / loss.temperature)",
        effect="results",
        only_for="loss.weight",
    )
    temperature: float = setting(
        0.1, "temperature of loss.kernel=exp", effect="results", only_for="loss.weight", ge=0.05
    )
    center: bool = setting(
        False,
        "subtract the running mean of the clean features before D2SM compares them",
        effect="results",
        only_for="loss.weight",
    )
    queue_size: int = setting(
        1024, "samples each feature queue holds (q)", effect="results", only_for="loss.weight", ge=2, le=MOST_SAMPLES
    )
    patch_size: int | None = setting(
        None,
        "side of an internal patch in pixels (K); null: a sample is a whole crop",
        effect="results",
        only_for="loss.weight",
        ge=1,
    )
    class_regions: int | None = setting(
        None,
        "regions of a crop whose mean features are D2SM's samples instead of crops or patches: those of the classes "
        "with the most pixels, by the labels; null: none",
        effect="results",
        only_for="loss.weight",
        ge=1,
        le=255,
    )
    divergence: Literal["kl", "inverse_kl", "jsd"] = setting(
        "kl", "divergence between the two distributions", effect="results", only_for="loss.weight"
    )
    reduction: Literal["mean", "sum"] = setting(
        "mean",
        "sum: eq. (1) of the paper; mean: divided by the number of samples",
        effect="results",
        only_for="loss.weight",
    )
    gather_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "precision in which workers exchange new features", effect="results", only_for="loss.weight"
    )
    queue_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "precision in which the queues are stored", effect="results", only_for="loss.weight"
    )
    perceptual_layers: tuple[str, ...] = setting(
        (),
        "layers of Phi's network to compare; empty: the layers of loss.features",
        effect="results",
        only_for="loss.perceptual",
    )
    contextual_layers: tuple[str, ...] = setting(
        (),
        "layers of Phi's network to compare; empty: the layers of loss.features",
        effect="results",
        only_for="loss.contextual",
    )
    contextual_bandwidth: float = setting(
        0.5, "bandwidth h of the contextual loss", effect="results", only_for="loss.contextual", gt=0
    )
    lpips_trunk: LpipsTrunk = setting(
        "vgg16", "network whose features LPIPS compares", effect="results", only_for="loss.lpips"
    )
    lpips_heads: str | None = setting(
        None,
        "file with LPIPS's linear layers for loss.lpips_trunk; null: the published ones, which torchmetrics holds",
        effect="place",
        only_for="loss.lpips",
    )
    lpips_weights: str | None = setting(
        None,
        "file with the weights of loss.lpips_trunk; null: torchvision's cache",
        effect="place",
        only_for="loss.lpips",
    )
    segmenter: str | None = setting(
        None,
        "segmenter of the cross-entropy, written as in evaluate.segmenter",
        effect="results",
        only_for="loss.cross_entropy",
        code=True,
    )
    segmenter_weights: str | None = setting(
        None, "file with the weights of loss.segmenter", effect="place", only_for="loss.cross_entropy"
    )
    segmenter_scale: float = setting(
        1.0,
        "factor by which crops are resized before loss.segmenter",
        effect="results",
        only_for="loss.cross_entropy",
        gt=0,
        le=64,
    )
    adversarial_lr: float = setting(
        1e-4, "constant learning rate of the discriminator (Adam)", effect="results", only_for="loss.adversarial", gt=0
    )

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if not self.terms:
            raise ValueError("loss.l1=0: all other weights are 0 too, so there is nothing to minimise; set one of them")
        if (weight := self.terms.get("cross_entropy")) and not self.segmenter:
            raise ValueError(f"loss.cross_entropy={weight:g}: needs loss.segmenter, such as espnet-camvid")
        if self.class_regions and self.patch_size:
            raise ValueError(
                f"loss.class_regions={self.class_regions}: a sample of D2SM is a class's region or a patch; set "
                "loss.patch_size=null, or loss.class_regions=null"
            )
        if (ratio := self.gradient_ratio) is not None:
            on = [TERMS[name] for name in self.terms]
            if not any(term.pixelwise for term in on):
                raise ValueError(f"loss.gradient_ratio={ratio:g}: is a ratio to loss.l1 and loss.mse; set one of them")
            if all(term.pixelwise or term.uses_estimate for term in on):
                raise ValueError(
                    f"loss.gradient_ratio={ratio:g}: there is no weight to scale beside "
                    f"{listed(f'loss.{term.weight_key}' for term in on)}; set loss.weight or another, or null"
                )
        return self

    @field_validator("features", mode="after")
    @classmethod
    def _single(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """A list of one layer is that layer."""
        return given[0] if isinstance(given, tuple) and len(given) == 1 else given

    @model_validator(mode="after")
    def _layers(self) -> Self:
        count = len(self.phi_names)
        if len(set(self.phi_names)) < count:
            raise ValueError(f"loss.features={list(self.phi_names)}: a layer is named twice; name each once")
        for key in ("features_weights", "layer_weights"):
            value = getattr(self, key)
            if isinstance(value, tuple) and (value or key == "features_weights") and len(value) != count:
                raise ValueError(f"loss.{key}={list(value)}: loss.features names {count} layers; give one for each")
        if any(weight <= 0 for weight in self.layer_weights):
            raise ValueError(f"loss.layer_weights={list(self.layer_weights)}: give positive numbers")
        if self.kernel == "cosine" and self.temperature != type(self).model_fields["temperature"].default:
            raise ValueError(f"loss.temperature={self.temperature:g}: loss.kernel=cosine has none; set loss.kernel=exp")
        return self

    @property
    def phi_names(self) -> tuple[str, ...]:
        """The layers of Phi: one, or several."""
        return (self.features,) if isinstance(self.features, str) else self.features

    @property
    def phi_weights(self) -> tuple[str | None, ...]:
        """The file with the weights of the network of each layer of Phi; None: the installed one."""
        given = self.features_weights
        return given if isinstance(given, tuple) else (given,) * len(self.phi_names)

    @property
    def terms(self) -> dict[str, float]:
        """The weight of every term that is on, by the term's name, in the order of the list of objectives."""
        weights = {name: float(getattr(self, term.weight_key)) for name, term in TERMS.items()}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def uses_phi(self) -> bool:
        """Whether a term compares features of Phi, so that Phi's weights are needed."""
        return any(TERMS[name].uses_phi for name in self.terms)

    def inputs_of(self, name: str) -> tuple[Input, ...]:
        """What a term needs beside the two images, as configured."""
        term = TERMS[name]
        return (*term.inputs, *(given for key, given in term.inputs_by_key.items() if getattr(self, key)))

    @property
    def uses_labels(self) -> bool:
        """Whether a term needs the crops' labels."""
        return bool(self.asking_for_labels)

    @property
    def asking_for_labels(self) -> dict[str, str]:
        """The dotted keys for which the crops' labels are needed, each with the value that asks for none."""
        found = {}
        for name in self.terms:
            term = TERMS[name]
            if "labels" in term.inputs:
                found[f"loss.{term.weight_key}"] = "0"
            for key, given in term.inputs_by_key.items():
                if given == "labels" and getattr(self, key):
                    found[f"loss.{key}"] = "null"
        return found

    @property
    def uses_estimate(self) -> bool:
        """Whether a term needs the network's estimate of the noise."""
        return any(TERMS[name].uses_estimate for name in self.terms)


class Train(Section):
    """Length, optimizer, workers, checkpoints."""

    name: str = setting(
        "", "name of the run; the same name again resumes it; empty: made of the recipe and the time", effect="run"
    )
    storage: str = setting(
        "runs", "folder of all runs, or its URI (s3://bucket/runs): checkpoints, configuration, results", effect="place"
    )
    seed: int = setting(
        0, "random seed of the initial weights, the order of images, crops and noise", effect="run", ge=0, lt=2**31
    )
    init: str = setting(
        "",
        "start from the weights of a run (name, folder or URI), a registered model (models:/name@alias) or a file; the "
        "weights alone: no optimizer state, no feature queues; read once, when the run begins; empty: random weights",
        effect="results",
    )
    epochs: int = setting(1, "passes over the training split; the schedule spans them", effect="results", ge=1)
    max_steps: int | None = setting(
        None, "stop after this many steps; the schedule still spans all epochs", effect="length", ge=1
    )
    batch_size: int = setting(16, "crops per step, over all workers", effect="results", ge=1, le=MOST_IMAGES)
    lr: float = setting(1e-4, "initial learning rate (Adam)", effect="results", gt=0)
    betas: tuple[_Beta, _Beta] = setting((0.9, 0.999), "betas of Adam", effect="results")
    schedule: Literal["constant", "halve", "cosine"] = setting(
        "halve",
        "learning rate: constant; halve: halved at the epochs of train.halve_at; cosine: decayed to 0 at the last step",
        effect="results",
    )
    halve_at: tuple[_Epoch, ...] = setting(
        (80, 160, 240, 320, 400), "epochs at which train.schedule=halve halves the learning rate", effect="results"
    )
    warmup_steps: int = setting(0, "steps of linear learning-rate warm-up", effect="results", ge=0)
    clip: float | None = setting(None, "maximum norm of the gradient; null: not clipped", effect="results", gt=0)
    ema: float = setting(
        0.0,
        "EMA decay, warmed up to this value; the EMA weights are the ones saved as the model; 0: no EMA",
        effect="results",
        ge=0,
        lt=1,
    )
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "precision of the network and Phi (bf16: autocast); losses are computed in float32", effect="results"
    )
    accumulate: int = setting(
        1,
        "micro-batches a worker splits its crops into, to save memory; the gradient is that of all crops at once "
        "(dropout draws other masks; networks with BatchNorm are refused)",
        effect="speed",
        ge=1,
    )
    recompute: bool = setting(
        False, "activation checkpointing: recompute activations in the backward pass, to save memory", effect="speed"
    )
    compile: bool = setting(
        False,
        "torch.compile the network, Phi and the arithmetic of D2SM's matching; a segmenter and a Phi of timm, of "
        "torchvision or cut from a segmenter or a network of your own are not compiled",
        effect="speed",
    )
    cuda_graphs: bool = setting(
        False,
        "run the network and Phi as CUDA graphs: fewer launches on a GPU, the same results, for small steps",
        effect="speed",
    )
    num_workers: int | tuple[int, int] = setting(
        1,
        "Ray Train workers; 0: none, the run's own process trains, which starts in half the time and is not restarted; "
        "[min, max]: elastic, goes on with fewer when a node is lost and grows again",
        effect="speed",
    )
    use_gpu: bool = setting(False, "train on GPUs instead of CPUs", effect="speed")
    cpus_per_worker: float = setting(1.0, "CPUs reserved per worker", effect="speed", gt=0, le=LARGEST)
    gpus_per_worker: float = setting(
        1.0,
        "GPUs reserved per worker and per evaluation actor; below 1, several share a GPU",
        effect="speed",
        gt=0,
        le=1,
    )
    threads: int = setting(1, "torch threads of a CPU worker", effect="speed", ge=1, le=MOST_THREADS)
    data_cpus: float = setting(
        1.0, "CPUs kept free for Ray Data, which decodes and crops", effect="speed", gt=0, le=LARGEST
    )
    max_failures: int = setting(
        0,
        "how often lost workers are restarted from the last checkpoint; at least 8 times if elastic",
        effect="speed",
        ge=0,
    )
    log_every: int = setting(20, "steps between two log entries", effect="record", ge=1)
    checkpoint_every: int = setting(200, "steps between two checkpoints", effect="record", ge=1)
    keep: int = setting(2, "number of newest checkpoints kept", effect="record", ge=1)
    validate_every: int | None = setting(
        None,
        "steps between two validations: the evaluation's numbers of the weights so far, logged as val.*; the last step "
        "is validated too; null: none",
        effect="results",
        ge=1,
    )
    validate_images: int | None = setting(
        16,
        "images that a validation measures, evenly spread over those of the evaluation; null: all",
        effect="results",
        ge=1,
    )
    best: str | None = setting(
        None,
        "metric of the validation, such as psnr.sigma25, whose best checkpoint is kept, evaluated and registered; "
        "null: the last checkpoint is used",
        effect="results",
    )
    patience: int | None = setting(
        None,
        "validations without a better train.best after which training stops early; null: never",
        effect="length",
        ge=1,
    )

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most processes that train."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers or 1,) * 2

    @property
    def local(self) -> bool:
        """Whether the run's own process trains, without workers (Ray Train's local mode)."""
        return self.num_workers == 0

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during training."""
        return isinstance(self.num_workers, tuple)

    @model_validator(mode="after")
    def _validation(self) -> Self:
        if self.best is not None and self.validate_every is None:
            raise ValueError(
                f"train.best={self.best}: nothing is measured while training; set train.validate_every, such as "
                f"train.validate_every={self.checkpoint_every}, or leave train.best out"
            )
        if self.patience is not None and self.best is None:
            raise ValueError(
                f"train.patience={self.patience}: needs the metric that has to improve; set train.best, such as "
                "train.best=psnr.sigma25, or leave train.patience out"
            )
        return self

    @model_validator(mode="after")
    def _workers(self) -> Self:
        least, most = self.workers
        given = list(self.num_workers) if isinstance(self.num_workers, tuple) else self.num_workers
        if not 1 <= least <= most:
            raise ValueError(f"train.num_workers={given}: give a number from 0 on, or [min, max] with min from 1 on")
        if self.elastic and self.batch_size < most:
            raise ValueError(
                f"train.num_workers={given}: more workers than crops in a step (train.batch_size={self.batch_size}); "
                "lower the maximum, or raise train.batch_size"
            )
        if not self.elastic and self.batch_size % least:
            raise ValueError(
                f"train.batch_size={self.batch_size}: train.num_workers={least} does not divide it; change one of them"
            )
        if self.accumulate > (crops := -(-self.batch_size // least)):
            raise ValueError(
                f"train.accumulate={self.accumulate}: a worker has only {crops} crops per step (train.batch_size / "
                f"train.num_workers); give at most {crops}"
            )
        return self

    @model_validator(mode="after")
    def _graphs(self) -> Self:
        against = {
            "train.use_gpu=false": not self.use_gpu,
            f"train.accumulate={self.accumulate}": self.accumulate > 1,
            "train.recompute=true": self.recompute,
            "train.compile=true": self.compile,
        }
        if self.cuda_graphs and (given := next((key for key, there in against.items() if there), None)):
            raise ValueError(f"train.cuda_graphs=true: cannot be had with {given}; change one of them")
        return self


def _check_different(key: str, levels: Sequence[tuple[str, str]]) -> None:
    """Check that no two levels of a key, written as (text, name in results), share a name: they would be one column."""
    names: set[str] = set()
    for text, name in levels:
        if name in names:
            raise ValueError(f"{key}={text}: another level has the name {name} too; give one of them")
        names.add(name)


class Evaluate(Section):
    """What is measured at the end, and how."""

    sigmas: tuple[float, ...] = setting(
        (25.0, 35.0, 50.0),
        "sigmas of Gaussian noise at which models are evaluated, on the scale 0..255",
        effect="evaluation",
        min_length=1,
    )
    levels: tuple[str, ...] | None = setting(
        None,
        "degradations at which models are evaluated, each of fixed levels and written as degrade.chain, such as "
        "[jpeg:10, blur:2+noise:10]; null: evaluate.sigmas, or with degrade.chain its own levels: those of a single "
        "step that lists them, else three from weak to strong",
        effect="evaluation",
        code="chain",
        min_length=1,
    )
    segmenter: str | None = setting(
        None,
        "espnet-cityscapes, espnet-camvid, espnet-scenes, module:callable or models:/name@alias; null: no MIoU",
        effect="evaluation",
        code=True,
    )
    segmenter_weights: str | None = setting(
        None, "file with the weights of evaluate.segmenter", effect="place", only_for="evaluate.segmenter"
    )
    segmenters: tuple[str, ...] = setting(
        (),
        "further segmenters, written as evaluate.segmenter, that measure MIoU beside it, such as one that took no part "
        "in training",
        effect="evaluation",
        code=True,
    )
    segmenters_weights: tuple[str | None, ...] = setting(
        (),
        "file with the weights of each of evaluate.segmenters, in their order; null for one that needs none",
        effect="place",
    )
    lpips: LpipsTrunk | None = setting(
        None,
        "trunk of LPIPS, measured beside PSNR and SSIM (smaller is better); null: not measured",
        effect="evaluation",
    )
    lpips_weights: str | None = setting(
        None,
        "file with the weights of evaluate.lpips; null: torchvision's cache",
        effect="place",
        only_for="evaluate.lpips",
    )
    actors: int | None = setting(
        None,
        "evaluation actors; 0 evaluates in the driver process; null: as many as suit the machine or cluster",
        effect="speed",
        ge=0,
        le=MOST_THREADS,
    )
    threads: int = setting(1, "torch threads of an evaluation actor", effect="speed", ge=1, le=MOST_THREADS)
    use_gpu: bool = setting(False, "evaluate on GPUs (see train.gpus_per_worker)", effect="speed")
    limit: int | None = setting(None, "evaluate only the first images, this many; null: all", effect="evaluation", ge=1)
    tile: Annotated[int, Field(ge=SMALLEST_TILE)] | Literal["auto"] | None = setting(
        "auto",
        f"side of the tiles an image is restored in, in pixels, from {SMALLEST_TILE} on; auto: whole images, or tiles "
        "that fit into memory; null: whole images",
        effect="speed",
    )
    pictures: int = setting(
        2, "images drawn as pictures: noisy, restored, clean, and their segmentation", effect="record", ge=0
    )

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if min(self.sigmas) < 0 or max(self.sigmas) > 255:
            raise ValueError(f"evaluate.sigmas={list(self.sigmas)}: give one or more numbers from 0 to 255")
        _check_different("evaluate.sigmas", [(f"{sigma!r}", noise([sigma]).name) for sigma in self.sigmas])
        given = []
        for text in self.levels or ():
            chain = _parsed("evaluate.levels", text)
            if not chain.is_fixed:
                raise ValueError(
                    f"evaluate.levels={text}: is measured at fixed levels; give one number a step, such as "
                    f"{chain.fixed_levels()[-1]}"
                )
            given.append((text, chain.name))
        _check_different("evaluate.levels", given)
        return self

    @model_validator(mode="after")
    def _judges(self) -> Self:
        names, weights = list(self.segmenters), list(self.segmenters_weights)
        if names and not self.segmenter:
            raise ValueError(
                f"evaluate.segmenters={names}: they measure beside evaluate.segmenter, which is not set; set it to the "
                f"first, evaluate.segmenter={names[0]}"
            )
        if weights and len(weights) != len(names):
            raise ValueError(
                f"evaluate.segmenters_weights={weights}: {len(weights)} files for the {len(names)} of "
                f"evaluate.segmenters={names}; give one for each, null where none is needed"
            )
        return self

    @property
    def judges(self) -> dict[str, tuple[str, str | None]]:
        """Every segmenter that measures, the first one first: name in results -> (segmenter, file of its weights).

        The name is the segmenter's, with "-" for what a metric's name cannot hold, and numbered if it is there twice.
        """
        weights = self.segmenters_weights or (None,) * len(self.segmenters)
        given = [(self.segmenter, self.segmenter_weights)] if self.segmenter else []
        found: dict[str, tuple[str, str | None]] = {}
        for name, file in [*given, *zip(self.segmenters, weights, strict=True)]:
            plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
            numbered = (f"{plain}-no{number}" for number in count(2))
            free = next(each for each in chained([plain], numbered) if each not in found)
            found[free] = (name, None if (file or "").lower() in ("", *NULL) else file)
        return found


class Tracking(Section):
    """Where MLflow keeps its records, and under which names."""

    uri: str = setting(
        "", "tracking URI; empty: MLFLOW_TRACKING_URI, else a SQLite file in train.storage", effect="place"
    )
    experiment: str = setting("d2sm", "MLflow experiment", effect="record")
    register_as: str = setting("", "name in the model registry; empty: the model is not registered", effect="record")
    parent: str = setting("", "id of the MLflow run under which this one is shown, such as a sweep's", effect="record")
    alias: str = setting(
        "", "alias set on the registered version, such as champion", effect="record", only_for="tracking.register_as"
    )
