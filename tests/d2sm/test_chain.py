"""Chains of degradations: their text, their levels, their names, and images degraded step by step."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from d2sm import chain
from d2sm.chain import ChainError, parse
from d2sm.degradations import DEGRADATIONS
from d2sm.noise import add_noise, seed_of

ALL = "blur:0.5..3+motion:0..12+downsample:2..4+haze:0..2+poisson:100/1000+noise:0..50+noise_clip:5+jpeg:30..95"


def test_docstring_examples_run() -> None:
    failed, attempted = doctest.testmod(chain)
    assert failed == 0 and attempted >= 4


@pytest.mark.parametrize(
    "text, name, level, sigma",
    [
        ("noise:25", "25", (25,), 25),
        ("noise:12.5", "12.5", (12.5,), 12.5),
        ("jpeg:10", "jpeg10", (10,), 0),
        ("blur:2+noise:10", "blur2+noise10", (2, 10), 10),
        ("noise_clip:50", "noise_clip50", (50,), 50),
        ("noise:30+noise_clip:40", "noise30+noise_clip40", (30, 40), 50),
        ("my.own:fog:0.5+noise:0", "fog0.5+noise0", (0.5, 0), 0),
    ],
)
def test_a_fixed_chain_has_a_name_and_tells_the_sigma_of_its_noise(
    text: str, name: str, level: tuple[float, ...], sigma: float
) -> None:
    found = parse(text)
    assert (found.is_fixed, found.name, found.level, found.sigma, str(found)) == (True, name, level, sigma, text)
    assert found.fixed_levels() == (found,) and parse(str(found)) == found


@pytest.mark.parametrize(
    "text, levels",
    [
        ("jpeg:10..60", ["jpeg48", "jpeg35", "jpeg22"]),  # from mild to strong
        ("noise:0..50", ["12", "25", "38"]),
        ("jpeg:40/10/20", ["jpeg40", "jpeg20", "jpeg10"]),
        ("downsample:2..3", ["downsample2", "downsample3"]),
        ("blur:0..2+jpeg:20..100", ["blur0.5+jpeg80", "blur1+jpeg60", "blur1.5+jpeg40"]),
        ("blur:1/2/3+noise:10", ["blur1+noise10", "blur2+noise10", "blur3+noise10"]),
        ("blur:1..1", ["blur1"]),
    ],
)
def test_a_chain_with_ranges_is_measured_at_fixed_levels(text: str, levels: list[str]) -> None:
    found = parse(text)
    assert [level.name for level in found.fixed_levels()] == levels
    assert all(level.is_fixed for level in found.fixed_levels())


@pytest.mark.parametrize(
    "text, says",
    [
        ("jpg:10", "'jpg' is unknown; there are noise, .*; did you mean jpeg"),
        ("", "'' is unknown"),
        ("noise:1+", "'' is unknown"),
        ("noise:5,jpeg:4", "'noise:5,jpeg' is unknown"),
        ("jpeg", "'jpeg' has no level; write NAME:LEVEL"),
        ("a.b:c", "'a.b:c' has no level"),
        ("jpeg:ten", "'jpeg:ten': 'ten' is no level"),
        ("noise:-5", "'-5' is no level"),
        ("noise:nan", "'nan' is no level"),
        ("noise:1...2", "'1...2' is no level"),
        ("noise:1e3", "'1e3' is no level"),
        ("jpeg:0", "0 is no level of jpeg, which takes whole numbers from 1 to 100"),
        ("jpeg:10..101", "101 is no level of jpeg"),
        ("jpeg:10.5", "10.5 is no level of jpeg"),
        ("noise:300", "300 is no level of noise, which takes numbers from 0 to 255"),
        ("downsample:0", "0 is no level of downsample"),
        ("blur:3..1", "the low end comes first, blur:1..3"),
        ("../x:y:3", "'../x:y' is unknown"),
    ],
)
def test_a_text_that_is_no_chain_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ChainError, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_levels_are_drawn_from_the_whole_range_and_the_whole_list() -> None:
    place = np.linspace(0, 1, 1000, endpoint=False)
    by_name = {str(step): step.at(place) for step in parse("noise:10..30+jpeg:5..9+blur:1/2/4").steps}
    assert by_name["noise:10..30"][[0, 500]].tolist() == [10, 20] and by_name["noise:10..30"].max() < 30
    for text, values in (("jpeg:5..9", [5, 6, 7, 8, 9]), ("blur:1/2/4", [1, 2, 4])):
        found, counts = np.unique(by_name[text], return_counts=True)
        assert found.tolist() == values and counts.max() - counts.min() <= 1


def images() -> torch.Tensor:
    return torch.rand(4, 3, 33, 46, generator=torch.Generator().manual_seed(0))


def levels(text: str) -> torch.Tensor:
    place = np.linspace(0.1, 0.9, 4)
    return torch.from_numpy(np.stack([step.at(place) for step in parse(text).steps], axis=1)).float()


def test_the_steps_are_done_one_after_the_other() -> None:
    text, seeds = "blur:2+noise:10..30+jpeg:20..90", [5, 6, 7, 8]
    found = parse(text).degraded(images(), levels=levels(text), seeds=seeds)
    expected = images()
    for place, name in enumerate(("blur", "noise", "jpeg")):
        own = [seed_of(f"{seed}/{place}") for seed in seeds] if place else seeds
        expected = DEGRADATIONS[name].load()(expected, level=levels(text)[:, place], seeds=own)
    assert torch.equal(found, expected)


def test_noise_alone_is_add_noise() -> None:
    sigma, seeds = torch.tensor([5.0, 15.0, 25.0, 35.0]), [1, 2, 3, 4]
    noisy = chain.noise([0, 75], "uniform").degraded(images(), levels=sigma[:, None], seeds=seeds)
    assert torch.equal(noisy, add_noise(images(), sigma=sigma, seeds=seeds))


def test_two_steps_of_noise_are_independent() -> None:
    grey = torch.full((1, 3, 200, 200), 0.5)
    twice = parse("noise:20+noise:20").degraded(grey, levels=torch.tensor([[20.0, 20.0]]), seeds=[3])
    once = parse("noise:20").degraded(grey, levels=torch.tensor([[20.0]]), seeds=[3])
    first, second = once - grey, twice - once
    assert abs((first * second).mean() / (first.std() * second.std())) < 5 / 200 / 3**0.5
    assert (twice - grey).std().item() * 255 == pytest.approx(parse("noise:20+noise:20").sigma, rel=0.02)


def test_an_image_is_degraded_alike_in_every_batch() -> None:
    found = parse(ALL).degraded(images(), levels=levels(ALL), seeds=[1, 2, 3, 4])
    for row in range(4):
        alone = parse(ALL).degraded(images()[row : row + 1], levels=levels(ALL)[row : row + 1], seeds=[row + 1])
        assert torch.equal(alone[0], found[row])
    channels_last = images().to(memory_format=torch.channels_last)
    assert torch.equal(parse(ALL).degraded(channels_last, levels=levels(ALL), seeds=[1, 2, 3, 4]), found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("electrons", [1000.0, 1e5])  # float16 ends at 65504
def test_photon_noise_of_half_precision_images_is_that_of_float32(electrons: float, dtype: torch.dtype) -> None:
    clean = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    level = torch.tensor([[electrons]])
    chain = parse(f"poisson:{electrons:g}")
    found, wanted = (chain.degraded(each, levels=level, seeds=[3]) for each in (clean, clean.float()))
    assert found.dtype == dtype and torch.equal(found, wanted.to(dtype))


def test_one_level_a_step_and_one_seed_an_image() -> None:
    for given, seeds in (
        (torch.full((1, 1), 5.0), [1, 2, 3, 4]),
        (torch.full((4,), 5.0), [1, 2, 3, 4]),
        (torch.full((4, 2), 5.0), [1, 2, 3, 4]),
        (torch.full((4, 1), 5.0), [1, 2]),
    ):
        with pytest.raises(ValueError, match=rf"levels: shape .* and {len(seeds)} seeds; give \(4, 1\).* 4 seeds"):
            parse("noise:5").degraded(images(), levels=given, seeds=seeds)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_images_that_are_not_in_0_to_1_are_refused(name: str) -> None:
    chain = parse(f"{name}:{max(DEGRADATIONS[name].low, 2):g}")
    for wrong, says in (
        ((255 * images()).byte(), "clean: torch.uint8; give floating point in .* / 255"),
        (255 * images(), r"clean: values from .* to 25.; give images in \[0, 1\]"),
        (torch.cat([255 * images()[:1], images()[1:]]), r"clean: values from .* to 25"),
        (images()[:, :1], r"clean: shape \(4, 1, 33, 46\)"),
    ):
        with pytest.raises(ValueError, match=says):
            chain.degraded(wrong, levels=torch.tensor([chain.level] * 4), seeds=[1, 2, 3, 4])


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("jpeg", 0.0), ("jpeg", 150.0), ("noise", -5.0), ("noise", float("nan")), ("poisson", 0.0),
        ("downsample", 0.0), ("blur", -1.0), ("motion", -3.0), ("haze", 11.0),
    ],
)  # fmt: skip
def test_a_level_that_a_step_does_not_take_is_refused(name: str, level: float) -> None:
    """In any column, for any image."""
    chain = parse(f"noise:5+{name}:{max(DEGRADATIONS[name].low, 2):g}")
    levels = torch.tensor([chain.level] * 4)
    levels[2, 1] = level
    with pytest.raises(ValueError, match=f"levels: {level:g} is no level of {name}, which takes .* from"):
        chain.degraded(images(), levels=levels, seeds=[1, 2, 3, 4])
