"""Networks whose parts forget their activations: the same gradients, bit for bit, with less kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from d2sm.models import CBDNet, ESPNet, FFDNet, SADNet
from d2sm.models.activation_checkpointing import CheckpointedModule, checkpoint_activations
from tests.helpers.networks import stirred


def kept(network: nn.Module) -> tuple[int, Tensor]:
    """Bytes that the forward pass keeps for the backward pass, weights aside, and all gradients."""
    noisy = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    storages = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        restored = network(noisy) if network.blind else network(noisy, torch.full((2,), 25.0))
    bytes_ = sum(storages.values())
    restored.square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert None not in gradients
    return bytes_, torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@pytest.mark.parametrize("make, share", [(FFDNet, 0.5), (CBDNet, 0.5), (SADNet, 0.3)])
def test_the_same_gradients_with_less_kept(make: type[nn.Module], share: float) -> None:
    torch.manual_seed(0)
    network = stirred(make())
    forgetful = copy.deepcopy(network)
    checkpoint_activations(forgetful)
    assert forgetful.state_dict().keys() == network.state_dict().keys()
    (all_of_it, wanted), (less, found) = kept(network), kept(forgetful)
    assert torch.equal(found, wanted)
    assert less < share * all_of_it
    again = copy.deepcopy(forgetful)  # as averaging does: the copy's parts are its own
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(kept(forgetful.requires_grad_())[1], 2 * wanted)  # added to those of before


def test_a_network_without_parts_is_one_line() -> None:
    with pytest.raises(ValueError, match="ESPNet: .*CheckpointedModule") as error:
        checkpoint_activations(ESPNet(19))
    assert "\n" not in str(error.value)


def test_dropout_has_the_same_masks_when_activations_are_recomputed() -> None:
    class Random(CheckpointedModule):
        blind = True

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout2d(), nn.Conv2d(8, 3, 3, padding=1))

        def forward(self, noisy: Tensor) -> Tensor:
            return self.checkpointed(self.net, noisy)

    network = Random()
    gradients = []
    for checkpointing in (False, True):
        network.zero_grad()
        network.checkpoint_activations = checkpointing
        torch.manual_seed(5)
        gradients.append(kept(network)[1])
    assert torch.equal(*gradients)
