"""The loss, slow and obvious: loops over eq. (1) and (2) in float64. What the fast one is held against."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from torch import Tensor

EPS = float(np.finfo(np.float32).eps)


def kernel(rows: np.ndarray, temperature: float | None = None) -> np.ndarray:
    """k of every pair of rows: (n, D) -> (n, n); exp(cosine / temperature) with one."""
    n = len(rows)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            norms = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
            cosine = rows[i] @ rows[j] / norms if norms else 0.0
            out[i, j] = math.exp(cosine / temperature) if temperature else max((cosine + 1) / 2, EPS)
    return out


def eq1(restored: np.ndarray, clean: np.ndarray, divergence: str = "kl", temperature: float | None = None) -> float:
    """Eq. (1), the sum over columns, of (n, D) rows."""
    kx, ky = (kernel(rows.astype(np.float64), temperature) for rows in (restored, clean))
    n, total = len(kx), 0.0
    for j in range(n):
        others = [i for i in range(n) if i != j]
        p = {i: kx[i, j] / sum(kx[k, j] for k in others) for i in others}
        q = {i: ky[i, j] / sum(ky[k, j] for k in others) for i in others}
        for i in others:
            m = (p[i] + q[i]) / 2
            total += {
                "kl": p[i] * math.log(p[i] / q[i]),
                "inverse_kl": q[i] * math.log(q[i] / p[i]),
                "jsd": (p[i] * math.log(p[i] / m) + q[i] * math.log(q[i] / m)) / 2,
            }[divergence]
    return total


class Queue:
    """Two lists that keep their last `size` rows."""

    def __init__(self, size: int) -> None:
        self.x: deque[Tensor] = deque(maxlen=size)
        self.y: deque[Tensor] = deque(maxlen=size)

    def enter(self, restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The rows present after these entered; the new ones with their graph, history without."""
        self.x = deque([row.detach() for row in self.x], maxlen=self.x.maxlen)
        self.x.extend(restored)
        self.y.extend(clean.detach())
        return torch.stack(list(self.x)), torch.stack(list(self.y))


class CentredQueue(Queue):
    """Rows minus the mean of the clean rows that came before them or with them, at most about `size` of these."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size, self.seen, self.mean = size, 0, torch.zeros(())

    def enter(self, restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(clean)
        weight = len(clean) / min(self.seen, self.size)
        self.mean = (1 - weight) * self.mean + weight * clean.mean(0)
        return super().enter(restored - self.mean, clean - self.mean)


def differentiable(x: Tensor, y: Tensor, divergence: str = "kl", temperature: float | None = None) -> Tensor:
    """Eq. (1) over whole (n, D) queues by whole matrices, left to autograd: the recomputation the fast loss saves."""
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)

    def conditional(rows: Tensor) -> Tensor:
        norm = rows.norm(dim=1, keepdim=True)
        unit = rows / torch.where(norm > 0, norm, 1)
        cosine = unit @ unit.T
        k = (cosine / temperature).exp() if temperature else ((cosine + 1) / 2).clamp(min=EPS)
        return k / (k * off).sum(0, keepdim=True)

    p, q = conditional(x), conditional(y)
    if divergence == "inverse_kl":
        p, q = q, p
    if divergence == "jsd":
        m = (p + q) / 2
        return ((p * (p / m).log() + q * (q / m).log()) * off).sum() / 2
    return (p * (p / q).log() * off).sum()
