"""torch.compile of a training step (`train.compile`): network, frozen networks of the losses, arithmetic of matching.

The optimizer, EMA and what is left of the losses are a few kernels each and stay as they are. Every part has the same
shapes in every step, so each is compiled once: a worker's share of the batch is the same throughout, and the arithmetic
of matching is compiled for full queues alone. A part that cannot be compiled whole ends the run. A segmenter may be
anybody's code and is not compiled, nor is a Phi that is cut within a network (`d2sm.truncation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from d2sm.frozen import own_networks
from d2sm.matching import StatisticsMatching
from pipelines.config import ConfigError
from pipelines.sections import Train

BACKEND = "inductor"


def compile_step(network: nn.Module, objective: nn.Module) -> None:
    """Compile the parts of a step, in place, which keeps the names of the weights.

    Args:
        network: as a step calls it, before DistributedDataParallel wraps it.
        objective: with its terms.
    """
    matching = (part for part in objective.modules() if isinstance(part, StatisticsMatching))
    for part in (network, *own_networks(objective), *matching):
        part.compile(fullgraph=True, dynamic=False, backend=BACKEND)


@contextmanager
def compile_errors(train: Train) -> Iterator[None]:
    """An error of torch.compile in one line. The run stops: it never goes on with a step that is not compiled.

    Raises:
        ConfigError: `train.compile` is set and a part of the step cannot be compiled here.
    """
    if not train.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        raise ConfigError(
            f"train.compile=true: the step cannot be compiled here ({str(error).strip().splitlines()[0][:200]}); "
            "set train.compile=false"
        ) from error
