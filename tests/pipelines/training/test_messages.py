"""Messages from the workers to the driver: none is lost, none comes twice, and the reader's errors are raised."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from pipelines.config import Config
from pipelines.runs.folder import RunFolder
from pipelines.training.messages import (
    DataMissing,
    Message,
    MessageQueue,
    Progress,
    QueueReader,
    RunProgress,
    Skipped,
    Started,
    WorkersLost,
    WorkerTask,
)

MESSAGES: list[Message] = [
    Started(0, 2), Skipped({"a": "a.png: is truncated"}), Progress(2, {"loss": 0.5}), WorkersLost((0, 1)),
    RunProgress("row", 2, 0.5), DataMissing(60.0),
]  # fmt: skip


def test_the_task_of_a_worker_survives_pickling() -> None:
    task = WorkerTask(Config(), RunFolder(Path("/runs/first")), 6, 3, {"name": "first"}, messages=None)
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_message_is_kept_until_it_is_confirmed(ray_session: None) -> None:
    queue = MessageQueue.remote()
    for message in MESSAGES:
        queue.send.remote(message)
    assert ray.get(queue.read.remote(0)) == MESSAGES
    assert ray.get(queue.read.remote(0)) == MESSAGES  # the first answer was lost
    assert ray.get(queue.read.remote(2)) == MESSAGES[2:]
    assert ray.get(queue.read.remote(len(MESSAGES))) == []
    queue.send.remote(MESSAGES[0])
    assert ray.get(queue.read.remote(len(MESSAGES))) == MESSAGES[:1]


def test_flags(ray_session: None) -> None:
    queue = MessageQueue.remote()
    assert ray.get([queue.stop_requested.remote(), queue.failure.remote()]) == [False, None]
    queue.request_stop.remote()
    queue.set_failure.remote("loss.weight=1: ...")
    assert ray.get([queue.stop_requested.remote(), queue.failure.remote()]) == [True, "loss.weight=1: ..."]


def until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_reader_hands_over_every_message_once_and_in_order(ray_session: None) -> None:
    received: list[Message] = []
    polls: list[None] = []
    with QueueReader(received.append, lambda: polls.append(None), interval=0.05) as reader:
        for message in MESSAGES:
            ray.get(reader.queue.send.remote(message))
        until(lambda: len(received) == len(MESSAGES))
        reader.queue.send.remote(MESSAGES[0])  # read when the block ends
    assert received == [*MESSAGES, MESSAGES[0]] and len(polls) > 1


def test_an_error_of_the_receiver_is_raised_where_the_block_ends(ray_session: None) -> None:
    def refuse(message: Message) -> None:
        raise ValueError(f"no {message}")

    with pytest.raises(ValueError, match="Started"), QueueReader(refuse, interval=0.05) as reader:
        reader.queue.send.remote(MESSAGES[0])
        end = time.monotonic() + 20
        while not ray.get(reader.queue.stop_requested.remote()):  # nobody would record what the workers still do
            assert time.monotonic() < end
            time.sleep(0.05)
