"""Rows of finished runs as a table: on the terminal, as Markdown, and as JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.comparison.rows import DIGITS, Finished, Row
from pipelines.runtime import files
from pipelines.text import columns, redact
from pipelines.tracking.store import ui_command

_SERVER = "http://127.0.0.1:5000/"
TEXT, JSON = "table.md", "table.json"
_Number = Callable[[str], float | None]


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write table.md and table.json; gives their paths."""
    content = {TEXT: markdown(rows), JSON: json.dumps(tree(rows), indent=2) + "\n"}
    for name, written in content.items():
        files.write_text(folder / name, written)
    return [folder / name for name in content]


def levels(rows: Sequence[Row]) -> list[str]:
    """The noise levels of a table."""
    return list(rows[0].runs[0].results.restored) if rows else []


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Head and rows as cells: noisy; ours, below it the gain over the first and the paper's where it has it; clean."""
    if not rows:
        return []
    at, first = levels(rows), rows[0].runs[0]
    found = [["PSNR dB / SSIM / MIoU", "seeds", "steps", *(f"sigma {level}" for level in at)]]
    found.append(["noisy", "", "", *(_cell(level, _of(first, "noisy.")) for level in at)])
    for row in rows:
        steps = "/".join(sorted({str(run.step) for run in row.runs}, key=int))
        cells = [_cell(level, row.mean, row.spread) for level in at]
        found.append([row.label, str(len(row.runs)), steps, *cells])
        if row is not rows[0]:
            found.append([f"  over {rows[0].label}", "", "", *(_gain(level, row, rows[0]) for level in at)])
        if row.published:
            found.append(["  the paper's", "", "", *(_cell(level, row.published.get) for level in at)])
    ceiling = f"- / - / {_number(first.results.clean.miou, 'miou')}"
    return [*found, ["clean (ceiling)", "", "", *([ceiling] * len(at))]]


def text(rows: Sequence[Row]) -> str:
    """For the terminal."""
    cells = lines(rows)
    if not cells:
        return "no run finished"
    return columns(cells, ruled=True)


def markdown(rows: Sequence[Row]) -> str:
    """The table, how it was measured, and each row's runs; a row's numbers are links to them."""
    cells = lines(rows)
    if not cells:
        return "No run finished.\n"
    first, targets = rows[0].runs[0], {row.label: f"#row-{number}" for number, row in enumerate(rows)}
    out = ["| " + " | ".join(cells[0]) + " |", "|---" * len(cells[0]) + "|"]
    for name, *others in cells[1:]:
        linked = [f"[{cell}]({targets[name]})" if name in targets and "/" in cell else cell for cell in others]
        out.append("| " + " | ".join([name.strip(), *linked]) + " |")
    about = first.results
    out += [
        "",
        f"{about.images} images of {about.split}, data {about.data}, segmenter {about.segmenter or 'none'}. "
        f"{about.convention}. Mean and standard deviation (n - 1) over the seeds, gains seed by seed. "
        "The paper's numbers are of Cityscapes, at its own size.",
    ]
    out += ["", "## Runs", "", f"`{redact(ui_command(first.uri))}` serves the pages."]
    for number, row in enumerate(rows):
        out += ["", f'<a id="row-{number}"></a>', f"**{row.label}**", ""]
        out += [f"- seed {run.seed}: [{run.run_id}]({_link(run)}), commit {run.commit or 'unknown'}, `{run.folder}`"
                for run in row.runs]  # fmt: skip
    return "\n".join(out) + "\n"


def tree(rows: Sequence[Row]) -> dict[str, Any]:
    """For programs: every row with its mean, spread, the paper's numbers, and its runs."""
    names = rows[0].runs[0].columns if rows else []
    return {
        **(_about(rows[0].runs[0], names) if rows else {}),
        "rows": [
            {
                "label": row.label,
                "recipe": row.config.recipe,
                "mean": {name: row.mean(name) for name in names},
                "spread": {name: row.spread(name) for name in names},
                "paper": dict(row.published),
                "runs": [_run(run) for run in row.runs],
            }
            for row in rows
        ],
    }


def _about(first: Finished, names: Sequence[str]) -> dict[str, Any]:
    """What all rows share: how they were measured, the floor and the ceiling."""
    results = first.results
    return {
        **{name: getattr(results, name) for name in ("data", "split", "images", "segmenter", "convention")},
        "noisy": {name: first.numbers.get(f"noisy.{name}") for name in names},
        "clean.miou": results.clean.miou,
    }


def _run(run: Finished) -> dict[str, Any]:
    about = {name: getattr(run, name) for name in ("name", "seed", "step", "commit", "run_id", "page")}
    return {**about, "folder": str(run.folder), "numbers": dict(run.numbers)}


def _link(run: Finished) -> str:
    server = run.uri.rstrip("/") + "/" if run.uri.startswith("http") else _SERVER
    return redact(server) + run.page


def _of(run: Finished, prefix: str) -> _Number:
    return lambda metric: run.numbers.get(prefix + metric)


def _cell(level: str, mean: _Number, spread: _Number | None = None) -> str:
    parts = []
    for metric in DIGITS:
        name = f"{metric}.sigma{level}"
        part, wide = _number(mean(name), metric), spread(name) if spread else None
        parts.append(part if wide is None else f"{part} ±{_number(wide, metric)}")
    return " / ".join(parts)


def _gain(level: str, row: Row, over: Row) -> str:
    parts = []
    for metric in DIGITS:
        gain = row.gain(over, f"{metric}.sigma{level}")
        part = "-" if gain is None else ("+" if gain[0] >= 0 else "-") + _number(abs(gain[0]), metric)
        parts.append(part if gain is None or gain[1] is None else f"{part} ±{_number(gain[1], metric)}")
    return " / ".join(parts)


def _number(value: float | None, metric: str) -> str:
    digits = DIGITS[metric]
    text = "-" if value is None else f"{value:.{digits}f}"
    return text.removeprefix("0") if metric != "psnr" else text
