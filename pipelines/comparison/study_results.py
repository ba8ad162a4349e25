"""The results of a study: every number of every photograph in one small file, and the tables made of them."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines import parsing
from pipelines.comparison import render
from pipelines.comparison.rows import FinishedRun, Row, RunsError
from pipelines.config import Config, keys_with
from pipelines.runs.results import Results
from pipelines.runtime import files

START = "start"  # in place of an objective: the run that the others of a setting start from
RAW = "study.json.gz"
_LARGEST = 2**30  # bytes of the unpacked file


@dataclass(frozen=True)
class Compared:
    """A finished run of a study. seconds: of its training and evaluation; nan if it is not known."""

    setting: str
    objective: str
    run: FinishedRun
    seconds: float


@dataclass(frozen=True)
class StudyResults:
    """The finished runs of a study, those that others start from first."""

    name: str
    runs: tuple[Compared, ...]

    @cached_property
    def settings(self) -> list[str]:
        """In the order of the plan."""
        return list(dict.fromkeys(one.setting for one in self.runs))

    def rows(self, setting: str) -> list[Row]:
        """A row for each objective and weight of a setting, the network that they start from not among them."""
        found: dict[str, list[FinishedRun]] = {}
        for one in self.runs:
            if one.setting == setting and one.objective != START:
                found.setdefault(one.objective, []).append(one.run)
        return [Row(name, tuple(sorted(runs, key=lambda run: run.seed))) for name, runs in found.items()]

    def start(self, setting: str) -> FinishedRun | None:
        """The run that those of a setting start from; None: from random weights."""
        return next((one.run for one in self.runs if (one.setting, one.objective) == (setting, START)), None)


class _Raw(BaseModel):
    """A run in the file."""

    model_config = ConfigDict(extra="forbid")

    setting: str
    objective: str
    config: dict[str, Any]
    results: dict[str, Any]
    step: int
    commit: str
    init: str
    seconds: float | None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    runs: list[_Raw]


def save(results: StudyResults, path: Path) -> None:
    """Write everything that `load` reads: without paths of this machine, and of single images only the restored."""
    place = {key: value for key, value in Config().flat().items() if key in keys_with("place")}
    runs = []
    for one in results.runs:
        rows = tuple(replace(row, noisy={}) for row in one.run.results.rows)
        raw = _Raw(
            setting=one.setting,
            objective=one.objective,
            config=one.run.config.replace(place | {"tracking.parent": "", "train.init": ""}).model_dump(mode="json"),
            results=asdict(replace(one.run.results, rows=rows)),
            step=one.run.step,
            commit=one.run.commit,
            init=Path(one.run.init.partition(" ")[0]).parent.name if one.run.init else "",
            seconds=None if math.isnan(one.seconds) else round(one.seconds, 1),
        )
        runs.append(raw.model_dump())
    text = json.dumps({"name": results.name, "runs": runs}, allow_nan=False, separators=(",", ":"))
    with files.replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def load(path: Path) -> StudyResults:
    """The results of a study from the file that `save` wrote.

    Raises:
        RunsError: the file is missing or holds anything else. One line.
    """
    remedy = f"give the {RAW} that `d2sm study` wrote"
    try:
        with gzip.open(path, "rb") as packed:
            text = packed.read(_LARGEST)
    except (OSError, EOFError) as error:
        raise RunsError(f"{path}: cannot be read ({error}); {remedy}") from None
    found = parsing.parse_json(text, _File, source=path, error=RunsError, remedy=remedy)
    return StudyResults(found.name, tuple(_compared(raw, path, remedy) for raw in found.runs))


def _compared(raw: _Raw, path: Path, remedy: str) -> Compared:
    run = FinishedRun(
        path,
        parsing.shaped(raw.config, Config, source=path, error=RunsError, remedy=remedy),
        parsing.shaped(raw.results, Results, source=path, error=RunsError, remedy=remedy),
        raw.step,
        raw.commit,
        run_id="",
        page="",
        init=raw.init,
    )
    return Compared(raw.setting, raw.objective, run, math.nan if raw.seconds is None else raw.seconds)


def write(results: StudyResults, folder: Path) -> list[Path]:
    """Write the results into a study's folder; gives the files."""
    save(results, folder / RAW)
    return [folder / RAW]


def text(results: StudyResults) -> str:
    """For the terminal."""
    parts = []
    for setting in results.settings:
        rows = results.rows(setting)
        parts.append(f"{setting}\n{render.text(rows)}")
    return "\n\n".join(parts)
