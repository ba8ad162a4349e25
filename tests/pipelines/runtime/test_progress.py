"""The warning that the workers wait for data: when it is due, what it says, and that a real run says it once."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from pipelines import train
from pipelines.data.manifest import STARTED
from pipelines.runtime.progress import Line
from pipelines.training import monitors, record
from pipelines.training.monitors import Restarts, Waiting
from tests.conftest import tiny_config


def entry(wait: float, seconds: float = 20.0) -> dict[str, float]:
    """Of ten steps."""
    return {"data_wait": wait, "steps_per_second": 10 / seconds}


def test_it_is_said_once_and_not_of_the_start() -> None:
    waiting = Waiting("buy a disk")
    said = [waiting(10 * n, entry(wait)) for n, wait in enumerate([0.9, 0.05, 0.1, 0.3, 0.5, 0.0, 0.9])]
    assert said == [None, None, None, "the workers waited for data for 15% of the time; buy a disk", None, None, None]


def test_a_restart_is_told_with_what_it_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(monitors.time, "monotonic", lambda: now[0])
    restarts = Restarts()
    assert restarts.begins(0, 3) is None
    now[0] = 110
    assert restarts.reaches(20, steps_per_second=2) is None
    now[0] = 115
    assert restarts.breaks([0, 2]) is not None
    assert restarts.breaks([1]) is None
    now[0] = 130
    assert restarts.begins(10, 3) == "started again at step 10, on 3 workers"
    assert restarts.begins(10, 1) == "started again at step 10, on 1 worker instead of 3"
    now[0] = 150  # 40 s for 20 steps that take 10
    assert restarts.reaches(40, steps_per_second=2) == "further than before, at step 40; 30 s were lost"
    assert restarts.reaches(60, steps_per_second=2) is None
    assert (restarts.count, restarts.lost) == (2, 30.0)


def test_that_nobody_has_begun_is_said_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(monitors.time, "monotonic", lambda: now[0])
    restarts, said = Restarts(), []
    for then in (101, 161, 165, 300):
        now[0] = then
        said.append(restarts.waits())
    assert said == [None, "no worker has begun for 60 s", None, None]
    restarts.begins(0, 2)
    now[0] = 500
    assert restarts.waits() is None
    lost = restarts.breaks([1])
    assert lost is not None and lost.startswith("lost worker 1 of 2;")
    assert restarts.waits() is None
    now[0] = 561
    assert restarts.waits() is not None


@pytest.mark.slow
def test_a_run_without_places_says_what_it_waits_for(
    ray_session: None, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds every CPU until the line is there."""
    monkeypatch.setattr(record, "Restarts", functools.partial(Restarts, patience=3))
    every = int(ray.cluster_resources()["CPU"])
    others = [Other.remote() for _ in range(every)]  # type: ignore[attr-defined]
    ray.get([other.here.remote() for other in others])
    seen: list[str] = []

    def say(_: Line, text: str) -> None:
        seen.append(text)
        for other in others if "no worker has begun" in text else []:
            ray.kill(other)

    monkeypatch.setattr(Line, "say", say)
    done = train.fit(tiny_config(scenes_root, tmp_path, train__name="waits", train__epochs=1))
    assert done.step == 3
    assert [text for text in seen if "no worker" in text] == [
        "waits: no worker has begun for 3 s; asked for are 2 with 0.5 CPU each, and Ray has 0 CPU free"
    ]


@ray.remote(num_cpus=1)
class Other:
    """Holds a CPU."""

    def here(self) -> None:
        pass


def test_a_short_run_is_left_alone() -> None:
    waiting = Waiting("")
    assert [waiting(10 * n, entry(0.9, seconds=4)) for n in range(4)][:3] == [None, None, None]
    again = Waiting("", least=0)
    assert [again(step, entry(0.9)) for step in (20, 20, 10)] == [None] * 3  # workers were lost: nothing counts twice
    again.begins()
    assert again(30, entry(0.9)) is None  # the stream starts again within it
    assert again(40, entry(0.9)) is not None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 100)), min_size=2, max_size=20))
def test_it_is_said_where_the_share_of_the_whole_time_first_passes_a_tenth(parts: list[tuple[float, float]]) -> None:
    waiting = Waiting("")
    said = [waiting(10 * n, entry(wait, seconds)) is not None for n, (wait, seconds) in enumerate(parts)]
    due = []
    for n in range(1, len(parts)):
        seconds = sum(part[1] for part in parts[1 : n + 1])
        waited = sum(part[0] * part[1] for part in parts[1 : n + 1])
        due.append(seconds > 10 * (1 + 1e-9) and waited > 0.1 * seconds * (1 + 1e-9))
    if True in due:
        assert said[: due.index(True) + 2].count(True) == 1
    assert said.count(True) <= 1


def test_the_remedy_names_the_verb_until_the_data_are_prepared(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "photos", tmp_path, data__layout="folder", train__data_cpus=2)
    verb = f"d2sm prepare {tmp_path}/photos FOLDER --layout folder"
    assert record._remedy(config) == (
        f"store the photographs decoded (`{verb}`, then data.root=FOLDER), or raise train.data_cpus=2 where there are "
        "more CPUs"
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / STARTED).write_text("{}")
    assert record._remedy(config) == "raise train.data_cpus=2 where there are more CPUs"


@pytest.mark.long
def test_a_run_that_waits_says_so_once(
    ray_session: None,
    scenes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A network of nothing on crops of whole images: reading takes most of the time."""
    monkeypatch.setattr(record, "Waiting", functools.partial(monitors.Waiting, least=0.0))
    config = tiny_config(
        scenes_root, tmp_path, train__num_workers=1, train__epochs=20, loss__weight=0, data__crops_per_image=1,
        train__batch_size=2, data__shuffle_images=2, train__log_every=5, model__width=4,
    )  # fmt: skip
    trained = train.fit(config)
    assert trained.step == 60
    said = [line for line in capfd.readouterr().err.splitlines() if "waited for data" in line]
    assert len(said) == 1
    assert said[0].startswith("tiny: the workers waited for data for ")
    assert f"`d2sm prepare {scenes_root} FOLDER`" in said[0]
