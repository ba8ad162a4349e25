"""The space of a sweep: dotted keys of the configuration with the values to try.

    {"loss.queue_size": [256, 1024, 4096], "loss.weight": {"low": 0.1, "high": 100, "log": true}}

A list is a choice. `low` and `high` are the ends of a range, of whole numbers if both are whole. Combinations that are
no valid configuration (a queue smaller than a step's samples, a patch size that does not divide the crop) are left out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipelines import config as configs
from pipelines import parsing
from pipelines.runs.trust import TrustError, code_in, is_made_here

Point = dict[str, Any]  # dotted key -> value
_SET_BY_SWEEP = ("train.name", "train.storage", "train.max_steps", "tracking.parent", "tracking.register_as")
_TRIES = 1000  # draws per point; after these without a new valid point, the space counts as exhausted
LISTED = 4096  # combinations up to which all are looked at: 20 s on a machine of 2 cores


class SpaceError(ValueError):
    """A space that cannot be searched. One line."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included.

    `log`: uniform on a logarithmic scale. Ray Tune pickles it in a sweep's state, so its names stay.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        numbers = all(
            isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in ends
        )
        if not numbers or self.low >= self.high:
            raise SpaceError(f"range {self.low} to {self.high}: give two numbers, the low one first")
        if self.log and self.low <= 0:
            raise SpaceError(f"range {self.low} to {self.high}: a logarithmic range starts above 0")

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, fraction: float) -> float:
        """The number at a fraction, in [0, 1), of the way from low to high."""
        low, high = self.low, self.high
        if self.whole:  # the whole numbers get intervals of the same length
            low, high = low - 0.5, high + 0.5
        if self.log:
            number = math.exp(math.log(low) + fraction * (math.log(high) - math.log(low)))
        else:
            number = low + fraction * (high - low)
        return int(min(self.high, max(self.low, round(number)))) if self.whole else float(number)


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
    """One of `SPACES` by its name, or a space from a YAML file.

    Raises:
        SpaceError: neither a name nor a file, or the file holds no space.
    """
    if name in SPACES:
        return SPACES[name]
    path = Path(name)
    if not path.is_file():
        raise SpaceError(f"space {name!r}: neither a file nor one of {', '.join(SPACES)}")
    tree = parsing.read_yaml(path, source=f"space {name}", error=SpaceError, remedy="correct it")
    try:
        return parse(tree if tree is not None else {}, "space")
    except SpaceError as error:
        raise SpaceError(f"space {name}: {error}") from None


def parse(tree: Any, name: str = "space") -> Space:
    """A space from a mapping of dotted keys to lists or {low, high, log}.

    Raises:
        SpaceError: names the key.
    """
    if not isinstance(tree, Mapping):
        raise SpaceError(f"{name}: give dotted keys with lists or {{low, high, log}}")
    space: Space = {}
    for key, value in tree.items():
        if isinstance(value, list):
            space[str(key)] = value
        elif isinstance(value, Mapping) and {"low", "high"} <= set(value) <= {"low", "high", "log"}:
            space[str(key)] = _range(str(key), **value)
        else:
            raise SpaceError(f"{key}={value!r}: give a list of values, or low and high (and log: true)")
    return space


def _range(key: str, low: Any, high: Any, log: Any = False) -> Range:
    if not isinstance(log, bool):
        raise SpaceError(f"{key}: log={log!r}: give true or false")
    first, last = _number(low), _number(high)
    if is_whole(key):
        first, last = (int(end) if isinstance(end, float) and end.is_integer() else end for end in (first, last))
    try:
        return Range(first, last, log)
    except SpaceError as error:
        raise SpaceError(f"{key}: {error}") from None


def _number(end: Any) -> Any:
    """An end of a range; a number may stand in quotes."""
    if isinstance(end, str):
        with contextlib.suppress(ValueError):
            return float(end)
    return end


def is_whole(key: str) -> bool:
    """Whether a key takes whole numbers only; False for one that there is not."""
    field = configs.keys().get(key)
    kinds = () if field is None else get_args(field.annotation) or (field.annotation,)
    return int in kinds and float not in kinds


def to_tree(space: Space) -> dict[str, Any]:
    """The mapping from which `parse` makes the same space."""
    return {
        key: {"low": d.low, "high": d.high, "log": d.log} if isinstance(d, Range) else d for key, d in space.items()
    }


def check_trusted(space: Space, source: str, *, given: Mapping[str, Any], trust: bool) -> None:
    """Make sure that nothing is imported on the word of a space's file, as for a configuration (`trust.check_config`).

    Args:
        source: the file, or the name of one of `SPACES`.
        given: the keys that the user set, with their values: what they name may be imported.
        trust: the user trusts the file.

    Raises:
        TrustError: a value names code that the user does not; tells key, value and remedy.
    """
    if trust or source in SPACES or is_made_here(Path(source)):
        return
    named = {name for _, name in code_in(given)}
    for key, name in (found for values in listed(space) for found in _code_in(values)):
        if name not in named:
            raise TrustError(
                f"{key}={name}: {source} asks to import and run this, and was not made here by you; if you know the "
                "code, trust the file with --trust"
            )


def _code_in(values: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        return code_in(values)
    except ValueError:  # a value that cannot be read imports nothing; it is refused, or left out, later
        return []


def listed(space: Space) -> Iterator[dict[str, Any]]:
    """Each value that a space lists, with its key."""
    for key, domain in space.items():
        yield from ({key: value} for value in ([] if isinstance(domain, Range) else domain))


def check(space: Space) -> None:
    """Make sure that a sweep may search these keys, and that each value by itself is valid.

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
        if isinstance(domain, Range) and is_whole(key) and not domain.whole:
            raise SpaceError(
                f"{key}: range {domain.low} to {domain.high}: the key takes whole numbers; give whole ends, such as "
                f"{math.ceil(domain.low)} and {math.floor(domain.high)}"
            )
        seen: dict[str, Any] = {}
        for value in [domain.low, domain.high] if isinstance(domain, Range) else domain:
            same = identity({key: _checked(key, value)})
            if same in seen:
                raise SpaceError(f"{key}={value!r}: is there already, as {seen[same]!r}; give each value once")
            seen[same] = value


def _checked(key: str, value: Any) -> Any:
    """A value as the configuration holds it. Raises SpaceError: it is none of this key's."""
    if configs.owner(key) != key:  # an entry of a mapping, such as model.options.width, may be anything
        return value
    field = configs.keys()[key]
    try:
        checked: Any = Annotated[field.annotation, field]
        return TypeAdapter(checked).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise SpaceError(f"{key}={value!r}: {message[0].lower()}{message[1:]} ({field.description})") from None


def grid(space: Space) -> Iterator[Point]:
    """Every combination of values, valid or not.

    Raises:
        SpaceError: a key has a range.
    """
    lists: list[list[Any]] = []
    for key, domain in space.items():
        if isinstance(domain, Range):
            raise SpaceError(f"{key}: a grid needs a list of values, not a range; or say --search random")
        lists.append(domain)
    for values in itertools.product(*lists):
        yield dict(zip(space, values, strict=True))


def size(space: Space) -> float:
    """The number of combinations; infinite with a range."""
    return math.prod(math.inf if isinstance(domain, Range) else len(domain) for domain in space.values())


def draw(space: Space, count: int, seed: int, reason: Callable[[Point], str | None]) -> list[Point]:
    """At most `count` distinct valid points, drawn at random as a function of the seed; fewer if the space has no more.

    Args:
        reason: why a point is no valid configuration; None if it is. Up to `LISTED` combinations it is asked for all,
            else only for those that are drawn.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    if size(space) <= LISTED:
        points = [point for point in grid(space) if reason(point) is None]
        return [points[i] for i in rng.permutation(len(points))[:count]]
    found: dict[str, Point] = {}
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        point = {}
        for key, domain in space.items():
            fraction = float(rng.random())
            point[key] = domain.at(fraction) if isinstance(domain, Range) else domain[int(fraction * len(domain))]
        if identity(point) not in found and reason(point) is None:
            found[identity(point)] = point
    return list(found.values())


def identity(point: Point) -> str:
    """A text that is equal for equal points."""
    return json.dumps(point, sort_keys=True, default=str)
