"""Runs on other degradations than noise, from end to end: their levels have the same names wherever they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.cli.main import main
from pipelines import experiment, table, train
from pipelines.config import Config, ConfigError
from pipelines.data.images import write_png
from pipelines.data.index import index
from pipelines.data.splits import settled
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import Results
from pipelines.tracking import store
from tests.conftest import tiny_config
from tests.helpers.stores import new_store

CHAIN = "blur:0..2+noise:0..30+jpeg:20..90"
LEVELS = ("blur:1+noise:10+jpeg:50", "noise:25", "jpeg:10", "tests.helpers.degradations:darker:2")
NAMES = ["25", "blur1+noise10+jpeg50", "jpeg10", "darker2"]
KEYS = {"sigma25", "blur1-noise10-jpeg50", "jpeg10", "darker2"}


def config_of(root: Path, storage: Path, **changes: Any) -> Config:
    small = {
        "degrade__chain": CHAIN, "evaluate__levels": LEVELS, "evaluate__actors": 0, "evaluate__pictures": 1,
        "loss__weight": 0.0, "evaluate__segmenter": "tests.helpers.segmenters:by_brightness", "train__num_workers": 0,
    }  # fmt: skip
    return tiny_config(root, storage, **(small | changes))


@pytest.mark.slow
def test_levels_have_one_name_everywhere(
    ray_session: None, scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In results.json, on the terminal, in MLflow, in pictures' names, in a table and in a report."""
    new_store(tmp_path)
    row = config_of(scenes_root, tmp_path).replace({"recipe": "ffdnet_l1_cpu"})
    (config,) = table.runs_of([row], name="rows", seeds=1)  # where the table looks for it
    outcome = experiment.run(config, quiet=True)
    folder = RunFolder.of(config).path
    found = Results.load(folder / "results.json")
    assert list(found.restored) == list(found.noisy) == NAMES and outcome.results == found
    assert "Gaussian blur (blur), then additive Gaussian noise" in found.convention
    assert all(row.restored.keys() == set(NAMES) for row in found.rows)
    client = store.client(outcome.trained.uri)
    logged = client.get_run(json.loads((folder / "run.json").read_text())["run_id"]).data.metrics
    for metric in ("psnr", "ssim", "miou", "noisy.psnr"):
        assert {name.removeprefix(f"{metric}.") for name in logged if name.startswith(f"{metric}.")} == KEYS
    assert logged["psnr.blur1-noise10-jpeg50"] == found.restored["blur1+noise10+jpeg50"].psnr
    pictures = [path.name for path in folder.rglob("*.png")]
    assert pictures and all(name.endswith("_jpeg10.png") for name in pictures)  # the third of four levels, as loaded

    trained = checkpoint.resolve(folder).stat().st_mtime_ns
    compared = table.table([row], name="rows", seeds=1, quiet=True)
    assert checkpoint.resolve(folder).stat().st_mtime_ns == trained  # not again
    assert not compared.failed and "blur1+noise10+jpeg50" in compared.text()
    assert {name.partition(".")[2] for name in compared.rows[0].runs[0].metrics if name.startswith("psnr.")} == KEYS
    mean = json.loads((compared.folder / "table.json").read_text())["rows"][0]["mean"]
    assert {name.partition(".")[2] for name in mean} == KEYS
    run = str(compared.rows[0].runs[0].folder)
    assert main(["report", run, "--out", str(tmp_path / "page.html"), "--quiet", "--trust"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("blur1+noise10+jpeg50") >= 3 and "sigma jpeg" not in page
    assert main(["evaluate", run, "evaluate.levels=[jpeg:10,motion:9]", "--quiet"]) == 0
    assert "jpeg10" in capsys.readouterr().out
    assert [path.name.partition("images-")[2][:14] for path in Path(run, "evaluations").iterdir()] == ["jpeg10-motion9"]


@pytest.mark.slow
@pytest.mark.long
def test_a_run_on_a_chain_resumes_to_the_same_weights(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    """Its degradations follow from seed, epoch and crop, so it does not matter where it was stopped."""
    whole = config_of(scenes_root, tmp_path, train__name="whole", train__checkpoint_every=2)
    train.fit(whole, quiet=True)
    parts = whole.replace({"train.name": "parts"})
    train.fit(parts.replace({"train.max_steps": 3}), quiet=True)
    train.fit(parts, quiet=True)
    one, other = (load_file(checkpoint.resolve(tmp_path / name) / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.long
def test_one_and_two_workers_see_the_same(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    """The losses of all steps are equal but for the rounding of their sums."""
    losses = []
    for workers in (1, 2):
        config = config_of(scenes_root, tmp_path, train__name=f"w{workers}", train__num_workers=workers)
        losses.append(train.fit(config, quiet=True).metrics["loss.l1"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def pairs(root: Path) -> Path:
    """Four photographs with three noisy shots each."""
    generator = np.random.default_rng(0)
    for number in range(4):
        clean = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        write_png(root / f"clean/p{number}.png", clean)
        for shot in range(3):
            noisy = np.clip(clean + generator.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
            write_png(root / f"noisy/p{number}/{shot}.png", noisy)
    return root


@pytest.mark.slow
@pytest.mark.long
def test_a_blind_network_is_trained_on_pairs_whose_level_nobody_knows(ray_session: None, tmp_path: Path) -> None:
    root = pairs(tmp_path / "pairs")
    config, said = settled(
        config_of(
            root, tmp_path, degrade__chain="", evaluate__levels=None, evaluate__segmenter=None, model__name="sadnet",
            model__width=96, model__depth=12, data__crop_size=32, train__epochs=1, train__batch_size=2,
        )
    )  # fmt: skip
    assert config.data.layout == "pairs" and len(said) == 1
    outcome = experiment.run(config, quiet=True)
    assert list(outcome.results.restored) == ["pair"] and outcome.results.images == 3  # one photograph held out
    assert len({row.name.rpartition("/")[0] for row in outcome.results.rows}) == 1
    with pytest.raises(ConfigError, match=r"noise.sigma=.*model.name=ffdnet is told"):
        config.replace({"model.name": "ffdnet"})


def test_prepared_pairs_are_those_of_the_files(ray_session: None, tmp_path: Path) -> None:
    root = pairs(tmp_path / "pairs")
    assert main(["prepare", str(root), str(tmp_path / "fast"), "--quiet"]) == 0
    for split in ("train", "val"):
        files, stored = (index(place, split, layout="pairs") for place in (root, tmp_path / "fast"))
        assert files["name"].equals(stored["name"]) and files.num_rows == {"train": 9, "val": 3}[split]
