"""The named runs: each valid, and each what its name says."""

from __future__ import annotations

import pytest

from pipelines.config import Config, ConfigError, load
from pipelines.recipes import recipe, recipes


def test_a_recipe_knows_its_name_and_survives_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("recipes") / "config.yaml"
    for name, config in recipes().items():
        assert config.recipe == name
        assert config == recipe(name)
        config.save(path)
        assert load(path) == config


@pytest.mark.parametrize("name", list(recipes()))
def test_what_the_names_promise(name: str) -> None:
    config = recipe(name)
    assert (config.loss.weight == 0) == ("_l1" in name)
    assert (config.loss.patch_size is not None) == ("internal" in name)
    small = name.endswith("_cpu") or name == "demo"
    assert config.train.use_gpu != small
    assert config.model == Config().model or small


def test_the_settings_of_the_paper() -> None:
    config = recipe("ffdnet_d2sm")
    assert config.data.crop_size == 512
    assert config.noise.sigma == (0, 75)
    assert config.train.lr == 1e-4
    assert config.train.halve_at == (80, 160, 240, 320, 400)
    assert config.train.schedule == "halve"
    assert config.loss.features == "vgg19.conv5_4"
    assert config.evaluate.sigmas == (25, 35, 50)
    assert (config.model.width, config.model.depth) == (96, 12)
    # What the loss adds is compared with the same run without it.
    differ = {key for key, value in config.flat().items() if recipe("ffdnet_l1").flat()[key] != value}
    assert differ == {"recipe", "loss.weight"}


def test_the_demo_fits_two_cores_and_needs_no_download() -> None:
    config = recipe("demo")
    train = config.train
    assert train.num_workers == 2
    assert train.num_workers * train.cpus_per_worker + train.data_cpus <= 4  # session.start hands out twice the cores
    assert config.loss.features.startswith("efficientnet_lite0")
    assert config.evaluate.segmenter == "espnet-scenes"


@pytest.mark.parametrize("name, near", [("ffdnet_d2sn", "ffdnet_d2sm"), ("Demo", "demo"), ("", "")])
def test_an_unknown_recipe(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe '{name}': did you mean {near}.*Known: ffdnet_l1, ") as error:
        recipe(name)
    assert "\n" not in str(error.value)
