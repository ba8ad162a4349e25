"""What each key of the configuration changes, and that everything which depends on it follows: resuming a run, the name
of a table's row, whether a run is done already, the search space and the continuation of a sweep, and a cluster job."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from cluster.cli.arguments import for_cluster
from pipelines import config as configs
from pipelines import parallel, sections
from pipelines.comparison.rows import changed_keys, label
from pipelines.config import Config, ConfigError, effect, keys, keys_with
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import RESULTS
from pipelines.sections import Effect
from tests.helpers.finished_runs import results
from tuning import space
from tuning.space import SpaceError

# Every key but those of "results", so that a new or changed classification is a decision.
EFFECTS: dict[Effect, set[str]] = {
    "length": {"train.max_steps", "train.patience"},
    "run": {"train.name", "train.seed"},
    "evaluation": {
        "data.val_split", "evaluate.sigmas", "evaluate.levels", "evaluate.segmenter", "evaluate.segmenters",
        "evaluate.lpips", "evaluate.limit",
    },
    "speed": {
        "data.bad_images", "train.accumulate", "train.recompute", "train.compile", "train.cuda_graphs",
        "train.num_workers", "train.use_gpu", "train.cpus_per_worker", "train.gpus_per_worker", "train.threads",
        "train.data_cpus", "train.max_failures", "evaluate.actors", "evaluate.threads", "evaluate.use_gpu",
        "evaluate.tile",
    },
    "place": {
        "data.root", "model.weights", "loss.lpips_heads", "loss.lpips_weights", "loss.segmenter_weights",
        "loss.features_weights", "train.storage", "evaluate.segmenter_weights", "evaluate.segmenters_weights",
        "evaluate.lpips_weights", "tracking.uri",
    },
    "record": {
        "recipe", "train.log_every", "train.checkpoint_every", "train.keep", "evaluate.pictures",
        "tracking.experiment", "tracking.register_as", "tracking.parent", "tracking.alias",
    },
}  # fmt: skip
# Another valid value, where the default does not suggest one.
VALUES: dict[str, Any] = {
    "recipe": "ffdnet_l1", "noise.sigma": [5.0, 50.0], "degrade.chain": "jpeg:10..60", "evaluate.levels": ["jpeg:10"],
    "model.name": "sadnet", "train.betas": [0.5, 0.9],
    "train.max_steps": 5, "train.clip": 1.0, "train.ema": 0.5, "train.gpus_per_worker": 0.5, "evaluate.sigmas": [15.0],
    "train.halve_at": [8], "loss.patch_size": 32, "loss.class_regions": 2,
    "evaluate.limit": 1, "evaluate.tile": 64, "evaluate.actors": 3,
    "evaluate.lpips": "vgg16", "model.options": {"width": 8}, "data.labels": "camvid",
    "train.validate_every": 7, "train.best": "psnr.sigma25", "train.patience": 3,
    "loss.layer_weights": [2.0], "loss.temperature": 0.3, "loss.gradient_ratio": 0.5,
}  # fmt: skip
# What has to be so for that value to be valid.
BESIDE: dict[str, dict[str, Any]] = {
    "model.options": {"model.name": "mine:network"},
    "model.weights": {"model.name": "spandrel"},
    "loss.cross_entropy": {"loss.segmenter": "espnet-camvid"},
    "loss.noise_asymmetry": {"model.name": "cbdnet"},
    "loss.noise_tv": {"model.name": "cbdnet"},
    "evaluate.segmenters": {"evaluate.segmenter": "espnet-camvid"},
    "evaluate.segmenters_weights": {"evaluate.segmenter": "espnet-camvid", "evaluate.segmenters": ["espnet-camvid"]},
    "train.cuda_graphs": {"train.use_gpu": True},
    "train.best": {"train.validate_every": 5},
    "train.patience": {"train.validate_every": 5, "train.best": "psnr.sigma25"},
    "loss.temperature": {"loss.kernel": "exp"},
}

# A key that has a single valid value until something is added to its list (`d2sm.degradations`) cannot be changed.
CHANGEABLE = [key for key, field in keys().items() if len(get_args(field.annotation)) != 1]


def another(key: str) -> Any:
    """A valid value of a key that is not its default."""
    field, value = keys()[key], Config().flat()[key]
    if key in VALUES:
        return VALUES[key]
    if get_origin(field.annotation) is Literal:
        return next(choice for choice in get_args(field.annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return ["layer"] if isinstance(value, list) else "other"


def pair(key: str, storage: Path) -> tuple[Config, Config]:
    """Two runs in a folder that differ in this key only."""
    one = Config().replace({"train.storage": str(storage), "train.name": "run", **BESIDE.get(key, {})})
    value = str(storage / "other") if key == "train.storage" else another(key)
    return one, one.replace({key: value})


def left_by(config: Config, folder: Path) -> None:
    """What a finished and evaluated run leaves in a folder, but for its weights."""
    about = {"step": 8, "steps": 8, "final": True, "commit": "c0ffee", "dirty": False, "name": config.train.name}
    weights = {"weight": torch.zeros(1)}
    checkpoint.write(folder / checkpoint.name_of(8), weights=weights, state={}, config=config, meta=about)
    config.save(folder / checkpoint.CONFIG)
    results().save(folder / RESULTS)


def test_every_key_has_an_effect() -> None:
    assert {effect(key) for key in keys()} == set(get_args(Effect))
    assert {one: set(keys_with(one)) for one in get_args(Effect) if one != "results"} == EFFECTS
    with pytest.raises(ConfigError, match=r"loss\.queue.*loss\.queue_size"):
        effect("loss.queue")


@pytest.mark.parametrize("key", CHANGEABLE)
def test_differences_are_those_of_the_effects_asked_for(key: str, tmp_path: Path) -> None:
    one, other = pair(key, tmp_path)
    difference = {key: (one.flat()[key], other.flat()[key])}
    assert one.differences(other, effect(key)) == one.differences(other, *get_args(Effect)) == difference
    assert not one.differences(other, *(set(get_args(Effect)) - {effect(key)}))


@pytest.mark.parametrize("key", CHANGEABLE)
def test_a_run_is_resumed_unless_its_weights_would_be_others(key: str, tmp_path: Path) -> None:
    one, other = pair(key, tmp_path)
    folder = RunFolder.of(other)
    left_by(one, folder.path)
    if effect(key) in ("results", "run"):
        with pytest.raises(ConfigError) as error:
            folder.open(other, "abc")
        assert str(error.value).startswith(f"{key}={other.flat()[key]}") and "\n" not in str(error.value)
    else:
        folder.open(other, "abc")
        assert configs.load(folder.config_file) == other


@pytest.mark.parametrize("key", CHANGEABLE)
def test_a_row_is_named_by_what_is_trained(key: str, tmp_path: Path) -> None:
    one, other = pair(key, tmp_path)
    assert (key in changed_keys(other)) == (effect(key) in ("results", "length"))
    if key != "recipe":  # a row is named after its recipe
        assert (label(one) != label(other)) == (effect(key) in ("results", "length"))


@pytest.mark.parametrize("key", CHANGEABLE)
def test_a_run_is_done_when_its_numbers_would_be_the_same(key: str, tmp_path: Path) -> None:
    one, other = pair(key, tmp_path)
    left_by(one, RunFolder.of(other).path)
    assert parallel.is_done(other) == (effect(key) in ("speed", "place", "record"))


@pytest.mark.parametrize("key", CHANGEABLE)
def test_a_sweep_is_over_keys_that_change_a_trials_result(key: str, tmp_path: Path) -> None:
    _, other = pair(key, tmp_path)
    values = {key: [other.flat()[key]]}
    if effect(key) == "results" or key == "train.seed":
        space.check(values)
    else:
        with pytest.raises(SpaceError) as error:
            space.check(values)
        assert str(error.value).startswith(f"{key}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("key", keys_with("place"))
def test_a_relative_path_is_not_sent_to_a_cluster(key: str) -> None:
    places = {"data.root": "/data", "train.storage": "/runs"}
    words = ["train", "--recipe", "demo", *(f"{other}={value}" for other, value in places.items() if other != key)]
    words += ["evaluate.segmenters=[espnet-camvid,espnet-scenes]"] if key == "evaluate.segmenters_weights" else []
    words += [f"{other}={value}" for other, value in BESIDE.get(key, {}).items() if "segmenters" not in other]
    there, here = ("[/data/there,/a]", "[/data/there,here]") if "segmenters" in key else ("/data/there", "here")
    for_cluster([*words, f"{key}={there}"])
    with pytest.raises(ConfigError) as error:
        for_cluster([*words, f"{key}={here}"])
    assert str(error.value).startswith(f"{key}=here: ")


def test_pickled_configurations_of_earlier_versions_load() -> None:
    """They name all sections as classes of pipelines.config."""
    for section in (sections.Train, sections.Evaluate, sections.Tracking):
        assert getattr(configs, section.__name__) is section
        old = pickle.dumps(section(), protocol=2).replace(b"cpipelines.sections\n", b"cpipelines.config\n")
        assert b"pipelines.config\n" in old and pickle.loads(old) == section()


def test_the_values_of_these_tests_are_not_the_defaults() -> None:
    assert all(another(key) != Config().flat()[key] for key in CHANGEABLE)
    assert len(set(itertools.chain(*EFFECTS.values()))) == sum(map(len, EFFECTS.values()))
