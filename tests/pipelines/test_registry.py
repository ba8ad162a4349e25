"""The model registry on real stores: what goes in comes out, verified, unpickled by nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.cli.main import main
from d2sm.inference import restore
from d2sm.models import CBDNet, FFDNet
from pipelines.config import Config
from pipelines.recipes import recipe
from pipelines.registry import (
    Record,
    RegistryError,
    check_names,
    compare,
    lookup,
    models,
    numbers_of,
    promote,
    register,
)
from pipelines.runs import checkpoint, integrity
from pipelines.runs.results import CONVENTION, CONVENTION_OF_PAIRS, Judge, Results
from pipelines.served import Restorer, ServedError, _load_pyfunc
from pipelines.tracking import store as stores
from pipelines.tracking.bundle import default_sigma
from pipelines.tracking.run import open_run
from tests.helpers.finished_runs import results
from tests.helpers.mlflow_server import Server, free_port, stop, wait_for
from tests.helpers.networks import stirred
from tests.helpers.stores import new_store

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"model.width": 8, "model.depth": 3}
RESULTS = {
    "psnr": {"sigma25": 30.0},
    "miou.sigma25": 0.5,
    "convention": "ssim gaussian 11",
    "data": "camvid-val",
}
EARLIER = ("data", "convention", "segmenter", "split")  # what earlier versions registered beside the numbers


def write_bundle(folder: Path, seed: int = 0, uri: str = "") -> Path:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    save_file(stirred(FFDNet(width=8, depth=3)).state_dict(), folder / "model.safetensors")
    config = Config().replace(SMALL | {"recipe": "demo", "evaluate.segmenter": "espnet-camvid", "tracking.uri": uri})
    config.save(folder / "config.yaml")
    meta = {"step": 7, "epoch": 1, "name": "test", "commit": "abc123", "data": "f00d"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def noisy_batch(height: int = 20, width: int = 33) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.random((2, 3, height, width), dtype=np.float32)


def direct(bundle_seed: int, noisy: np.ndarray, sigma: float) -> np.ndarray:
    """What the network of `write_bundle` says, with nothing of MLflow between."""
    torch.manual_seed(bundle_seed)
    model = stirred(FFDNet(width=8, depth=3)).eval()
    return restore(model, torch.from_numpy(noisy), sigma).clamp(0, 1).numpy()


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Up to rounding: in another memory format the convolutions of some CPUs sum in another order."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def stored(record: Record) -> Path:
    """Where a database's store keeps a version's files."""
    place = stores.client(record.uri).get_model_version_download_uri(record.name, str(record.version))
    return Path(place.removeprefix("file://"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def first(store: str, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Version 1 of "denoiser", from a run, with the alias champion."""
    folder = tmp_path_factory.mktemp("first")
    config = Config().replace(SMALL | {"tracking.uri": store})
    with open_run(config, run_dir=folder / "run", tags={}) as run:
        run.log(7, {"loss": 1.0})
    bundle = write_bundle(folder / "bundle")
    return register(
        bundle,
        name="denoiser",
        run_id=run.id,
        uri=store,
        alias="champion",
        results=RESULTS,
        example=noisy_batch(),
    )


@pytest.fixture(scope="module")
def second(first: Record, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Version 2, without a run, better in PSNR and worse in MIoU."""
    bundle = write_bundle(tmp_path_factory.mktemp("second") / "bundle", seed=1)
    results = RESULTS | {"psnr": {"sigma25": 31.0}, "miou.sigma25": 0.4}
    return register(bundle, name="denoiser", run_id=None, uri=first.uri, results=results, example=None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_a_version_says_what_it_is(first: Record) -> None:
    assert (first.name, first.version, first.aliases) == ("denoiser", 1, ("champion",))
    expected = {
        "recipe": "demo",
        "backbone": "ffdnet width=8 depth=3",
        "objective": "1 L1 + 10 D2SM",
        "phi": "vgg19.conv5_4",
        "segmenter": "espnet-camvid",
        "commit": "abc123",
        "data_fingerprint": "f00d",
        "evaluated_on": "camvid-val",
        "convention": "ssim gaussian 11",
        "psnr.sigma25": "30",
        "miou.sigma25": "0.5",
        "step": "7",
    }
    assert {key: first.tags.get(key) for key in expected} == expected
    assert len(first.tags["weights.sha256"]) == 64
    outputs = stores.client(first.uri).get_run(first.run_id).outputs
    assert outputs is not None
    logged = outputs.model_outputs
    assert len(logged) == 1 and logged[0].model_id in first.source  # the run's page shows the model


@pytest.mark.parametrize("reference", ["denoiser@champion", "denoiser/1", "models:/denoiser@champion"])
def test_lookup_finds_and_loads(reference: str, first: Record, second: Record, tmp_path: Path) -> None:
    record = lookup(reference, uri=first.uri)
    assert record == first
    model = record.load("cpu", cache=tmp_path)
    assert not model.training
    noisy = noisy_batch()
    restored = restore(model, torch.from_numpy(noisy), 25.0).clamp(0, 1).numpy()
    same(restored, direct(0, noisy, 25.0))


def test_a_bare_name_is_the_newest(first: Record, second: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first.uri)
    assert lookup("denoiser").version == 2
    assert [record.label for record in models(first.uri)] == ["denoiser/2", "denoiser/1"]
    assert [record.aliases for record in models(first.uri)] == [(), ("champion",)]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("denoisr", "^denoisr: .*denoiser"),
        ("denoiser/9", "^denoiser/9: .* 1, 2"),
        ("denoiser/0", "^denoiser/0: no such version; .* 1, 2"),
        ("denoiser@champoin", "^denoiser@champoin: .* champion"),
        ("denoiser/one", "^denoiser/one: .*name/3 or name@alias"),
        ("models:/", "^models:/: .*name/3 or name@alias"),
    ],
)
def test_lookup_of_what_is_not_there(reference: str, message: str, first: Record, second: Record) -> None:
    with pytest.raises(RegistryError, match=message) as caught:
        lookup(reference, uri=first.uri)
    assert "\n" not in str(caught.value)


def test_stores_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="none/mlflow.db: .*tracking.uri"):
        models(f"sqlite:///{tmp_path}/none/mlflow.db")
    assert list(tmp_path.iterdir()) == []  # reading makes nothing
    with pytest.raises(RegistryError, match=r"http://127.0.0.1:.*tracking.uri"):
        lookup("denoiser", uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match=r"http://\*\*\*@127.0.0.1:1: .*MLFLOW_TRACKING_PASSWORD") as caught:
        lookup("denoiser", uri="http://me:hunter22@127.0.0.1:1")
    assert "hunter22" not in str(caught.value)


def test_a_changed_model_is_not_loaded(first: Record, tmp_path: Path) -> None:
    weights = stored(first) / "data/bundle/model.safetensors"
    good = weights.read_bytes()
    try:
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(RegistryError, match="^denoiser/1: model.safetensors "):
            first.path(tmp_path)
        assert list(tmp_path.iterdir()) == []  # nothing bad is kept
    finally:
        weights.write_bytes(good)
    kept = first.path(tmp_path)
    assert kept.name == first.tags["bundle.sha256"]
    weights.write_bytes(b"")  # the cache serves without the store
    assert first.path(tmp_path) == kept
    weights.write_bytes(good)
    (kept / "config.yaml").write_text("recipe: other")  # a spoilt cache is filled anew
    assert "other" not in (first.path(tmp_path) / "config.yaml").read_text()


def test_promotion_only_when_better(first: Record, second: Record) -> None:
    uri = first.uri
    with pytest.raises(RegistryError, match=r"miou.sigma25 0.4 .*denoiser/1's 0.5"):
        promote("denoiser/2", "champion", if_better="miou.sigma25", uri=uri)
    with pytest.raises(RegistryError, match=r"^ssim.sigma25: denoiser/2 .*psnr.sigma25"):
        promote("denoiser/2", "champion", if_better="ssim.sigma25", uri=uri)
    assert lookup("denoiser@champion", uri=uri).version == 1
    assert promote("denoiser/2", "champion", if_better="psnr.sigma25", uri=uri).aliases == ("champion",)
    assert lookup("denoiser@champion", uri=uri).version == 2
    assert promote("denoiser/1", "champion", uri=uri).version == 1  # unconditionally, back again
    assert promote("denoiser/2", "first-ever", if_better="miou.sigma25", uri=uri).version == 2  # nothing to beat
    with pytest.raises(RegistryError, match="alias 'latest'"):
        promote("denoiser/2", "latest", uri=uri)


def test_numbers_taken_differently_are_not_compared(first: Record, tmp_path: Path) -> None:
    results = RESULTS | {"psnr": {"sigma25": 40.0}, "data": "other-set"}
    for alias in ("", "champion"):
        bundle = write_bundle(tmp_path / f"bundle{alias}")
        register(bundle, name="another", run_id=None, uri=first.uri, alias=alias, results=results)
        results = RESULTS
    with pytest.raises(
        RegistryError, match=r"psnr.sigma25 40 and another/2's 30 .*evaluated_on: other-set, camvid-val"
    ):
        promote("another/1", "champion", if_better="psnr.sigma25", uri=first.uri)


@pytest.mark.parametrize(
    ("metric", "changes", "differs"),
    [
        ("miou.sigma25", {"weights": "other"}, "segmenter_weights: other, w"),
        ("clean.miou", {"labels": "camvid"}, "labels: camvid, cityscapes"),
        ("noisy.miou.sigma25", {"segmenter": "espnet-cityscapes"}, "segmenter: espnet-cityscapes, espnet-camvid"),
        ("miou-b.sigma25", {"judges": {"b": Judge("b:b", "other")}}, "judge_weights-b: other, v"),
        ("clean.miou-b", {"judges": {"b": Judge("c:b", "v")}}, "judge-b: c:b, b:b"),
        ("lpips.sigma25", {"lpips": "alexnet"}, "lpips: alexnet, vgg16"),
        ("noisy.lpips.sigma25", {"lpips_weights": "other"}, "lpips_weights: other, u"),
    ],
)
def test_only_what_belongs_to_the_metric_has_to_agree(
    first: Record,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    metric: str,
    changes: dict[str, Any],
    differs: str,
) -> None:
    name = re.sub(r"\W", "-", f"{metric}-{differs}")

    def numbers(psnr: float, **changes: Any) -> dict[str, Any]:
        return numbers_of(replace(measured(psnr), **changes))

    holder = {**numbers(30.0), metric: 0.5}
    better = {**numbers(31.0, **changes), metric: 0.4 if "lpips" in metric else 0.6}
    earlier = {key: value for key, value in better.items() if "." in key or key in EARLIER}
    for version, tags in enumerate((holder, better, earlier)):
        register(write_bundle(tmp_path / str(version)), name=name, run_id=None, uri=first.uri, results=tags)

    def promoted(reference: str, metric: str) -> list[str]:
        """The lines that say what is not known."""
        assert (
            main(
                ["models", "promote", reference, "--alias", "best", "--if-better", metric, "--tracking-uri", first.uri]
            )
            == 0
        )
        return [line for line in capsys.readouterr().err.splitlines() if "measured alike" in line]

    promote(f"{name}/1", "best", uri=first.uri)
    with pytest.raises(RegistryError, match=rf"/2 not promoted to best: {metric} .*cannot be compared \({differs}\)"):
        promote(f"{name}/2", "best", if_better=metric, uri=first.uri)
    assert promoted(f"{name}/2", "psnr.sigma25") == []
    promote(f"{name}/1", "best", uri=first.uri)
    if "segmenter" in changes:  # earlier versions said and compared it
        return
    (line,) = promoted(f"{name}/3", metric)
    assert f"{name}/3 does not say " in line and differs.partition(":")[0] in line and f"{name}/1 does" not in line


def measured(psnr: float) -> Results:
    return replace(results(psnr), weights="w", judges={"b": Judge("b:b", "v")}, lpips="vgg16", lpips_weights="u")


def test_pairs_that_were_registered_earlier_stay_comparable(first: Record, tmp_path: Path) -> None:
    """Their convention was said to be that of Gaussian noise."""
    for psnr, convention in ((30.0, CONVENTION), (31.0, CONVENTION_OF_PAIRS), (32.0, "another one")):
        results = {"psnr.sigmapair": psnr, "convention": convention, "data": "pairs"}
        register(write_bundle(tmp_path / f"{psnr}"), name="paired", run_id=None, uri=first.uri, results=results)
    promote("paired/1", "best", uri=first.uri)
    assert promote("paired/2", "best", if_better="psnr.sigmapair", uri=first.uri).aliases == ("best",)
    with pytest.raises(RegistryError, match=r"convention: another one, RGB in \[0, 1\]; photographed noise"):
        promote("paired/3", "best", if_better="psnr.sigmapair", uri=first.uri)


def test_compare(first: Record, second: Record) -> None:
    rows = {row["what"]: row for row in compare(first, second)}
    assert rows["psnr.sigma25"] == {"what": "psnr.sigma25", "a": "30", "b": "31", "difference": 1.0}
    assert rows["backbone"]["difference"] is None
    assert rows["weights.sha256"]["a"] != rows["weights.sha256"]["b"]


def test_what_cannot_be_registered(store: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(RegistryError, match="tracking.register_as='a/b'"):
        register(bundle, name="a/b", run_id=None, uri=store)
    (bundle / "meta.json").unlink()
    with pytest.raises(RegistryError, match="bundle: .*meta.json.*`d2sm train`"):
        register(bundle, name="denoiser", run_id=None, uri=store)


def test_a_password_is_not_registered(store: str, tmp_path: Path) -> None:
    """An earlier version wrote it into the configuration of a checkpoint."""
    bundle = write_bundle(tmp_path / "bundle", uri="http://host")
    settings = bundle / "config.yaml"
    settings.write_text(settings.read_text().replace("http://host", "http://me:secret@host"))
    record = register(bundle, name="discreet", run_id=None, uri=store)
    assert "evaluated_on" not in record.tags  # nothing was measured
    folder = record.path(tmp_path / "cache")
    assert "secret" not in (folder / "config.yaml").read_text()
    assert "secret" not in repr(Record(**{**vars(record), "uri": "http://me:secret@host"}))


def test_a_copy_without_its_password_opens(store: str, tmp_path: Path) -> None:
    """The checkpoint names the size and the SHA-256 of its configuration."""
    bundle = write_bundle(tmp_path / "bundle", uri="http://host")
    settings, meta = bundle / "config.yaml", bundle / "meta.json"
    settings.write_text(settings.read_text().replace("http://host", "http://me:secret@host"))
    meta.write_text(integrity.sealed(json.loads(meta.read_text()), bundle, ("model.safetensors", "config.yaml")))
    folder = register(bundle, name="sealed", run_id=None, uri=store).path(tmp_path / "cache")
    assert "secret" not in (folder / "config.yaml").read_text()
    checkpoint.load_model(folder)
    assert checkpoint.is_complete(folder) and checkpoint.step(folder) == 7


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_damaged_checkpoint_is_not_registered(name: str, store: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    meta = bundle / "meta.json"
    meta.write_text(integrity.sealed(json.loads(meta.read_text()), bundle, ("model.safetensors", "config.yaml")))
    with (bundle / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(RegistryError, match=f"bundle: {name} has .* bytes instead of .*copy it again"):
        register(bundle, name="damaged", run_id=None, uri=store)


def test_mlflow_loads_it_without_pickle(first: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    folder = stored(first)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".pyc"))]
    assert not [
        name for name in files if name.endswith(".py")
    ]  # it is no code of ours that MLflow would import from it
    assert "input_example.json" in files and "d2sm" in (folder / "MLmodel").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first.uri)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's code in front
    served = mlflow.pyfunc.load_model("models:/denoiser@champion")
    noisy = noisy_batch()
    same(served.predict(noisy, params={"sigma": 40.0}), direct(0, noisy, 40.0))
    same(served.predict(noisy), direct(0, noisy, 25.0))  # sigma's default


def test_a_blind_model_is_served_without_a_noise_level(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    bundle = write_bundle(tmp_path / "bundle")
    config = recipe("cbdnet_own")
    config.save(bundle / "config.yaml")
    network = stirred(CBDNet()).eval()
    save_file(network.state_dict(), bundle / "model.safetensors")
    network.to(memory_format=torch.channels_last)  # as it is loaded
    record = register(bundle, name="blind", run_id=None, uri=store, results=RESULTS, example=None)
    assert record.tags["backbone"] == "cbdnet"
    assert record.tags["objective"] == "1 MSE + 0.5 noise_asymmetry + 0.05 noise_tv"
    assert "phi" not in record.tags
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's code in front
    served = mlflow.pyfunc.load_model("models:/blind/1")
    assert served.metadata.signature.params is None
    noisy = noisy_batch()
    wanted = restore(network, torch.from_numpy(noisy)).clamp(0, 1).numpy()
    same(served.predict(noisy), wanted)


@pytest.mark.parametrize(
    ("noisy", "message"),
    [
        ([[0.0]], "list.*float32"),
        (noisy_batch().astype(np.float64), "float64"),
        (noisy_batch()[0], r"\(3, 20, 33\)"),
        (noisy_batch()[:, :1], r"\(2, 1, 20, 33\)"),
        (noisy_batch() * 255, " 255"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "nan"),
    ],
)
def test_input_that_is_no_batch_of_images(noisy: object, message: str) -> None:
    with pytest.raises(ServedError, match=message):
        Restorer(stirred(FFDNet(width=8, depth=3))).predict(noisy)


def test_a_result_that_is_not_finite_is_not_served() -> None:
    network = stirred(FFDNet(width=8, depth=3))
    next(network.parameters()).data.fill_(torch.nan)
    with pytest.raises(ServedError, match="restored: not finite"):
        Restorer(network).predict(noisy_batch())


def test_a_sigma_out_of_range() -> None:
    with pytest.raises(ServedError, match="sigma=300"):
        Restorer(stirred(FFDNet(width=8, depth=3))).predict(noisy_batch(), {"sigma": 300})


def test_a_model_that_saw_no_noise_is_told_none() -> None:
    jpeg, both = (Config().replace({"degrade.chain": chain}) for chain in ("jpeg:10..60", "jpeg:10..60+noise:0..25"))
    assert [default_sigma(config) for config in (Config(), jpeg, both)] == [25, 0, 25]
    model = stirred(FFDNet(width=8, depth=3))
    told = Restorer(model).predict(noisy_batch(), {"sigma": 0})
    np.testing.assert_array_equal(Restorer(model, sigma=0.0).predict(noisy_batch()), told)
    assert not np.array_equal(Restorer(model).predict(noisy_batch()), told)


def planted(first: Record, folder: Path, ran: Path) -> Path:
    """A copy of a model as earlier versions wrote it, with code beside the files, which makes a file when imported."""
    shutil.copytree(stored(first), folder)
    for package in ("d2sm", "pipelines"):
        (folder / "code" / package).mkdir(parents=True)
        (folder / "code" / package / "__init__.py").write_text(f"open({str(ran)!r}, 'w')")
    model = folder / "MLmodel"
    model.write_text(model.read_text().replace("python_function:", "python_function:\n    code: code"))
    return folder


@pytest.mark.slow
def test_code_beside_an_old_model_is_not_imported(first: Record, tmp_path: Path) -> None:
    """MLflow puts it in front of the path; d2sm loads the model without it, as MLflow does once d2sm is imported."""
    ran, model = tmp_path / "ran", stored(first)
    old = planted(first, tmp_path / "old", ran)
    model.rename(tmp_path / "aside")
    old.rename(model)
    try:
        noisy = noisy_batch()
        restored = restore(
            lookup("denoiser/1", uri=first.uri).load(cache=tmp_path / "cache"), torch.from_numpy(noisy), 25.0
        )
        same(restored.clamp(0, 1).numpy(), direct(0, noisy, 25.0))
        code = (
            f"import pipelines, mlflow, numpy as np; m = mlflow.pyfunc.load_model({str(model)!r});"
            "np.save('restored.npy', m.predict(np.load('noisy.npy'), params={'sigma': 25.0}))"
        )
        np.save(tmp_path / "noisy.npy", noisy)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, capture_output=True)
        same(np.load(tmp_path / "restored.npy"), direct(0, noisy, 25.0))
    finally:
        shutil.rmtree(model)
        (tmp_path / "aside").rename(model)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "checksums.json"])
def test_served_files_are_verified_before_they_are_read(first: Record, tmp_path: Path, name: str) -> None:
    shutil.copytree(stored(first) / "data/bundle", tmp_path / "bundle")
    assert isinstance(_load_pyfunc(str(tmp_path / "bundle")), Restorer)
    (tmp_path / "bundle" / name).write_text("{}")
    with pytest.raises(RegistryError, match=f"bundle: {'config.yaml|model.safetensors' if name[0] == 'c' else name} "):
        _load_pyfunc(str(tmp_path / "bundle"))


@pytest.mark.parametrize("tag", ["bundle.sha256", "weights.sha256"])
@pytest.mark.parametrize("value", ["", "../../photos", "{folder}", "A" * 64, "0" * 63, "0" * 64 + "/.."])
def test_a_checksum_that_is_none_becomes_no_path(first: Record, tmp_path: Path, tag: str, value: str) -> None:
    """A tag of a store is anybody's: it named the folder that is removed before a download."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"")
    value = value.format(folder=photos)
    record = replace(first, tags={**first.tags, tag: value})
    with pytest.raises(RegistryError, match=f"^denoiser/1: its tag {tag}='{value}' is no SHA-256"):
        record.path(tmp_path / "a" / "b")
    assert (photos / "a.png").exists() and not (tmp_path / "a").exists()


def test_a_link_in_the_cache_is_not_followed(first: Record, tmp_path: Path) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    shutil.copytree(first.path(tmp_path / "other"), elsewhere)
    (elsewhere / "config.yaml").write_text("mine")
    cache.mkdir()
    (cache / first.tags["bundle.sha256"]).symlink_to(elsewhere)
    assert "mine" not in (first.path(cache) / "config.yaml").read_text()
    assert (elsewhere / "config.yaml").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_keeps_models(server: Server, tmp_path: Path) -> None:
    config = Config().replace(SMALL | {"tracking.uri": server.uri})
    with open_run(config, run_dir=tmp_path / "run", tags={}) as run:
        run.log(1, {"loss": 1.0})
    bundle = write_bundle(tmp_path / "bundle", seed=3)
    register(bundle, name="remote", run_id=run.id, uri=server.uri, alias="champion", results=RESULTS)
    (bundle / "model.safetensors").unlink()  # it comes from the server
    record = lookup("remote@champion", uri=server.uri)
    restored = restore(record.load(cache=tmp_path / "cache"), torch.from_numpy(noisy_batch()), 25.0)
    same(restored.clamp(0, 1).numpy(), direct(3, noisy_batch(), 25.0))
    assert [found.label for found in models(server.uri)] == ["remote/1"]
    with pytest.raises(RegistryError, match="^remot: .*remote"):
        lookup("remot", uri=server.uri)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_real_http_request(first: Record, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    words = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/denoiser/1",
        "--env-manager",
        "local",
    ]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": first.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*words, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        noisy = noisy_batch(16, 24)
        answer = _post(port, {"inputs": noisy.tolist(), "params": {"sigma": 25.0}})
        restored = np.asarray(answer["predictions"], np.float32)
        np.testing.assert_allclose(restored, direct(0, noisy, 25.0), atol=1e-6)  # through decimal text
        with pytest.raises(urllib.error.HTTPError) as caught:
            _post(port, {"inputs": (noisy[:, :, :4, :4] * 255).tolist()})
        assert 400 <= caught.value.code < 600
        assert process.poll() is None  # a bad request does not end it
    finally:
        stop(process)


def _post(port: int, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, object] = json.load(reply)
    return answer


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a:b", "a\nb", "a'b\"c", "a" * 257])
def test_a_name_that_could_not_be_found_again(name: str) -> None:
    with pytest.raises(RegistryError, match="^--as=.*give one such as d2sm-ffdnet$"):
        check_names(name, asked_by="--as")


def test_names_that_can_be_found_again() -> None:
    for name in ("d2sm-ffdnet", "a'b", 'a"b', "ü b", "a" * 256):
        check_names(name)
