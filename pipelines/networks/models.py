"""Backbones from the configuration's model section: those of `d2sm.models`, those that spandrel knows, anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2sm.models import BACKBONES, CBDNet, Denoiser, WrappedNetwork
from d2sm.models.activation_checkpointing import CheckpointedModule, checkpoint_activations
from pipelines.callables import import_callable
from pipelines.config import Config
from pipelines.networks.spandrel_networks import of_file, of_weights
from pipelines.sections import SPANDREL, Model
from pipelines.text import one_line

_SIZE = (37, 43)  # height and width of the image on which a backbone is checked: odd, and prime


class ModelError(ValueError):
    """A backbone that cannot be built, or breaks the contract of `build`. One line."""


def build(model: Model, *, weights: Mapping[str, Tensor] | None = None) -> Denoiser:
    """The backbone, initialised from torch's current seed.

    A `module:callable` is imported and called with `model.options` as keyword arguments; it gives a network that takes
    (noisy) or (noisy, sigma), which is wrapped in `WrappedNetwork`, or a `Denoiser`.

    Args:
        weights: of a checkpoint, by name. A spandrel network is made of them instead of the file `model.weights`.

    Raises:
        ModelError: it cannot be imported or built, the file cannot be read, or the network takes other arguments.
    """
    if backbone := BACKBONES.get(model.name):
        return backbone.load()(**{option: getattr(model, option) for option in backbone.options})
    if model.name != SPANDREL:
        return _imported(model)
    if weights is not None:
        return of_weights(weights, ModelError)
    if not model.weights:
        raise ModelError(f"model.weights: give the file that model.name={SPANDREL} makes its network of")
    return of_file(model.weights, ModelError)


def check(config: Config) -> Denoiser | None:
    """Build a backbone that is not of `BACKBONES`, and make sure on small images that it can be trained as configured.

    Returns:
        The network; None for one of `BACKBONES`.

    Raises:
        ModelError: see `build`; or its result has another size or type, is not finite, or has no gradient; or its state
            dict does not load; or it cannot be trained in micro-batches (`train.accumulate`), or with activations that
            are recomputed (`train.recompute`).
    """
    if config.model.name in BACKBONES:
        return None
    model = build(config.model)
    source, train = _source(config.model), config.train
    if train.recompute and not any(isinstance(module, CheckpointedModule) for module in model.modules()):
        raise ModelError(
            f"train.recompute=true: {source} has no CheckpointedModule, so nothing would be recomputed; set it to false"
        )
    crop = config.data.crop_size
    for height, width in (_SIZE, (crop, crop)):
        noisy = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        try:
            restored = model.train()(noisy, torch.tensor([10.0, 40.0]))
            _check_result(restored, noisy)
            (restored - noisy).square().mean().backward()
        except Exception as error:  # somebody else's network may raise anything
            raise ModelError(f"{source} fails on images of {height}x{width}: {one_line(error)}; correct it") from error
    _check_gradients(model, source, several=train.workers[1] > 1)
    if train.accumulate > 1:
        _check_second_pass(model, f"train.accumulate={train.accumulate}: {source}")
    if train.recompute:
        _check_recomputation(model, f"train.recompute=true: {source}")
    # As a checkpoint of the run will be opened.
    if config.model.name == SPANDREL:
        build(config.model, weights=model.state_dict())
    try:
        model.load_state_dict(model.state_dict())
    except Exception as error:  # as above
        raise ModelError(f"{source} does not load its own state dict: {one_line(error)}; correct it") from error
    return model


def is_random(model: Denoiser) -> bool:
    """Whether a network draws random numbers of torch in training mode, as dropout does."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        model.train()(*_batch())
        return not torch.equal(before, torch.get_rng_state())


def _check_result(restored: object, noisy: Tensor) -> None:
    if not isinstance(restored, Tensor):
        raise ValueError(f"it gives a {type(restored).__name__}, not a tensor")
    if restored.shape != noisy.shape:
        raise ValueError(f"it gives {tuple(restored.shape)}, not {tuple(noisy.shape)}")
    if restored.dtype != noisy.dtype:
        raise ValueError(f"it gives {restored.dtype}, not {noisy.dtype}")
    if not restored.isfinite().all():
        raise ValueError("its result is not finite")
    if not restored.requires_grad:
        raise ValueError("its result has no gradient")


def _check_gradients(model: nn.Module, source: str, *, several: bool) -> None:
    network = model.network if isinstance(model, WrappedNetwork) else model
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    for name, weight in trained.items():
        if weight.grad is not None and not weight.grad.isfinite().all():
            raise ModelError(f"{source}: the gradient of its {name} is not finite; correct it")
        if weight.grad is None and several:
            raise ModelError(
                f"{source}: its {name} takes no part in the result, which training on several workers refuses; remove "
                "it, set its requires_grad to False, or train.num_workers=1"
            )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{source}: {name} in its state dict is a {type(value).__name__}; only tensors are saved")


def _check_second_pass(model: Denoiser, where: str) -> None:
    """Micro-batches pass the network twice (`pipelines.training.backward`): it must be the same network both times, and
    restore each image by itself.
    """
    remedy = "set train.accumulate=1"
    network = model.network if isinstance(model, WrappedNetwork) else model
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ModelError(
                f"{where}: its {name} ({type(module).__name__}) normalises by all images of a batch, so the gradient "
                f"of micro-batches would be another one; {remedy}"
            )
    before = _buffers(network)
    results = []
    with torch.random.fork_rng(devices=[]):
        for with_graph in (False, True):
            torch.manual_seed(0)
            with torch.set_grad_enabled(with_graph):
                results.append(model(*_batch()))
    if name := _changed(network, before):
        raise ModelError(
            f"{where}: its {name} changes in every forward pass in training mode, and micro-batches take two a step; "
            f"{remedy}"
        )
    first, second = results
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-5):
        raise ModelError(
            f"{where} gives two results for one image from the same state of torch's random numbers, so the gradient "
            f"of micro-batches would be wrong; {remedy}"
        )


def _check_recomputation(model: Denoiser, where: str) -> None:
    """Checkpointed segments run a second time, in the backward pass: no buffer may change there."""
    network = model.network if isinstance(model, WrappedNetwork) else model
    checkpoint_activations(network)
    loss = model(*_batch()).square().mean()
    before = _buffers(network)
    loss.backward()
    if name := _changed(network, before):
        raise ModelError(
            f"{where}: its {name} changes in every forward pass in training mode, and its segment takes two a step; "
            "set train.recompute=false, or leave that module out of the segments"
        )


def _batch() -> tuple[Tensor, Tensor]:
    """Two noisy images and their sigma, the same at each call."""
    return torch.rand(2, 3, *_SIZE, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 40.0])


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def _changed(network: nn.Module, before: Mapping[str, Tensor]) -> str | None:
    """The name of the first buffer that is not as it was."""
    buffers = network.named_buffers()
    return next((name for name, now in buffers if name in before and not torch.equal(now, before[name])), None)


def _imported(model: Model) -> Denoiser:
    source = _source(model)
    made = import_callable(model.name, asked_by=source, error=ModelError)
    try:
        network = made(**model.options)
    except Exception as error:  # somebody else's code may raise anything
        raise ModelError(
            f"{source} cannot be built with model.options={model.options}: {one_line(error)}; correct them"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{source} returned a {type(network).__name__}: needs a torch module")
    if isinstance(network, Denoiser):
        return network
    try:
        return WrappedNetwork(network)
    except ValueError as error:
        raise ModelError(f"{source}: {one_line(error)}; correct it") from error


def _source(model: Model) -> str:
    return f"model.name={model.name}" + (f" model.weights={model.weights}" if model.name == SPANDREL else "")


class TrainingModule(nn.Module):
    """A backbone with the interface that training needs; DistributedDataParallel wraps it and calls its `forward`.

    Args:
        network: from `build`.
        estimate: whether to return the network's estimate of the noise too, for the objectives that use it. The network
            then is one of those in `BACKBONES` with `estimates_noise`.
    """

    def __init__(self, network: Denoiser, *, estimate: bool) -> None:
        super().__init__()
        self.network, self.estimate = network, estimate

    def forward(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """Restore a batch.

        Args:
            noisy: (B, 3, H, W).
            sigma: (B,), in units of 0..255; blind networks ignore it.

        Returns:
            restored (B, 3, H, W), and the estimate of the noise (B, 3, H, W) or None.
        """
        if self.estimate:
            return cast(CBDNet, self.network).with_estimate(noisy)
        return self.network(noisy, sigma), None
