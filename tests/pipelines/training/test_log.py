"""The training log: what it sends, what stops a run, and how it continues after a restart."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config import Config
from pipelines.training.finite import TrainingError
from pipelines.training.log import RECENT, Log
from pipelines.training.loop import batches
from pipelines.training.messages import DataMissing, Message, Progress, Skipped, Started

CPU = torch.device("cpu")


def log_and_sent(step: int = 0, rank: int = 0) -> tuple[Log, list[Message]]:
    """A log, and the messages it sends."""
    sent: list[Message] = []
    return Log(SimpleNamespace(send=SimpleNamespace(remote=sent.append)), step, rank, Config().loss), sent


def numbers(value: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(value), "gradient_norm": torch.tensor(2 * value)}


def test_an_entry_holds_the_means_since_the_one_before() -> None:
    log, sent = log_and_sent()
    log.start(2)
    for step, value in enumerate([1.0, 3.0, 10.0]):
        log.add(numbers(value))
        if step:
            log.flush(step + 1, lr=0.5)
    log.skipped([["a", "a.png: is truncated"]])
    assert sent[0] == Started(0, 2) and sent[-1] == Skipped({"a": "a.png: is truncated"})
    first, second = (message for message in sent if isinstance(message, Progress))
    assert (first.step, first.metrics["loss"], first.metrics["gradient_norm"]) == (2, 2.0, 4.0)
    assert (second.step, second.metrics["loss"], second.metrics["lr"]) == (3, 10.0, 0.5)
    assert first.metrics["steps_per_second"] > 0 and first.metrics["data_wait"] == 0
    log.skipped([])
    log.flush(3, lr=0.5)  # nothing since
    assert len(sent) == 4


def test_a_wait_for_data_is_told_once_and_goes_on() -> None:
    """Each wait: for the first row, and for a later one; none where rows come at once."""
    log, sent = log_and_sent(rank=1)
    told, begun = threading.Event(), Future[Iterator[Any]]()
    log.messages.send.remote = lambda message: (sent.append(message), told.set())
    row = {"step": np.array([0]), "count": np.array([1]), "sigma": np.array([[25.0]]), "skipped": np.array(["[]"])}

    def rows() -> Iterator[dict[str, Any]]:
        yield row
        yield row
        told.clear()
        assert told.wait(60)
        yield row

    threading.Thread(target=lambda: told.wait(60) and begun.set_result(rows()), daemon=True).start()
    assert len(list(batches(begun, log, patience=0.4))) == 3
    assert sent == [DataMissing(0.4)] * 2 and log.waited >= 0.8


def test_only_rank_0_sends_entries() -> None:
    log, sent = log_and_sent(rank=1)
    log.start(2)
    log.add(numbers(1))
    log.flush(1, lr=0.5)
    assert not sent


@pytest.mark.parametrize("bad", ["loss", "gradient_norm", "loss.discriminator", "discriminator_gradient_norm"])
def test_a_state_that_is_not_finite_is_never_saved(bad: str) -> None:
    """The log is gathered before a checkpoint: at a finite loss, the gradient may have made the weights NaN."""
    log, _ = log_and_sent(step=3)
    for step in (3, 4, 5):
        log.add(numbers(1) | {bad: torch.tensor(float("inf") if step == 4 else 1.0)})
    with pytest.raises(TrainingError, match="^steps 3 to 5: .*finite") as error:
        log.gather(6)
    assert ("loss.adversarial_lr" in str(error.value)) == ("discriminator" in bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("saved, mine", [([1.0, 3.0], 3.0), ([1.0, 3.0, 5.0], 3.0), (2.0, 2.0)])
def test_an_unfinished_entry_continues_on_as_many_workers_or_others(saved: Any, mine: float) -> None:
    """Each rank with its own sums, or all with their mean; early checkpoints hold one number for all."""
    log, sent = log_and_sent(step=4, rank=1)
    log.resume({"since": 2, "sums": {"loss": saved}, "seconds": 1.0, "recent": []}, workers=2, device=CPU)
    assert (log.since, float(log.sums["loss"])) == (2, mine) and not sent


def test_a_resumed_log_sends_its_last_entries_again() -> None:
    """In the file format of log.json: the driver may have been killed before it recorded them."""
    log, sent = log_and_sent()
    for step in range(RECENT + 5):
        log.add(numbers(1))
        log.flush(step + 1, lr=0.5)
    log.add(numbers(7))
    state = json.loads(json.dumps(log.state(log.gather(RECENT + 6))))
    assert state["since"] == RECENT + 5 and state["sums"]["loss"] == [7.0]
    assert state["recent"][-1] == {"step": RECENT + 5, "metrics": sent[-1].metrics}  # type: ignore[union-attr]
    again, repeated = log_and_sent(RECENT + 6)
    again.resume(state, workers=1, device=CPU)
    assert repeated == sent[-RECENT:] and list(again.recent) == repeated
    empty, nothing = log_and_sent(4)
    empty.resume({}, workers=1, device=CPU)  # a checkpoint without a log
    assert empty.since == 4 and not nothing
