"""The table of a comparison whose runs a stranger named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.comparison import render
from pipelines.comparison.report import tables
from pipelines.comparison.rows import RunsError, read_rows
from pipelines.config import Config
from pipelines.runs.results import Judge, Judged, Results, Score
from tests.helpers.finished_runs import results, write_run

HTML = "<img src=x onerror=alert(1)>"


def test_names_reach_no_table_as_html_links_or_escapes(tmp_path: Path) -> None:
    config = Config().replace({"recipe": HTML, "data.train_split": "a|b`[c](d)\x1b[2J", "train.lr": 0.5})
    run = write_run(tmp_path / "run", config, results())
    (run / "run.json").write_text(json.dumps({"run_id": "[x](y)", "page": "p)<b> z"}))
    rows = read_rows([run])
    text = render.document(rows)
    assert "<img" not in text and "\x1b" not in text and "<b>" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") == 2
    line = next(line for line in text.splitlines() if "&lt;img" in line)
    assert line.replace("\\|", "").count("|") == text.splitlines()[0].count("|")  # as many cells as the header
    assert r"[\[x\](y)](http://127.0.0.1:5000/p%29%3Cb%3E%20z)" in text
    assert "\x1b" not in render.text(rows)


def test_a_table_shows_every_segmenter_and_lpips(tmp_path: Path) -> None:
    def judged(score: Score, miou: float) -> Score:
        lpips = None if score.psnr is None else 0.1234
        return replace(score, lpips=lpips, judges={"far": Judged(miou, {"road": miou})})

    def measured(miou: float, weights: str = "w") -> Results:
        found = results()
        return replace(
            found,
            restored={level: judged(score, miou) for level, score in found.restored.items()},
            noisy={level: judged(score, 0.1) for level, score in found.noisy.items()},
            clean=judged(found.clean, 0.5),
            judges={"far": Judge("models:/far@champion", weights)},
            lpips="vgg16",
        )

    runs = [
        write_run(tmp_path / name, Config().replace({"train.lr": lr}), measured(miou))
        for name, lr, miou in (("a", 0.1, 0.3), ("b", 0.2, 0.35))
    ]
    rows = read_rows(runs)
    header, noisy, _, second, gain, clean = (row[3] for row in render.cells(rows))
    assert render.cells(rows)[0][0] == "PSNR dB / SSIM / MIoU / MIoU far / LPIPS vgg16" and header == "sigma 25"
    assert noisy == "20.00 / .300 / .200 / .100 / .1234"
    assert second == "27.00 / .800 / .600 / .350 / .1234"
    assert gain == "+0.00 / +.000 / +.000 / +.050 / +.0000"
    assert clean == "- / - / .700 / .500 / -"
    assert render.tree(rows)["rows"][1]["mean"]["miou-far.sigma25"] == 0.35
    table = tables.table(rows)
    assert [cell.best for cell in table.lines[1].cells[:5]] == [True, True, True, True, True]
    assert not table.lines[0].cells[3].best and table.clean.cells[3].mean == "0.500"

    other = write_run(tmp_path / "c", Config().replace({"train.lr": 0.3}), measured(0.3, weights="v"))
    with pytest.raises(RunsError, match="further segmenters: far v, there far w.; .*evaluate.segmenters_weights"):
        read_rows([*runs, other])
