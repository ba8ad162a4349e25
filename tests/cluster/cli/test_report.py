"""`d2sm report`, from finished runs to the page and its place in MLflow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.cli.main import main
from pipelines.comparison.rows import read_run
from pipelines.recipes import recipe
from pipelines.tracking import store
from tests.helpers.finished_runs import log_entries, log_training, results, write_row, write_run
from tests.helpers.report_page import ParsedPage


@pytest.mark.slow
def test_runs_become_a_page_that_mlflow_keeps(
    scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = [write_row(scenes_root, tmp_path, f"ffdnet_{name}_cpu").runs[0] for name in ("l1", "d2sm")]
    for run, scale in zip(compared, (1.0, 0.5)):
        log_training(run, log_entries(2, 40, rate=4.0, scale=scale))
    out = tmp_path / "pages" / "report.html"
    words = ["report", *(str(run.folder) for run in compared), "--out", str(out), "--pictures", "1", "--trust"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"report {out}" in said
    text = out.read_text(encoding="utf-8")
    parsed = ParsedPage(text)
    runs_of = [read_run(run.folder) for run in compared]
    assert all(run.run_id and run.run_id in parsed.text for run in runs_of)
    alts = [attrs["alt"] for tag, attrs in parsed.elements if tag == "img"]
    assert any("L1 over the last tenth: L1 0.0257, D2SM 0.0128." in alt for alt in alts)
    assert any("Mean distance to the clean counterpart: noisy " in alt for alt in alts)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]  # no half-written file beside it
    client = store.client(compared[0].uri)
    record = client.get_run(said.rpartition("/")[2].strip())
    assert record.info.run_name == "report" and record.info.status == "FINISHED"
    assert json.loads(record.data.tags["d2sm.report"]) == {"L1": [runs_of[0].run_id], "D2SM": [runs_of[1].run_id]}
    assert client.download_artifacts(record.info.run_id, "report.html", str(tmp_path)).endswith("report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "words, message",
    [
        (["{half}"], "half: .*step 8 of 8"),
        (["{done}", "--out", "{here}"], "--out .*: .*report.html"),
        (["{done}", "--pictures", "-1"], "--pictures -1: "),
        (["{here}/none"], "none: "),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        "half": write_run(tmp_path / "half", recipe("ffdnet_l1_cpu"), final=False),
        "done": write_run(tmp_path / "done", recipe("ffdnet_l1_cpu"), results()),
        "here": tmp_path,
    }
    assert main(["report", *(word.format(**places) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("d2sm: ") and said.count("\n") == 1
    assert re.search(message, said)
    assert not (tmp_path / "report.html").exists()
