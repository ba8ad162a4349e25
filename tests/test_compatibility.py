"""Runs, shards, registered models and sweeps written by commit 57e4321 are read, and go on to the numbers it gave.

On a machine that rounds as the recording one did, all must be equal bit for bit. On others computed numbers are equal
within a tolerance, while names, shapes, steps, fingerprints and everything that is not computed stay exact.
"""

from __future__ import annotations

import json
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.cli import main
from tests.fixtures.common import (
    DATABASE,
    EXPECTED,
    FOLDER,
    ORIGINAL,
    PARENT,
    PREFIX,
    copy_to,
    history,
    leaves,
    log_of,
    machine,
    noisy,
)

WEIGHTS, PIXELS, METRICS = (
    1e-5,
    1e-5,
    1e-3,
)  # tolerances; the fixtures' README says what AVX2 changes. MIoU jumps by pixels
LAST = "step-00000008"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the old code made of the same runs."""
    return dict(json.loads((FOLDER / EXPECTED / "expected.json").read_text()))


@pytest.fixture(scope="module")
def exact(expected: dict[str, Any]) -> bool:
    """Whether this machine rounds as the one did on which the fixtures were made."""
    return machine() == expected["machine"]


@pytest.fixture(scope="module")
def old() -> Iterator[Path]:
    """A folder as the old code left it: scenes, prepared, storage (runs, sweep, MLflow's database and artifacts)."""
    root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
    copy_to(root)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Registered models are downloaded anew, and not found in the user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path))


def alike(found: Any, wanted: Any, exact: bool) -> bool:
    """Equal; numbers within the tolerance where the machine is another one."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(alike(found[key], wanted[key], exact) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(alike(a, b, exact) for a, b in zip(found, wanted))
    if isinstance(wanted, float) and not exact:
        return bool(found == pytest.approx(wanted, rel=METRICS, abs=METRICS))
    return bool(found == wanted)


def run_id(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["run_id"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d2sm", "gan"])
def test_a_run_goes_on_to_the_same_end(
    ray_session: None, old: Path, name: str, expected: dict[str, Any], exact: bool
) -> None:
    """It was lost after step 5 of 8, on prepared data: within an epoch, and within an entry of its log."""
    folder, wanted = old / "storage" / name, expected[name]
    before = run_id(folder)
    assert main(["train", "--config", str(folder / "config.yaml"), "--quiet", "--no-evaluate"]) == 0
    weights = load_file(folder / LAST / "model.safetensors")
    for key, tensor in load_file(FOLDER / EXPECTED / f"{name}.safetensors").items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=0 if exact else WEIGHTS)
    assert dict(leaves(weights)).keys() == wanted["model"].keys()
    state = dict(leaves(torch.load(folder / LAST / "state.pt", weights_only=True)))
    state = {key: value for key, value in state.items() if ".sums_of." not in key}  # was not saved then
    assert {key: described(value) for key, value in state.items()} == {
        key: described(value) for key, value in wanted["state"].items()
    }
    if exact:
        assert [key for key in state if state[key] != wanted["state"][key]] == []
    assert alike(log_of(folder / LAST), wanted["log"], exact)
    assert alike(history(old / DATABASE, name), wanted["metrics"], exact)
    assert run_id(folder) == before
    with closing(sqlite3.connect(old / DATABASE)) as database:
        found = database.execute("SELECT run_uuid, status FROM runs WHERE name = ?", [name]).fetchall()
    assert found == [(before, "FINISHED")]


def described(leaf: Any) -> Any:
    """A tensor's type and shape without its digest; the type of anything else."""
    return leaf.rpartition(" ")[0] if isinstance(leaf, str) else type(leaf)


@pytest.mark.slow
def test_shards_are_found_whole_and_written_the_same(ray_session: None, old: Path) -> None:
    def shards(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    scenes, prepared, again = str(old / "scenes"), old / "prepared", old / "again"
    before = shards(prepared)
    times = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.arrow")}
    assert len(times) == 3
    for target in (prepared, again):
        assert main(["prepare", scenes, str(target), "--shard-mb", "0.07", "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.arrow")} == times
    assert shards(prepared) == before
    sources = {name for name in shards(again) if name.endswith(".sources.json")}  # earlier versions wrote none
    assert len(sources) == 3 and {name: text for name, text in shards(again).items() if name not in sources} == before


@pytest.mark.slow
def test_a_registered_model_measures_the_same(
    own_cache: None, old: Path, tmp_path: Path, expected: dict[str, Any], exact: bool
) -> None:
    """By its alias in the old database, on the prepared photograph with its labels."""
    words = [
        "evaluate", "--out", str(tmp_path / "results.json"), "--quiet", "models:/net@champion",
        f"tracking.uri=sqlite:///{old / DATABASE}", f"data.root={old / 'prepared'}",
        "evaluate.segmenter=tests.fixtures.common:colours",
    ]  # fmt: skip
    assert main(words) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found.pop("segmenter") == "tests.fixtures.common:colours"
    wanted = {key: value for key, value in expected["results"].items() if key != "segmenter"}
    assert alike({key: found[key] for key in wanted}, wanted, exact)  # later versions add keys


@pytest.mark.slow
def test_a_registered_model_is_served_by_mlflow(old: Path, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its MLmodel file names `pipelines.served`; the code that was stored beside it is left out, so it is this one."""
    import mlflow

    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's own code before it
    (model,) = (old / "storage" / "mlartifacts" / "models").glob("*/artifacts")
    (model / "code").mkdir(exist_ok=True)
    restored = mlflow.pyfunc.load_model(str(model)).predict(noisy(), params={"sigma": 30.0})
    wanted = np.load(FOLDER / EXPECTED / "served.npy")
    np.testing.assert_allclose(restored, wanted, rtol=0, atol=0 if exact else PIXELS)


@pytest.mark.long
def test_a_sweep_goes_on(ray_session: None, old: Path, expected: dict[str, Any], exact: bool) -> None:
    """Two of four trials were measured; Optuna suggested the third before the sweep was stopped, the fourth after."""
    import ray

    made, here = (
        (versions[0].split(".")[:2], versions[1])
        for versions in (
            (expected["python"], expected["ray"]),
            (platform.python_version(), ray.__version__),
        )
    )
    if made != here:
        pytest.skip(f"Ray Tune's pickles of Python and Ray {made} are read by these alone, here are {here}")
    sweep = old / "storage" / "sweep"
    before, known = run_id(sweep), json.loads((sweep / "suggested.json").read_text())
    rows = json.loads((sweep / "trials.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in sweep.glob("*/reports/*.json")}
    assert [row["state"] for row in rows] == ["finished", "finished", "waiting"] and len(times) == 2
    assert main([*(word.replace(ORIGINAL, old.name) for word in expected["sweep"]), "--trust"]) == 0
    found = json.loads((sweep / "trials.json").read_text())
    assert found[:2] == rows[:2]  # the seconds they took, too
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert [row["state"] for row in found] == ["finished"] * 4 and found[2]["point"] == rows[2]["point"]
    assert json.loads((sweep / "suggested.json").read_text())[:3] == known
    assert alike([[row["point"], row["metrics"]] for row in found[2:]], expected["trials"], exact)
    assert run_id(sweep) == before
