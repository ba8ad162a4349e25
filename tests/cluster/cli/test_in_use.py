"""Two commands that write to the same place: the second is told who owns it, before anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.main import main
from pipelines.runs.results import RESULTS
from pipelines.runtime import owner
from tests.helpers.checkpoints import CONFIG
from tests.helpers.finished_runs import results, write_run
from tests.helpers.owners import owning

VERBS = {
    "train": (["train", "--recipe", "ffdnet_l1_cpu", "train.name=it"], "choose another train.name"),
    "no-evaluate": (
        ["train", "--recipe", "ffdnet_l1_cpu", "--no-evaluate", "train.name=it"],
        "choose another train.name",
    ),
    "evaluate": (["evaluate", "{folder}"], "give --out for a file elsewhere"),
    "table": (["table", "--recipes", "ffdnet_l1_cpu", "--name", "it"], "choose another --name"),
    "tune": (
        ["tune", "--recipe", "ffdnet_l1_cpu", "--space", "space.yaml", "--name", "it", "--trials", "1"],
        "choose another --name",
    ),
    "prepare": (["prepare", ".", "it"], "give another target"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_second_command_is_told(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, remedy = VERBS[verb]
    words = [word.format(folder=tmp_path / "it") for word in words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(owner, "_PATIENCE", 0.0)
    (tmp_path / "space.yaml").write_text("train.lr: [0.1, 0.2]\n")
    folder = write_run(tmp_path / "it", CONFIG, results())
    (folder / "run.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if verb not in ("evaluate", "prepare"):
        words = [*words, f"train.storage={tmp_path}", f"data.root={tmp_path}"]
    with owning(folder) as process:
        assert main(words) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"d2sm: {folder}: is in use by process {process.pid} on ") and line.endswith(remedy), (
            line
        )
    assert {path: path.read_bytes() for path in before} == before and (folder / RESULTS).exists()
