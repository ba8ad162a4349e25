"""Bytes that a training step hands to collectives; cluster/README.md explains how a step scales with them.

W workers, N samples a step over all of them (crops, or patches of K x K pixels), n = N/W on each worker, samples of D
numbers, queues of q samples, P weights of the network. One of two or more workers hands to collectives in a step:

    gradients      4 P        summed
    features       2 n D b    gathered, b bytes a number (loss.gather_dtype)
    column sums    24 q       changes, summed; for "jsd" instead 16 n q, gathered
    shapes         24         48 more for "jsd"

tests/cluster/test_scaling.py counts them at W = 1, 2 and 4.
"""

from __future__ import annotations

from d2sm.divergence import Divergence


def step_bytes(*, n: int, d: int, q: int, parameters: int, divergence: Divergence = "kl", itemsize: int = 4) -> int:
    """Bytes that one of two or more workers hands to collectives in a step, its queues full.

    Args:
        n: samples that this worker brings; d: numbers in each; q: samples that a queue holds.
        parameters: of the network, in float32.
        itemsize: bytes of a number in a gathered row.
    """
    return 4 * parameters + loss_bytes(n=n, d=d, q=q, divergence=divergence, itemsize=itemsize)


def loss_bytes(*, n: int, d: int, q: int, divergence: Divergence = "kl", itemsize: int = 4) -> int:
    """The loss's share of `step_bytes`."""
    shapes = 24
    sums = 24 * q if divergence != "jsd" else 2 * (8 * n * q + shapes)
    return 2 * n * d * itemsize + shapes + sums
