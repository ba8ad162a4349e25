"""The named runs: each valid, and each what its name says."""

from __future__ import annotations

import pytest

from d2sm.degradations import DEGRADATIONS
from d2sm.models import BACKBONES
from pipelines.config import Config, ConfigError, load
from pipelines.recipes import descriptions, recipe, recipes


def test_a_recipe_knows_its_name_and_survives_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("recipes") / "config.yaml"
    for name, config in recipes().items():
        assert config.recipe == name
        assert config == recipe(name)
        config.save(path)
        assert load(path) == config


@pytest.mark.parametrize("name", list(recipes()))
def test_what_the_names_promise(name: str) -> None:
    config, row = recipe(name), name.removesuffix("_cpu").removesuffix("_gpu")
    terms = config.loss.terms
    assert ("d2sm" in terms) == ("d2sm" in row or row in ("demo", "ffdnet_inverse_kl", "ffdnet_jsd"))
    assert (config.loss.patch_size is not None) == ("internal" in row or config.loss.divergence != "kl")
    backbone = row.partition("_")[0]
    assert config.model.name == (backbone if backbone in BACKBONES else "ffdnet")
    small = name.endswith("_cpu") or name == "demo"
    assert config.train.use_gpu != small
    full = (config.model.width, config.model.depth) == (Config().model.width, Config().model.depth)
    assert full == (not small or config.model.name != "ffdnet")


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


def test_each_is_described_in_one_sentence() -> None:
    about = descriptions()
    assert about.keys() == recipes().keys() and len(set(about.values())) == len(about)
    for name, text in about.items():
        assert text[0].isupper() and text.endswith(".") and len(text) < 120
        assert ("GPU" in text) == name.endswith("_gpu") and ("CPU" in text) == name.endswith("_cpu")
        assert ("D2SM" in text) == ("d2sm" in recipe(name).loss.terms)


TABLE_1 = {
    "ffdnet": ("l1", "ssim", "perceptual", "lpips", "contextual", "cross_entropy", "d2sm", "d2sm_internal"),
    "cbdnet": ("own", "d2sm", "d2sm_internal"),
    "sadnet": ("own", "d2sm", "d2sm_internal"),
}


@pytest.mark.parametrize("suffix", ["", "_gpu", "_cpu"])
def test_every_row_of_the_tables(suffix: str) -> None:
    rows = [f"{backbone}_{objective}" for backbone, objectives in TABLE_1.items() for objective in objectives]
    assert {f"{row}{suffix}" for row in (*rows, "ffdnet_inverse_kl", "ffdnet_jsd", "ffdnet_gan")} <= recipes().keys()
    for objective in ("ssim", "perceptual", "lpips", "contextual", "cross_entropy"):
        assert recipe(f"ffdnet_{objective}{suffix}").loss.terms.keys() == {"l1", objective}
    assert recipe(f"ffdnet_gan{suffix}").loss.terms == {"l1": 1.0, "adversarial": 0.002}
    own = {"cbdnet": {"mse": 1.0, "noise_asymmetry": 0.5, "noise_tv": 0.05}, "sadnet": {"mse": 1.0}}
    for backbone, terms in own.items():
        assert recipe(f"{backbone}_own{suffix}").loss.terms == terms
        assert recipe(f"{backbone}_d2sm{suffix}").loss.terms == {**terms, "d2sm": 0.5}


@pytest.mark.parametrize("suffix", ["_gpu", "_cpu"])
def test_reduced_rows_differ_as_the_rows_do(suffix: str) -> None:
    """By the same keys, but for the loss's own sizes, which follow Phi and the crop."""
    for name in (name for name in recipes() if name.endswith(suffix) and name.removesuffix(suffix) in recipes()):
        base = "ffdnet_l1" if name.startswith("ffdnet") else f"{name.partition('_')[0]}_own"
        rows, reduced = (
            (recipe(f"{base}{s}").flat(), recipe(name.removesuffix(suffix) + s).flat()) for s in ("", suffix)
        )
        full, small = ({key for key in a if a[key] != b[key]} for a, b in (rows, reduced))
        assert full - {"recipe"} == small - {"recipe", "loss.lpips_trunk"}


@pytest.mark.parametrize("suffix", ["_gpu", "_cpu"])
def test_there_is_a_recipe_for_every_degradation(suffix: str) -> None:
    """Each differs from the row against noise by its chain, and by the levels at which it is measured."""
    others = [name for name in recipes() if name.endswith(suffix) and name.removesuffix(suffix) not in recipes()]
    steps = {step.degradation.name for name in others for step in recipe(name).degradation.steps}
    assert steps == DEGRADATIONS.keys() - {"noise"}
    for name in others:
        row, config = recipe(f"ffdnet_d2sm{suffix}").flat(), recipe(name)
        differ = {key for key, value in config.flat().items() if row[key] != value}
        assert differ == {"recipe", "degrade.chain", "evaluate.levels"} and not config.degradation.is_noise
        for level in config.levels:  # within what is trained on
            for step, trained in zip(level.steps, config.degradation.steps, strict=True):
                assert step.degradation == trained.degradation
                assert min(trained.levels) <= step.levels[0] <= max(trained.levels)


def test_the_demo_fits_two_cores_and_needs_no_download() -> None:
    config = recipe("demo")
    train = config.train
    assert train.num_workers == 2
    assert train.num_workers * train.cpus_per_worker + train.data_cpus <= 4  # session.start hands out twice the cores
    assert config.loss.features.startswith("efficientnet_lite0")
    assert config.evaluate.segmenter == "espnet-scenes"


@pytest.mark.parametrize("name, near", [("ffdnet_d2sn", "ffdnet_d2sm"), ("Demo", "demo"), ("", "")])
def test_an_unknown_recipe(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe '{name}': .*did you mean {near}.*Known: ffdnet_l1, ") as error:
        recipe(name)
    assert "\n" not in str(error.value)
