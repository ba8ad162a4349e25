"""What a sweep may search: every mistake one line, every point a configuration, the same points for the same seed."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import Config, ConfigError
from pipelines.parsing import parse_yaml
from pipelines.recipes import recipe
from pipelines.runs.trust import TrustError
from tuning.space import (
    SPACES,
    Range,
    Space,
    SpaceError,
    check,
    check_trusted,
    draw,
    grid,
    identity,
    load,
    parse,
    to_tree,
)

BASE = Config().replace({"data.crop_size": 96, "train.batch_size": 4})


def reason(point: dict[str, Any], base: Config = BASE) -> str | None:
    try:
        base.replace(point)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", SPACES)
def test_every_ready_made_space_fits_the_recipes(name: str) -> None:
    check(SPACES[name])
    assert draw(SPACES[name], 5, 0, partial(reason, base=recipe("ffdnet_d2sm")))


def test_a_file_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "loss.queue_size: [64, 256]\nloss.weight: {low: 0.1, high: 100, log: true}\nloss.patch_size: [null]\n"
    )
    space = load(str(file))
    assert space == {
        "loss.queue_size": [64, 256],
        "loss.weight": Range(0.1, 100, log=True),
        "loss.patch_size": [None],
    }
    assert parse(to_tree(space)) == space


def test_a_number_may_be_written_without_a_point(tmp_path: Path) -> None:
    """YAML reads 1e-5 as text."""
    file = tmp_path / "mine.yaml"
    file.write_text("train.lr: {low: 1e-5, high: 1e-2, log: true}\nloss.weight: [1e-1, 1e1]\n")
    space = load(str(file))
    assert space["train.lr"] == Range(1e-5, 1e-2, log=True)
    check(space)


@pytest.mark.parametrize("ends", ["low: 2e2, high: 1e3", "low: 200.0, high: 1000", "low: '200', high: '1000'"])
def test_a_range_of_a_key_of_whole_numbers_holds_whole_numbers(ends: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"loss.queue_size: {{{ends}}}\nloss.weight: {{{ends}}}\n")
    space = load(str(file))
    assert isinstance(domain := space["loss.queue_size"], Range) and domain.whole and domain == Range(200, 1000)
    assert isinstance(domain := space["loss.weight"], Range) and not domain.whole
    check(space)


def test_a_space_names_code_only_if_it_is_trusted(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model.name: [ffdnet, 'mine:net']\nloss.features: [['theirs:phi', efficientnet_lite0.blocks.4]]\n")
    space, source = load(str(file)), str(file)
    with pytest.raises(TrustError, match=f"model.name=mine:net: {source} .*--trust"):
        check_trusted(space, source, given={"loss.features": "theirs:phi"}, trust=False)
    with pytest.raises(TrustError, match="loss.features=theirs:phi: "):
        check_trusted(space, source, given={"model.name": "mine:net"}, trust=False)
    check_trusted(space, source, given={"model.name": "mine:net", "loss.features": "theirs:phi"}, trust=False)
    check_trusted(space, source, given={}, trust=True)
    check_trusted(SPACES["weights"], "weights", given={}, trust=False)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space: "),
        ({"loss.queue_size": Range(2.5, 9.0)}, "loss.queue_size: range 2.5 to 9.0: .* 3 and 9"),
        ({"loss.patch_size": Range(32.0, 64.0)}, "loss.patch_size: range 32.0 to 64.0: "),
        ({"loss.queue": [1]}, "loss.queue: .*loss.queue_size"),
        ({"loss.queue_size": []}, "loss.queue_size: "),
        ({"loss.queue_size": [256, 64, 256]}, "loss.queue_size=256: is there already"),
        ({"train.lr": ["1e-3", 0.001]}, "train.lr=0.001: is there already, as '1e-3'"),
        ({"loss.queue_size": ["many"]}, "loss.queue_size='many': "),
        ({"loss.queue_size": [1]}, "loss.queue_size=1: .* 2 "),
        ({"loss.divergence": ["kl", "kk"]}, "loss.divergence='kk': .*'kl', 'inverse_kl' or 'jsd'"),
        ({"loss.weight": Range(-1.0, 1.0)}, "loss.weight=-1.0: .* 0 "),
        ({"train.name": ["a"]}, "train.name: "),
        ({"tracking.register_as": ["a"]}, "tracking.register_as: "),
        ({"tracking.alias": ["a"]}, "tracking.alias: changes no result"),
        ({"evaluate.limit": [1, 2]}, "evaluate.limit: .*evaluate.limit="),
        ({"train.recompute": [False, True]}, "train.recompute: changes no result"),
        ({"train.num_workers": [1, 2]}, "train.num_workers: changes no result"),
    ],
)
def test_a_wrong_space_is_one_line(space: Space, message: str) -> None:
    with pytest.raises((SpaceError, ConfigError)) as caught:
        check(space)
    assert re.match(message, str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "space: "),
        ({"loss.weight": 3}, "loss.weight=3: "),
        ({"loss.weight": {"low": 1}}, "loss.weight={'low': 1}: "),
        ({"loss.weight": {"low": 2, "high": 1}}, "range 2 to 1: "),
        ({"loss.weight": {"low": "a", "high": 1}}, "loss.weight: range a to 1: "),
        ({"loss.weight": {"low": True, "high": 2}}, "loss.weight: range True to 2: "),
        ({"loss.weight": {"low": 1, "high": "nan"}}, "loss.weight: range 1 to nan: "),
        ({"loss.weight": {"low": 1, "high": 2, "log": "maybe"}}, "loss.weight: log='maybe': "),
        ({"loss.weight": {"low": 0, "high": 1, "log": True}}, "range 0 to 1: .*logarithmic"),
    ],
)
def test_a_wrong_tree_is_one_line(tree: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        parse(tree)


@pytest.mark.parametrize("name", SPACES)
def test_the_readme_says_what_a_named_space_searches(name: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "tuning" / "README.md").read_text()
    (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", text, re.M)
    told = {}
    for key, values in re.findall(r"`([\w.]+)`: ([^;]+)", row):
        ends = re.fullmatch(r"(\S+) to (\S+), logarithmic", values)
        told[key] = {"low": ends[1], "high": ends[2], "log": True} if ends else parse_yaml(f"[{values}]", source=key)
    assert parse(told) == SPACES[name]


def test_neither_a_space_nor_a_file() -> None:
    with pytest.raises(SpaceError, match="space 'queues': .*queue_and_patch"):
        load("queues")


def test_a_grid_of_a_range() -> None:
    with pytest.raises(SpaceError, match="loss.weight: .*grid"):
        list(grid({"loss.weight": Range(0.0, 1.0)}))


SPACE: Space = {"loss.queue_size": [4, 16, 64], "loss.patch_size": [None, 32, 48, 50], "loss.weight": [0.0, 1.0]}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 40))
def test_points_are_valid_distinct_and_a_function_of_the_seed(seed: int, count: int) -> None:
    points = draw(SPACE, count, seed, reason)
    valid = [point for point in grid(SPACE) if reason(point) is None]
    assert 0 < len(valid) < 24  # the queue is too small for some, 50 never divides 96
    assert len(points) == min(count, len(valid))
    assert len({identity(point) for point in points}) == len(points)
    assert all(point in valid for point in points)
    assert points == draw(SPACE, count, seed, reason)
    assert points == draw(SPACE, len(valid), seed, reason)[:count]  # more trials go on with the same ones


def test_the_points_of_a_seed_are_those_of_earlier_versions() -> None:
    def no_fifty(point: dict[str, Any]) -> str | None:
        return "no" if point["loss.patch_size"] == 50 else None

    keys = ("loss.queue_size", "loss.patch_size", "loss.weight")
    points = [tuple(point[key] for key in keys) for point in draw(SPACE, 3, 7, no_fifty)]
    assert points == [(16, 48, 1.0), (16, 32, 1.0), (64, None, 0.0)]
    with_range: Space = {**SPACE, "train.lr": Range(1e-4, 1e-2, log=True)}
    points = [tuple(point.values()) for point in draw(with_range, 2, 7, no_fifty)]
    assert points == [(64, 32, 0.0, 0.000646821566094714), (4, 48, 0.0, 0.0017423043579580706)]


def test_of_a_large_space_only_what_is_drawn_is_looked_at() -> None:
    space: Space = {f"model.options.{letter}": list(range(9)) for letter in "abcdefgh"}
    asked: list[dict[str, Any]] = []

    def odd(point: dict[str, Any]) -> str | None:
        asked.append(point)
        return "odd" if point["model.options.a"] % 2 else None

    points = draw(space, 50, 0, odd)
    assert len({identity(point) for point in points}) == 50 and len(asked) < 200
    assert points == draw(space, 60, 0, odd)[:50]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_ranges_are_kept(seed: int) -> None:
    space: Space = {"loss.queue_size": Range(2, 5), "loss.weight": Range(1e-3, 10.0, log=True), "train.epochs": [1, 2]}
    for point in draw(space, 8, seed, lambda point: None):
        assert point["loss.queue_size"] in (2, 3, 4, 5) and isinstance(point["loss.queue_size"], int)
        assert 1e-3 <= point["loss.weight"] <= 10


def test_ranges_are_even_on_their_scale() -> None:
    points = draw({"loss.weight": Range(1e-2, 1e2, log=True)}, 400, 3, lambda point: None)
    logs = sorted(math.log10(point["loss.weight"]) for point in points)
    assert logs[100] == pytest.approx(-1, abs=0.25) and logs[300] == pytest.approx(1, abs=0.25)
    assert {Range(1, 3).at(share / 100) for share in range(100)} == {1, 2, 3}


def test_an_exhausted_range_ends() -> None:
    assert len(draw({"loss.queue_size": Range(2, 4)}, 9, 0, lambda point: None)) == 3
