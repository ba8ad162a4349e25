"""Compiled matching: the values of the eager one, and one compilation a shape, whatever the queues hold."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from d2sm import D2SMLoss, StatisticsMatching
from d2sm.divergence import Divergence

Q, D = 12, 40


@pytest.fixture
def compilations() -> Iterator[dict[str, int]]:
    """How many graphs were compiled, under "unique_graphs"."""
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def step(matching: StatisticsMatching, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(count, D, generator=generator)
    restored = (clean + 0.3 * torch.randn(count, D, generator=generator)).requires_grad_()
    value = matching(restored, clean)
    (gradient,) = torch.autograd.grad(value, restored)
    return value.detach(), gradient


@pytest.mark.parametrize("divergence", ["kl", "inverse_kl", "jsd"])
def test_equal_to_eager_and_compiled_once(divergence: Divergence, compilations: dict[str, int]) -> None:
    plain = StatisticsMatching(Q, divergence)
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    seen = []
    for seed in range(12):  # the queues are full from the third step on; the sixth has a row less
        count = 4 if seed == 5 else 5
        wanted, found = step(plain, count, seed), step(compiled, count, seed)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
        seen.append(compilations["unique_graphs"])
    # Unit rows and the gradient through them for both shapes; on full queues kernels, for "kl" also sums and gradient.
    steady = 1 if divergence == "jsd" else 3
    assert seen[0] == seen[1] == 2, "nothing that depends on the filling of the queues is compiled"
    assert seen[4] == 2 + steady
    assert seen[5] == seen[-1] == 2 * (2 + steady), "a batch of another size compiles once more, and the next do not"


def test_evaluation_of_a_compiled_loss_leaves_its_queues(compilations: dict[str, int]) -> None:
    matching = StatisticsMatching(Q)
    matching.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    for seed in range(4):
        step(matching, 5, seed)
    before = copy.deepcopy(matching.state_dict())
    matching.eval()
    value, _ = step(matching, 5, 9)
    for name, kept in before.items():
        now = matching.state_dict()[name]
        assert torch.equal(now, kept) if isinstance(kept, torch.Tensor) else now == kept
    matching.train()
    torch.testing.assert_close(step(matching, 5, 9)[0], value)


def test_a_compiled_loss_is_pickled_and_copied(compilations: dict[str, int]) -> None:
    """What is copied is not compiled, and Phi's copy runs its own weights."""
    loss = D2SMLoss(torch.nn.Conv2d(3, 4, 4, stride=4), 4)
    loss.matching.compile(backend="eager")
    loss.features.compile(backend="eager")
    clean = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for shift in range(3):
        loss(clean + 0.1 * shift, clean)
    loss.eval()
    value = loss(clean + 0.1, clean)
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert value > 0 and torch.allclose(twin(clean + 0.1, clean), value)
        torch.nn.init.zeros_(twin.features.net.weight)
        torch.nn.init.zeros_(twin.features.net.bias)
        assert not twin.features(clean).any() and loss.features(clean).any()
