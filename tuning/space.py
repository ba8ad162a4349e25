"""What a sweep searches: a plain dictionary over the configuration's dotted keys.

    {"loss.queue_size": [256, 1024, 4096], "loss.weight": {"low": 0.1, "high": 100, "log": true}}

A list is a choice; low and high are the ends of a range, whole numbers where both are. Combinations that make no
configuration (a queue smaller than a step's samples, a K that does not divide) are not part of the space.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from pipelines import config as configs
from pipelines.config import Config
from pipelines.text import one_line

Point = dict[str, Any]  # dotted key -> value
_SET_BY_SWEEP = ("train.name", "train.storage", "train.max_steps", "tracking.parent", "tracking.register_as")
_TRIES = 1000  # draws for one valid point before the space counts as exhausted


class SpaceError(ValueError):
    """A space that cannot be searched. One line."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; `log`: equally likely on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        numbers = all(isinstance(end, (int, float)) and math.isfinite(end) for end in (self.low, self.high))
        if not numbers or self.low >= self.high:
            raise SpaceError(f"range {self.low} to {self.high}: give two numbers, the low one first")
        if self.log and self.low <= 0:
            raise SpaceError(f"range {self.low} to {self.high}: a logarithmic range starts above 0")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """The number at a share in [0, 1) of the way."""
        if self.whole:  # every whole number its own interval
            low, high = self.low - 0.5, self.high + 0.5
            return int(min(self.high, max(self.low, round(_between(low, high, share, log=self.log)))))
        return _between(self.low, self.high, share, log=self.log)


Domain = list[Any] | Range
Space = dict[str, Domain]

SPACES: dict[str, Space] = {
    "queue_and_patch": {
        "loss.queue_size": [256, 512, 1024, 2048, 4096],
        "loss.patch_size": [None, 32, 64, 128],
    },
    "weights": {"loss.weight": Range(0.1, 100.0, log=True), "loss.l1": [0.0, 1.0]},
    "queue_patch_weight": {
        "loss.queue_size": [128, 256, 512, 1024],
        "loss.patch_size": [None, 32, 64],
        "loss.weight": [0.1, 1.0, 10.0, 100.0],
    },
    "learning_rate": {"train.lr": Range(1e-5, 1e-2, log=True)},
}


def load(name: str) -> Space:
    """A ready-made space by name, or one from a YAML file.

    Raises:
        SpaceError: when there is none such.
    """
    if name in SPACES:
        return SPACES[name]
    path = Path(name)
    if not path.is_file():
        raise SpaceError(f"space {name!r}: neither a file nor one of {', '.join(SPACES)}")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpaceError(f"space {name}: no valid YAML: {one_line(error)}") from None
    return parse(tree if tree is not None else {}, name)


def parse(tree: Any, name: str = "space") -> Space:
    """Lists and {low, high, log} mappings -> a space."""
    if not isinstance(tree, Mapping):
        raise SpaceError(f"{name}: give dotted keys with lists or {{low, high, log}}")
    return {str(key): _domain(str(key), value) for key, value in tree.items()}


def plain(space: Space) -> dict[str, Any]:
    """What `parse` reads back."""
    return {
        key: {"low": d.low, "high": d.high, "log": d.log} if isinstance(d, Range) else d for key, d in space.items()
    }


def check(space: Space, base: Config) -> None:
    """Known keys, values of the right type, and at least one configuration.

    Raises:
        SpaceError, ConfigError: one line that names the key.
    """
    if not space:
        raise SpaceError("space: empty; give at least one dotted key with values to try")
    for key, domain in space.items():
        configs.check_key(key)
        if key in _SET_BY_SWEEP:
            raise SpaceError(f"{key}: set by the sweep itself; leave it out of the space")
        effect = configs.effect(key)
        if effect == "evaluation":
            raise SpaceError(f"{key}: all trials must be measured alike; give it to all of them as {key}=...")
        if effect not in ("results", "run"):
            raise SpaceError(f"{key}: changes no result; give it to all trials as {key}=...")
        if isinstance(domain, list) and not domain:
            raise SpaceError(f"{key}: no values to try")
        for value in [domain.low, domain.high] if isinstance(domain, Range) else domain:
            _check_value(key, value)


def grid(space: Space) -> Iterator[Point]:
    """Every combination, valid or not.

    Raises:
        SpaceError: when a key has a range.
    """
    lists: list[list[Any]] = []
    for key, domain in space.items():
        if isinstance(domain, Range):
            raise SpaceError(f"{key}: a grid needs a list of values, not a range; or say --search random")
        lists.append(domain)
    for values in itertools.product(*lists):
        yield dict(zip(space, values, strict=True))


def draw(space: Space, count: int, seed: int, reason: Callable[[Point], str | None]) -> list[Point]:
    """`count` distinct valid points at random, a function of the seed; fewer when the space has no more.

    Args:
        reason: why a point is no configuration; None when it is one.
    """
    if not any(isinstance(domain, Range) for domain in space.values()):
        points = [point for point in grid(space) if reason(point) is None]
        order = _numbers(seed).permutation(len(points))
        return [points[i] for i in order[:count]]
    rng, found = _numbers(seed), dict[str, Point]()
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        point = {key: _pick(domain, float(rng.random())) for key, domain in space.items()}
        if name_of(point) not in found and reason(point) is None:
            found[name_of(point)] = point
    return list(found.values())


def name_of(point: Point) -> str:
    """Equal for equal points."""
    return json.dumps(point, sort_keys=True)


def _numbers(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _pick(domain: Domain, share: float) -> Any:
    return domain.at(share) if isinstance(domain, Range) else domain[int(share * len(domain))]


def _between(low: float, high: float, share: float, *, log: bool) -> float:
    if log:
        return float(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    return float(low + share * (high - low))


def _domain(key: str, value: Any) -> Domain:
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping) and {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        return Range(value["low"], value["high"], bool(value.get("log", False)))
    raise SpaceError(f"{key}={value!r}: give a list of values, or low and high (and log: true)")


def _check_value(key: str, value: Any) -> None:
    field = configs.keys()[key]
    try:
        checked: Any = Annotated[field.annotation, field]
        TypeAdapter(checked).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise SpaceError(f"{key}={value!r}: {message[0].lower()}{message[1:]} ({field.description})") from None
