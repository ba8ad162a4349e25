"""A training step on several workers equals one process with the whole batch: real gloo process groups."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from d2sm.distributed import copy_from_first
from d2sm.objectives import Adversarial
from pipelines.config import Config
from pipelines.data.stream import worker_slice
from pipelines.training.discriminator import DiscriminatorOptimizer
from pipelines.training.log import Log
from pipelines.training.messages import Message, Progress
from pipelines.training.objective import Objective
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from pipelines.training.validation import _gathered, _numbers
from tests.helpers.process_group import batch_of, on_ranks, slice_of, small_network, small_phi
from tests.helpers.training_steps import rows_are_tensors

STEPS = 4
RATIOS = (None, 2.0)


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


class Blind(nn.Module):
    """A network as training calls it: it is handed the noise level and does not use it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.blind = network, True

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        restored: torch.Tensor = self.network(noisy)
        return restored


def _accumulated(rank: int, workers: int, accumulate: int) -> dict[str, Any]:
    """Two steps with constant weights, each rank's crops in micro-batches; how often the ranks met under DDP."""
    crops = 4 * workers
    config = Config().replace({
        "loss.features": "efficientnet_lite0.bn1", "loss.features_weights": "random", "loss.patch_size": 4,
        "loss.queue_size": 256, "loss.adversarial": 0.5, "train.batch_size": crops, "train.num_workers": workers,
        "train.accumulate": accumulate, "data.crop_size": 16, "train.lr": 1e-30, "loss.adversarial_lr": 1e-30,
    })  # fmt: skip
    network, meetings = Blind(small_network()), [0]

    def prepare(model: nn.Module) -> nn.Module:
        if workers == 1:
            return model
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(meetings, _counted)
        return wrapped

    with (
        patch("pipelines.training.state.build", lambda _: network),
        patch("ray.train.torch.get_device", lambda: torch.device("cpu")),
        patch("ray.train.torch.prepare_model", prepare),
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        rows_are_tensors(monkeypatch)
        state = TrainState(config, steps_per_epoch=10)
        state.objective.double()
        for step in range(2):
            clean = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            mine = clean[:5] if (workers, rank) == (2, 0) else clean[5:] if workers == 2 else clean
            row: Any = {"clean": mine, "noisy": 0.9 * mine, "sigma": torch.ones(len(mine))}
            losses = train_step(state, row, step, rank_weight=len(mine) * workers / len(clean))
    assert state.discriminator_optimizer is not None
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    # The step clears the discriminator's gradients; Adam's mean of them is linear in them.
    gradients += [moment["exp_avg"] for moment in state.discriminator_optimizer.state_dict()["state"].values()]
    tensors = {key: value for key, value in state.objective.state_dict().items() if isinstance(value, torch.Tensor)}
    return {"d2sm": losses["loss.d2sm"], "gradient": torch.cat([gradient.flatten() for gradient in gradients]),
            "state": tensors, "meetings": meetings[0]}  # fmt: skip


def _counted(meetings, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations, and takes no strings
    meetings[0] += 1
    return allreduce_hook(None, bucket)


def _shared(rank: int, workers: int, ratio: float | None) -> torch.Tensor:
    """The gradient of all that the objective can hold, on shares of which some have more crops than others.

    Args:
        ratio: `loss.gradient_ratio`.
    """
    network = small_network().float()
    model = DistributedDataParallel(network) if workers > 1 else network
    config = Config().replace(
        {"loss.mse": 2, "loss.ssim": 1, "loss.perceptual": 1, "loss.weight": 10, "loss.queue_size": 16,
         "loss.features": "squeezenet1_0.fire3", "loss.features_weights": "random", "loss.gradient_ratio": ratio}
    )  # fmt: skip
    objective, batch = Objective(config.loss), 5
    for step in range(2):
        clean = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        start, count = worker_slice(batch, rank, workers)
        mine = clean[start : start + count]
        total, _ = objective(model(mine), mine, rank_weight=count * workers / batch)
        network.zero_grad()
        total.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _logged(rank: int, workers: int, *, stop: bool) -> tuple[float | None, list[float]]:
    """The logged loss of three steps of five crops, with or without a stop after the second; and what was saved."""
    sent: list[Message] = []
    messages = SimpleNamespace(send=SimpleNamespace(remote=sent.append))
    log = Log(messages, 0, rank, Config().loss)
    for step in range(3):
        errors = torch.rand(5, generator=torch.Generator().manual_seed(step))
        start, count = worker_slice(5, rank, workers)
        log.add({"loss": errors[start : start + count].mean()}, count * workers / 5)
        if step == 1:
            saved = json.loads(json.dumps(log.state(log.gather(2))))
            if stop:
                log = Log(messages, 2, rank, Config().loss)
                log.resume(saved, workers, torch.device("cpu"))
    log.flush(3, lr=1.0)
    entries = [message for message in sent if isinstance(message, Progress)]
    assert bool(entries) == (rank == 0)
    return entries[-1].metrics["loss"] if entries else None, saved["sums"]["loss"]


def _validated(rank: int, workers: int, images: int) -> tuple[dict[str, float], float]:
    """The means of a validation whose images the workers share, and a running statistic that each had its own of."""
    values = torch.rand(images, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    lines = []
    for index in range(rank, images, workers):
        psnr, ssim = values[index]
        nothing = {"tile": 0, "confusion": [0] * 361, "why": "", "lpips": float("nan"), "judged": {}, "digest": ""}
        one = {"name": str(index), "kind": "restored", "level": "25", "psnr": psnr, "ssim": ssim, **nothing}
        lines.append(json.dumps([index, [one]]))
    found = sorted(_gathered(lines, torch.device("cpu")), key=lambda line: line[0])
    statistic = torch.tensor([float(rank)])
    copy_from_first([statistic])
    return _numbers(Config(), [one for _, of_image in found for one in of_image], segmented=False), statistic.item()


def _results(rank: int, workers: int) -> dict[Any, Any]:
    results: dict[Any, Any] = {"play": _play(rank, workers)}
    results["shared"] = {ratio: _shared(rank, workers, ratio) for ratio in RATIOS}
    results["logged"] = [_logged(rank, workers, stop=stop) for stop in (False, True)]
    results["validated"] = [_validated(rank, workers, images) for images in (1, 5)]
    if workers == 2:
        results["accumulated"] = {accumulate: _accumulated(rank, workers, accumulate) for accumulate in (1, 3)}
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
    for ratio in RATIOS:
        alone = _shared(0, 1, ratio)
        assert alone.abs().max() > 1e-4
        for worker in workers:
            torch.testing.assert_close(worker["shared"][ratio], alone, rtol=1e-3, atol=1e-6)


def test_what_is_logged_is_of_the_whole_batch(workers: list[dict[Any, Any]]) -> None:
    """Of five crops, whoever holds them; and a stop within an entry leaves it as it is, bit for bit."""
    alone, _ = _logged(0, 1, stop=False)
    for rank, worker in enumerate(workers):
        (whole, saved), (stopped, _) = worker["logged"]
        assert len(saved) == len(workers) and len(set(saved)) > 1  # each rank's own, else a stop would round
        assert whole == stopped
        assert whole == (pytest.approx(alone, rel=1e-6) if rank == 0 else None)


def test_a_validation_is_the_same_whoever_measured_which_image(workers: list[dict[Any, Any]]) -> None:
    """Bit for bit, also where there are fewer images than workers; statistics are the first worker's."""
    alone = [_validated(0, 1, images) for images in (1, 5)]
    assert [set(numbers) for numbers, _ in alone] == [{"psnr.sigma25", "ssim.sigma25"}] * 2
    assert all(worker["validated"] == alone for worker in workers)


def test_micro_batches_on_two_workers_equal_one_process_with_the_whole_batch(workers: list[dict[Any, Any]]) -> None:
    """5 and 3 crops in 3 micro-batches each; float64. DDP averages once a step, as without micro-batches."""
    if len(workers) != 2:
        return
    alone = _accumulated(0, 1, 1)
    assert alone["gradient"].abs().max() > 1e-6
    for worker in workers:
        for seen in worker["accumulated"].values():
            torch.testing.assert_close(seen["d2sm"], alone["d2sm"], rtol=1e-9, atol=0)
            torch.testing.assert_close(seen["gradient"], alone["gradient"], rtol=1e-7, atol=1e-10)
            assert seen["meetings"] == 2
            for name, value in alone["state"].items():
                torch.testing.assert_close(seen["state"][name], value, rtol=1e-7, atol=1e-9, msg=name)
