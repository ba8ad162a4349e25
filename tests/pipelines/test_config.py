"""The configuration: every key explained, every mistake one line, and a file that reproduces it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.config import Config, ConfigError, from_tree, keys, load, parse
from pipelines.runs.folder import RunFolder
from pipelines.tracking import store


def test_every_key_is_explained() -> None:
    assert [key for key, field in keys().items() if not field.description] == []


def test_flat_keys_are_the_dotted_ones() -> None:
    flat = Config().flat()
    assert list(flat) == list(keys())
    assert flat["loss.queue_size"] == 1024
    assert flat["noise.sigma"] == [0.0, 75.0]
    assert Config().replace(flat) == Config()


@pytest.mark.parametrize("tile", ["auto", None, 32, 4096])
def test_tiles_are_chosen_or_given(tile: int | str | None) -> None:
    assert Config().replace({"evaluate.tile": tile}).evaluate.tile == tile


@pytest.mark.parametrize("tile", [31, "big"])
def test_what_is_no_tile_is_one_line(tile: object) -> None:
    with pytest.raises(ConfigError, match=f"^evaluate.tile={tile!r}: .*auto: whole") as error:
        Config().replace({"evaluate.tile": tile})
    assert "\n" not in str(error.value)


CHANGES: dict[str, Any] = {
    "recipe": "mine",
    "data.root": "/data/Straßen: #1",
    "data.flip": False,
    "noise.draw": "list",
    "noise.sigma": (15, 25, 50),
    "loss.patch_size": 32,
    "loss.queue_size": 4096,
    "train.name": "007",
    "train.max_steps": 3,
    "train.betas": (0.5, 0.9),
    "train.clip": 1e-3,
    "evaluate.sigmas": (12.5,),
    "evaluate.segmenter": "my.module:build",
    "tracking.alias": "null",
}


def test_a_saved_file_reproduces_it(tmp_path: Path) -> None:
    config = Config().replace(CHANGES)
    config.save(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    assert load(tmp_path / "config.yaml").flat() == config.flat()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))  # no path and no file can hold the others


@settings(max_examples=25, deadline=None, derandomize=True)
@given(name=TEXT, root=TEXT, lr=st.floats(1e-12, 1e3), sigma=st.lists(st.floats(0, 255), min_size=1))
def test_any_text_and_number_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, root: str, lr: float, sigma: list[float]
) -> None:
    config = Config().replace(
        {"tracking.experiment": name, "data.root": root, "train.lr": lr, "noise.sigma": sigma, "noise.draw": "list"}
    )
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    config.save(path)
    assert load(path) == config


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("train.storage", "/x/\udcff", r"half a character: '/x/\\udcff'"),  # a folder named in Latin-1
        ("data.root", "/x/\udcff", "half a character"),
        ("recipe", "\udcff", "half a character"),
        ("loss.perceptual_layers", ["relu1", "a\0b"], "a NUL"),
        ("model.options", {"a": [{"\udcff": 1}]}, "half a character"),
        ("model.options", {"a": (10**70,)}, "a number of more than 64 digits"),
        ("model.options", {"a": functools.reduce(lambda tree, _: [tree], range(40), 1)}, "deeper than 32"),
    ],
)
def test_what_no_file_can_hold_is_refused(key: str, value: object, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: .*{why}.*, which no saved configuration can hold; give another"):
        Config().replace({"model.name": "mine:Network", key: value})


def test_the_deepest_and_longest_that_a_file_can_hold(tmp_path: Path) -> None:
    deep = functools.reduce(lambda tree, _: [tree], range(28), 1)
    config = Config().replace({"model.name": "mine:Network", "model.options": {"a": deep, "b": 10**64 - 1}})
    config.save(tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml", given=True) == load(tmp_path / "config.yaml") == config
    with pytest.raises(ConfigError, match="deeper than 32"):
        Config().replace({"model.name": "mine:Network", "model.options": {"a": [[deep]]}})


def test_a_file_may_leave_keys_out(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("train: {epochs: 7}\n")
    assert load(tmp_path / "short.yaml") == Config().replace({"train.epochs": 7})


def test_it_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.train.lr = 1.0  # type: ignore[misc]
    assert hash(config) == hash(Config())
    changed = config.replace({"train.lr": 1.0})
    assert (config.train.lr, changed.train.lr) == (1e-4, 1.0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loss.queue_sise": 5}, ["loss.queue_sise", "loss.queue_size"]),
        ({"queue_size": 5}, ["queue_size", "loss.queue_size"]),
        ({"los.weight": 5}, ["los.weight", "loss.weight"]),
        ({"train": 3}, ["train: no such key"]),
        ({"train.epochs": "many"}, ["train.epochs='many'", "integer"]),
        ({"train.cpus_per_worker": 1e308}, ["train.cpus_per_worker=1e+308", "2147483647"]),
        ({"train.data_cpus": 1e308}, ["train.data_cpus=1e+308", "2147483647"]),
        ({"train.epochs": 1.5}, ["train.epochs=1.5", "integer"]),
        ({"train.use_gpu": "perhaps"}, ["train.use_gpu='perhaps'"]),
        ({"train.betas": [0.9]}, ["train.betas"]),
        ({"train.betas": [1.5, 0.9]}, ["train.betas=1.5", "less than 1"]),
        ({"train.betas": [0.9, -3]}, ["train.betas=-3", "greater than or equal to 0"]),
        ({"train.halve_at": [5, -5]}, ["train.halve_at=-5", "greater than or equal to 0"]),
        ({"data.layout": "citiscapes"}, ["data.layout='citiscapes'", "'cityscapes', 'folder' or 'pairs'"]),
        ({"loss.divergence": "tv"}, ["loss.divergence='tv'", "'kl', 'inverse_kl' or 'jsd'"]),
        ({"train.lr": 0}, ["train.lr=0", "greater than 0"]),
        ({"train.lr": float("nan")}, ["train.lr=nan"]),
        ({"train.lr": float("inf")}, ["train.lr=inf"]),
        ({"train.ema": 1.0}, ["train.ema=1.0", "less than 1"]),
        ({"data.crop_size": 8}, ["data.crop_size=8", "16"]),
        ({"noise.sigma": [0, 300]}, ["noise.sigma", "300", "0 to 255"]),
        ({"noise.sigma": [50, 10]}, ["noise.sigma=[50.0, 10.0]", "noise.draw"]),
        ({"noise.sigma": [float("nan"), 75]}, ["noise.sigma", "nan"]),
        ({"noise.sigma": []}, ["noise.sigma"]),
        ({"evaluate.sigmas": []}, ["evaluate.sigmas"]),
        ({"evaluate.sigmas": [-25]}, ["evaluate.sigmas", "-25"]),
        ({"evaluate.sigmas": [25, 50, 25]}, ["evaluate.sigmas=25.0", "the name 25 too"]),
        ({"evaluate.sigmas": [25, 25.0000001]}, ["evaluate.sigmas=25.0000001", "the name 25 too"]),
        ({"loss.queue_size": 15}, ["loss.queue_size=15", "16 samples"]),
        ({"loss.patch_size": 32, "loss.queue_size": 255}, ["loss.queue_size=255", "256 samples"]),
        ({"loss.patch_size": 48}, ["loss.patch_size=48", "data.crop_size=128"]),
        ({"train.num_workers": 3}, ["train.batch_size=16", "train.num_workers=3"]),
        ({"train.num_workers": -1}, ["train.num_workers=-1", "from 0 on"]),
        ({"train.num_workers": [0, 2]}, ["train.num_workers=[0, 2]", "min from 1 on"]),
        ({"train.num_workers": [4, 2]}, ["train.num_workers=[4, 2]", "[min, max]"]),
        ({"train.num_workers": [2, 20]}, ["train.num_workers=[2, 20]", "train.batch_size=16"]),
        (
            {"data.layout": "pairs"},
            ["noise.sigma=[0.0, 75.0]", "pairs", "model.name=ffdnet", "model.name=cbdnet or sadnet"],
        ),
        (
            {"data.layout": "pairs", "model.name": "cbdnet", "loss.noise_asymmetry": 1},
            ["noise.sigma=[0.0, 75.0]", "loss.noise_asymmetry is told"],
        ),
        ({"degrade.chain": "jpg:10..60"}, ["degrade.chain=jpg:10..60", "did you mean jpeg?"]),
        ({"degrade.chain": "blur:1+jpeg:0..60"}, ["degrade.chain=blur:1+jpeg:0..60", "'jpeg:0..60'", "from 1 to 100"]),
        ({"degrade.chain": 5}, ["degrade.chain=5", "string"]),
        ({"degrade.chain": "jpeg:10", "noise.sigma": [0, 50]}, ["noise.sigma=[0.0, 50.0]", "degrade.chain=jpeg:10"]),
        (
            {"degrade.chain": "jpeg:9", "evaluate.sigmas": [25]},
            ["evaluate.sigmas=[25.0]", "evaluate.levels", "[jpeg:9]"],
        ),
        ({"evaluate.levels": ["jpeg:10..60"]}, ["evaluate.levels=jpeg:10..60", "fixed levels", "jpeg:22"]),
        ({"evaluate.levels": ["jpg:10"]}, ["evaluate.levels=jpg:10", "did you mean jpeg?"]),
        ({"evaluate.levels": ["noise:5", "noise:5.0"]}, ["evaluate.levels=noise:5.0", "the name 5 too"]),
        ({"evaluate.levels": ["a.b:f:1", "b.c:f:1"]}, ["evaluate.levels=b.c:f:1", "the name f1 too"]),
        ({"evaluate.levels": []}, ["evaluate.levels=[]", "at least 1"]),
        ({"evaluate.levels": "jpeg:10"}, ["evaluate.levels='jpeg:10'", "tuple"]),
        (
            {"data.layout": "pairs", "model.name": "sadnet", "degrade.chain": "jpeg:10"},
            ["degrade.chain=jpeg:10", "data.layout=pairs", "degraded already"],
        ),
        (
            {"data.layout": "pairs", "model.name": "sadnet", "evaluate.levels": ["jpeg:10", "blur:2"]},
            ["evaluate.levels=[jpeg:10, blur:2]", "data.layout=pairs", "degraded already"],
        ),
        ({"noise.degradation": "gaussian"}, ["noise.degradation", "degrade.chain"]),
        ({"model.name": "unet"}, ["model.name=unet", "ffdnet, cbdnet, sadnet, spandrel, or module:callable"]),
        ({"model.name": "sadnet", "model.width": 32}, ["model.width=32", "model.name=sadnet", "96"]),
        ({"model.name": "cbdnet", "model.depth": 8}, ["model.depth=8", "model.name=cbdnet", "12"]),
        ({"loss.l1": 0, "loss.weight": 0}, ["loss.l1=0", "weights are 0"]),
        ({"loss.noise_asymmetry": 0.5}, ["loss.noise_asymmetry=0.5", "model.name=ffdnet", "model.name=cbdnet"]),
        ({"loss.cross_entropy": 1}, ["loss.cross_entropy=1", "loss.segmenter"]),
        (
            {"loss.cross_entropy": 1, "loss.segmenter": "espnet-camvid", "data.layout": "folder"},
            ["loss.cross_entropy=1", "data.layout=folder", "no labels"],
        ),
        (
            {"loss.class_regions": 4, "data.layout": "folder"},
            ["loss.class_regions=4: data.layout=folder has no labels; set it to null, or data.layout=cityscapes"],
        ),
        ({"loss.class_regions": 4, "loss.patch_size": 64}, ["loss.class_regions=4", "loss.patch_size=null"]),
        (
            {"loss.class_regions": 4, "loss.queue_size": 63},
            [
                "loss.queue_size=63",
                "the 64 samples",
                "train.batch_size x loss.class_regions",
                "lower loss.class_regions",
            ],
        ),
        ({"loss.class_regions": 0}, ["loss.class_regions=0", "greater than or equal to 1"]),
        ({"loss.ssim": -1}, ["loss.ssim=-1", "greater than or equal to 0"]),
        ({"loss.adversarial_lr": 0}, ["loss.adversarial_lr=0", "greater than 0"]),
        ({"model.width": 2_000_000}, ["model.width=2000000", "less than or equal to 8192"]),
        ({"model.depth": 10**9}, ["model.depth=1000000000", "less than or equal to 1000"]),
        ({"data.crop_size": 10**9}, ["data.crop_size=1000000000", "less than or equal to 16384"]),
        ({"loss.queue_size": 10**12}, ["loss.queue_size=1000000000000", "less than or equal to"]),
        ({"train.threads": 10**6}, ["train.threads=1000000", "less than or equal to 1024"]),
        ({"train.epochs": 10**60}, ["train.epochs=1000", "less than or equal to 2147483647"]),
        ({"train.max_steps": 2**31}, ["train.max_steps=2147483648", "less than or equal to 2147483647"]),
        ({"train.epochs": [["x" * 1000]]}, ["train.epochs=[['xxx", "...", "integer"]),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Config().replace(changes)
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "override",
    ["train.clip=true", "evaluate.limit=true", "train.lr=true", "train.seed=false", "evaluate.tile=true",
     "loss.l1=true", "train.num_workers=[true, 2]", "evaluate.sigmas=[true, 25]", "train.betas=[false, 0.9]"],
)  # fmt: skip
def test_true_and_false_are_no_numbers(override: str) -> None:
    key, said = override.split("=")[0], "false" if "false" in override else "true"
    with pytest.raises(ConfigError, match=f"^{key}={said}: is no number") as error:
        Config().replace(parse([override]))
    assert len(error.value.reasons) == 1


def test_true_and_false_stay_where_they_may_be() -> None:
    own = {"model.name": "a.module:network", "model.options": {"bias": True, "sizes": [1, False]}, "data.flip": False}
    config = Config().replace(own)
    assert config.model.options == own["model.options"] and config.data.flip is False


def test_a_queue_may_be_short_where_there_is_none() -> None:
    assert Config().replace({"loss.queue_size": 2, "loss.weight": 0}).loss.queue_size == 2


def test_blind_backbones_take_the_default_sizes() -> None:
    for name in ("cbdnet", "sadnet"):
        assert Config().replace({"model.name": name, "model.width": 96, "model.depth": 12}).model.name == name


@pytest.mark.parametrize(
    "text, words",
    [
        ("loss: {queue_sise: 5}", ["loss.queue_sise", "loss.queue_size"]),
        ("train: {lr: -1}", ["train.lr=-1"]),
        ("train: 3", ["train"]),
        ("a: [1", ["no valid YAML"]),
        ("just words", ["no sections"]),
        ("", ["no sections"]),
        ("3: 4", ["3"]),
        ("!!python/object/apply:os.system ['true']", ["no valid YAML"]),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\x89PNG\xff\x00")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match=str(path)) as error:
            load(path)
        assert "\n" not in str(error.value)


def test_overrides_of_the_command_line() -> None:
    changes = parse(
        [
            "train.lr=1e-3",
            "noise.sigma=[15, 25]",
            "train.clip=null",
            "train.name=007",
            "data.root=a=b",
            "tracking.alias=",
        ]
    )
    config = Config().replace(changes)
    assert config.train.lr == 1e-3
    assert config.noise.sigma == (15, 25)
    assert config.train.clip is None
    assert config.train.name == "007"  # text stays as it was typed
    assert config.data.root == "a=b"
    assert config.tracking.alias == ""


@pytest.mark.parametrize("text", ["train.lr", "lr", "", "train.epoch=3", "noise.sigma=[1", "=3"])
def test_a_bad_override_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config().replace(parse([text]))
    assert "\n" not in str(error.value)
    assert text.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.lr=1", "train.epochs=2", "train.lr=1"], "train.lr=1: train.lr is given twice, first as train.lr=1;"),
        (["data.root=a", "data.root=b"], "data.root=b: data.root is given twice, first as data.root=a;"),
        (["model.options.width=3", "model.options={depth: 4}"], "model.options.width=3: model.options={depth: 4} says"),
        (["model.options={depth: 4}", "model.options.width=3"], "model.options.width=3: model.options={depth: 4} says"),
    ],
)
def test_a_key_is_typed_once(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}") as error:
        parse(overrides)
    assert len(error.value.reasons) == 1


def test_entries_of_a_mapping_do_not_depend_on_the_order() -> None:
    changes = {"model.options.width": 32, "model.name": "mine:Network", "model.options": {"depth": 4, "width": 1}}
    for ordered in (changes, dict(reversed(changes.items()))):
        assert Config().replace(ordered).model.options == {"depth": 4, "width": 32}


def test_the_degradations_of_training_and_of_evaluation() -> None:
    config = Config()
    assert str(config.degradation) == "noise:0..75" and config.level_names == ("25", "35", "50")
    listed = config.replace({"noise.sigma": [15, 25], "noise.draw": "list", "evaluate.sigmas": [12.5, 5]})
    assert str(listed.degradation) == "noise:15/25" and listed.level_names == ("12.5", "5")
    jpeg = config.replace({"degrade.chain": "jpeg:10..60"})
    assert jpeg.level_names == ("jpeg48", "jpeg35", "jpeg22")
    levels = parse(["degrade.chain=blur:0.5..3+noise:0..50", "evaluate.levels=[blur:2+noise:10, noise:25, jpeg:10]"])
    both = config.replace(levels)
    assert str(both.degradation) == "blur:0.5..3+noise:0..50" and both.level_names == ("blur2+noise10", "25", "jpeg10")
    assert from_tree(both.model_dump(mode="json")) == both
    assert config.replace({"evaluate.sigmas": [5], "evaluate.levels": ["jpeg:9"]}).level_names == ("jpeg9",)
    for model in ("cbdnet", "sadnet"):  # blind: they need no level
        pairs = config.replace({"data.layout": "pairs", "model.name": model, "loss.weight": 0})
        assert pairs.level_names == ("pair",)


def test_a_configuration_of_before_the_chain_loads(tmp_path: Path) -> None:
    """Until then the degradation was a key of the section noise, and Gaussian noise its only value."""
    tree = Config().model_dump(mode="json")
    del tree["degrade"], tree["evaluate"]["levels"]
    tree["noise"]["degradation"] = "gaussian"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert load(path) == Config()
    tree["noise"]["degradation"] = "uniform"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="noise.degradation=uniform: .*degrade.chain=uniform:0..75"):
        load(path)


def test_a_segmenter_without_a_file_of_weights_has_null_in_the_list() -> None:
    words = ["evaluate.segmenter=first:net", "evaluate.segmenters=[second:net,third:net]"]
    changes = parse([*words, "evaluate.segmenters_weights=[null,third.pth]"])
    judges = Config().replace(changes).evaluate.judges
    assert list(judges.values()) == [("first:net", None), ("second:net", None), ("third:net", "third.pth")]


def test_every_segmenter_has_a_name_of_its_own_in_results() -> None:
    names = ["x", "x-no3", "x", "x"]
    given = {"evaluate.segmenter": names[0], "evaluate.segmenters": names[1:]}
    judges = Config().replace(given).evaluate.judges
    assert {label: name for label, (name, _) in judges.items()} == {
        "x": "x", "x-no3": "x-no3", "x-no2": "x", "x-no4": "x",
    }  # fmt: skip


def test_a_path_in_the_home_folder_is_found_whichever_key_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A shell expands ~ in no key=~/path. A run and its database had gone to two folders, one of them named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = Config().replace(
        parse(
            [
                "train.storage=~/runs", "train.name=x", "data.root=~/photos", "evaluate.segmenter=first:net",
                "evaluate.segmenter_weights=~/w.pth", "evaluate.segmenters=[second:net,third:net]",
                "evaluate.segmenters_weights=[null,~/third.pth]", "loss.features_weights=~/vgg.pth",
            ]
        )
    )  # fmt: skip
    assert RunFolder.of(config).path == tmp_path / "runs" / "x"
    assert store.uri_of(config) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert config.data.root == f"{tmp_path}/photos" and config.loss.features_weights == f"{tmp_path}/vgg.pth"
    files = [file for _, file in config.evaluate.judges.values()]
    assert files == [f"{tmp_path}/w.pth", None, f"{tmp_path}/third.pth"]
    assert store.absolute("sqlite:///~/my.db") == f"sqlite:///{tmp_path}/my.db"
    again = Config().replace({"train.storage": str(tmp_path / "runs"), "train.init": "~/w.pth"})
    assert again.train.storage == config.train.storage
    assert again.train.init == "~/w.pth"  # compared with that of the run that is resumed


def test_what_is_typed_is_what_is_set(tmp_path: Path) -> None:
    typed = [
        "train.seed=0704", "train.lr=1e-3", "data.flip=no", "model.name=my.module:build", "model.options.slope=1e-3",
        "model.options.mode=no",
    ]  # fmt: skip
    config = Config().replace(parse(typed))
    assert (config.train.seed, config.train.lr, config.data.flip) == (704, 0.001, False)
    assert config.model.options == {"slope": 0.001, "mode": "no"}
    for word in ("train.epochs='1:30'", "train.seed='0o17'"):
        with pytest.raises(ConfigError, match=f"^{word}: input should be a valid integer"):
            Config().replace(parse([word.replace("'", "")]))
    path = tmp_path / "config.yaml"
    path.write_text("train: {seed: 7}\ntrain: {lr: 0.5}\n")
    with pytest.raises(ConfigError, match=f"^configuration {path}: .*line 2: the key 'train' is there twice"):
        load(path)
    with pytest.raises(ConfigError, match="model.options=.*the key 'a' is there twice"):
        parse(["model.options={a: 1, a: 2}"])


def test_a_record_of_an_earlier_version_holds_the_text_it_held(tmp_path: Path) -> None:
    """It wrote text like 1e-3 and 08 without quotes."""
    options = {
        "model.name": "my.module:build",
        "model.options.slope": "1e-3",
        "train.name": "1e3",
        "tracking.alias": "08",
    }
    config = Config().replace(options)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert "slope: 1e-3" in path.read_text() and load(path) == config
    config.save(path)
    assert load(path) == load(path, given=True) == config
    assert Config().dumps() == yaml.safe_dump(Config().model_dump(mode="json"), sort_keys=False)


@pytest.mark.parametrize("options", [{"t": {1: 2}}, {"t": [{"a": {None: 2, "b": 1}}]}, {"t": {True: {}}}])
def test_a_mapping_of_options_has_text_keys(options: dict[str, Any]) -> None:
    """Files hold no others: a resumed run would have built its network with other arguments."""
    with pytest.raises(ConfigError, match="model.options.t=.*: the key .* of a mapping is no text") as error:
        Config().replace({"model.name": "my.module:build", "model.options": options})
    assert "\n" not in str(error.value)
