"""How Ray Train hands the stream to its workers: row k to worker k mod W. An actor of Ray's imports this; no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray.data
from ray.train import DataConfig


class OrderedShards(DataConfig):
    """Hands row k of the stream to worker k mod W, where W is the number of workers at this start.

    Its data sets are functions of W. Without preserve_order, and with locality, workers would get rows in the order in
    which tasks finish.
    """

    def __init__(self) -> None:
        options = ray.data.ExecutionOptions()
        options.preserve_order = True
        super().__init__(execution_options=options, enable_shard_locality=False)

    def configure(
        self, datasets: dict[str, Callable[..., ray.data.Dataset]], world_size: int, *args: Any, **kwargs: Any
    ) -> Any:
        built = {name: build(workers=world_size) for name, build in datasets.items()}
        return super().configure(built, world_size, *args, **kwargs)
