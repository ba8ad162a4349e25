"""A process that takes jobs until none is left; every result is a file of its own, so that a run can be cut off."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import d2sm
from d2sm import D2SMLoss
from d2sm.matching import StatisticsMatching
from tests.benchmarks.fronts.data import Batches, read_photographs
from tests.benchmarks.fronts.evaluation import Evaluation
from tests.benchmarks.fronts.jobs import Job, jobs
from tests.benchmarks.fronts.networks import OBJECTIVES, denoiser, objective, restore, value
from tests.benchmarks.fronts.reader import summary

CALIBRATION = 8  # batches over which lengths of gradients are compared
GRADIENTS = 32  # batches of a "gradients" job


@dataclass(frozen=True)
class Settings:
    """What a process is told.

    Attributes:
        data: folder with camvid/ and weights/.
        out: folder of results/, claims/, failed/, networks/ (the start networks) and weights/ (of the objectives).
        only: parts of the ids of the jobs to do; (): all.
    """

    data: Path
    out: Path
    device: str
    dry: bool = False
    only: tuple[str, ...] = ()

    def result(self, job: str) -> Path:
        return self.out / "results" / f"{job}.json"

    def claim(self, job: str) -> Path:
        return self.out / "claims" / job

    def network(self, job: str) -> Path:
        return self.out / "networks" / f"{job}.pth"


class Worker:
    """The photographs, the networks that evaluate, and one method for each kind of job."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        self.weights = settings.data / "weights"
        self.photographs = read_photographs(settings.data / "camvid", self.device, settings.dry)
        self.evaluation = Evaluation(self.photographs, self.weights, settings.dry)

    def start_network(self, job: Job) -> nn.Module:
        file = None if job.start is None else self.settings.network(job.start)
        if job.start == "published":
            file = self.weights / "ffdnet_color_kair.pth"
        return denoiser(job.network, file).to(self.device)

    def objective(self, name: str) -> nn.Module | None:
        return objective(name, self.weights, self.device, self.settings.dry)

    def batches(self, job: Job, seed: int) -> Batches:
        return Batches(self.photographs, job.task, seed, job.batch, job.side)

    @torch.no_grad()
    def fill(self, term: nn.Module | None, network: nn.Module, batches: Batches) -> None:
        """Fill D2SM's queues before the first step, so that the objective does not change while they fill."""
        if not isinstance(term, D2SMLoss):
            return
        matching = term.matching
        assert isinstance(matching, StatisticsMatching)  # one layer
        while matching.memory.fill < matching.queue_size:
            clean, degraded, sigma, labels = batches()
            value(term, restore(network, degraded, sigma), clean, labels)

    def unit_weight(self, job: Job) -> float:
        """The weight at which the objective's gradient is as long as that of L1 at the start network.

        The geometric mean over batches; kept in a file, so that it is the same for all seeds and ratios.
        """
        path = self.settings.out / "weights" / f"{job.task}-{job.objective}.json"
        if not path.exists():
            network, term = self.start_network(job), self.objective(job.objective)
            assert term is not None
            parameters, batches, logs = list(network.parameters()), self.batches(job, 777), []
            self.fill(term, network, batches)
            for _ in range(CALIBRATION):
                clean, degraded, sigma, labels = batches()
                restored = restore(network, degraded, sigma)
                l1 = flat_gradient((restored - clean).abs().mean(), parameters)
                other = flat_gradient(value(term, restored, clean, labels), parameters)
                logs.append((l1.norm() / other.norm()).log().item())
            write(path, math.exp(sum(logs) / len(logs)))
        return float(json.loads(path.read_text()))

    def train(self, job: Job) -> dict[str, Any]:
        """Minimise L1 + weight * objective; evaluate the averaged weights."""
        torch.manual_seed(job.seed)
        network, term = self.start_network(job), self.objective(job.objective)
        weight = job.weight or 0.0
        if job.ratio is not None:
            weight = job.ratio * self.unit_weight(job)
        if job.start is not None:
            self.fill(term, network, self.batches(job, 778 + job.seed))
        parameters = list(network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=job.lr, fused=self.device.type == "cuda")
        average = [parameter.detach().clone() for parameter in parameters]
        batches, curve, log = self.batches(job, 1000 + job.seed), [], []
        sums = torch.zeros(2, device=self.device)
        evaluating, start = 0.0, time.time()
        for step in range(job.steps):
            factor = min(1.0, (step + 1) / (job.warmup + 1))
            if job.cosine:
                factor *= (1 + math.cos(math.pi * step / job.steps)) / 2
            optimizer.param_groups[0]["lr"] = job.lr * factor

            clean, degraded, sigma, labels = batches()
            restored = restore(network, degraded, sigma)
            l1 = (restored - clean).abs().mean()
            second = l1.new_zeros(()) if term is None else value(term, restored, clean, labels)
            (l1 + weight * second).backward()
            if job.clip is not None:
                nn.utils.clip_grad_norm_(parameters, job.clip)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(job.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)

            sums += torch.stack([l1.detach(), second.detach().float()])
            if (step + 1) % 50 == 0:
                log.append([step + 1, *(sums / 50).tolist()])
                sums.zero_()
            if step + 1 in job.evaluate_at:
                began, now = time.time(), [parameter.detach().clone() for parameter in parameters]
                assign(parameters, average)
                curve.append({"step": step + 1, **summary(self.evaluation(network, job.task))})
                assign(parameters, now)
                evaluating += time.time() - began
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.time() - start - evaluating
        assign(parameters, average)
        evaluation = self.evaluation(network, job.task)
        if job.id.startswith("start-"):
            torch.save(
                {key: tensor.cpu() for key, tensor in network.state_dict().items()}, self.settings.network(job.id)
            )
        return {"weight": weight, "seconds": seconds, "log": log, "curve": curve, "evaluation": evaluation}

    def gradients(self, job: Job) -> dict[str, Any]:
        """Gradients of all objectives at a start network, by the parameters and by the restored images.

        Products of the means of two halves of the batches estimate the products of the expected gradients without bias.
        """
        network, names = self.start_network(job), ["l1", *OBJECTIVES]
        parameters, batches = list(network.parameters()), self.batches(job, 4242)
        terms = [self.objective(name) for name in names]
        for term in terms:
            self.fill(term, network, batches)
        count, size = (4 if self.settings.dry else GRADIENTS), sum(parameter.numel() for parameter in parameters)
        halves = torch.zeros(2, len(names), size, device=self.device)
        square, values = torch.zeros(2, len(names), device=self.device)
        image = torch.zeros(len(names), len(names), dtype=torch.float64, device=self.device)
        for number in range(count):
            clean, degraded, sigma, labels = batches()
            restored = restore(network, degraded, sigma)
            x, by_image = restored.detach().requires_grad_(), []
            for index, term in enumerate(terms):
                loss = (x - clean).abs().mean() if term is None else value(term, x, clean, labels)
                (gradient,) = torch.autograd.grad(loss, x)
                by_image.append(gradient.flatten())
                by_parameters = flat_gradient(restored, parameters, gradient)
                halves[number % 2, index] += by_parameters / (count / 2)
                square[index] += by_parameters.square().sum() / count
                values[index] += loss.detach() / count
            stacked = torch.stack(by_image)
            image += (stacked @ stacked.T).double() / count
        cross = halves[0].double() @ halves[1].double().T
        made = {"value": values, "square": square, "cross": (cross + cross.T) / 2, "image_gram": image}
        return {"names": names, "batches": count, **{key: tensor.tolist() for key, tensor in made.items()}}

    def baseline(self, job: Job) -> dict[str, Any]:
        """Evaluate the start network, or the degraded photographs themselves."""
        return {"evaluation": self.evaluation(None if job.start is None else self.start_network(job), job.task)}


def work(settings: Settings) -> None:
    """Do jobs until there is none that this process may take. A job that fails leaves its traceback in failed/."""
    torch.set_num_threads(1 if settings.device == "cpu" else 2)
    worker = Worker(settings)
    version = {"torch": torch.__version__, "d2sm": d2sm.__version__, "device": settings.device}
    if settings.device != "cpu":
        version["device"] = torch.cuda.get_device_name()
    while True:
        job, waiting = next_job(settings)
        if job is None:
            if not waiting:
                return
            time.sleep(0.2)
            continue
        start = time.time()
        try:
            made = getattr(worker, job.kind)(job)
        except Exception as error:
            (settings.out / "failed" / job.id).write_text(traceback.format_exc())
            print(f"{job.id} failed: {type(error).__name__}: {error}", flush=True)
            if settings.device != "cpu":
                raise  # the device may be lost to this process
            continue
        wall = time.time() - start
        write(settings.result(job.id), {**asdict(job), **version, "wall": wall, **made})
        numbers = {key: round(number, 4) for key, number in summary(made.get("evaluation", {})).items()}
        print(f"{job.id}: {wall:.1f} s {numbers}", flush=True)


def next_job(settings: Settings) -> tuple[Job | None, bool]:
    """Claim the first job whose start network is there; None, and whether there are jobs that wait for theirs."""
    waiting = False
    for job in jobs(settings.dry):
        left_out = settings.only and not any(part in job.id for part in settings.only)
        if left_out or settings.claim(job.id).exists():
            continue
        if job.start not in (None, "published") and not settings.result(job.start).exists():
            waiting |= settings.claim(job.start).exists() and not (settings.out / "failed" / job.start).exists()
            continue
        with suppress(FileExistsError):
            os.close(os.open(settings.claim(job.id), os.O_CREAT | os.O_EXCL))
            return job, waiting
    return None, waiting


def write(path: Path, made: object) -> None:
    """JSON, whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(made))
    part.rename(path)


@torch.no_grad()
def assign(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, new in zip(parameters, values, strict=True):
        parameter.copy_(new)


def flat_gradient(of: Tensor, parameters: list[nn.Parameter], upstream: Tensor | None = None) -> Tensor:
    """The gradient by all parameters in one vector; the graph is kept."""
    parts = torch.autograd.grad(of, parameters, upstream, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])
