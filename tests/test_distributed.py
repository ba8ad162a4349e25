"""The same loss for any number of workers: real gloo process groups, different content on each."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from d2sm import D2SMLoss, StatisticsMatching
from d2sm.distributed import AnyRank, average_gradients, gather_rows, sum_over_workers, world_size
from d2sm.divergence import Divergence
from d2sm.objectives import Adversarial
from pipelines.config import Config
from pipelines.data.stream import share_of
from pipelines.networks.models import TrainingModule
from pipelines.training.backward import Gradient
from pipelines.training.discriminator import DiscriminatorOptimizer
from pipelines.training.log import Log
from pipelines.training.objective import Objective

STEPS, QUEUE = 4, 22
CASES: tuple[tuple[Divergence, bool], ...] = (("kl", False), ("inverse_kl", False), ("jsd", False), ("kl", True))


def _network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).double()


def _phi() -> nn.Module:
    torch.manual_seed(8)
    return nn.Conv2d(3, 5, 4, stride=4).double()


def _batch(step: int, uneven: bool) -> tuple[torch.Tensor, list[int]]:
    """Step's images and where four workers' shares begin; the case of one and two workers joins shares."""
    sizes = [1, 3, 2, 2] if uneven else [2, 2, 2, 2]
    return torch.rand(sum(sizes), 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64), sizes


def _share(sizes: list[int], rank: int, workers: int) -> slice:
    each = len(sizes) // workers
    start = sum(sizes[: rank * each])
    return slice(start, start + sum(sizes[rank * each : (rank + 1) * each]))


def _train(rank: int, workers: int, divergence: Divergence, uneven: bool) -> dict[str, Any]:
    network = _network()
    model = DistributedDataParallel(network) if workers > 1 else network
    loss = D2SMLoss(_phi(), queue_size=QUEUE, patch_size=8 if uneven else None, divergence=divergence)
    optimizer, values = torch.optim.SGD(network.parameters(), lr=0.5), []
    for step in range(STEPS):  # the queues wrap around in the third step
        images, sizes = _batch(step, uneven)
        clean = images[_share(sizes, rank, workers)]
        value = loss(restored=model(clean), clean=clean)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    queues = {k: v for k, v in loss.state_dict().items() if isinstance(v, torch.Tensor)}
    return {"values": values, "gradient": gradient, "weights": weights, "queues": queues}


def _play(rank: int, workers: int) -> dict[str, Any]:
    """Network against discriminator, each with its own Adam, one backward pass a step."""
    network = _network()
    model = DistributedDataParallel(network) if workers > 1 else network
    loss = Adversarial(_phi()).double()
    with torch.no_grad():
        loss.discriminator[-1].bias.fill_(1)  # so that some logits stand within the margins and others do not
    adversary = DiscriminatorOptimizer(
        loss.discriminator, Config().replace({"loss.adversarial": 1, "loss.adversarial_lr": 0.01})
    )
    optimizer, norms = torch.optim.Adam(network.parameters(), lr=0.01), []
    for step in range(STEPS):
        images, sizes = _batch(step, uneven=False)
        clean = images[_share(sizes, rank, workers)]
        losses = loss(restored=model(clean), clean=clean)
        optimizer.zero_grad()
        (losses.network + losses.discriminator).backward()
        optimizer.step()
        norms.append(adversary.step().item())
    return {"norms": norms, "network": network.state_dict(), "discriminator": loss.state_dict()}


def _in_parts(rank: int, workers: int, accumulate: int) -> dict[str, Any]:
    """Two steps' gradients of an objective, each worker's crops in parts; how often workers met under DDP."""
    crops = 4 * workers
    config = Config().replace({
        "loss.features": "efficientnet_lite0.bn1", "loss.features_weights": "random", "loss.patch_size": 4,
        "loss.queue_size": 256, "loss.adversarial": 0.5, "train.batch_size": crops, "train.num_workers": workers,
        "train.accumulate": accumulate, "data.crop_size": 16,
    })  # fmt: skip
    network, meetings = _network(), [0]
    network.blind = True  # type: ignore[assignment]
    model: nn.Module = TrainingModule(network, estimate=False)
    if workers > 1:
        model = DistributedDataParallel(model)
        model.register_comm_hook(meetings, _counted)
    torch.manual_seed(9)
    objective = Objective(config.loss).double().train()
    gradient = Gradient(model, objective, config.train)
    assert objective.adversarial is not None
    for step in range(2):
        clean = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        share = clean[:5] if (workers, rank) == (2, 0) else clean[5:] if workers == 2 else clean
        network.zero_grad()
        objective.zero_grad()
        weight = len(share) * workers / len(clean)
        parts = gradient(clean=share, noisy=0.9 * share, sigma=torch.ones(len(share)), share=weight)
    average_gradients(objective.adversarial.discriminator.parameters())
    slopes = [weight.grad for weight in (*network.parameters(), *objective.parameters()) if weight.grad is not None]
    state = {key: value for key, value in objective.state_dict().items() if isinstance(value, torch.Tensor)}
    return {"d2sm": parts["loss.d2sm"], "gradient": torch.cat([slope.flatten() for slope in slopes]), "state": state,
            "meetings": meetings[0]}  # fmt: skip


def _counted(meetings, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations, and takes no strings
    meetings[0] += 1
    return allreduce_hook(None, bucket)


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
    assert made.call_count == 1
    return gathered


def _mismatch(rank: int) -> str:
    try:
        gather_rows(torch.zeros(2, 3 + rank))
    except ValueError as error:
        return str(error)
    return ""


def _agreed(rank: int) -> list[bool]:
    """Nobody, the last worker alone, all, nobody."""
    agreement, answers = AnyRank(), []
    for wish in (False, rank == world_size() - 1, True, False):
        agreement.start(wish)
        sum_over_workers(torch.ones(3))  # the step's own collectives run beside it
        answers.append(agreement.result())
    return answers


def _shared(rank: int, workers: int) -> torch.Tensor:
    """The gradient of all that the objective can hold, on shares of which some have more crops than others."""
    network = _network().float()
    model = DistributedDataParallel(network) if workers > 1 else network
    config = Config().replace(
        {"loss.mse": 2, "loss.ssim": 1, "loss.perceptual": 1, "loss.weight": 10, "loss.queue_size": 16,
         "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random"}
    )  # fmt: skip
    objective, batch = Objective(config.loss), 5
    for step in range(2):
        clean = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        start, count = share_of(batch, rank, workers)
        mine = clean[start : start + count]
        total, _ = objective(restored=model(mine), clean=mine, share=count * workers / batch)
        network.zero_grad()
        total.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _logged(rank: int, workers: int, *, stop: bool) -> tuple[float, list[list[float]]]:
    """The logged loss of three steps of five crops, with or without a stop after the second; and what was saved."""
    sent: list[dict[str, Any]] = []
    actor = SimpleNamespace(put=SimpleNamespace(remote=sent.append))
    log = Log(actor, 0, speaks=True)
    for step in range(3):
        errors = torch.rand(5, generator=torch.Generator().manual_seed(step))
        start, count = share_of(5, rank, workers)
        log.add({"loss": errors[start : start + count].mean()}, count * workers / 5)
        if step == 1:
            saved = json.loads(json.dumps(log.state(log.gather(2))))
            if stop:
                log = Log(actor, 2, speaks=True)
                log.resume(saved, rank, workers, torch.device("cpu"), ours=True)
    log.flush(3, lr=1.0)
    return sent[-1]["metrics"]["loss"], saved["sums"]["loss"]


def _worker(rank: int, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    results: dict[Any, Any] = {case: _train(rank, workers, *case) for case in CASES}
    results["play"] = _play(rank, workers)
    results["agreed"], results["shared"] = _agreed(rank), _shared(rank, workers)
    results["logged"] = [_logged(rank, workers, stop=stop) for stop in (False, True)]
    results["total"] = sum_over_workers(torch.tensor([1.0, rank]))
    if workers == 2:
        results["parts"] = {accumulate: _in_parts(rank, workers, accumulate) for accumulate in (1, 3)}
        results["bf16"], results["mismatch"] = _bf16_gather(rank), _mismatch(rank)
        results["hosts"] = _by_hosts(rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of W workers saw."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_worker, args=(request.param, str(folder)), nprocs=request.param)
    # Our own file of a moment ago; weights_only=False because its keys are tuples.
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_workers_together_equal_one_process(workers: list[dict[Any, Any]], case: tuple[Divergence, bool]) -> None:
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


def test_a_discriminator_is_the_same_on_all_workers_and_on_one(workers: list[dict[Any, Any]]) -> None:
    """Weights and spectral norms: bit for bit among workers, 1e-7 from one process with the whole batch (float64)."""
    alone = _play(0, 1)
    fresh = dict(Adversarial(_phi()).double().named_parameters())
    for worker in workers:
        assert worker["play"]["norms"] == pytest.approx(alone["norms"], rel=1e-7)
        for side in ("network", "discriminator"):
            for name, weight in worker["play"][side].items():
                assert torch.equal(weight, workers[0]["play"][side][name])
                torch.testing.assert_close(weight, alone[side][name], rtol=1e-7, atol=1e-9)
    assert alone["discriminator"].keys() >= {name for name in fresh if "discriminator" in name}
    for name in alone["discriminator"].keys() & fresh.keys():
        assert not torch.equal(alone["discriminator"][name], fresh[name])


def test_what_one_wishes_all_know_in_the_same_step(workers: list[dict[Any, Any]]) -> None:
    assert [worker["agreed"] for worker in workers] == [[False, True, True, False]] * len(workers)
    alone = AnyRank()
    alone.start(True)
    assert alone.result()


def test_unequal_shares_descend_as_one_process(workers: list[dict[Any, Any]]) -> None:
    """Five crops on two or four workers; float32, so to rounding."""
    alone = _shared(0, 1)
    assert alone.abs().max() > 1e-4
    for worker in workers:
        torch.testing.assert_close(worker["shared"], alone, rtol=1e-3, atol=1e-6)


def test_what_is_logged_is_of_the_whole_batch(workers: list[dict[Any, Any]]) -> None:
    """Of five crops, whoever holds them; and a stop within an entry leaves it as it is, bit for bit."""
    alone, _ = _logged(0, 1, stop=False)
    for worker in workers:
        (whole, saved), (stopped, _) = worker["logged"]
        assert len(saved) == len(workers) and len(set(saved)) > 1  # each worker's own, else a stop would round
        assert whole == stopped == workers[0]["logged"][0][0]
        assert whole == pytest.approx(alone, rel=1e-6)


def test_parts_on_two_workers_equal_one_process_with_the_whole_batch(workers: list[dict[Any, Any]]) -> None:
    """5 and 3 crops in 3 parts each; float64. The workers meet once a step, as without parts."""
    if len(workers) != 2:
        return
    alone = _in_parts(0, 1, 1)
    assert alone["gradient"].abs().max() > 1e-6
    for worker in workers:
        for seen in worker["parts"].values():
            torch.testing.assert_close(seen["d2sm"], alone["d2sm"], rtol=1e-9, atol=0)
            torch.testing.assert_close(seen["gradient"], alone["gradient"], rtol=1e-7, atol=1e-10)
            assert seen["meetings"] == 2
            for name, value in alone["state"].items():
                torch.testing.assert_close(seen["state"][name], value, rtol=1e-7, atol=1e-9, msg=name)


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


def test_identity_without_a_process_group() -> None:
    rows = torch.rand(3, 2)
    gathered, mine = gather_rows(rows)
    assert world_size() == 1 and gathered is rows and mine == slice(0, 3)
    assert sum_over_workers(rows) is rows
