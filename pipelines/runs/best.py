"""The best checkpoint of a run by the metric `train.best`, as the meta.json of every checkpoint names it.

A checkpoint names the best one up to its own step, so each of them is enough to go on from, and retention, which keeps
the best of every checkpoint that it keeps, needs no file beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pipelines import parsing
from pipelines.config import ConfigError
from pipelines.runs import names

BEST = "best"  # the entry of meta.json, and of run.json


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        metric: that was compared: "psnr.sigma25".
        step: at which it was measured, and of which there is a checkpoint.
        value: of the metric.
    """

    metric: str
    step: int
    value: float

    @classmethod
    def named_in(cls, meta: Mapping[str, Any], source: object, error: type[ValueError]) -> Self | None:
        """What a checkpoint's meta.json names as the best; None: training selects none.

        Args:
            source: the file, for the message.
            error: the class of exception that is raised.

        Raises:
            ValueError: of the class `error`: the entry is none.
        """
        if BEST not in meta:
            return None
        remedy = "copy the checkpoint again, or use another one of the run"
        found = parsing.shaped(meta[BEST], cls, source=f"{source}: {BEST}", error=error, remedy=remedy)
        try:
            found.name  # noqa: B018  # a step may come from a stranger
        except ConfigError as wrong:
            raise error(f"{source}: {BEST}: {wrong}; {remedy}") from None
        return found

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return names.checkpoint_name(self.step)

    def entry(self) -> dict[str, dict[str, Any]]:
        """The entry of meta.json and of run.json."""
        return {BEST: asdict(self)}

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4f} at step {self.step}"


def names_of(metas: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of the checkpoints that these meta.json name as the best; one that names none well adds nothing."""
    found = set()
    for meta in metas:
        try:
            best = Best.named_in(meta, "", ValueError)
        except ValueError:
            continue
        found |= {best.name} if best else set()
    return found
