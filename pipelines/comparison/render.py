"""Rows of finished runs as a table: on the terminal, as Markdown, and as JSON for programs."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.comparison import intervals
from pipelines.comparison.rows import FinishedRun, Row, common_changes, labels
from pipelines.runs.results import level_title, metric_digits, metric_name
from pipelines.runtime import files
from pipelines.text import columns, markdown, markdown_code, more, printable, redact
from pipelines.tracking.store import ui_command

TEXT, JSON = "table.md", "table.json"
_LOCAL_SERVER = "http://127.0.0.1:5000"
_Lookup = Callable[[str], float | None]  # metric -> value


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write table.md and table.json; gives their paths."""
    contents = {TEXT: document(rows), JSON: json.dumps(tree(rows), indent=2, allow_nan=False) + "\n"}
    for name, content in contents.items():
        files.write_text(folder / name, content)
    return [folder / name for name in contents]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text: a header; noisy; each row, its gain over the first row with its interval, and the paper's
    numbers; clean."""
    if not rows:
        return []
    first = rows[0].runs[0]
    levels, metrics = list(first.results.restored), first.results.metrics
    found = [[" / ".join(first.results.titles), "seeds", "steps", *map(level_title, levels)]]
    noisy = {name.removeprefix("noisy."): x for name, x in first.metrics.items() if name.startswith("noisy.")}
    found.append(["noisy", "", "", *(_values(metrics, level, noisy.get) for level in levels)])
    for row, name in zip(rows, labels([row.config for row in rows]), strict=True):
        steps = "/".join(sorted({str(run.step) for run in row.runs}, key=int))
        values = [_values(metrics, level, row.mean, row.deviation) for level in levels]
        found.append([name, str(len(row.runs)), steps, *values])
        if row is not rows[0]:
            found.append(
                ["  gain over the first row", "", "", *(_gains(metrics, level, row, rows[0]) for level in levels)]
            )
            if any(row.interval(rows[0], name) for name in first.columns):
                found.append(
                    ["  its 95 % interval", "", "", *(_intervals(metrics, level, row, rows[0]) for level in levels)]
                )
        if row.published:
            found.append(["  in the paper", "", "", *(_values(metrics, level, row.published.get) for level in levels)])
    ceiling = " / ".join(_number(first.metrics.get(f"clean.{metric}"), metric) for metric in metrics)
    return [*found, ["clean (ceiling)", "", "", *([ceiling] * len(levels))]]


def text(rows: Sequence[Row]) -> str:
    """For the terminal."""
    if not rows:
        return "no run has finished"
    common = _in_all(rows)
    notes = [f"in all rows: {printable(common)}"] if common else []
    notes += map(printable, interval_notes(rows))
    return "\n\n".join([columns(cells(rows), ruled=True), *["\n".join(notes)] * bool(notes)])


def document(rows: Sequence[Row]) -> str:
    """In Markdown: the table, how it was measured, and the runs of each row, to which the row's numbers link."""
    if not rows:
        return "No run has finished.\n"
    header, *body = cells(rows)
    anchors = {name: f"#row-{number}" for number, name in enumerate(labels([row.config for row in rows]))}
    out = ["| " + " | ".join(map(markdown, header)) + " |", "|---" * len(header) + "|"]
    for name, *others in body:
        linked = [f"[{cell}]({anchors[name]})" if name in anchors and "/" in cell else cell for cell in others]
        out.append("| " + " | ".join([markdown(name.strip()), *linked]) + " |")
    if common := _in_all(rows):
        out += ["", f"In all rows: {markdown_code(common)}."]
    first = rows[0].runs[0]
    measured = first.results
    out += [
        "",
        f"{markdown(measured.measured_on)}; data {markdown(measured.data)}. {markdown(measured.convention)}. "
        "Each cell is the mean over the seeds ± the standard deviation (n - 1); a gain is the mean difference between "
        "runs of the same seed. The paper's numbers were measured on Cityscapes, with full-size networks and the full "
        "schedule.",
        *(text for note in interval_notes(rows) for text in ("", markdown(note))),
        "",
        "## Runs",
        "",
        f"The links work while MLflow is served: {markdown_code(redact(ui_command(first.uri)))}",
    ]
    for number, row in enumerate(rows):
        out += ["", f'<a id="row-{number}"></a>', f"**{markdown(row.label)}**", ""]
        out += [
            f"- seed {run.seed}: [{markdown(run.run_id)}]({_page(run)}), commit {markdown(run.commit or 'unknown')}, "
            f"{markdown_code(str(run.folder))}"
            for run in row.runs
        ]
    return "\n".join(out) + "\n"


def tree(rows: Sequence[Row]) -> dict[str, Any]:
    """For programs: how all was measured, and every row with its mean, spread, the paper's numbers and its runs."""
    if not rows:
        return {"rows": []}
    first = rows[0].runs[0]
    names, measured = first.columns, first.results
    return {
        **{
            name: getattr(measured, name)
            for name in ("data", "split", "images", "segmenter", "labels", "lpips", "convention")
        },
        "judges": {name: judge.segmenter for name, judge in measured.judges.items()},
        "noisy": {name: first.metrics.get(f"noisy.{name}") for name in names},
        "clean.miou": measured.clean.miou,
        "intervals": {"level": intervals.LEVEL, "draws": intervals.DRAWS, "notes": interval_notes(rows)},
        "rows": [
            {
                "label": row.label,
                "recipe": row.config.recipe,
                "mean": {name: row.mean(name) for name in names},
                "spread": {name: row.deviation(name) for name in names},
                **({} if row is rows[0] else {"gain": {name: _gain(row, rows[0], name) for name in names}}),
                "paper": dict(row.published),
                "runs": [_run(run) for run in row.runs],
            }
            for row in rows
        ],
    }


def _gain(row: Row, over: Row, metric: str) -> dict[str, Any] | None:
    """The mean and the standard deviation of the difference to another row, and the ends of its interval."""
    if (gain := row.gain(over, metric)) is None:
        return None
    interval = row.interval(over, metric)
    return {"mean": gain[0], "spread": gain[1], "interval": interval and [interval.low, interval.high]}


def interval_notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of gains has to know of their intervals, a sentence or more each: how they were made, and why some
    are missing."""
    return [*filter(None, [_how_intervals(rows)]), *_missing_intervals(rows)] if len(rows) > 1 else []


def _how_intervals(rows: Sequence[Row]) -> str:
    """How the intervals were made; "" where there are none."""
    if not any(row.interval(rows[0], name) for row in rows[1:] for name in rows[0].runs[0].columns):
        return ""
    images = rows[0].runs[0].results.images
    few = ", and with so few of them" if images < 20 else ""
    return (
        f"95 % interval of a gain: paired bootstrap over the {images} photographs ({intervals.DRAWS} draws, the same "
        f"for all runs), seeds averaged. It covers the choice of photographs, not that of seeds. It is too narrow "
        f"where photographs resemble each other, as neighbouring frames of a video do{few}."
    )


def _missing_intervals(rows: Sequence[Row]) -> list[str]:
    """Why gains over the first row have no interval: a sentence for each cause; none where all have one."""
    first = rows[0].runs[0]
    if first.results.images < 2:
        return ["There are no 95 % intervals: a single photograph was evaluated."]
    notes = []
    without = {
        run.folder: names
        for row in rows
        for run in row.runs
        if (names := [name for name in first.columns if name in run.metrics and name not in run.draws])
    }
    if folders := list(without):
        lacking = {name.partition(".")[0] for names in without.values() for name in names}
        metrics = ", ".join(metric for metric in first.results.metrics if metric in lacking)
        remedy = f"; `d2sm evaluate {folders[0]}` writes them again" if folders[0].is_dir() else ""  # no study's file
        notes.append(
            f"No 95 % interval for {metrics}: the results of {folders[0]}{more(folders)} do not hold it by photograph, "
            f"as those of earlier versions do not{remedy}."
        )
    if unlabelled := [
        name
        for name in first.columns
        if any(np.isnan(run.draws[name]).any() for row in rows for run in row.runs if name in run.draws)
    ]:
        notes.append(f"No 95 % interval for {', '.join(unlabelled)}: some draws of photographs hold no labels.")
    return notes


def _run(run: FinishedRun) -> dict[str, Any]:
    noted = {name: getattr(run, name) for name in ("name", "seed", "step", "commit", "run_id", "page")}
    return {**noted, "folder": str(run.folder), "numbers": dict(run.metrics)}


def _page(run: FinishedRun) -> str:
    server = redact(run.uri.rstrip("/")) if run.uri.startswith("http") else _LOCAL_SERVER
    return urllib.parse.quote(f"{server}/{run.page}", safe=":/?#=&%@+,;~")


def _in_all(rows: Sequence[Row]) -> str:
    """The changed keys that the rows' names leave out, because all rows share them."""
    return " ".join(f"{key}={value}" for key, value in common_changes([row.config for row in rows]).items())


def _values(metrics: Sequence[str], level: str, mean: _Lookup, deviation: _Lookup | None = None) -> str:
    """A cell: the metrics at a level, each with its standard deviation where there is one."""
    parts = []
    for metric in metrics:
        name = metric_name(metric, level)
        spread = deviation(name) if deviation else None
        parts.append(_number(mean(name), metric) + ("" if spread is None else f" ±{_number(spread, metric)}"))
    return " / ".join(parts)


def _gains(metrics: Sequence[str], level: str, row: Row, over: Row) -> str:
    """A cell: the differences to another row, signed."""
    parts = []
    for metric in metrics:
        mean, deviation = row.gain(over, metric_name(metric, level)) or (None, None)
        parts.append(_signed(mean, metric) + ("" if deviation is None else f" ±{_number(deviation, metric)}"))
    return " / ".join(parts)


def _intervals(metrics: Sequence[str], level: str, row: Row, over: Row) -> str:
    """A cell: the ends of the intervals of the gains, with a digit more than the gains, so that their sign shows."""
    parts = []
    for metric in metrics:
        found = row.interval(over, metric_name(metric, level))
        parts.append(f"[{_signed(found.low, metric, 1)}, {_signed(found.high, metric, 1)}]" if found else "-")
    return " / ".join(parts)


def _signed(value: float | None, metric: str, further: int = 0) -> str:
    sign = "" if value is None else "+" if value >= 0 else "-"
    return sign + _number(None if value is None else abs(value), metric, further)


def _number(value: float | None, metric: str, further: int = 0) -> str:
    """All but PSNR without the zero before the point, to keep the table narrow; `further`: digits beside the usual."""
    if value is None:
        return "-"
    number = f"{value:.{metric_digits(metric) + further}f}"
    return number if metric == "psnr" else number.removeprefix("0")
