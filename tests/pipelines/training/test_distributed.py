"""A training step on several workers equals one process with the whole batch: real gloo process groups."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from d2sm.distributed import average_gradients
from d2sm.objectives import Adversarial
from pipelines.config import Config
from pipelines.data.stream import worker_slice
from pipelines.networks.models import TrainingModule
from pipelines.training.backward import Gradient
from pipelines.training.discriminator import DiscriminatorOptimizer
from pipelines.training.log import Log
from pipelines.training.objective import Objective
from tests.helpers.process_group import batch_of, on_ranks, slice_of, small_network, small_phi

STEPS = 4


def _play(rank: int, workers: int) -> dict[str, Any]:
    """Network against discriminator, each with its own Adam, one backward pass a step."""
    network = small_network()
    model = DistributedDataParallel(network) if workers > 1 else network
    loss = Adversarial(small_phi()).double()
    with torch.no_grad():
        loss.discriminator[-1].bias.fill_(1)  # so that some logits stand within the margins and others do not
    adversary = DiscriminatorOptimizer(
        loss.discriminator, Config().replace({"loss.adversarial": 1, "loss.adversarial_lr": 0.01})
    )
    optimizer, norms = torch.optim.Adam(network.parameters(), lr=0.01), []
    for step in range(STEPS):
        images, sizes = batch_of(step, uneven=False)
        clean = images[slice_of(sizes, rank, workers)]
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
    network, meetings = small_network(), [0]
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


def _shared(rank: int, workers: int) -> torch.Tensor:
    """The gradient of all that the objective can hold, on shares of which some have more crops than others."""
    network = small_network().float()
    model = DistributedDataParallel(network) if workers > 1 else network
    config = Config().replace(
        {"loss.mse": 2, "loss.ssim": 1, "loss.perceptual": 1, "loss.weight": 10, "loss.queue_size": 16,
         "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random"}
    )  # fmt: skip
    objective, batch = Objective(config.loss), 5
    for step in range(2):
        clean = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        start, count = worker_slice(batch, rank, workers)
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
        start, count = worker_slice(5, rank, workers)
        log.add({"loss": errors[start : start + count].mean()}, count * workers / 5)
        if step == 1:
            saved = json.loads(json.dumps(log.state(log.gather(2))))
            if stop:
                log = Log(actor, 2, speaks=True)
                log.resume(saved, rank, workers, torch.device("cpu"), ours=True)
    log.flush(3, lr=1.0)
    return sent[-1]["metrics"]["loss"], saved["sums"]["loss"]


def _results(rank: int, workers: int) -> dict[Any, Any]:
    results: dict[Any, Any] = {"play": _play(rank, workers), "shared": _shared(rank, workers)}
    results["logged"] = [_logged(rank, workers, stop=stop) for stop in (False, True)]
    if workers == 2:
        results["parts"] = {accumulate: _in_parts(rank, workers, accumulate) for accumulate in (1, 3)}
    return results


@pytest.fixture(scope="module", params=[2, 4])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of W workers saw."""
    return on_ranks(_results, request.param, tmp_path_factory.mktemp("gloo"))


def test_a_discriminator_is_the_same_on_all_workers_and_on_one(workers: list[dict[Any, Any]]) -> None:
    """Weights and spectral norms: bit for bit among workers, 1e-7 from one process with the whole batch (float64)."""
    alone = _play(0, 1)
    fresh = dict(Adversarial(small_phi()).double().named_parameters())
    for worker in workers:
        assert worker["play"]["norms"] == pytest.approx(alone["norms"], rel=1e-7)
        for side in ("network", "discriminator"):
            for name, weight in worker["play"][side].items():
                assert torch.equal(weight, workers[0]["play"][side][name])
                torch.testing.assert_close(weight, alone[side][name], rtol=1e-7, atol=1e-9)
    assert alone["discriminator"].keys() >= {name for name in fresh if "discriminator" in name}
    for name in alone["discriminator"].keys() & fresh.keys():
        assert not torch.equal(alone["discriminator"][name], fresh[name])


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
