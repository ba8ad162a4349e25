"""An experiment from end to end: what it checks before it trains (what evaluation needs: test_evaluate.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import experiment
from pipelines.registry import RegistryError
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracking__register_as": "a/b"}, "tracking.register_as='a/b'"),
        ({"tracking__register_as": "a", "tracking__alias": "latest"}, "'latest'"),
    ],
)
def test_names_in_the_registry_are_checked_before_training(
    scenes_root: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        experiment.run(tiny_config(scenes_root, tmp_path, **changes), quiet=True)
    assert not list(tmp_path.iterdir())
