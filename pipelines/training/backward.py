"""A step's gradient, from all crops of a worker at once or from a few at a time: the same gradient, less memory.

Eq. (1) compares all samples of a step with each other, so losses of parts do not add up to the loss of the whole. What
adds up is the gradient once d loss / d restored is known:

    restored = network(noisy)                            a few crops at a time, without a graph
    objective(restored, clean).backward()                once, over all: gives d loss / d restored, and moves the queues
    network(noisy).backward(d loss / d restored)         a few at a time, with a graph; workers meet at the last few

Every term of the objective sees all crops, once, whatever it is: labels, estimates and a discriminator need nothing of
their own. The objective's own memory is that of its frozen networks (VGG-19 holds 0.3 GB for a crop of 512), so these
look at as few crops at a time, see `frozen.FrozenNetwork`. What remains with all crops are images, features and queues.
It costs a forward pass more of the network, and one of Phi on the restored crops.

(Gradients cached at Phi's features instead would save as much, but the other terms would each have to say how they
split, and the discriminator's spectral norms would be refined once a part and not once a step.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2sm.frozen import FrozenNetwork
from pipelines.config import ConfigError
from pipelines.sections import Train
from pipelines.training.objective import Objective

_Outputs = tuple[Tensor, Tensor | None]


class Gradient:
    """Adds a step's gradient to that of the network's, and a discriminator's, parameters.

    Args:
        model: (noisy, sigma) -> restored, and the estimate of the noise or None; under DistributedDataParallel or not.
        objective: what is descended.
        train: `accumulate`, `precision` and `compile` are read.
    """

    def __init__(self, model: nn.Module, objective: Objective, train: Train) -> None:
        self.model, self.objective = model, objective
        self.parts, self.half = train.accumulate, train.precision == "bf16"
        self.compiling = _compiling if train.compile else nullcontext

    def __call__(
        self, *, clean: Tensor, noisy: Tensor, sigma: Tensor, labels: Tensor | None = None, share: float = 1.0
    ) -> dict[str, Tensor]:
        """One forward and backward pass over (B, 3, H, W) crops, sigma (B,), labels (B, H, W); gives the loss's parts.

        With fewer crops than parts, every crop is a part. `share`: see `Objective.forward`.
        """
        judged: dict[str, Any] = {"clean": clean, "sigma": sigma, "labels": labels, "share": share}
        few = -(-len(noisy) // self.parts)
        if few < len(noisy):
            return self._in_parts(noisy, sigma, few, judged)
        loss, parts = self._judge(*self._restore(noisy, sigma), **judged)
        loss.backward()
        return parts

    def _in_parts(self, noisy: Tensor, sigma: Tensor, few: int, judged: dict[str, Any]) -> dict[str, Tensor]:
        pieces = list(zip(noisy.split(few), sigma.split(few), strict=True))
        with torch.no_grad():
            made = [self._restore(*piece) for piece in pieces]
        outputs = [torch.cat(whole).requires_grad_() for whole in zip(*made, strict=True) if whole[0] is not None]
        for judge in self.objective.modules():
            if isinstance(judge, FrozenNetwork):
                judge.chunk_size = few
        loss, parts = self._judge(outputs[0], outputs[1] if outputs[1:] else None, **judged)
        loss.backward()
        slopes = zip(*(_slope(output).split(few) for output in outputs), strict=True)
        for number, (piece, slope) in enumerate(zip(pieces, slopes, strict=True), 1):
            with nullcontext() if number == len(pieces) else self._unsynchronised():
                torch.autograd.backward([output for output in self._restore(*piece) if output is not None], slope)
        return parts

    def _restore(self, noisy: Tensor, sigma: Tensor) -> _Outputs:
        # One autocast a call: it remembers half-precision weights until it ends, with or without their graph.
        with self._autocast(noisy), self.compiling():
            restored, estimate = self.model(noisy, sigma)
        return restored.to(torch.promote_types(restored.dtype, torch.float32)), estimate

    def _judge(self, restored: Tensor, estimate: Tensor | None, **given: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with self._autocast(restored):
            loss, parts = self.objective(restored=restored, estimate=estimate, **given)
        return loss, parts

    def _autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self.half)

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Leave the gradients where they are: the workers average the sum over all parts, with the last one."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()


@contextmanager
def _compiling() -> Iterator[None]:
    """Stop in one line where the network cannot be compiled: a run that says it is compiled is."""
    from torch._dynamo.exc import TorchDynamoException  # a second of import that others need not wait for

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"train.compile=true: the network cannot be compiled here ({reason[:200]}); set train.compile=false"
        ) from error


def _slope(output: Tensor) -> Tensor:
    return torch.zeros_like(output) if output.grad is None else output.grad
