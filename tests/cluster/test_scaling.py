"""What a step sends is what the page in `cluster/scaling.py` says: counted in gloo process groups, DDP and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.scaling import step_bytes
from d2sm import D2SMLoss
from d2sm.divergence import Divergence
from d2sm.models import FFDNet
from tests.helpers.process_group import start

BATCH, SIDE, PATCH, QUEUE = 4, 32, 16, 48
LONG = [pytest.mark.slow, pytest.mark.long]
CASES: tuple[Divergence, ...] = ("kl", "jsd")


class Count:
    """Bytes of the tensors that pass: the loss's collectives, and the buckets of DDP, whose own are out of sight."""

    def __init__(self) -> None:
        self.bytes = 0
        self.gather, self.reduce = dist.all_gather, dist.all_reduce

    def all_gather(self, everyone: list[Tensor], mine: Tensor, **where: Any) -> None:
        self.bytes += mine.nbytes
        self.gather(everyone, mine, **where)

    def all_reduce(self, values: Tensor, *args: Any) -> None:
        self.bytes += values.nbytes
        self.reduce(values, *args)

    def bucket(self, _, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, and takes no text for one
        self.bytes += bucket.buffer().nbytes
        work = self.reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])


def sent(divergence: Divergence) -> dict[str, int]:
    """Of a step with full queues, and what the formula needs."""
    count, workers = Count(), dist.get_world_size()
    model = DistributedDataParallel(FFDNet(width=8, depth=3))
    model.register_comm_hook(None, count.bucket)
    phi = nn.Conv2d(3, 5, 4, stride=4)
    loss = D2SMLoss(phi, queue_size=QUEUE, patch_size=PATCH, divergence=divergence)
    with patch.object(dist, "all_gather", count.all_gather), patch.object(dist, "all_reduce", count.all_reduce):
        for _ in range(QUEUE // (BATCH * (SIDE // PATCH) ** 2) + 2):
            count.bytes = 0
            clean = torch.rand(BATCH // workers, 3, SIDE, SIDE)
            loss(restored=model(clean, torch.full((len(clean),), 25.0)), clean=clean).backward()
    rings = loss.state_dict()["matching.memory.rings"]
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"bytes": count.bytes, "d": rings.shape[2], "parameters": parameters}


def worker(rank: int, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    torch.save([sent(divergence) for divergence in CASES], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=LONG)])
def test_what_a_step_sends(workers: int, tmp_path: Path) -> None:
    start(worker, (workers, str(tmp_path)), workers)
    samples = BATCH * (SIDE // PATCH) ** 2 // workers
    for rank in range(workers):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for divergence, found in zip(CASES, seen, strict=True):
            parameters = found["parameters"]
            told = step_bytes(n=samples, d=found["d"], q=QUEUE, parameters=parameters, divergence=divergence)
            assert found["bytes"] == (told if workers > 1 else 4 * parameters)  # alone, DDP passes them to nobody
