"""What a verb says of what it has left behind, and its exit code."""

from __future__ import annotations

import pytest

from cluster.cli.outcome import warn_untracked


def test_what_mlflow_lacks_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert warn_untracked("") == 0
    assert warn_untracked("3 records wait in runs/first\nfor MLflow") == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "d2sm: 3 records wait in runs/first for MLflow\n")
