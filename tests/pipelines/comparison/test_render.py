"""The table of a comparison whose runs a stranger named."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.comparison import render
from pipelines.comparison.rows import read_rows
from pipelines.config import Config
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
