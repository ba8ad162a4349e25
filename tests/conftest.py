"""Fixtures every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: tensors are small here, and cores few
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the suite's hundreds of processes compiles this code

from pipelines.config import Config

if TYPE_CHECKING:
    from pipelines.train import Trained

sys.dont_write_bytecode = False  # this process has read the variable

# Ray and MLflow read these at import; a test that wants one sets it itself.
for _name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and published weights beside the checkout; skips where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not (path / "data").is_dir():
        pytest.skip(f"needs real photographs in {path}/data, which are not on this machine")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests download and measure is kept in no user's cache, and none of a user's is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TORCH_HOME", raising=False)
        yield


@pytest.fixture(autouse=True)
def same_folder() -> Iterator[None]:
    """A test that changes the current folder changes it back: others start processes in it."""
    before = os.getcwd()
    yield
    after = os.getcwd()
    os.chdir(before)
    assert after == before


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of a process: starting it costs more than most of them."""
    from pipelines.runtime import session
    from tests.helpers.s3_server import ENVIRONMENT

    # As an administrator would set them for a cluster's nodes.
    os.environ |= ENVIRONMENT
    session.start(cpus=4)
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two evaluation scenes of 96 x 192 pixels, in the Cityscapes layout. Never write to it."""
    from pipelines.scenes import write_scenes

    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=6, val=2, height=96, width=192)


@pytest.fixture(scope="session")
def l1_run(ray_session: None, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run of six steps by L1 alone on one worker, to compare others with. Never change it."""
    from pipelines.train import fit
    from tests.helpers.sweeps import tiny_base

    storage = tmp_path_factory.mktemp("l1")
    return fit(tiny_base(scenes_root, storage, train__name="l1", train__num_workers=1), quiet=True)


def tiny_config(root: Path, storage: Path, **changes: Any) -> Config:
    """A run of seconds: 2 epochs of 3 steps, a small network, random Phi.

    Args:
        changes: dotted keys with `__` for the dot, such as train__lr=1e-3.
    """
    tiny = {
        "data.root": str(root), "data.crop_size": 64, "data.crops_per_image": 2, "data.shuffle_images": 6,
        "model.width": 8, "model.depth": 3,
        "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "loss.queue_size": 32,
        "train.name": "tiny", "train.storage": str(storage), "train.epochs": 2, "train.batch_size": 4,
        "train.lr": 1e-3, "train.num_workers": 2, "train.cpus_per_worker": 0.5,
        "tracking.uri": f"sqlite:///{storage}/mlflow.db",
    }  # fmt: skip
    return Config().replace(tiny | {key.replace("__", "."): value for key, value in changes.items()})
