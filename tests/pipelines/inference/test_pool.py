"""Measuring many items: the same in this process and in actors, whatever becomes of one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from pipelines.data.images import ImageError, write_png
from pipelines.data.splits import evaluation_images
from pipelines.inference import pool
from pipelines.inference.measuring import Measurement, Measurer
from pipelines.inference.samples import Sample
from pipelines.networks.models import build
from pipelines.runtime import session
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of

CPU = torch.device("cpu")
SAID = "constructor arguments in the object store"


def photographs(root: Path, count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        write_png(root / f"val/{number}.png", rng.integers(0, 256, (24, 32, 3), np.uint8))
    return root


def measurer_of(root: Path, *, dies_at: str = "", mark: str = "") -> Measurer:
    config = tiny_config(root, root, data__layout="folder")
    torch.manual_seed(0)
    return Dying(dies_at, Path(mark), config, build(config.model).eval(), None, device=CPU)


class Dying(Measurer):
    """A measurer whose process ends at an item, the first time."""

    def __init__(self, dies_at: str, mark: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dies_at, self.mark = dies_at, mark

    def load(self, item: Mapping[str, Any]) -> Any:
        if item["name"] == self.dies_at and not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return super().load(item)


def by_name(found: list[list[Measurement]]) -> dict[str, str]:
    return {of_item[0]["name"]: str(of_item) for of_item in found}


@pytest.mark.slow
def test_actors_measure_what_this_process_does_although_one_dies(ray_session: None, tmp_path: Path) -> None:
    root = photographs(tmp_path)
    items = evaluation_images(tiny_config(root, root, data__layout="folder")).to_pylist()
    wanted = by_name(list(pool.here(measurer_of(root), items, threads=1)))
    assert list(wanted) == ["0", "1", "2", "3", "4"]
    made = partial(measurer_of, root, dies_at="2", mark=str(tmp_path / "died"))
    assert by_name(list(pool.by_actors(made, items, actors=2, gpus=0, threads=1))) == wanted
    assert (tmp_path / "died").exists()
    (root / "val/3.png").write_bytes(b"no image")
    with pytest.raises(Exception) as error:
        list(pool.by_actors(partial(measurer_of, root), items, actors=2, gpus=0, threads=1))
    assert isinstance(session.cause(error.value), ImageError)


def test_no_items(tmp_path: Path) -> None:
    assert list(pool.here(measurer_of(photographs(tmp_path)), [], threads=1)) == []


class Together(Measurer):
    """A measurer that reads four items at once or none; it notes how many at most are read and not measured yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.four, self.lock = threading.Barrier(4, timeout=60), threading.Lock()
        self.held = self.most = 0

    def load(self, item: Mapping[str, Any]) -> Any:
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        self.four.wait()
        return super().load(item)

    def measure(self, loaded: Sample | Measurement) -> list[Measurement]:
        measured = super().measure(loaded)
        with self.lock:
            self.held -= 1
        return measured


def test_four_threads_read_what_one_does(tmp_path: Path) -> None:
    """Bit for bit, in the same order, and never more photographs than the readers and the one that is measured."""
    root = photographs(tmp_path, 8)
    config = tiny_config(root, root, data__layout="folder", data__bad_images="skip")
    items = evaluation_images(config).to_pylist()
    (root / "val/2.png").write_bytes(b"no image")
    torch.manual_seed(0)
    network = build(config.model).eval()
    together = Together(config, network, None, device=CPU, known={})
    found = list(pool.here(together, items, threads=1, readers=4))
    assert str(found) == str(list(pool.here(Measurer(config, network, None, device=CPU, known={}), items, threads=1)))
    assert [of_item[0]["name"] for of_item in found] == [item["name"] for item in items]
    assert 4 <= together.most <= 5


@pytest.mark.parametrize("readers", [1, 4])
def test_an_error_comes_in_its_turn(readers: int, tmp_path: Path) -> None:
    root = photographs(tmp_path, 8)
    items = evaluation_images(tiny_config(root, root, data__layout="folder")).to_pylist()
    for number in (3, 4, 6):
        (root / f"val/{number}.png").write_bytes(b"no image")
    found = pool.here(measurer_of(root), items, threads=1, readers=readers)
    assert [next(found)[0]["name"] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(ImageError, match="3.png"):
        next(found)
    assert list(found) == []


@pytest.mark.parametrize(
    "device, cores, wanted", [("cpu", 64, 1), ("cuda", 64, 4), ("cuda", 6, 3), ("cuda", 2, 1), ("cuda", 1, 1)]
)
def test_readers_take_half_of_the_cores(device: str, cores: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert pool.readers_for(torch.device(device)) == wanted


class Told:
    """An actor that is given something when it is made."""

    def __init__(self, _: object) -> None:
        pass


def test_ray_says_nothing_of_the_actors(ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its native code writes an error to the process's stderr, past Python's loggers, where an actor that may restart
    is given a stored object when it is made, as a large network is; the second actor shows that it would be seen.
    """
    root = photographs(tmp_path, 2)
    config = tiny_config(root, root, data__layout="folder", model__width=96, model__depth=12)  # 3.5 MB
    items = evaluation_images(config).to_pylist()
    made = partial(Measurer, config, build(config.model).eval(), None, device=CPU)
    assert len(list(pool.by_actors(made, items, actors=1, gpus=0, threads=1))) == 2
    assert SAID not in capfd.readouterr().err
    told = ray.remote(Told).options(num_cpus=0, max_restarts=1).remote(ray.put(0))
    assert SAID in capfd.readouterr().err
    ray.kill(told)


@pytest.mark.long
def test_ray_has_nothing_to_say_about_a_large_network(tmp_path: Path) -> None:
    """Its native code writes to the process's stderr itself, past Python's loggers."""
    root = photographs(tmp_path / "photos", 2)
    config = tiny_config(root, tmp_path, data__layout="folder", model__width=96, model__depth=12)  # 3.5 MB
    bundle = bundle_of(tmp_path / "step-00000000", config)
    code = (
        "import sys; from pipelines import config, evaluate; "
        "found = evaluate.evaluate(sys.argv[1], quiet=True, config=config.load(sys.argv[2])); print(found.images)"
    )
    config.replace({"evaluate.actors": 1}).save(tmp_path / "config.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), str(tmp_path / "config.yaml")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("d2sm: ")] == []
