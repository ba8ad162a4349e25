"""An experiment from end to end: what it checks before it trains (what evaluation needs: test_evaluate.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines import experiment
from pipelines.registry import RegistryError
from pipelines.tracking.registered import models
from tests.conftest import tiny_config
from tests.helpers.sweeps import tiny_base


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


@pytest.mark.slow
def test_a_run_is_registered_even_if_its_pictures_cannot_be_drawn(
    ray_session: None, scenes_root: Path, tmp_path: Path
) -> None:
    config = tiny_base(scenes_root, tmp_path, train__max_steps=1, evaluate__limit=1, tracking__register_as="kept")

    def watch(step: int, metrics: Mapping[str, float]) -> None:
        (tmp_path / "tiny" / "pictures").touch()  # a file where the folder of pictures would be

    with pytest.raises(FileExistsError):
        experiment.run(config, quiet=True, watch=watch)
    assert [found.version for found in models(config.tracking.uri)] == [1]
