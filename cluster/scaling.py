"""What a training step sends and computes, where it stops scaling, and which knob then turns.

W workers, B crops of c x c pixels a step over all of them, P weights of the network, queues of q samples of D numbers.
A sample is a crop, or a patch of K x K pixels: N = B (c/K)^2 samples a step, n = N/W of them on each worker.

What one worker hands to collectives in a step (`step_bytes`; checked against what was counted at W = 1, 2 and 4 in
tests/test_scaling.py; nothing at W = 1):

    gradients      4 P        summed; around a ring, 2 (W-1)/W times that leaves and reaches every worker
    features       2 n D b    gathered, b bytes a number (loss.gather_dtype); every worker receives 2 (N-n) D b
    column sums    24 q       changes, summed; for "jsd" instead 16 n q, gathered: every worker receives 16 (N-n) q
    shapes         24         (48 more for "jsd")
    agreement       8         whether to end (Ctrl-C); beside the step's work, and not in `step_bytes`

Beside that, 3 c^2 bytes a crop come from ingest, uint8 (48 KiB at c = 128). A checkpoint holds the queues (8 q D bytes,
in float32), and the network's weights four times with Adam, five with averaging. Worker 0 copies it in memory, while
the others wait, and writes it beside the next steps.

What it computes: the network on B/W crops, forward and backward; Phi on twice as many forward, and on B/W backward; and
the matching, 10 n q D operations, which read the queues three times (12 q D bytes in float32). The first three shrink
with W. Reading the queues does not, nor does their memory: every worker holds them whole. On the CPU of README's
table it is 12 ms at q = 1024, D = 8192.

Where it stops scaling:

1. At W = B a worker has one crop. A larger W needs a larger `train.batch_size` (and another `train.lr`): from here
   on N grows with W, and q must be at least N (`loss.queue_size`).
2. What every worker receives, 2 N D b, then grows with W while its own work stays. At 512 x 512 crops, VGG-19 conv5_4
   (D = 524,288) and one crop a worker, it is 4 MiB a crop: 4 GiB a step at W = 1,000, against 3.3 MiB of gradients
   (FFDNet 96 x 12). `loss.gather_dtype=bfloat16` halves it. A layer with fewer channels or a larger stride makes D
   smaller (EfficientNet-Lite0 blocks.4: 114,688). Patches do not help: N D stays the same.
3. The queues' memory, 8 q D bytes with q >= N: in that case 4 GiB at least on every GPU. `loss.queue_dtype=bfloat16`
   halves it. For patches q must hold (c/K)^2 times as many samples, each as much shorter.
4. Ingest: an image of 2048 x 1024 takes about 30 ms of a core to decode, so a step needs 0.03 B core seconds, divided
   by `data.crops_per_image`; that and `train.data_cpus` turn it. One process deals out W rows a step, in order; whether
   it keeps up with 1,000 workers was not tried. Larger `train.batch_size` a worker means fewer, longer steps.
5. Losing a node starts all workers again from the last checkpoint, and again when one comes with
   `train.num_workers=[least, most]`. At W = 1,000 nodes are lost often: `train.checkpoint_every` and
   `train.max_failures`.

Only W = 1, 2 and 4 were run here, on one machine; the rest is reckoned.
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
