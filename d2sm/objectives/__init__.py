"""The objectives a network can be trained with, one paper a file, and the ONE list of them.

Every objective is a module that is called alike, by position or by keyword:

    loss = objective(restored, clean, **inputs)        restored, clean: (B, 3, H, W) RGB in [0, 1]

`inputs` are what it needs beside the two images, by keyword (`Term.inputs`, `inputs_by_key`). The result is a scalar to
minimise, in float32 at least, differentiable by `restored` or by the network's estimate of the noise.

A new objective is one class in a file here and one entry in `TERMS`. The configuration's weights, the weighted sum that
training minimises, the check before a run, the description of a registered model, and the tests that every objective
has to pass all read this list. Importing this module loads no torch: a class is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

if TYPE_CHECKING:
    from torch import nn

    from d2sm.objectives.adversarial import Adversarial
    from d2sm.objectives.contextual import Contextual
    from d2sm.objectives.lpips import LPIPS
    from d2sm.objectives.noise_level import NoiseAsymmetry, NoiseTotalVariation
    from d2sm.objectives.perceptual import Perceptual
    from d2sm.objectives.pixel import L1, MSE
    from d2sm.objectives.segmentation import CrossEntropy
    from d2sm.objectives.ssim import SSIMLoss

__all__ = [
    "L1",
    "LPIPS",
    "MSE",
    "TERMS",
    "Adversarial",
    "Contextual",
    "CrossEntropy",
    "NoiseAsymmetry",
    "NoiseTotalVariation",
    "Perceptual",
    "SSIMLoss",
    "Term",
]

Input = Literal["labels", "sigma", "estimate"]
"""labels: (B, H, W) train ids; sigma: (B,) in units of 0..255; estimate: (B, 3, H, W), the network's, sigma / 255."""


@dataclass(frozen=True)
class Term:
    """An entry of the list: what the other parts of the project must know of an objective before it is built.

    Attributes:
        name: under which it is logged, as "loss.<name>"; also its attribute in the weighted sum, and so part of saved
            states.
        target: its class, as "module:class".
        description: what its weight is the weight of, for help texts: "weight of <description>".
        weight_key: the configuration key of its weight, within the loss section; "" stands for the name.
        default_weight: its weight unless configured; at 0 it is left out.
        label: its abbreviation in descriptions; "" stands for the name.
        uses_phi: whether it compares features of Phi, and so needs Phi's weights. It is then built as
            `target(features, weights=...)` unless it has options of its own.
        inputs: keyword arguments of its `forward` beside the two images.
        inputs_by_key: those that it needs only if a key of the loss section is set, by this key.
        extra_losses: names of further losses that its `forward` returns after its own. They are minimised beside the
            weighted sum, with weight 1, and have no parameter in common with it.
        global_batch: whether it is a function of the batch of all ranks. Otherwise it is a mean over the images of this
            rank, which counts for more where a rank has more images.
        pixelwise: whether it is an error of each pixel by itself, which `loss.gradient_ratio` compares others with.
    """

    name: str
    target: str
    description: str
    weight_key: str = ""
    default_weight: float = 0.0
    label: str = ""
    uses_phi: bool = False
    inputs: tuple[Input, ...] = ()
    inputs_by_key: Mapping[str, Input] = field(default_factory=dict)
    extra_losses: tuple[str, ...] = ()
    global_batch: bool = False
    pixelwise: bool = False

    lower_is_better: ClassVar[bool] = True  # objectives are minimised

    def __post_init__(self) -> None:
        for attribute in ("weight_key", "label"):
            object.__setattr__(self, attribute, getattr(self, attribute) or self.name)

    @property
    def uses_estimate(self) -> bool:
        """Whether it needs a network that estimates the noise (`Backbone.estimates_noise`)."""
        return "estimate" in self.inputs

    def load(self) -> type[nn.Module]:
        """Import the class."""
        return cast("type[nn.Module]", resolve_name(self.target))


# The weighted sum adds the terms up in this order: another one would change the last bits of a training run.
TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        Term(
            "l1", "d2sm.objectives.pixel:L1", "the mean absolute error",
            default_weight=1.0, label="L1", pixelwise=True,
        ),
        Term(
            "d2sm", "d2sm.loss:D2SMLoss",
            "D2SM; at 0 it and its queues are left out, and Phi too unless another term uses it",
            weight_key="weight", default_weight=10.0, label="D2SM", uses_phi=True, global_batch=True,
            inputs_by_key={"class_regions": "labels"},
        ),
        Term(
            "adversarial", "d2sm.objectives.adversarial:Adversarial",
            "the adversarial loss, from a discriminator on Phi's features",
            uses_phi=True, extra_losses=("discriminator",),
        ),
        Term("mse", "d2sm.objectives.pixel:MSE", "the mean squared error", label="MSE", pixelwise=True),
        Term("ssim", "d2sm.objectives.ssim:SSIMLoss", "1 - SSIM", label="SSIM"),
        Term(
            "perceptual", "d2sm.objectives.perceptual:Perceptual", "the mean squared difference of Phi's features",
            uses_phi=True,
        ),
        Term("lpips", "d2sm.objectives.lpips:LPIPS", "LPIPS", label="LPIPS"),
        Term("contextual", "d2sm.objectives.contextual:Contextual", "the contextual loss", uses_phi=True),
        Term(
            "cross_entropy", "d2sm.objectives.segmentation:CrossEntropy",
            "a frozen segmenter's cross-entropy on the restored crops; needs labels", inputs=("labels",),
        ),
        Term(
            "noise_asymmetry", "d2sm.objectives.noise_level:NoiseAsymmetry",
            "the asymmetric error of CBDNet's noise estimate", inputs=("estimate", "sigma"),
        ),
        Term(
            "noise_tv", "d2sm.objectives.noise_level:NoiseTotalVariation",
            "the total variation of CBDNet's noise estimate", inputs=("estimate",),
        ),
    )
}  # fmt: skip

_EXPORTS = {term.target.partition(":")[2]: term.target for term in TERMS.values() if term.name != "d2sm"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return resolve_name(_EXPORTS[name])
    raise AttributeError(f"module 'd2sm.objectives' has no attribute {name!r}")
