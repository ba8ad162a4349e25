"""Adam is fused on a GPU alone, and a saved state does not change that."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipelines.training.adam import adam, load
from tests.helpers.equality import equal

NEEDS_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("device, fused", [("cpu", None), pytest.param("cuda", True, marks=NEEDS_A_GPU)])
def test_fused_on_a_gpu(device: str, fused: bool | None) -> None:
    assert adam([nn.Parameter(torch.ones(2, device=device))], lr=0.1, betas=(0.9, 0.99)).defaults["fused"] is fused


def test_a_state_saved_by_the_fused_kind_goes_on_on_a_cpu() -> None:
    weight = nn.Parameter(torch.ones(3))
    saved = adam([weight], lr=0.1, betas=(0.9, 0.99))
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    saved.step()
    state = copy.deepcopy(saved.state_dict())
    state["param_groups"][0]["fused"] = True  # as a run on a GPU saves it
    resumed = adam([nn.Parameter(weight.detach().clone())], lr=0.1, betas=(0.9, 0.99))
    load(resumed, state)
    assert resumed.param_groups[0]["fused"] is None
    assert equal(resumed.state_dict()["state"], saved.state_dict()["state"])
    (other,) = resumed.param_groups[0]["params"]
    other.grad = weight.grad.clone()
    saved.step()
    resumed.step()
    assert torch.equal(other, weight)
