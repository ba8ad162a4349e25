"""What is seen of a sweep while it runs: one live table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from tuning import rows as tables
from tuning.rows import Row, State
from tuning.trial import FAILED, SETTINGS, name_of, number_of

_STATES: dict[str, State] = {"TERMINATED": "stopped", "ERROR": "failed", "RUNNING": "running"}
_SHOWN = 20  # trials on the screen at once


class Live(Callback):
    """Keeps trials.json up to date and shows it. Survives pickling: a continued sweep unpickles it."""

    def __init__(self, folder: Path, concurrent: int, *, quiet: bool) -> None:
        self.folder, self.concurrent, self.quiet = folder, concurrent, quiet
        self._open()

    def _open(self) -> None:
        self.settings = json.loads((self.folder / SETTINGS).read_text())
        self.rows: list[Row] = []
        self.console = Console(stderr=True)
        self.screen: Screen | None = None
        self.drawn = 0.0
        self.known: list[tuple[str, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "concurrent": self.concurrent, "quiet": self.quiet}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        news = [(trial.status, (trial.last_result or {}).get("budget")) for trial in trials]
        if news != self.known or time.monotonic() - self.drawn > 1:
            self.known = news
            self._update(trials)

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        # The trials are not looked at again: after Ctrl-C all of them count as terminated by now.
        if self.screen is not None:
            self.screen.stop()

    def _update(self, trials: Sequence[TuneTrial]) -> None:
        self.drawn = time.monotonic()
        before, self.rows = self.rows, sorted(map(self._row, trials), key=lambda row: row.number)
        if self.rows != before:
            tables.save(self.rows, self.folder)
        if self.quiet:
            return
        if self.console.is_terminal:
            if self.screen is None:
                self.screen = Screen(console=self.console, auto_refresh=False)
                self.screen.start()
            self.screen.update(self._picture(), refresh=True)
        else:
            self._say(before)

    def _row(self, trial: TuneTrial) -> Row:
        about, metrics = trial.config["trial"], trial.last_result or {}
        share = metrics.get("budget", 0) / self.settings["budgets"][-1]
        state: State = _STATES.get(trial.status, "waiting")
        if state == "stopped" and share == 1:
            state = "finished"
        seconds = metrics.get("time_total_s", 0.0)
        kept = {
            k: float(v)
            for k, v in metrics.items()
            if k in self.settings["metrics"] or k.startswith(("psnr", "ssim", "miou", "loss")) or k == "step"
        }
        number = number_of(self.folder, trial.trial_id, trial.config)
        why = _why(self.folder / name_of(number)) if state == "failed" else ""
        return Row(number, dict(about["point"]), state, share, seconds, kept, why)

    def _say(self, before: Sequence[Row]) -> None:
        known = {row.number: row for row in before}
        for row in self.rows:
            old = known.get(row.number)
            if old is None or (row.state, row.share) != (old.state, old.share):
                if row.state in ("waiting", "running") and row.share == 0:
                    continue
                values = [f"{m} {row.value(m):.4g}" for m in self.settings["metrics"] if m in row.metrics]
                words = [f"trial {name_of(row.number)}", row.state, f"{row.share:.0%}", *values, row.why]
                self.console.print(" ".join(word for word in words if word), highlight=False, soft_wrap=True)

    def _picture(self) -> Group:
        metric = self.settings["metrics"][0]
        header, *lines = tables.table(self._visible(metric), list(self.settings["space"]), self.settings["metrics"])
        grid = Table(box=None, pad_edge=False)
        for name in header:
            grid.add_column(name, no_wrap=True)
        for line in lines:
            grid.add_row(*line)
        return Group(grid, Text(self._summary(metric)))

    def _visible(self, metric: str) -> list[Row]:
        """The running ones and the best, as many as fit."""
        active = [row for row in self.rows if row.state == "running"]
        others = [row for row in tables.ranked(self.rows, metric) if row.state != "running"]
        return [*active, *others][:_SHOWN]

    def _summary(self, metric: str) -> str:
        ended = [row for row in self.rows if row.state in ("finished", "stopped", "failed")]
        total = self.settings["count"]
        words = [f"{len(ended)} of {total} trials"]
        top = tables.best(self.rows, metric)
        if top:
            words.append(f"best {metric} {top.value(metric):.4g} (trial {name_of(top.number)})")
        if ended:
            each = sum(row.seconds for row in ended) / len(ended)
            spent = sum(row.seconds for row in self.rows if row.state == "running")
            left = max(0.0, (each * (total - len(ended)) - spent) / self.concurrent)
            words.append(f"about {left / 60:.0f} min left")
        return ", ".join(words)


def _why(run_dir: Path) -> str:
    path = run_dir / FAILED
    return str(json.loads(path.read_text())["why"]) if path.exists() else "its process died (out of memory?)"
