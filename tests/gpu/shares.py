"""A step with D2SM over the same step with the perceptual loss, in turns: FFDNet 96 x 12, crops of 128, both Phis."""

from __future__ import annotations

import torch

from d2sm.features import features
from d2sm.models.ffdnet import FFDNet
from tests.benchmarks.loss_share import d2sm, perceptual, training_step
from tests.benchmarks.timing import interleaved
from tests.gpu.options import options
from tests.gpu.results import record

PHIS = {"Lite0": "efficientnet_lite0.blocks.4", "VGG-19": "vgg19.conv5_4"}


def main() -> None:
    given = options(__doc__)
    torch.manual_seed(0)
    batch, crop = (2, 32) if given.small else (32, 128)
    for name, phi in list(PHIS.items())[: 1 if given.small else 2]:
        network = features(phi, weights="random").to(given.device)
        model = FFDNet(width=8, depth=3) if given.small else FFDNet()
        model = model.to(given.device)
        steps = {
            "perceptual": training_step(model, perceptual(network), given.device, batch, crop),
            "d2sm": training_step(model, d2sm(network, None, given.device, crop), given.device, batch, crop),
        }
        taken = interleaved(steps, given.device, rounds=3 if given.small else 25)
        record("shares", f"D2SM over perceptual, {name}", taken["d2sm"] / taken["perceptual"])
        for way, passed in taken.items():
            record("shares", f"{name}: step with {way}, ms", passed * 1e3)


if __name__ == "__main__":
    main()
