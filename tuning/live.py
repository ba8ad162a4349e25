"""What is shown of a sweep while it runs: a live table on a terminal, elsewhere a line a change."""

from __future__ import annotations

import contextlib
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

from pipelines import parsing
from pipelines.text import printable
from tuning import trials as summaries
from tuning.trial import FAILED, number_of, settings_of, trial_name
from tuning.trials import State, TrialSummary

_STATES: dict[str, State] = {"TERMINATED": "stopped", "ERROR": "failed", "RUNNING": "running"}
_SHOWN = 20  # trials on the screen


class Live(Callback):
    """Keeps trials.json up to date and shows it.

    Ray Tune pickles it, and a resumed sweep unpickles it: its name and the names of its first three attributes stay.
    """

    def __init__(self, folder: Path, concurrent: int, *, quiet: bool) -> None:
        self.folder, self.concurrent, self.quiet = folder, concurrent, quiet
        self._open()

    def _open(self) -> None:
        self.settings = settings_of(self.folder)
        self.trials: list[TrialSummary] = []
        self.console = Console(stderr=True)
        self.screen: Screen | None = None
        self.updated = 0.0  # when, on time.monotonic
        self.known: list[tuple[str, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "concurrent": self.concurrent, "quiet": self.quiet}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        known = [(trial.status, (trial.last_result or {}).get("budget")) for trial in trials]
        if known != self.known or time.monotonic() - self.updated > 1:
            self.known = known
            self._update(trials)

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        # The states of the trials are not read again here: after Ctrl-C, Ray Tune counts all of them as terminated.
        self.close()

    def close(self) -> None:
        """Leave the last table where it stands, and show the terminal's cursor again."""
        if self.screen is not None:
            self.screen.stop()

    def _update(self, trials: Sequence[TuneTrial]) -> None:
        self.updated = time.monotonic()
        before, self.trials = self.trials, sorted(map(self._summary, trials), key=lambda trial: trial.number)
        if self.trials != before:
            summaries.save(self.trials, self.folder)
        if self.quiet:
            return
        if self.console.is_terminal:
            if self.screen is None:
                self.screen = Screen(console=self.console, auto_refresh=False)
                self.screen.start()
            self.screen.update(self._table(), refresh=True)
        else:
            self._print_changes(before)

    def _summary(self, trial: TuneTrial) -> TrialSummary:
        result = trial.last_result or {}
        share = result.get("budget", 0) / self.settings["budgets"][-1]
        state: State = _STATES.get(trial.status, "waiting")
        if state == "stopped" and share == 1:
            state = "finished"
        metrics = {
            name: float(value)
            for name, value in result.items()
            if name in self.settings["metrics"] or name.startswith(("psnr", "ssim", "miou", "loss")) or name == "step"
        }
        number, why = number_of(self.folder, trial.trial_id, trial.config), ""
        if state == "failed":
            file = self.folder / trial_name(number) / FAILED
            why = "its process died, perhaps for lack of memory"
            if file.exists():
                with contextlib.suppress(parsing.ParseError):  # damaged: then the reason is not known
                    why = str(parsing.read_json(file).get("why", why))
        point = dict(trial.config["trial"]["point"])
        return TrialSummary(number, point, state, share, result.get("time_total_s", 0.0), metrics, why)

    def _print_changes(self, before: Sequence[TrialSummary]) -> None:
        known = {trial.number: (trial.state, trial.share) for trial in before}
        for trial in self.trials:
            begun = trial.share > 0 or trial.state not in ("waiting", "running")
            if begun and known.get(trial.number) != (trial.state, trial.share):
                metrics = [name for name in self.settings["metrics"] if name in trial.metrics]
                values = [f"{name} {trial.value(name):.4g}" for name in metrics]
                words = [f"trial {trial_name(trial.number)} {trial.state}", f"{trial.share:.0%} of its budget", *values]
                line = ", ".join([*words, trial.why] if trial.why else words)
                self.console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Group:
        """The running trials and the best of the others, as many as fit, and a line about all."""
        metrics = self.settings["metrics"]
        running = [trial for trial in self.trials if trial.state == "running"]
        others = [trial for trial in summaries.ranked(self.trials, metrics[0]) if trial.state != "running"]
        header, *lines = summaries.cells([*running, *others][:_SHOWN], list(self.settings["space"]), metrics)
        grid = Table(box=None, pad_edge=False)
        for name in header:
            grid.add_column(Text(printable(name)), no_wrap=True)
        for line in lines:
            grid.add_row(*(Text(printable(cell)) for cell in line))
        return Group(grid, Text(self._progress(metrics[0])))

    def _progress(self, metric: str) -> str:
        ended = [trial for trial in self.trials if trial.state in ("finished", "stopped", "failed")]
        total = self.settings["count"]
        words = [f"{len(ended)} of {total} trials ended"]
        if best := summaries.best(self.trials, metric):
            words.append(f"best {metric} {best.value(metric):.4g} (trial {trial_name(best.number)})")
        if ended:
            each = sum(trial.seconds for trial in ended) / len(ended)
            spent = sum(trial.seconds for trial in self.trials if trial.state == "running")
            left = max(0.0, (each * (total - len(ended)) - spent) / self.concurrent)
            words.append(f"about {left / 60:.0f} minutes left")
        return ", ".join(words)
