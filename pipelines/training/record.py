"""What the workers say, as the progress line and MLflow's record."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ray

from pipelines import tracking
from pipelines.config import Config
from pipelines.data import manifest
from pipelines.runs.folder import RunFolder
from pipelines.runtime import files, resources
from pipelines.runtime.progress import Line
from pipelines.training.messages import Entry
from pipelines.training.monitors import Restarts, Waiting

Watch = Callable[[int, Mapping[str, float]], None]


def _remedy(config: Config) -> str:
    """What helps when the workers wait for data."""
    more = f"raise train.data_cpus={config.train.data_cpus:g} where there are more CPUs"
    if manifest.is_prepared(Path(config.data.root)):
        return more
    which = "" if config.data.layout == "cityscapes" else f" --layout {config.data.layout}"
    verb = f"d2sm prepare {config.data.root} FOLDER{which}"
    return f"store the photographs decoded (`{verb}`, then data.root=FOLDER), or {more}"


class Record:
    """Entries of the workers -> the progress line and MLflow."""

    def __init__(
        self,
        config: Config,
        run: tracking.Run,
        line: Line,
        seen: dict[str, float],
        folder: RunFolder,
        *,
        start: int,
        watch: Watch | None,
    ) -> None:
        self.config, self.run, self.line, self.seen, self.told = config, run, line, seen, start
        self.watch, self.waiting, self.restarts = watch, Waiting(_remedy(config)), Restarts()
        self.skipped_file = folder.skipped_file
        self.skipped: dict[str, str] = json.loads(self.skipped_file.read_text()) if self.skipped_file.exists() else {}

    def __call__(self, entry: Entry) -> None:
        if "skipped" in entry:
            self._skip(dict(entry["skipped"]))
            return
        if "lost" in entry:
            self._say(self.restarts.breaks(entry["lost"]))
            return
        if "begins" in entry:
            self.waiting.begins()
            self._say(self.restarts.begins(entry["begins"], entry["workers"]))
            return
        metrics = entry["metrics"]
        self.run.log(entry["step"], metrics)
        if entry["step"] <= self.told:  # workers that were started again repeat themselves
            return
        self.told = entry["step"]
        self.seen.clear()
        self.seen.update(metrics)
        if self.watch is not None:
            self.watch(entry["step"], metrics)
        shown = {"loss": metrics["loss"], "d2sm": metrics.get("loss.d2sm"), "wait": metrics["data_wait"]}
        self.line.to(entry["step"], {name: value for name, value in shown.items() if value is not None})
        self._say(self.waiting(entry["step"], metrics))
        if caught_up := self.restarts.reaches(entry["step"], metrics["steps_per_second"]):
            self._say(caught_up)
            self.run.tag("d2sm.restarts", str(self.restarts.count))
            self.run.tag("d2sm.seconds_lost", f"{self.restarts.lost:.0f}")

    def between(self) -> None:
        """Beside the entries: that there are no workers, which would else be a silence of minutes."""
        if text := self.restarts.waits():
            with contextlib.suppress(ray.exceptions.RayError):  # the head is away as well
                text = f"{text}; {resources.shortage(self.config)}"
            self._say(text)

    def _say(self, text: str | None) -> None:
        if text:
            self.line.say(f"{self.line.what}: {text}")

    def _skip(self, reasons: dict[str, str]) -> None:
        fresh = {file: why for file, why in reasons.items() if file not in self.skipped}
        self.skipped.update(fresh)
        for why in fresh.values():
            self.line.say(f"skipped: {why}")
        files.write_text(self.skipped_file, json.dumps(self.skipped, indent=2))
        self.run.file(self.skipped_file)
        self.run.tag("d2sm.skipped_images", str(len(self.skipped)))
