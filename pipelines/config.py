"""The one configuration of a run: typed, validated, frozen.

Its dotted keys (`loss.queue_size`) are the same on the command line, in a sweep, in MLflow and in a saved file. Each
part of the pipeline reads its own section, and none reads environment variables instead. `pipelines.sections` holds the
keys, this module what is done with the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo

from d2sm import chain
from d2sm.chain import Chain
from d2sm.models import BACKBONES
from d2sm.objectives import TERMS
from pipelines import parsing, secrets

# Runs pickled by earlier versions name Train, Evaluate and Tracking as classes of this module.
from pipelines.sections import (
    NULL,
    Data,
    Degrade,
    Effect,
    Evaluate,
    Loss,
    Model,
    Noise,
    Section,
    Tracking,
    Train,
    setting,
)
from pipelines.text import did_you_mean, one_line

PAIR = "pair"  # the name of the level of photographed pairs
# Keys of earlier versions: the value that changed nothing, and where another one is to be written now.
_FORMER = {"noise.degradation": ("gaussian", "degrade.chain")}


class ConfigError(ValueError):
    """Wrong keys or values, in `reasons`. Each is one line: the key, the value, what is allowed."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = str(self).split("\n")  # also after pickling, which keeps the text alone


class Config(Section):
    """All settings of a run. It is saved in the run's folder, and repeats the run."""

    recipe: str = setting("", "name of the recipe that this configuration started from", effect="record")
    data: Data = Data()
    noise: Noise = Noise()
    degrade: Degrade = Degrade()
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
                f"loss.patch_size={self.loss.patch_size}: does not divide data.crop_size={self.data.crop_size}; change "
                "one of them"
            )
        self._check_degradation()
        for name, weight in self.loss.terms.items():
            key = f"loss.{TERMS[name].weight_key}"
            if TERMS[name].uses_estimate and not self.model.estimates_noise:
                others = " or ".join(backbone.name for backbone in BACKBONES.values() if backbone.estimates_noise)
                raise ValueError(
                    f"{key}={weight:g}: model.name={self.model.name} estimates no noise; set it to 0, or "
                    f"model.name={others}"
                )
        if self.data.layout != "cityscapes":
            for key, off in self.loss.asking_for_labels.items():
                value = getattr(self.loss, key.removeprefix("loss."))
                raise ValueError(
                    f"{key}={value:g}: data.layout={self.data.layout} has no labels; set it to {off}, or "
                    "data.layout=cityscapes"
                )
        if "d2sm" in self.loss.terms and self.loss.queue_size < samples:
            of_crop = "loss.class_regions" if self.loss.class_regions else "patches per crop"
            other = "lower loss.class_regions" if self.loss.class_regions else "raise loss.patch_size"
            raise ValueError(
                f"loss.queue_size={self.loss.queue_size}: a queue must hold the {samples} samples of one step "
                f"(train.batch_size x {of_crop}); raise it, or {other}"
            )
        return self

    def _check_degradation(self) -> None:
        """One key says what degrades, one at which levels it is measured; pairs are degraded already."""
        noise, evaluate, given = self.noise, self.evaluate, self.degrade.chain
        if given and noise != Noise():
            raise ValueError(
                f"noise.sigma={list(noise.sigma)}: degrade.chain={given} says what degrades; put noise:LOW..HIGH there"
            )
        if given and evaluate.levels is None and evaluate.sigmas != Evaluate().sigmas:
            raise ValueError(
                f"evaluate.sigmas={list(evaluate.sigmas)}: with degrade.chain={given} the levels are those of "
                f"evaluate.levels, such as [{self.degradation.fixed_levels()[-1]}]"
            )
        if self.data.layout != "pairs":
            return
        for key, value in (("degrade.chain", given), ("evaluate.levels", evaluate.levels)):
            if value:
                shown = value if isinstance(value, str) else f"[{', '.join(value)}]"
                raise ValueError(f"{key}={shown}: the images of data.layout=pairs are degraded already; leave it out")
        backbone = BACKBONES.get(self.model.name)
        told = [f"loss.{TERMS[name].weight_key}" for name in self.loss.terms if "sigma" in TERMS[name].inputs]
        if backbone and not backbone.blind:
            told.append(f"model.name={self.model.name}")
        if told and (line := self.unknown_level(told[0])):
            raise ValueError(line)

    def unknown_level(self, told: str) -> str:
        """Why pairs do not do for something that is told their noise level; "" if the level is known, or no pairs.

        Args:
            told: the key and value, or the key, of what is told.
        """
        if self.data.layout != "pairs" or len(set(self.noise.sigma)) == 1:
            return ""
        blind = " or ".join(entry.name for entry in BACKBONES.values() if entry.blind)
        other = f", or take a network that needs none, model.name={blind}" if told.startswith("model.") else ""
        return (
            f"noise.sigma={list(self.noise.sigma)}: data.layout=pairs has one noise level, which {told} is told; give "
            f"it, such as noise.sigma=[25] noise.draw=list{other}"
        )

    @property
    def degradation(self) -> Chain:
        """What degrades the crops of training: `degrade.chain`, or without one Gaussian noise of `noise.sigma`."""
        if self.degrade.chain:
            return chain.parse(self.degrade.chain)
        return chain.noise(self.noise.sigma, self.noise.draw)

    @property
    def levels(self) -> tuple[Chain, ...]:
        """The fixed chains at which an evaluation measures, in order; those of images that are no pairs."""
        if self.evaluate.levels is not None:
            return tuple(map(chain.parse, self.evaluate.levels))
        if self.degrade.chain:
            return self.degradation.fixed_levels()
        return tuple(chain.noise([sigma]) for sigma in self.evaluate.sigmas)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Their names in results: "25", "jpeg10", ...; "pair" for pairs."""
        return (PAIR,) if self.data.layout == "pairs" else tuple(level.name for level in self.levels)

    @property
    def samples_per_step(self) -> int:
        """Samples that enter the queues in a step: crops, times patches or regions per crop."""
        across = self.data.crop_size // self.loss.patch_size if self.loss.patch_size else 1
        return self.train.batch_size * (self.loss.class_regions or across * across)

    def names(self, key: str) -> list[str]:
        """The names, or the files, that a key gives: its value, or those in its list; not null or "null"."""
        return names_in(self.flat()[key])

    def replace(self, changes: Mapping[str, Any]) -> Config:
        """A new configuration with some dotted keys changed, validated as a whole.

        The other keys of the model section belong to the backbone: with another `model.name` they begin at defaults.

        Raises:
            ConfigError: an unknown key, or a value that is not allowed.
        """
        tree = self.model_dump()
        if changes.get("model.name", self.model.name) != self.model.name:
            tree["model"] = Model().model_dump()
        for key, value in sorted(
            changes.items(), key=lambda change: change[0].count(".")
        ):  # entries after their mapping
            check_key(key)
            *sections, name = key.split(".")
            part = tree
            for section in sections:
                part = part[section]
            part[name] = dict(value) if isinstance(value, Mapping) else value  # the caller's own stays as it is
        return from_tree(tree)

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value, for MLflow and for tables."""
        return dict(_leaves(self.model_dump(mode="json"), ""))

    def differences(self, other: Config, *effects: Effect) -> dict[str, tuple[Any, Any]]:
        """The keys whose values differ, of those with one of these effects, or of all: key -> (value here, there)."""
        here, there = self.flat(), other.flat()
        compared = keys_with(*effects) if effects else here
        return {name: (here[name], there[name]) for name in compared if here[name] != there[name]}

    def save(self, path: str | Path) -> None:
        """Write the YAML file that `load` reads back."""
        Path(path).write_text(self.dumps(), encoding="utf-8")

    def dumps(self) -> str:
        """The YAML text of this configuration."""
        return parsing.to_yaml(self.model_dump(mode="json"))


def load(path: str | Path, *, given: bool = False) -> Config:
    """Read a saved configuration.

    Args:
        given: the user names this file to run it, so a secret in it is refused. Otherwise it is the record of a run;
            one that an earlier version wrote is read without the password in its tracking.uri.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds a wrong key or value.
    """
    remedy = "give a file written by `d2sm train`"
    source = f"configuration {path}"
    tree = parsing.read_yaml(Path(path), source=source, error=ConfigError, remedy=remedy, recorded=not given)
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: holds no sections; {remedy}")
    try:
        tree = _without_former(tree)
        for key, value in _leaves(tree, ""):
            check_key(key)
            if given and (line := secrets.problem(value, asked_by=key)):
                raise ConfigError(line)
        return from_tree(tree if given else _without_secrets(tree))
    except ConfigError as error:
        raise ConfigError(*(f"{source}: {reason}" for reason in error.reasons)) from None


def _without_former(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Sections without the keys of earlier versions. Raises ConfigError for a value that is written otherwise now."""
    found = dict(tree)
    for key, (default, now) in _FORMER.items():
        section, _, name = key.partition(".")
        if not isinstance(found.get(section), Mapping) or name not in found[section]:
            continue
        value = found[section][name]
        if value != default:
            raise ConfigError(f"{key}={value}: is written as {now} now, such as {now}={value}:0..75")
        found[section] = {other: kept for other, kept in found[section].items() if other != name}
    return found


def _without_secrets(tree: Any, name: str = "") -> Any:
    if isinstance(tree, dict):
        return {key: _without_secrets(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_secrets(value, name) for value in tree]
    if secrets.in_option(name, tree, asked_by=name):
        return secrets.HIDDEN
    return secrets.without(tree) if isinstance(tree, str) else tree


def from_tree(tree: Mapping[str, Any]) -> Config:
    """Validate nested sections, as `model_dump` gives them and YAML files hold them.

    Raises:
        ConfigError: wrong keys or values, all that are found.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(*_problems(error)) from None


def parse(overrides: Iterable[str]) -> dict[str, Any]:
    """Overrides of the command line: `["loss.queue_size=1024"]` -> `{"loss.queue_size": 1024}`.

    Values are read as YAML, but those of keys that hold text, which are taken as typed.

    Raises:
        ConfigError: an override has no `=`, names an unknown key or one that was given before, or has a value that is
            no YAML.
    """
    changes: dict[str, Any] = {}
    given: dict[str, str] = {}
    reasons: list[str] = []
    for override in overrides:
        try:
            key, value = _parsed(override)
        except ConfigError as error:
            reasons += error.reasons
            continue
        if key in given:
            reasons.append(f"{override}: {key} is given twice, first as {given[key]}; give it once")
        changes[key], given[key] = value, override
    for whole in (key for key in open_keys() if key in given):
        for key in (key for key in given if key.startswith(f"{whole}.")):
            reasons.append(f"{given[key]}: {given[whole]} says it too; give the entries one by one, or all in {whole}")
    if reasons:
        raise ConfigError(*reasons)
    return changes


def _parsed(override: str) -> tuple[str, Any]:
    key, sign, text = override.partition("=")
    if not sign:
        raise ConfigError(f"{override}: an override is written key=value, such as train.epochs=2")
    check_key(key)
    is_text = (key in keys() and keys()[key].annotation is str) or not text
    remedy = "put it in quotes, or correct it"
    return key, text if is_text else parsing.parse_yaml(text, source=override, error=ConfigError, remedy=remedy)


def keys() -> dict[str, FieldInfo]:
    """Every dotted key with its field: type, default, description, effect."""
    return dict(_fields(Config, ""))


def names_in(value: Any) -> list[str]:
    """The names in the value of a key, see `Config.names`."""
    named = [str(each) for each in (value if isinstance(value, list) else [value]) if each]
    return [each for each in named if each.lower() not in NULL]


@cache
def keys_with(*effects: Effect) -> tuple[str, ...]:
    """The dotted keys with one of these effects, in order."""
    return tuple(key for key in keys() if effect(key) in effects)


@cache
def keys_with_code() -> tuple[str, ...]:
    """The dotted keys whose values may name Python to import."""
    return tuple(key for key, field in keys().items() if cast(dict[str, Any], field.json_schema_extra)["code"])


@cache
def keys_only_for() -> dict[str, list[str]]:
    """The dotted keys that nothing uses unless one of some others is set, with these."""
    found = {key: cast(dict[str, Any], field.json_schema_extra)["only_for"] for key, field in keys().items()}
    return {key: others for key, others in found.items() if others}


@cache
def open_keys() -> tuple[str, ...]:
    """The dotted keys whose value is a mapping, so that its entries are keys too: model.options.width."""
    return tuple(key for key, field in keys().items() if get_origin(field.annotation) is dict)


def owner(key: str) -> str:
    """The key of `keys()` that a dotted key is, or is an entry of.

    Raises:
        ConfigError: there is no such key.
    """
    check_key(key)
    return next((each for each in open_keys() if key.startswith(f"{each}.")), key)


def effect(key: str) -> Effect:
    """What another value of a dotted key changes.

    Raises:
        ConfigError: there is no such key.
    """
    about = keys()[owner(key)].json_schema_extra
    assert isinstance(about, dict), key  # made by `setting`
    return cast(Effect, about["effect"])


def typed(value: Any) -> str:
    """A value as it is typed behind `key=`."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"[{','.join(map(typed, value))}]" if isinstance(value, (list, tuple)) else str(value)


def choices(key: str) -> tuple[str, ...]:
    """The values of a dotted key whose type is a closed set of names, as they are typed; empty for other keys."""
    kind = keys()[owner(key)].annotation
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if not all(part is NoneType or get_origin(part) is Literal for part in parts):
        return ()
    named = [str(name) for part in parts if part is not NoneType for name in get_args(part)]
    return (*named, *(["null"] if NoneType in parts else []))


def check_key(key: str) -> None:
    """Make sure that a dotted key exists.

    Raises:
        ConfigError: it does not; names the nearest one.
    """
    known = keys()
    if key in known or any(key.startswith(f"{each}.") and key[len(each) + 1 :].isidentifier() for each in open_keys()):
        return
    if key in _FORMER:
        raise ConfigError(f"{key}: no such key any more; {_FORMER[key][1]} says what degrades")
    last = key.rsplit(".", 1)[-1]
    candidates = [k for k in known if k.rsplit(".", 1)[-1] == last] or known
    hint = did_you_mean(key, candidates, cutoff=0.0)
    raise ConfigError(f"{key}: no such key{hint} (`d2sm train --keys` lists them all)")


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in open_keys():
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _problems(error: ValidationError) -> list[str]:
    """A line for each key with a wrong value: the key, its value, what is wrong with it, and what the key means."""
    found: dict[str, str] = {}
    for each in error.errors():
        if each["type"] == "value_error":  # of our own validators, whose message names the key already
            text = str(each["ctx"]["error"])
            found[text] = text
            continue
        key = ".".join(str(part) for part in each["loc"] if not isinstance(part, int) and str(part) in _PARTS)
        field = keys().get(key)
        about = f" ({field.description})" if field else ""
        name = key or ".".join(map(str, each["loc"])) or "configuration"
        # A key that may be of several types has an error for each of them; the first is enough.
        message = f"{each['msg'][0].lower()}{each['msg'][1:]}"
        found.setdefault(name, f"{name}={one_line(repr(each['input']), 80)}: {message}{about}")
    return list(found.values())


WEIGHTS = tuple(key for key in keys_with("place") if key.endswith(("weights", "_heads")))  # name a file of weights
# The changes that leave out all segmenters of an evaluation.
NO_JUDGES: Mapping[str, Any] = {
    "evaluate.segmenter": None, "evaluate.segmenters": [], "evaluate.segmenters_weights": []
}  # fmt: skip
_PARTS = frozenset(part for key in keys() for part in key.split("."))
