"""The same loss for any number of workers: real gloo process groups, different content on each."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from d2sm import D2SMLoss, StatisticsMatching
from d2sm.distributed import (
    _CPU_GROUPS,
    CAN_SET_TIMEOUT,
    AnyRank,
    gather_rows,
    sum_over_workers,
    wait_for_slow_ranks,
    world_size,
)
from d2sm.divergence import Divergence
from tests.helpers.process_group import batch_of, on_ranks, slice_of, small_network, small_phi

STEPS, QUEUE = 4, 22
Case = tuple[Divergence, bool, bool, bool]  # divergence; uneven shares, patches; exponential kernel, centred; regions
CASES: tuple[Case, ...] = (
    ("kl", False, False, False), ("inverse_kl", False, False, False), ("jsd", False, False, False),
    ("kl", True, False, False), ("kl", True, True, False), ("jsd", False, True, False), ("kl", False, False, True),
)  # fmt: skip


def _train(
    rank: int, workers: int, divergence: Divergence, uneven: bool, centred: bool, regions: bool
) -> dict[str, Any]:
    network = small_network()
    model = DistributedDataParallel(network) if workers > 1 else network
    options: dict[str, Any] = {"kernel": "exp", "temperature": 0.3, "center": True} if centred else {}
    options |= {"class_regions": 2} if regions else {"patch_size": 8 if uneven else None}
    loss = D2SMLoss(small_phi(), queue_size=QUEUE, divergence=divergence, **options)
    optimizer, values = torch.optim.SGD(network.parameters(), lr=0.5), []
    for step in range(STEPS):  # the queues wrap around in the third step
        images, sizes = batch_of(step, uneven)
        clean = images[slice_of(sizes, rank, workers)]
        labels = (3 * clean.mean(1)).long() if regions else None
        value = loss(restored=model(clean), clean=clean, labels=labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    queues = {k: v for k, v in loss.state_dict().items() if isinstance(v, torch.Tensor)}
    return {"values": values, "gradient": gradient, "weights": weights, "queues": queues}


def _bf16_gather(rank: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 512, generator=generator)
    restored = clean + 0.3 * torch.randn(4, 512, generator=generator)
    part = slice(2 * rank, 2 * rank + 2)
    coarse = StatisticsMatching(8, gather_dtype=torch.bfloat16)(restored=restored[part], clean=clean[part])
    return {"coarse": coarse.item(), "rows": gather_rows(restored[part][:, :3])[0], "all": restored[:, :3]}


def _by_hosts(rank: int) -> list[torch.Tensor]:
    """As under NCCL, whose group takes no tensors of the host: the shapes go through a group made beside it, once."""
    with (
        patch.object(dist, "get_backend_config", lambda group: "cuda:nccl"),
        patch.object(dist, "new_group", wraps=dist.new_group) as made,
    ):
        gathered = [gather_rows(torch.full((1 + rank, 2), float(step)))[0] for step in range(3)]
    assert made.call_count == 1 and made.call_args.kwargs["timeout"] is None  # torch's, unless slow ranks are expected
    return gathered


def _mismatch(rank: int) -> str:
    try:
        gather_rows(torch.zeros(2, 3 + rank))
    except ValueError as error:
        return str(error)
    return ""


def _centred_mismatch(rank: int) -> str:
    """The mean of unequal rows is not asked for: gloo would end one process and leave the other waiting."""
    features = torch.ones(2, 3 + rank)
    try:
        StatisticsMatching(8, center=True)(restored=features, clean=features)
    except ValueError as error:
        return str(error)
    return ""


def _one_rank_not_finite(rank: int) -> list[float]:
    """The values of three steps; in the second a sample of the last rank is not finite."""
    matching, generator = StatisticsMatching(8), torch.Generator().manual_seed(rank)
    values = []
    for step in range(3):
        features = torch.randn(2, 6, generator=generator)
        if step == 1 and rank == world_size() - 1:
            features[0, 0] = float("nan")
        values.append(matching(restored=features + 0.1, clean=features).item())
    return values


def _any_rank(rank: int) -> list[bool]:
    """The flag is set on no rank, on the last one, on all, on none."""
    any_rank, answers = AnyRank(), []
    for flag in (False, rank == world_size() - 1, True, False):
        any_rank.start(flag)
        sum_over_workers(torch.ones(3))  # the step's own collectives run beside it
        answers.append(any_rank.result())
    return answers


def _results(rank: int, workers: int) -> dict[Any, Any]:
    results: dict[Any, Any] = {case: _train(rank, workers, *case) for case in CASES}
    results["any"] = _any_rank(rank)
    results["total"] = sum_over_workers(torch.tensor([1.0, rank]))
    if workers == 2:
        results["bf16"], results["mismatch"] = _bf16_gather(rank), _mismatch(rank)
        results["hosts"], results["centred mismatch"] = _by_hosts(rank), _centred_mismatch(rank)
        results["not finite"] = _one_rank_not_finite(rank)
    return results


@pytest.fixture(scope="module", params=[2, 4])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of W workers saw."""
    return on_ranks(_results, request.param, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_workers_together_equal_one_process(workers: list[dict[Any, Any]], case: Case) -> None:
    alone = _train(0, 1, *case)
    assert max(alone["values"]) > 0 and alone["gradient"].abs().max() > 1e-6
    for worker in workers:
        seen = worker[case]
        assert seen["values"] == workers[0][case]["values"]  # bit for bit among workers
        assert seen["values"] == pytest.approx(alone["values"], rel=1e-9)
        torch.testing.assert_close(seen["gradient"], alone["gradient"], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(seen["weights"], alone["weights"], rtol=1e-9, atol=1e-12)
        for name, queue in seen["queues"].items():
            assert torch.equal(queue, workers[0][case]["queues"][name])
            torch.testing.assert_close(queue, alone["queues"][name], rtol=1e-8, atol=1e-10)


def test_a_flag_set_on_one_rank_is_known_to_all_in_the_same_step(workers: list[dict[Any, Any]]) -> None:
    assert [worker["any"] for worker in workers] == [[False, True, True, False]] * len(workers)
    alone = AnyRank()
    alone.start(True)
    assert alone.result()


def test_gathering_in_half_precision_and_unequal_rows(workers: list[dict[Any, Any]]) -> None:
    assert workers[0]["total"].tolist() == [len(workers), sum(range(len(workers)))]
    if len(workers) != 2:
        return
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 512, generator=generator)
    restored = clean + 0.3 * torch.randn(4, 512, generator=generator)
    full = StatisticsMatching(8)(restored=restored, clean=clean).item()
    for worker in workers:
        assert [rows.tolist() for rows in worker["hosts"]] == [[[step] * 2] * 3 for step in range(3)]
        assert worker["bf16"]["coarse"] == pytest.approx(full, rel=2e-2)
        assert torch.equal(worker["bf16"]["rows"], worker["bf16"]["all"])
        assert "rows of different length" in worker["mismatch"]
        assert "rows of different length" in worker["centred mismatch"]
        first, second, third = worker["not finite"]
        assert math.isnan(second) and (first, third) == (workers[0]["not finite"][0], workers[0]["not finite"][2])
        assert 0 < first < 1 and 0 < third < 1


def _slow(rank: int, workers: int) -> dict[str, Any]:
    """A rank comes later than the timeout with which the group was made allows."""
    with patch.object(dist, "get_backend_config", lambda group: "cuda:nccl"):
        gather_rows(torch.ones(1, 1))  # makes the group of the hosts, see `_by_hosts`
        for group in (dist.group.WORLD, *_CPU_GROUPS.values()):
            dist.set_timeout(timedelta(milliseconds=200), group)
        wait_for_slow_ranks()
        time.sleep(0.5 * rank)
        total = sum_over_workers(torch.ones(1)).item()
        time.sleep(0.5 * rank)
        return {"sum": total, "rows": len(gather_rows(torch.ones(1, 1))[0])}


@pytest.mark.skipif(not CAN_SET_TIMEOUT, reason="this torch keeps the timeout that a group was made with")
def test_a_rank_waits_for_a_slow_one(tmp_path: Path) -> None:
    assert on_ranks(_slow, 2, tmp_path) == [{"sum": 2.0, "rows": 2}] * 2


def test_identity_without_a_process_group() -> None:
    rows = torch.rand(3, 2)
    gathered, mine = gather_rows(rows)
    assert world_size() == 1 and gathered is rows and mine == slice(0, 3)
    assert sum_over_workers(rows) is rows
