"""The plan of an epoch follows from seed and epoch alone, and ingest tasks cover it exactly once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import Config
from pipelines.data import plan
from pipelines.data.stream import task_ranges

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 12), st.integers(1, 50))


def config_of(each: int = 2, batch: int = 4, shuffle: int = 3, **more: object) -> Config:
    return Config().replace(
        {"data.crops_per_image": each, "train.batch_size": batch, "data.shuffle_images": shuffle, "loss.weight": 0,
         **{key.replace("__", "."): value for key, value in more.items()}}
    )  # fmt: skip


@settings(deadline=None)
@given(SIZES, st.integers(0, 2**31 - 1), st.integers(0, 500))
def test_each_image_gives_its_crops_and_they_lie_inside(sizes: tuple[int, ...], seed: int, epoch: int) -> None:
    items, each, batch, shuffle = sizes
    config = config_of(each, batch, shuffle, train__seed=seed)
    table = plan.epoch_table(config, items, epoch)
    assert table.schema.equals(plan.SCHEMA)
    assert np.bincount(table["item"], minlength=items).tolist() == [each] * items
    for edge in ("left", "top"):
        place = table[edge].to_numpy()
        assert (place >= 0).all()
        # int(share * (room + 1)) is a valid edge up to the largest images there are.
        assert (np.floor(place * (2**15 + 1)) <= 2**15).all()
    sigma = table["sigma"].to_numpy()
    assert ((sigma >= 0) & (sigma <= 75)).all()
    assert (table["seed"].to_numpy() >= 0).all()


def test_the_table_follows_from_seed_and_epoch_alone() -> None:
    config = config_of(each=3, shuffle=10)
    table = plan.epoch_table(config, 50, 4)
    np.random.seed(1)
    more_workers = config.replace({"train.num_workers": 4, "train.batch_size": 32, "train.epochs": 9})
    assert plan.epoch_table(more_workers, 50, 4).equals(table)
    assert not plan.epoch_table(config, 50, 5).equals(table)
    assert not plan.epoch_table(config.replace({"train.seed": 1}), 50, 4).equals(table)


def test_the_table_of_today_is_that_of_tomorrow() -> None:
    """A known answer: an update of numpy that draws otherwise would silently change every run."""
    table = plan.epoch_table(config_of(each=2, shuffle=2), 3, 7)
    assert table["item"].to_pylist() == [2, 1, 1, 2, 0, 0]
    assert table["seed"].to_pylist()[:2] == [786126673502731525, 7649834302839706298]


@pytest.mark.parametrize(
    "noise, digest",
    [({}, "6a1c847a2c98c6c3"), ({"noise__sigma": [15, 25, 50], "noise__draw": "list"}, "b66ff8803d164017")],
)
def test_the_default_table_is_that_of_before_the_chain(noise: dict[str, object], digest: str) -> None:
    """Known answers, computed by the code of commit 0b06cc2."""
    table = plan.epoch_table(config_of(each=3, shuffle=4, train__seed=5, **noise), 10, 2)
    found = hashlib.sha256()
    for name in ("item", "left", "top", "flip", "sigma", "seed"):
        found.update(np.ascontiguousarray(table[name].to_numpy()).tobytes())
    assert table.schema.equals(plan.SCHEMA) and found.hexdigest()[:16] == digest


def test_a_chain_adds_a_column_of_levels_a_step_and_changes_no_other() -> None:
    default = plan.epoch_table(config_of(), 50, 3)
    one, two, three = (
        plan.epoch_table(config_of(degrade__chain=text), 50, 3)
        for text in ("noise:0..75", "noise:0..75+jpeg:10..90", "noise:0..75+jpeg:10..90+blur:1/2")
    )
    assert three.schema.names == [*plan.SCHEMA.names, "level0", "level1", "level2"]
    for table in (one, two, three):
        assert table.select(plan.SCHEMA.names).equals(default)
    assert one["level0"].equals(default["sigma"]) and two["level1"].equals(three["level1"])
    columns = [three[f"level{step}"].to_numpy() for step in range(3)]
    assert columns[1].min() >= 10 and columns[1].max() <= 90 and (columns[1] % 1 == 0).all()
    assert set(columns[2]) == {1, 2}
    assert abs(np.corrcoef(columns)[np.triu_indices(3, 1)]).max() < 0.35  # of 100 crops


def test_a_network_is_told_the_noise_of_a_chain_and_0_without() -> None:
    behind = plan.epoch_table(config_of(degrade__chain="jpeg:10..90+noise:5..20"), 50, 0)
    assert behind["sigma"].equals(behind["level1"]) and behind["sigma"].to_numpy().min() >= 5
    assert set(plan.epoch_table(config_of(degrade__chain="jpeg:10..90"), 50, 0)["sigma"].to_pylist()) == {0.0}


def test_levels_of_steps_share_no_draws_over_seeds_epochs_and_places() -> None:
    chain = "blur:0..9+blur:0..9+blur:0..9"
    configs = [config_of(degrade__chain=chain, train__seed=seed) for seed in (0, 1)]
    tables = [plan.epoch_table(config, 50, epoch) for config in configs for epoch in (0, 1)]
    levels = [table[f"level{step}"].to_pylist() for table in tables for step in range(3)]
    assert len({value for column in levels for value in column}) > 0.999 * 12 * 100


def test_epochs_and_seeds_share_no_draws() -> None:
    seeds = [plan.epoch_table(config_of(train__seed=s), 100, e)["seed"].to_pylist() for s in (0, 1) for e in (0, 1, 2)]
    assert len({seed for row in seeds for seed in row}) == 6 * 200
    orders = [plan.epoch_table(config_of(), 100, epoch)["item"].to_pylist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4


def test_what_is_drawn_for_a_crop_does_not_depend_on_the_mixing() -> None:
    one, other = (plan.epoch_table(config_of(shuffle=n), 20, 0).sort_by("seed") for n in (1, 20))
    assert one.equals(other)


def test_crops_mix_only_with_those_of_their_group() -> None:
    items = plan.epoch_table(config_of(each=4, shuffle=5), 20, 0)["item"].to_numpy().reshape(4, 20)
    assert [len(set(group)) for group in items] == [5, 5, 5, 5]
    assert any(len(set(group[:4])) > 1 for group in items)


def test_the_distributions_that_were_asked_for() -> None:
    uniform = plan.epoch_table(config_of(noise__sigma=[10, 30]), 5000, 0)
    sigma = uniform["sigma"].to_numpy()
    # 10,000 draws: the mean of a uniform is within 5 standard errors (5.8 / 100).
    assert abs(sigma.mean() - 20) < 0.29
    assert 10 <= sigma.min() < 10.1
    assert 29.9 < sigma.max() <= 30
    assert abs(uniform["flip"].to_numpy().mean() - 0.5) < 0.025
    listed = plan.epoch_table(config_of(noise__sigma=[15, 25, 50], noise__draw="list"), 5000, 0)["sigma"].to_numpy()
    assert set(listed) == {15, 25, 50}
    assert np.abs(np.unique(listed, return_counts=True)[1] / 10000 - 1 / 3).max() < 0.025
    assert not any(plan.epoch_table(config_of(data__flip=False), 50, 0)["flip"].to_pylist())


@settings(deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 10**6), st.one_of(st.none(), st.integers(1, 200)))
def test_tasks_cover_every_step_that_is_left_exactly_once(
    sizes: tuple[int, ...], epochs: int, first: int, limit: int | None
) -> None:
    items, each, batch, shuffle = sizes
    config = config_of(each, batch, shuffle, train__epochs=epochs, train__max_steps=limit)
    an_epoch, total = plan.steps_per_epoch(config, items), plan.total_steps(config, items)
    if not total:
        return
    first %= total
    ranges = task_ranges(config, items, first, total)
    steps = [step for start, end in ranges for step in range(start, end)]
    assert steps == list(range(first, total))
    assert all(start // an_epoch == (end - 1) // an_epoch for start, end in ranges)  # each within its epoch
    assert all(end - start <= plan.steps_per_task(config) for start, end in ranges)


def test_lengths() -> None:
    config = config_of(each=3, batch=4, train__epochs=5)
    assert plan.steps_per_epoch(config, 7) == 5  # 21 crops, one left over
    assert plan.total_steps(config, 7) == 25
    assert plan.total_steps(config.replace({"train.max_steps": 8}), 7) == 8
    assert plan.total_steps(config.replace({"train.max_steps": 80}), 7) == 25
    rows = [plan.crops_of(plan.epoch_table(config, 7, 0), config, step, step + 1).num_rows for step in range(5)]
    assert rows == [4] * 5
