"""What a run says about waiting for data, lost workers and restarts: when it is due, and in real runs."""

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
from pipelines.training.monitors import DataWaitMonitor, RestartMonitor
from tests.conftest import tiny_config


def entry(wait: float, seconds: float = 20.0) -> dict[str, float]:
    """Metrics of a log entry of ten steps."""
    return {"data_wait": wait, "steps_per_second": 10 / seconds}


def test_waiting_for_data_is_said_once_and_the_start_does_not_count() -> None:
    monitor = DataWaitMonitor("buy a disk")
    said = [monitor.progress(10 * n, entry(wait)) for n, wait in enumerate([0.9, 0.05, 0.1, 0.3, 0.5, 0.0, 0.9])]
    due = said.pop(3)
    assert due is not None and "15%" in due and due.endswith("; buy a disk")
    assert said == [None] * 6


def test_a_short_run_is_not_warned() -> None:
    monitor = DataWaitMonitor("")
    assert [monitor.progress(10 * n, entry(0.9, seconds=4)) for n in range(4)][:3] == [None, None, None]
    again = DataWaitMonitor("", min_seconds=0)
    assert [again.progress(step, entry(0.9)) for step in (20, 20, 10)] == [None] * 3  # repeated steps count once
    again.started()
    assert again.progress(30, entry(0.9)) is None  # the stream starts within it
    assert again.progress(40, entry(0.9)) is not None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 100)), min_size=2, max_size=20))
def test_it_is_said_where_the_fraction_of_the_whole_time_first_passes_a_tenth(
    entries: list[tuple[float, float]],
) -> None:
    monitor = DataWaitMonitor("")
    said = [monitor.progress(10 * n, entry(wait, seconds)) is not None for n, (wait, seconds) in enumerate(entries)]
    due = []
    for n in range(1, len(entries)):
        seconds = sum(each[1] for each in entries[1 : n + 1])
        waited = sum(each[0] * each[1] for each in entries[1 : n + 1])
        due.append(seconds > 10 * (1 + 1e-9) and waited > 0.1 * seconds * (1 + 1e-9))
    if True in due:
        assert said[: due.index(True) + 2].count(True) == 1
    assert said.count(True) <= 1


def test_the_remedy_names_prepare_until_the_data_are_prepared(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "photos", tmp_path, data__layout="folder", train__data_cpus=2)
    remedy = record.data_remedy(config)
    assert f"`d2sm prepare {tmp_path}/photos FOLDER --layout folder`" in remedy and "train.data_cpus=2" in remedy
    named = {"data.labels": "camvid", "data.train_split": "train_extra", "data.val_split": ""}
    assert "FOLDER --layout folder --labels camvid --splits train_extra val`" in record.data_remedy(
        config.replace(named)
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / STARTED).write_text("{}")
    remedy = record.data_remedy(config)
    assert "d2sm prepare" not in remedy and "train.data_cpus=2" in remedy


def test_a_restart_is_reported_with_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(monitors.time, "monotonic", lambda: now[0])
    restarts = RestartMonitor()
    assert restarts.started(0, 3) is None
    now[0] = 110
    assert restarts.progress(20, steps_per_second=2) is None
    now[0] = 115
    lost = restarts.lost([0, 2])
    assert lost is not None and "workers 0, 2 of 3" in lost and "train.max_failures" in lost
    assert restarts.lost([1]) is None
    now[0] = 130
    assert restarts.started(10, 3) == "restarted at step 10 on 3 workers"
    assert restarts.started(10, 1) == "restarted at step 10 on 1 worker instead of 3"
    now[0] = 150  # 40 s since the last entry, for 20 steps that take 10 s
    assert restarts.progress(40, steps_per_second=2) == "caught up at step 40 after the restart; 30 s lost"
    assert restarts.progress(60, steps_per_second=2) is None
    assert (restarts.restarts, restarts.seconds_lost) == (2, 30.0)


def test_that_no_worker_has_started_is_said_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(monitors.time, "monotonic", lambda: now[0])
    restarts, said = RestartMonitor(), []
    for then in (101, 161, 165, 300):
        now[0] = then
        said.append(restarts.waiting())
    assert said == [None, "no worker has started for 60 s", None, None]
    restarts.started(0, 2)
    now[0] = 500
    assert restarts.waiting() is None
    assert restarts.lost([1]) is not None
    assert restarts.waiting() is None
    now[0] = 561
    assert restarts.waiting() is not None


@ray.remote(num_cpus=1)
class Occupant:
    """Holds a CPU."""

    def here(self) -> None:
        pass


@pytest.mark.long
def test_if_the_cluster_has_no_room_the_run_prints_what_it_waits_for(
    ray_session: None, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other actors hold every CPU until the line is there."""
    monkeypatch.setattr(record, "RestartMonitor", functools.partial(RestartMonitor, patience=3))
    cpus = int(ray.cluster_resources()["CPU"])
    others = [Occupant.remote() for _ in range(cpus)]  # type: ignore[attr-defined]
    ray.get([other.here.remote() for other in others])
    seen: list[str] = []

    def say(_: Line, text: str) -> None:
        seen.append(text)
        for other in others if "no worker has started" in text else []:
            ray.kill(other)

    monkeypatch.setattr(Line, "say", say)
    done = train.fit(tiny_config(scenes_root, tmp_path, train__name="waits", train__max_steps=1, train__num_workers=1))
    assert done.step == 1
    (line,) = [text for text in seen if "no worker" in text]
    assert line.startswith("waits: no worker has started for 3 s") and "0.5 CPU" in line and "0 CPU free" in line


@pytest.mark.long
def test_a_run_that_waits_for_data_says_so_once(
    ray_session: None,
    scenes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A tiny network on crops of whole images: reading takes most of the time."""
    monkeypatch.setattr(record, "DataWaitMonitor", functools.partial(DataWaitMonitor, min_seconds=0.0))
    config = tiny_config(
        scenes_root, tmp_path, train__num_workers=1, train__epochs=20, loss__weight=0, data__crops_per_image=1,
        train__batch_size=2, data__shuffle_images=2, train__log_every=5, model__width=4,
    )  # fmt: skip
    trained = train.fit(config)
    assert trained.step == 60
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "waited for data" in line]
    assert line.startswith("tiny: ") and f"`d2sm prepare {scenes_root} FOLDER`" in line
