"""Everything that can be known before a run is said before it, all at once, and without Ray."""

from __future__ import annotations

import pickle
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli.main import main
from d2sm.objectives import TERMS
from pipelines.check import Check, NotReady, check, check_used, unused, unused_in_evaluation, unused_untested
from pipelines.config import Config, ConfigError, keys_only_for
from pipelines.data.images import DataError, write_png
from pipelines.data.index import fingerprint, index
from pipelines.recipes import recipe
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runtime import owner
from pipelines.sections import Loss
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.owners import owning


def photographs(root: Path, *names: str, side: int = 80) -> Path:
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        write_png(root / f"{name}.png", pixels)
    return root


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Ten photographs and nothing else: no splits, no labels."""
    return photographs(tmp_path / "photos", *(f"p{number}" for number in range(10)))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "crops": ({"data.crop_size": 128}, "data.crop_size=128: p0 has 80x80 pixels .*lower data.crop_size to 80"),
    "batch": (
        {"train.batch_size": 100, "loss.queue_size": 100},
        "train.batch_size=100: larger than the 72 crops .* 1 of 10 are held out .*data.crops_per_image to 12",
    ),
    "split": ({"data.val_split": "test"}, "split 'test' is unknown in .*photos.*train, val"),
    "storage": ({"train.storage": "/dev/null/runs"}, "train.storage=/dev/null/runs: .*writable"),
    "tracking": ({"tracking.uri": "http://127.0.0.1:9"}, "http://127.0.0.1:9: .*does not answer.*tracking.uri"),
    "registry": ({"tracking.register_as": "team/net"}, "tracking.register_as='team/net'"),
    "Phi": ({"loss.features": "vgg19.conv5_4"}, "no weights of vgg19 .*loss.features=vgg19.conv5_4"),
    "segmenter": ({"evaluate.segmenter": "espnet-camvid"}, "evaluate.segmenter=espnet-camvid: .*evaluate.segmenter=n"),
    "degradation": (
        {"degrade.chain": "tests.helpers.degradations:smaller:2"},
        "degrade.chain=tests.helpers.degradations:smaller:2: .*smaller gives torch.float32 .*images of the same shape",
    ),
    "level": ({"evaluate.levels": ["+".join(f"noise:{level}" for level in range(1, 40))]}, "evaluate.levels: .*MLflow"),
    "CPUs": ({"train.cpus_per_worker": 400.0}, "train.cpus_per_worker=400"),
}


def stranger(root: Path, storage: Path, **changes: Any) -> Config:
    """What somebody types who has nothing but photographs: a recipe for two cores."""
    return recipe("ffdnet_d2sm_cpu").replace({"data.root": str(root), "train.storage": str(storage), **changes})


def test_a_folder_of_photographs_is_enough(flat: Path, tmp_path: Path) -> None:
    """Its layout is found, a segmenter from the recipe is left out, a part is held out; each is said in a line."""
    said: list[str] = []
    checks: list[Check] = []
    ready = check(stranger(flat, tmp_path / "runs", **{"data.crop_size": 64}), say=said.append, tell=checks.append)
    assert ready.config.data.layout == "folder" and ready.config.evaluate.segmenter is None
    assert [line.split(":")[0] for line in said] == [
        "data.layout=folder", "evaluate.segmenter=espnet-cityscapes", f"data.root={flat}",
    ]  # fmt: skip
    assert "1 of its 10 photographs are held out" in said[2]
    assert ready.training.num_rows == 9 and ready.fingerprint == fingerprint(ready.training)
    assert all(each.ok for each in checks) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", FAULTS)
def test_each_reason_alone(name: str, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    changes, pattern = FAULTS[name]
    base = {"data.crop_size": 64, "train.num_workers": 1}
    with pytest.raises((ValueError, OSError), match=pattern) as error:
        check(stranger(flat, tmp_path / "runs", **(base | changes)))
    assert "\n" not in str(error.value) and not isinstance(error.value, NotReady)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changes, line", [
    ({"tracking.alias": "best"}, "tracking.alias=best: is for tracking.register_as, which is not set; set it, or "
     "leave tracking.alias out"),
    ({"evaluate.lpips_weights": "random"}, "evaluate.lpips_weights=random: is for evaluate.lpips, which is not set; "
     "set it, or leave evaluate.lpips_weights out"),
    ({"evaluate.segmenter": None, "evaluate.segmenter_weights": "w.pth"}, "evaluate.segmenter_weights=w.pth: is for "
     "evaluate.segmenter, which is not set; set it, or leave evaluate.segmenter_weights out"),
    ({"evaluate.sigmas": [25], "data.layout": "pairs", "noise.sigma": [25], "noise.draw": "list"},
     "evaluate.sigmas=[25.0]: the images of data.layout=pairs are degraded already; leave it out"),
    ({"evaluate.sigmas": [25], "evaluate.levels": ["jpeg:10"]},
     "evaluate.sigmas=[25.0]: evaluate.levels=[jpeg:10] sets the levels too; give one of the two keys"),
    ({"loss.segmenter": "espnet-camvid"}, "loss.segmenter=espnet-camvid: is for loss.cross_entropy, which is not set; "
     "set it, or leave loss.segmenter out"),
    ({"loss.weight": 0, "loss.features": "vgg19.conv4_4"}, "loss.features=vgg19.conv4_4: is for loss.weight, "
     "loss.adversarial, loss.perceptual, loss.contextual, none of which is set; set one of them, or leave "
     "loss.features out"),
    ({"train.schedule": "cosine", "train.halve_at": [3]}, "train.halve_at=[3]: is for train.schedule=halve, but it is "
     "cosine; change it, or leave train.halve_at out"),
])  # fmt: skip
def test_a_key_that_nothing_uses_is_refused_if_somebody_asked_for_it(changes: dict[str, Any], line: str) -> None:
    config = Config().replace(changes)  # as a recipe or a saved configuration may have it
    assert list(unused(config, ())) == []
    assert [str(reason) for reason in unused(config, changes)] == [line]
    with pytest.raises(ValueError, match=re.escape(line)):
        check(config, given=changes)


def test_a_key_that_is_used_or_taken_back_is_not_refused() -> None:
    used = {"tracking.alias": "best", "tracking.register_as": "net", "evaluate.sigmas": [25]}
    unset = {"evaluate.lpips_weights": None, "evaluate.segmenter_weights": None, "evaluate.segmenter": None}
    phi = {"loss.weight": 0, "loss.perceptual": 0.1, "loss.features": "vgg19.conv4_4"}
    default = {"loss.weight": 0, "loss.queue_size": 1024, "loss.segmenter": None}
    for changes in (used, unset, {"tracking.alias": ""}, phi, default):
        assert list(unused(Config().replace(changes), changes)) == []


# Another valid value of each key of the loss but the weights, beside which `loss.kernel=exp` stands.
OF_TERMS: dict[str, Any] = {
    "features": "vgg19.conv4_4", "features_weights": "w.pth", "layer_weights": [2.0], "kernel": "exp",
    "temperature": 0.3, "center": True, "queue_size": 512, "patch_size": 32, "class_regions": 2,
    "divergence": "jsd", "reduction": "sum",
    "gather_dtype": "bfloat16", "queue_dtype": "bfloat16", "perceptual_layers": ["conv1_1"],
    "contextual_layers": ["conv1_1"], "contextual_bandwidth": 0.1, "lpips_trunk": "alexnet", "lpips_heads": "h.pth",
    "lpips_weights": "w.pth", "segmenter": "espnet-camvid", "segmenter_weights": "w.pth", "segmenter_scale": 2.0,
    "adversarial_lr": 1e-3,
}  # fmt: skip


def test_every_key_of_the_loss_is_refused_where_no_term_uses_it() -> None:
    """A new key says in `sections` which terms it is for, or is listed here as one that all share."""
    weights = {term.weight_key for term in TERMS.values()}
    assert set(Loss.model_fields) - weights == {"gradient_ratio", *OF_TERMS}
    off = {"loss.weight": 0, "loss.kernel": "exp"}
    for name, value in OF_TERMS.items():
        key = f"loss.{name}"
        config = Config().replace({**off, key: value})
        (reason,) = unused(config, [key])
        others = keys_only_for()[key]
        assert str(reason).startswith(f"{key}=") and ", ".join(others) in str(reason)
        assert set(others) <= {f"loss.{weight}" for weight in weights}
        assert list(unused(config, ())) == []
        for other in others:  # in a sweep over the weight, and with the term
            assert list(unused(config, [key], varied=[other])) == []
            segmenter = {} if name == "segmenter" else {"loss.segmenter": "espnet-camvid"}
            assert list(unused(config.replace({other: 0.5, **segmenter}), [key])) == []


def test_a_key_for_some_rows_of_a_table_is_used() -> None:
    rows = [recipe(name).replace({"loss.patch_size": 32}) for name in ("ffdnet_l1_cpu", "ffdnet_d2sm_cpu")]
    given = {"loss.patch_size"}
    check_used([(row, given) for row in rows])
    with pytest.raises(ConfigError, match=r"loss.patch_size=32: is for loss.weight, which is not set"):
        check_used([(rows[0], given), (rows[0].replace({"train.seed": 1}), given)])


def test_a_network_with_dropout_is_said_to_depend_on_the_workers(flat: Path, tmp_path: Path) -> None:
    said: list[str] = []
    names = {"model.name": "tests.foreign.tiny_network:dropout", "data.crop_size": 64, "train.num_workers": 1}
    check(stranger(flat, tmp_path / "runs", **names), say=said.append)
    assert len([line for line in said if "other train.num_workers give another result" in line]) == 1


@pytest.mark.parametrize("changes, wrong", [
    ({"tracking.register_as": "net", "tracking.alias": "best"}, ["tracking.register_as=net"]),
    ({"evaluate.lpips": "vgg16", "evaluate.sigmas": [25]}, ["evaluate.sigmas=[25.0]", "evaluate.lpips=vgg16"]),
    ({"evaluate.sigmas": [25], "train.validate_every": 9}, []),
    ({"evaluate.segmenter": None, "tracking.register_as": "", "train.lr": 1}, []),
])  # fmt: skip
def test_a_training_alone_refuses_what_was_asked_for_after_it(
    changes: dict[str, Any], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config().replace(changes)
    assert list(unused_untested(config, ())) == []
    assert [str(reason).partition(": ")[0] for reason in unused_untested(config, changes)] == wrong
    words = [f"{key}={'' if value is None else value}" for key, value in changes.items()]
    for dry in ([], ["--dry-run"]) if wrong else ():
        asked = ["train", "--recipe", "ffdnet_l1_cpu", "--no-evaluate", *dry, "data.root=/nowhere", *words]
        assert main(asked) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line.partition("d2sm: ")[2].partition(": ")[0] for line in said] == wrong
        assert all("--no-evaluate" in line for line in said)


@pytest.mark.parametrize("key, value, used", [
    ("data.root", "/photos", True), ("noise.sigma", [5, 50], True), ("degrade.chain", "jpeg:10", True),
    ("tracking.experiment", "other", True), ("train.gpus_per_worker", 0.5, True), ("loss.segmenter", "a:b", True),
    ("loss.weight", 3, False), ("train.lr", 1e-5, False), ("model.width", 8, False),
    ("tracking.register_as", "net", False), ("tracking.alias", "best", False),
])  # fmt: skip
def test_an_evaluation_refuses_keys_of_a_training(key: str, value: Any, used: bool) -> None:
    config = Config().replace({key: value})
    assert list(unused_in_evaluation(config, ())) == []
    assert [str(reason).partition("=")[0] for reason in unused_in_evaluation(config, [key])] == ([] if used else [key])


def test_pairs_of_an_unknown_level_are_for_networks_that_need_none(flat: Path, tmp_path: Path) -> None:
    """Also for a network of somebody else's, of which it is known only when it is built."""
    root = tmp_path / "pairs"
    for side in ("clean", "noisy"):
        shutil.copytree(flat, root / side)
    mine = {"train.num_workers": 1, "data.crop_size": 64, "model.width": 96, "model.depth": 12}
    told = {"model.name": "tests.foreign.tiny_network:TinyNetwork", **mine}
    with pytest.raises(ConfigError, match=r"^noise.sigma=\[0.0, 75.0\]: .*model.name=tests.foreign.tiny_network:TinyN"):
        check(stranger(root, tmp_path / "runs", **told))
    check(stranger(root, tmp_path / "runs", **told, **{"noise.sigma": [25], "noise.draw": "list"}))
    check(stranger(root, tmp_path / "runs", **{**told, "model.name": "tests.foreign.tiny_network:blind"}))


@pytest.mark.parametrize("chain, unknown", [
    ("poisson:10..200", "poisson"), ("noise:0..50+poisson:100", "poisson"), ("blur:2+noise:0..50", ""),
    ("tests.helpers.degradations:darker:2..4", "tests.helpers.degradations:darker"),
])  # fmt: skip
def test_a_noise_estimate_is_trained_against_a_known_level_alone(
    chain: str, unknown: str, flat: Path, tmp_path: Path
) -> None:
    mine = {"data.root": str(flat), "train.storage": str(tmp_path / "runs"), "data.crop_size": 64}
    config = recipe("cbdnet_own_cpu").replace({**mine, "train.num_workers": 1, "degrade.chain": chain})
    if not unknown:
        check(config)
        return
    with pytest.raises(ConfigError, match=f"^loss.noise_asymmetry=0.5: .*that of {unknown} in .*is not known") as error:
        check(config)
    assert "\n" not in str(error.value)
    check(config.replace({"loss.noise_asymmetry": 0}))


def test_a_wrong_folder_is_the_only_reason(tmp_path: Path) -> None:
    """The recipe's segmenter needs weights only where there are labels, which nobody knows yet."""
    config = recipe("ffdnet_d2sm_cpu").replace({"data.root": str(tmp_path / "none"), "train.storage": str(tmp_path)})
    with pytest.raises(DataError, match="none"):
        check(config)
    with pytest.raises(NotReady, match="evaluate.segmenter=espnet-cityscapes"):
        check(config, given=["evaluate.segmenter"])


def test_all_reasons_at_once(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    everything = {key: value for changes, _ in FAULTS.values() for key, value in changes.items()}
    with pytest.raises(NotReady) as error:
        check(stranger(flat, tmp_path / "runs", **({"train.num_workers": 1} | everything)))
    reasons = error.value.reasons
    for _, pattern in FAULTS.values():
        assert sum(bool(re.search(pattern, reason)) for reason in reasons) == 1, pattern
    assert len(reasons) == len(FAULTS) and pickle.loads(pickle.dumps(error.value)).reasons == reasons


def test_the_verb_says_them_all_without_ray(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    words = ["--recipe", "ffdnet_d2sm_cpu", f"data.root={flat}", f"train.storage={tmp_path}/runs"]
    wrong = ["data.crop_size=128", "tracking.register_as=a/b", "evaluate.segmenter=espnet-camvid"]
    assert main(["train", *words, *wrong]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("d2sm: ") for line in lines)
    assert main(["train", "--dry-run", *words, *wrong]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 3 and "ok      storage" in out
    assert main(["train", "--dry-run", *words, "data.crop_size=64", "evaluate.segmenter=none"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    assert main(["check", *words, "data.crop_size=64"]) == 0
    assert not (tmp_path / "runs").exists()


def test_wrong_keys_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "demo", "trian.epochs=1", "loss.queue=3"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(ConfigError) as error:
        Config().replace({"train.epochs": "many", "train.num_workers": "few", "noise.sigma": [9, 1]})
    assert [reason.split("=")[0] for reason in error.value.reasons] == [
        "noise.sigma",
        "train.epochs",
        "train.num_workers",
    ]


def test_a_segmenter_that_was_asked_for_must_be_usable(flat: Path, tmp_path: Path, scenes_root: Path) -> None:
    """One from the recipe is left out only where there are no labels."""
    small = {"data.crop_size": 64}
    with pytest.raises(ValueError, match="evaluate.segmenter=espnet-cityscapes.*needs weights"):
        check(stranger(scenes_root, tmp_path / "runs", **small))
    with pytest.raises(ValueError, match="evaluate.segmenter=espnet-cityscapes.*needs weights"):
        check(stranger(flat, tmp_path / "runs", **small), given=["evaluate.segmenter"])
    with pytest.raises(DataError, match="data.layout=folder fits"):
        check(stranger(flat, tmp_path / "runs", **small), given=["data.layout"], evaluates=False)
    with pytest.raises(ValueError, match=r"evaluate.segmenter=espnet-cityscapes .*none.pth"):
        check(stranger(flat, tmp_path / "runs", **small, **{"evaluate.segmenter_weights": "none.pth"}))


def test_evaluation_is_checked_only_if_there_is_one(tmp_path: Path) -> None:
    root = photographs(tmp_path / "one", "only")
    config = stranger(root, tmp_path / "runs", **{"data.crop_size": 64, "data.crops_per_image": 16})
    with pytest.raises(DataError, match=rf"{root}: holds a single photograph.*--no-evaluate"):
        check(config)
    assert check(config, evaluates=False).training["name"].to_pylist() == ["only"]


def test_the_run_of_this_name_is_compared_before_the_start(flat: Path, tmp_path: Path) -> None:
    config = stranger(flat, tmp_path / "runs", **{"data.crop_size": 64, "train.name": "first"})
    ready = check(config)
    folder = RunFolder.of(ready.config)
    folder.open(ready.config, ready.fingerprint)
    bundle_of(folder.path / checkpoint.name_of(2), ready.config)
    check(config)
    photographs(flat, "new1", "new2", "new3")
    with pytest.raises(ConfigError, match="train.name=first: .*other data"):
        check(config)


def test_a_run_that_is_gone_from_its_uri_is_not_compared(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the copy on this disk still has it; and one that another machine began is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    place = {"train.storage": bucket.as_uri(), "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    config = stranger(flat, tmp_path).replace({"data.crop_size": 64, "train.name": "it", **place})
    ready = check(config)
    folder = RunFolder.of(ready.config)
    folder.open(ready.config, ready.fingerprint)
    with folder.adding(checkpoint.name_of(2)) as unfinished:
        bundle_of(unfinished, ready.config, step=2)
    other = config.replace({"train.lr": 0.5})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of another machine"))
    with pytest.raises(ConfigError, match="^train.lr=0.5: the run it was started with"):
        check(other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert folder.latest() is not None
    shutil.rmtree(bucket / "it")
    assert check(other).config.train.lr == 0.5


@pytest.mark.parametrize("init", ["", "/start", "/start/step-00000002"])
def test_a_check_of_a_run_at_a_uri_leaves_no_file(
    init: str, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of one without a name, which is another one at every check; nor of a start that is not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    place = {"train.storage": bucket.as_uri(), "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    changes = {"data.crop_size": 64, "train.name": "", "train.init": init and f"{bucket.as_uri()}{init}"}
    config = stranger(flat, tmp_path).replace({**changes, **place})
    with pytest.raises(ConfigError, match="^train.init=") if init else nullcontext():
        check(config)
    assert not list((tmp_path / "cache").rglob("*")) and not list(bucket.iterdir())


def test_a_run_that_goes_on_elsewhere_is_not_ready(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_PATIENCE", 0.0)
    words = ["--recipe", "ffdnet_l1_cpu", f"data.root={flat}", f"train.storage={tmp_path}", "train.name=it"]
    (tmp_path / "it").mkdir()
    (tmp_path / "it/run.json").write_text("{}")
    with owning(tmp_path / "it") as process:
        assert main(["train", "--dry-run", *words]) == 1
        assert f"in use by process {process.pid}" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_goes_on_with_all_photographs(flat: Path, tmp_path: Path) -> None:
    """It was trained on those that are now held out."""
    config = stranger(flat, tmp_path / "runs", **{"data.crop_size": 64, "train.name": "old"})
    config = check(config).config
    whole = index(flat, "", layout="folder")
    RunFolder.of(config).open(config, fingerprint(whole))
    ready = check(config)
    assert ready.training.num_rows == 10 and ready.fingerprint == fingerprint(whole)


def test_a_tiny_run_on_drawn_streets_is_ready(scenes_root: Path, tmp_path: Path) -> None:
    """Cityscapes data: nothing is settled by itself."""
    said: list[str] = []
    config = tiny_config(scenes_root, tmp_path)
    assert check(config, say=said.append).config == config and said == []
