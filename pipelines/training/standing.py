"""Which validation was the best so far, and when training stops early. Every rank and the driver decide alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from typing_extensions import TypedDict

from pipelines import parsing
from pipelines.config import Config, ConfigError
from pipelines.runs import checkpoint
from pipelines.runs.best import Best
from pipelines.runs.results import higher_is_better
from pipelines.text import listed
from pipelines.training.finite import TrainingError

KEPT = 100  # newest validations that a checkpoint carries: far more than can be on their way to the driver
_ENTRY = "validation"  # in log.json; a run without validation has none


class _Entry(TypedDict):
    step: int
    metrics: dict[str, float]


class _State(TypedDict):
    since: int
    about: dict[str, Any]
    recent: list[_Entry]


@dataclass
class Standing:
    """The best validation so far, and the newest ones.

    Attributes:
        metric: that is compared, `train.best`; None: none is.
        patience: `train.patience`.
        about: see `ValidationSet.about`.
        best: so far.
        since: validations since the best one.
        recent: the newest ones: step, and numbers by name.
    """

    metric: str | None
    patience: int | None
    about: Mapping[str, Any]
    best: Best | None = None
    since: int = 0
    recent: tuple[_Entry, ...] = ()

    @classmethod
    def at(cls, folder: Path | None, config: Config, about: Mapping[str, Any]) -> Self:
        """The standing at a checkpoint of this run; a fresh one without it, or if it is another run's.

        Args:
            about: of the validations to come.

        Raises:
            CheckpointError: log.json or meta.json is damaged.
            ConfigError: what is to be measured cannot be compared with the best validation so far.
        """
        fresh = cls(config.train.best, config.train.patience, about)
        if folder is None or not checkpoint.is_of(folder, config.train.name):
            return fresh
        log = checkpoint.log(folder)
        if _ENTRY not in log:
            return fresh
        where, damaged = folder / checkpoint.LOG, checkpoint.CheckpointError
        state = parsing.shaped(log[_ENTRY], _State, source=where, error=damaged, remedy=checkpoint.REMEDY)
        found = checkpoint.best(folder)
        if found is not None and (differing := _differing(state["about"], about)):
            raise ConfigError(
                f"train.best={found.metric}: validation would measure something else than at step {found.step} "
                f"({differing}); set it back, or choose another train.name"
            )
        return cls(fresh.metric, fresh.patience, about, found, state["since"], tuple(state["recent"]))

    def validated(self, step: int) -> dict[str, float]:
        """The numbers of a step, if that was the last validation; else empty."""
        last = self.recent[-1] if self.recent else None
        return dict(last["metrics"]) if last and last["step"] == step else {}

    def add(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in the validation of a step; gives whether it is the best so far.

        Raises:
            TrainingError: it has no finite value of `metric`.
        """
        self.recent = (*self.recent, _Entry(step=step, metrics=dict(metrics)))[-KEPT:]
        if self.metric is None:
            return False
        if self.metric not in metrics:
            raise TrainingError(
                f"step {step}: train.best={self.metric} has no finite value on the validation images; lower train.lr "
                "if the restored images are not finite, or choose another metric, under another train.name"
            )
        value = metrics[self.metric]
        if self.best is not None and not self._better(value, self.best.value):
            self.since += 1
            return False
        self.best, self.since = Best(self.metric, step, value), 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations in a row were no better than the best one, so that training stops early."""
        return self.patience is not None and self.since >= self.patience

    def why_stopped(self, step: int, steps: int) -> str:
        """Why training stopped early at a step: a part of a line for the user."""
        return (
            f"stopped early at step {step} of {steps}: no better {self.metric} in {self.since} validations "
            f"(train.patience={self.patience})"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint's log.json keeps beside the log; `best` stands in its meta.json."""
        return {_ENTRY: _State(since=self.since, about=dict(self.about), recent=list(self.recent))}

    def _better(self, value: float, than: float) -> bool:
        assert self.metric is not None
        return value > than if higher_is_better(self.metric) else value < than


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two validations differ; what an earlier version did not write down is taken to be the same."""
    return listed(
        f"{key} {before[key]}, now {value}" for key, value in now.items() if key in before and before[key] != value
    )
