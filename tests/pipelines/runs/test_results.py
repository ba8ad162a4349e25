"""The results of an evaluation as a file, and the direction of every metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2sm.objectives import TERMS
from pipelines.runs.results import RESULTS, EvaluationError, Results, higher_is_better
from pipelines.training.log import Log
from tests.helpers.finished_runs import results

EVALUATED = sorted(results().flat())
LOSSES = ["loss", *(f"loss.{name}" for term in TERMS.values() for name in (term.name, *term.extra_losses))]


class Queue:
    """Stands in for the actor that carries messages to the driver."""

    def __init__(self) -> None:
        self.send, self.messages = self, list[Any]()

    def remote(self, message: Any) -> None:
        self.messages.append(message)


def logged() -> set[str]:
    """The metrics of one log entry of a training that uses every term."""
    queue = Queue()
    log = Log(queue, 0, rank=0)
    log.add({name: torch.tensor(1.0) for name in [*LOSSES, "gradient_norm", "discriminator_gradient_norm"]})
    log.flush(1, lr=1e-4)
    return set(queue.messages[-1].metrics)


def test_the_direction_of_every_metric() -> None:
    higher = {name for name in EVALUATED if higher_is_better(name)}
    assert higher == set(EVALUATED) and {"psnr.sigma25", "noisy.ssim.sigma50", "clean.miou"} <= higher
    trained = logged() - {"lr"}
    assert {name for name in trained if higher_is_better(name)} == {"steps_per_second"}
    assert trained >= {*LOSSES, "data_wait"}
    for name in ("distance.noisy", "kl.D2SM weight=2.5", "best.loss.d2sm"):  # logged by the t-SNE figure and a sweep
        assert not higher_is_better(name)
    assert higher_is_better("best.miou.sigmapair") and higher_is_better("psnr.sigma2.5")


@pytest.mark.parametrize(
    "name", ["lr", "psnr", "psnr.sigma", "psnr.l1", "loss.psnr", "lpips.sigma25", "miou_sigma25", ""]
)
def test_a_metric_without_a_direction_is_refused(name: str) -> None:
    with pytest.raises(EvaluationError, match=f"^metric {name}: ") as caught:
        higher_is_better(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_brings_up_the_nearest() -> None:
    with pytest.raises(EvaluationError, match=r"miou\.sigma25\?$"):
        higher_is_better("miou_sigma25")


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    results().save(tmp_path / RESULTS)
    assert Results.load(tmp_path / RESULTS) == results()
    (tmp_path / RESULTS).write_text('{"images": 3}')
    with pytest.raises(EvaluationError, match=r"results\.json: cannot be read.*d2sm evaluate"):
        Results.load(tmp_path / RESULTS)
