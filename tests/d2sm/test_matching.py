"""StatisticsMatching against the slow reference: value, gradient, rounding, errors."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from d2sm import StatisticsMatching
from d2sm.divergence import Divergence, cosines, kernel, pieces
from tests.helpers import reference

NEEDS_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DIVERGENCES: tuple[Divergence, ...] = ("kl", "inverse_kl", "jsd")


def rows(count: int, length: int = 6, *, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(count, length, generator=generator, dtype=dtype)
    restored = clean + 0.5 * torch.randn(count, length, generator=generator, dtype=dtype)
    return restored, clean


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype, relative", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_equals_equation_at_every_step(divergence: Divergence, dtype: torch.dtype, relative: float) -> None:
    # Partial filling, wrap-around within a batch, changing sizes, a batch as large as the queue, and after it.
    matching, queue = StatisticsMatching(7, divergence, reduction="sum"), reference.Queue(7)
    for step, count in enumerate([1, 2, 3, 3, 1, 7, 2, 5, 7, 7, 4, 1, 6]):
        restored, clean = rows(count, seed=step, dtype=dtype)
        x, y = queue.enter(restored, clean)
        expected = reference.eq1(x.double().numpy(), y.double().numpy(), divergence)
        value = matching(restored, clean)
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected, rel=relative, abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 9),
    fractions=st.lists(st.floats(0.01, 1), min_size=1, max_size=8),
    divergence=st.sampled_from(DIVERGENCES),
    seed=st.integers(0, 2**20),
)
def test_any_sequence_of_batches(size: int, fractions: list[float], divergence: Divergence, seed: int) -> None:
    matching, queue = StatisticsMatching(size, divergence), reference.Queue(size)
    for step, fraction in enumerate(fractions):
        restored, clean = rows(max(1, round(fraction * size)), seed=seed + step)
        restored.requires_grad_()
        x, y = queue.enter(restored, clean)
        value = matching(restored, clean)
        if len(x) <= 2:  # exactly, without rounding
            assert value.item() == 0 and not torch.autograd.grad(value, restored)[0].any()
            continue
        expected = reference.differentiable(x, y, divergence) / len(x)
        assert value.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
        assert value.item() >= 0
        (gradient,) = torch.autograd.grad(value, restored, allow_unused=True)
        (wanted,) = torch.autograd.grad(expected, restored)
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    "device, count, length, parts",
    [
        ("cuda", 32, 131_072, 32),  # ffdnet_d2sm_gpu: 16 crops that enter and 16 that leave
        ("cuda", 32, 98_304 + 8, 8),  # 32 does not divide it
        ("cuda", 512, 8192, 1),  # ffdnet_d2sm_internal_gpu
        ("cuda", 65, 131_072, 1),
        ("cpu", 32, 131_072, 1),
    ],
)
def test_few_long_rows_are_multiplied_in_pieces_on_a_gpu(device: str, count: int, length: int, parts: int) -> None:
    assert pieces(torch.device(device), count, length) == parts


def test_a_step_of_long_rows_on_a_gpu_fits_together() -> None:
    """Tensors without numbers stand for those of a GPU: the product in pieces, and the gradient in blocks."""
    with FakeTensorMode():
        matching = StatisticsMatching(16)
        for _ in range(3):  # the queues are filled, then full
            restored, clean = torch.rand(2, 8, 40_000, device="cuda").unbind()
            restored = restored.detach().requires_grad_()
            value = matching(restored, clean)  # with its gradient
    assert pieces(torch.device("cuda"), 16, 40_000) == 32
    assert value.device.type == "cuda" and value.shape == () and value.requires_grad


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_A_GPU)])
@pytest.mark.parametrize("count, length, size", [(1, 131_072, 64), (4, 8192, 64), (2, 8192, 64)])
def test_float32_on_a_device_is_float64_on_a_cpu(count: int, length: int, size: int, device: str) -> None:
    """The shapes of the recipes for a GPU, in smaller queues: full, and with samples that enter and leave."""
    exact, found = StatisticsMatching(size), StatisticsMatching(size).to(device)
    for step, number in enumerate([size, count, count]):
        restored, clean = rows(number, length, seed=step)
        given = restored.to(device, torch.float32).requires_grad_()
        restored.requires_grad_()
        wanted, value = exact(restored, clean), found(given, clean.to(device, torch.float32))
    (by,), (wanted_by,) = torch.autograd.grad(value, given), torch.autograd.grad(wanted, restored)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert (by.cpu().double() - wanted_by).norm() < 1e-2 * wanted_by.norm()


def test_products_in_pieces_are_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way, on the CPU: equal in float64, nearer to it than one product in float32, and no row is copied."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(2, 24, 4096 + 16, generator=generator, dtype=torch.float64), dim=2)
    queues, new = unit[:, :20, :4096], unit[:, 20:, :4096]  # rows with a gap behind them, as in the queues
    exact = kernel(cosines(new, queues))
    whole = kernel(cosines(new.float(), queues.float()))
    monkeypatch.setattr("d2sm.divergence.pieces", lambda device, count, length: 32)
    torch.testing.assert_close(kernel(cosines(new, queues)), exact, rtol=1e-14, atol=0)
    split = kernel(cosines(new.float(), queues.float()))
    assert split.shape == exact.shape == (2, 4, 20) and split.is_contiguous() == whole.is_contiguous()
    assert (split - exact).abs().max() <= (whole - exact).abs().max() < 1e-6


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("temperature", [None, 1.0, 0.3, 0.1])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_kernels_and_centring_equal_the_equation_at_every_step(
    divergence: Divergence, temperature: float | None, center: bool
) -> None:
    """Values against loops, gradients against autograd through whole matrices; queues that fill, wrap and turn over."""
    options: dict[str, Any] = {"kernel": "exp", "temperature": temperature} if temperature else {}
    matching = StatisticsMatching(7, divergence, reduction="sum", center=center, **options)
    queue = reference.CentredQueue(7) if center else reference.Queue(7)
    for step, count in enumerate([1, 2, 3, 3, 1, 7, 2, 5, 7, 4, 1, 6]):
        restored, clean = rows(count, 24, seed=step)
        clean, restored = clean + 0.5, (restored + 0.5).requires_grad_()
        x, y = queue.enter(restored, clean)
        before = {key: value.clone() for key, value in matching.state_dict().items() if isinstance(value, Tensor)}
        if step > 4:  # in eval mode the same value, and nothing is remembered
            in_eval = matching.eval()(restored, clean).item()
            for key, value in before.items():
                assert torch.equal(matching.state_dict()[key], value), key
        value = matching.train()(restored, clean)
        if len(x) == 1:
            continue
        expected = reference.eq1(x.detach().numpy(), y.numpy(), divergence, temperature)
        assert value.item() == pytest.approx(expected, rel=1e-8, abs=1e-10)
        assert step <= 4 or in_eval == value.item()
        (gradient,) = torch.autograd.grad(value, restored)
        (wanted,) = torch.autograd.grad(reference.differentiable(x, y, divergence, temperature), restored)
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


def test_a_low_temperature_survives_duplicates_that_come_and_go() -> None:
    """Kernels differ by 17 orders of magnitude; a column's sum does not keep the rounding errors of the largest."""
    matching = StatisticsMatching(6, kernel="exp", temperature=0.05, reduction="sum")
    queue = reference.Queue(6)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        clean = torch.randn(2, 16, generator=generator, dtype=torch.float64).abs()
        clean = clean[:1].expand(2, -1) if step % 3 == 0 else clean  # two equal samples
        restored = clean + 0.01 * torch.randn(2, 16, generator=generator, dtype=torch.float64)
        x, y = queue.enter(restored, clean)
        value = matching(restored, clean).item()
        assert value == pytest.approx(reference.eq1(x.numpy(), y.numpy(), "kl", 0.05), rel=1e-6, abs=1e-9)


def test_the_default_kernel_is_the_papers_bit_for_bit() -> None:
    default, named = StatisticsMatching(8), StatisticsMatching(8, kernel="cosine", temperature=0.3, center=False)
    assert set(default.state_dict()) == {"memory.rings", "memory._extra_state", "divergence.sums"}
    for step in range(4):
        restored, clean = rows(3, seed=step, dtype=torch.float32)
        assert torch.equal(default(restored, clean), named(restored, clean))


def test_the_mean_is_part_of_the_state() -> None:
    first, second = (StatisticsMatching(8, center=True) for _ in range(2))
    for step in range(4):
        first(*rows(3, seed=step))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(*rows(3, seed=9)), second(*rows(3, seed=9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rbf"}, "kernel='rbf': must be one of cosine, exp"),
        ({"temperature": 0.01}, "temperature=0.01.*0.05"),
        ({"temperature": "0.1"}, "temperature='0.1'.*number"),
        ({"queue_size": 64.0}, "queue_size=64.0: give an integer"),
        ({"queue_dtype": "bfloat16"}, "queue_dtype='bfloat16': .*torch.bfloat16"),
        ({"queue_dtype": torch.int8}, "queue_dtype=torch.int8: .*floating-point"),
        ({"gather_dtype": torch.int32}, "gather_dtype=torch.int32: .*floating-point"),
    ],
)
def test_options_that_there_are_not(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StatisticsMatching(**{"queue_size": 8} | options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence: Divergence) -> None:
    history, now = rows(5, seed=1), rows(3, seed=2)
    matching = StatisticsMatching(6, divergence)
    matching(restored=history[0], clean=history[1])
    restored = now[0].requires_grad_()

    def value(features: Tensor) -> Tensor:
        result: Tensor = copy.deepcopy(matching)(restored=features, clean=now[1])
        return result

    assert torch.autograd.gradcheck(value, (restored,), atol=1e-7)
    (gradient,) = torch.autograd.grad(value(restored), restored)
    assert gradient.abs().min() > 0


def test_the_gradient_is_right_under_create_graph_and_has_no_derivative() -> None:
    """Whoever differentiates it hears so, by whatever path; a second derivative of autograd would lack most terms."""
    matching = StatisticsMatching(6)
    matching(*rows(5, seed=1))
    matching.eval()
    (restored, clean), shift, weight = rows(3, seed=2), torch.zeros(6, dtype=torch.float64), torch.ones(())
    shift.requires_grad_()
    weight.requires_grad_()

    def value() -> Tensor:
        result: Tensor = weight * matching((restored + shift).tanh(), clean)
        return result

    (plain,) = torch.autograd.grad(value(), shift)
    (found,) = torch.autograd.grad(value(), shift, create_graph=True)
    assert plain.abs().max() > 0 and torch.equal(found, plain)
    for by in (shift, weight):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(found.square().sum(), by, retain_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        found.square().sum().backward()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_zero_when_equal_throughout(divergence: Divergence) -> None:
    matching = StatisticsMatching(5, divergence)
    for step in range(4):
        _, clean = rows(3, seed=step, dtype=torch.float32)
        assert matching(clean.clone(), clean).item() == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_descending_the_gradient_matches_the_distributions(divergence: Divergence) -> None:
    restored, clean = rows(8, 16, seed=3)
    free = restored.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    values = []
    for _ in range(60):
        value = StatisticsMatching(8, divergence)(free, clean)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] / 50


def test_thousands_of_steps_do_not_drift() -> None:
    matching, queue = StatisticsMatching(64, reduction="sum"), reference.Queue(64)
    generator = torch.Generator().manual_seed(0)
    for step in range(3000):
        clean = torch.randn(3, 16, generator=generator)
        restored = clean + 0.3 * torch.randn(3, 16, generator=generator)
        x, y = queue.enter(restored, clean)
        value = matching(restored, clean)
        if step % 500 == 499:
            expected = reference.differentiable(x.double(), y.double())
            assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("case", ["zero", "identical", "opposite", "tiny", "huge"])
def test_no_nan_at_the_edges(divergence: Divergence, case: str) -> None:
    base = torch.ones(1, 4)
    restored = {
        "zero": torch.zeros(4, 4),
        "identical": base.repeat(4, 1),
        "opposite": torch.cat([base, -base, base, -base]),
        "tiny": torch.eye(4) * 1e-30,
        "huge": torch.eye(4) * 1e15,
    }[case].requires_grad_()
    _, clean = rows(4, 4, seed=0, dtype=torch.float32)
    matching = StatisticsMatching(6, divergence)
    for _ in range(3):
        value = matching(restored, clean)
        (gradient,) = torch.autograd.grad(value, restored)
        assert value.isfinite() and value >= 0
        assert gradient.isfinite().all()
    if case == "zero":
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"center": True}, {"kernel": "exp", "temperature": 0.3}])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["restored", "clean"])
def test_a_sample_that_is_not_finite_is_seen_in_its_step_alone(
    where: str, value: float, divergence: Divergence, options: dict[str, Any]
) -> None:
    """The queues go on as if both of its rows had been zero. Its step is the first, or one with full queues."""
    for when in (0, 5):
        matching, queue = StatisticsMatching(9, divergence, reduction="sum", **options), reference.Queue(9)
        mean, seen = torch.zeros(6, dtype=torch.float64), 0
        for step in range(11):
            restored, clean = rows(3, seed=step)
            if options.get("center") and (step, where) != (when, "clean"):  # such a step is left out of the mean
                seen += 3
                mean = mean + 3 / min(seen, 9) * (clean.mean(0) - mean)
            finite = restored - mean, clean - mean
            if step == when:
                {"restored": restored, "clean": clean}[where][1, 2] = value
                finite[0][1], finite[1][1] = 0, 0
            x, y = queue.enter(*finite)
            result = matching(restored.requires_grad_(), clean)
            (gradient,) = torch.autograd.grad(result, restored)
            if step == when:
                assert result.isnan() and gradient.isnan().all()
                continue
            wanted = reference.differentiable(x, y, divergence, options.get("temperature")).item()
            assert result.item() == pytest.approx(wanted, rel=1e-6, abs=1e-9) and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_compared_in_float32(dtype: torch.dtype) -> None:
    restored, clean = rows(6, 32, seed=5, dtype=torch.float32)
    restored, clean = restored.to(dtype).requires_grad_(), clean.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = StatisticsMatching(6)(restored, clean)
    expected = reference.eq1(restored.detach().double().numpy(), clean.double().numpy()) / 6
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert restored.grad is not None and restored.grad.dtype == dtype and restored.grad.abs().sum() > 0


@pytest.mark.parametrize("scale", [2.0**12, 2.0**16])
@pytest.mark.parametrize("count", [3, 32])  # the first with a gradient, and full queues
def test_a_loss_scale_reaches_the_gradient_of_float16_features(count: int, scale: float) -> None:
    """As by `torch.amp.GradScaler`: the gradient, of which most is below float16's smallest number, is not lost."""
    matching = StatisticsMatching(512)
    if count > 3:
        matching(*rows(512, 1024, seed=0, dtype=torch.float32))
    matching.eval()
    restored, clean = (x.half() for x in rows(count, 1024, seed=1, dtype=torch.float32))
    found = []
    for dtype in (torch.float32, torch.float16):
        leaf = restored.to(dtype, copy=True).requires_grad_()
        (scale * 10 * matching(leaf, clean.to(dtype))).backward()
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        found.append(leaf.grad.float())
    assert count == 3 or (found[0] / scale).abs().median() < torch.finfo(torch.float16).smallest_normal / 1000
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=2.0**-24)


@pytest.mark.parametrize("value", [1.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_half_precision_samples_have_no_gradient(dtype: torch.dtype, value: float) -> None:
    """Zero under any loss scale; NaN where a sample is not finite."""
    restored = torch.tensor([[value, 0], [0.5, 1]], dtype=dtype, requires_grad=True)
    (2.0**20 * StatisticsMatching(6)(restored, torch.eye(2, dtype=dtype))).backward()
    assert restored.grad is not None and restored.grad.dtype == dtype
    assert restored.grad.isnan().all() if value != value else not restored.grad.any()


def test_half_precision_queues_cost_little_accuracy() -> None:
    full, half = StatisticsMatching(32), StatisticsMatching(32, queue_dtype=torch.bfloat16)
    for step in range(12):
        restored, clean = rows(4, 256, seed=step, dtype=torch.float32)
        expected, value = (m(restored, clean).item() for m in (full, half))
    assert half.memory.rings.dtype == torch.bfloat16
    assert value == pytest.approx(expected, rel=5e-3)  # measured here: 1e-3 or so
    x, y = half.memory.restored.double().numpy(), half.memory.clean.double().numpy()
    assert value == pytest.approx(reference.eq1(x, y) / 32, rel=2e-3)  # rows of bf16 are not quite of length one


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("stored", [0, 4, 9])
def test_eval_mode_has_the_value_and_gradient_of_training_and_leaves_the_queues(
    divergence: Divergence, stored: int
) -> None:
    """Bit for bit; with fresh queues, partly filled ones, and full ones whose oldest rows would be overwritten."""
    matching = StatisticsMatching(6, divergence)
    for step in range(stored):
        matching(*rows(1, seed=step))
    before = copy.deepcopy(matching.state_dict())
    restored, clean = rows(3, seed=100)
    restored.requires_grad_()
    found = []
    for mode in (False, False, True):
        assert_same_state(matching.state_dict(), before)
        value = matching.train(mode)(restored, clean)
        found.append((value, *torch.autograd.grad(value, restored)))
    for value, gradient in found[:2]:
        assert value > 0 and torch.equal(value, found[2][0]) and torch.equal(gradient, found[2][1])


def assert_same_state(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value) if isinstance(value, Tensor) else found[key] == value


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_steps_in_inference_mode_are_steps_like_others(divergence: Divergence, center: bool) -> None:
    """Also the first, which allocates the queues, and with features that are inference tensors themselves."""
    mixed, plain = (StatisticsMatching(7, divergence, center=center) for _ in range(2))
    for step in range(5):
        restored, clean = rows(3, seed=step)
        with torch.inference_mode(step % 2 == 0):
            value = mixed(restored * 1, clean * 1)
        assert torch.equal(value, plain(restored, clean)) and not value.is_inference()
    leaf, clean = rows(3, seed=5)
    gradients = [torch.autograd.grad(each(leaf.requires_grad_(), clean), leaf)[0] for each in (mixed, plain)]
    assert gradients[0].any() and torch.equal(*gradients)
    assert_same_state(mixed.state_dict(), plain.state_dict())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_eval_mode_copies_no_queue(divergence: Divergence) -> None:
    """What torch's allocator holds at most during a call stays far below the size of the queues."""
    matching = StatisticsMatching(512, divergence)
    matching(*rows(512, 2048, seed=0, dtype=torch.float32))
    restored, clean = rows(2, 2048, seed=1, dtype=torch.float32)
    restored.requires_grad_()
    matching.eval()(restored, clean)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        matching(restored, clean)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    queues = matching.memory.rings.numel() * matching.memory.rings.element_size()
    assert 0 < peak < queues / (4 if divergence != "jsd" else 1)  # jsd works in chunks of its q x q matrices


def test_eval_mode_undoes_a_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    matching = StatisticsMatching(6)
    matching(*rows(6, seed=0))
    before = copy.deepcopy(matching.state_dict())
    monkeypatch.setattr(matching.divergence, "value", lambda n: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        matching.eval()(*rows(3, seed=1))
    assert_same_state(matching.state_dict(), before)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_state_continues_bit_for_bit(divergence: Divergence) -> None:
    first, second = StatisticsMatching(9, divergence), StatisticsMatching(9, divergence)
    for step in range(5):
        restored, clean = rows(4, seed=step, dtype=torch.float32)
        first(restored, clean)
    second.load_state_dict(first.state_dict())
    for step in range(5, 9):
        restored, clean = rows(4, seed=step, dtype=torch.float32)
        assert torch.equal(first(restored, clean), second(restored, clean))


EXP: dict[str, Any] = {"kernel": "exp", "temperature": 0.3}


@pytest.mark.parametrize("stored", [2, 5, 12])
@pytest.mark.parametrize(
    "saved, loaded",
    [
        ({}, EXP),
        (EXP, {}),
        (EXP, EXP | {"temperature": 0.2}),
        ({}, {"divergence": "inverse_kl"}),
        ({"divergence": "inverse_kl"}, EXP | {"divergence": "kl"}),
        ({"divergence": "jsd"}, EXP | {"divergence": "jsd"}),
    ],
)
def test_a_state_goes_on_with_another_kernel_or_direction(
    saved: dict[str, Any], loaded: dict[str, Any], stored: int
) -> None:
    """From partly filled queues and full ones, until all samples have been replaced: the values of the equation."""
    first, second = (StatisticsMatching(9, reduction="sum", **options) for options in (saved, loaded))
    queue = reference.Queue(9)
    for step in range(stored):
        given = rows(1, seed=step)
        queue.enter(*given)
        first(*given)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(stored, stored + 6):
        given = rows(2, seed=step)
        x, y = queue.enter(*given)
        wanted = reference.eq1(x.numpy(), y.numpy(), loaded.get("divergence", "kl"), loaded.get("temperature"))
        assert second(*given).item() == pytest.approx(wanted, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    "saved, loaded",
    [
        ({}, {"divergence": "inverse_kl"}),
        ({"divergence": "inverse_kl"}, {}),
        (EXP | {"temperature": 0.1}, EXP | {"temperature": 0.101}),
    ],
)
def test_a_state_goes_on_with_others_where_the_sums_are_close(saved: dict[str, Any], loaded: dict[str, Any]) -> None:
    """They may differ by little, but by more than the value itself: what they are sums of is saved."""

    def close(step: int) -> tuple[Tensor, Tensor]:
        _, clean = rows(16, 448, seed=step)
        noise, _ = rows(16, 448, seed=100 + step)
        clean = clean + 30 * ("kernel" in loaded)  # cosines of about .999
        return clean + 0.01 * noise, clean

    first, wanted = (StatisticsMatching(64, **options) for options in (saved, loaded))
    for step in range(4):
        for matching in (first, wanted):
            matching(*close(step))
    second = StatisticsMatching(64, **loaded)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    again = StatisticsMatching(64, **loaded)  # which knows that the sums are those of `loaded` by now
    again.load_state_dict(copy.deepcopy(second.state_dict()))
    assert_same_state(again.state_dict(), second.state_dict())
    for matching in (second, again):
        assert matching(*close(4)).item() == pytest.approx(copy.deepcopy(wanted)(*close(4)).item(), rel=1e-4, abs=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_state_of_a_version_that_did_not_save_what_its_sums_are_of(divergence: Divergence) -> None:
    first, second = (StatisticsMatching(9, divergence) for _ in range(2))
    for step in range(4):
        first(*rows(3, 64, seed=step, dtype=torch.float32))
    state = copy.deepcopy(first.state_dict())
    del state["memory._extra_state"]["sums_of"]
    second.load_state_dict(state)
    assert_same_state(second.state_dict(), first.state_dict())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_state_with_sums_that_are_not_its_queues_is_mended(divergence: Divergence) -> None:
    """As saved by earlier versions after a change of kernel: the oldest samples' columns are of another one, or NaN."""
    matching = StatisticsMatching(9, divergence)
    for step in range(4):
        matching(*rows(3, seed=step))
    for value in (0.5, float("nan")):
        state = copy.deepcopy(matching.state_dict())
        (sums,) = [tensor for name, tensor in state.items() if name.startswith("divergence.")]
        sums[:, matching.memory.oldest_first()[:5]] = value
        loaded = StatisticsMatching(9, divergence)
        loaded.load_state_dict(state)
        given = rows(2, seed=9)
        assert loaded(*given).item() == pytest.approx(copy.deepcopy(matching)(*given).item(), rel=1e-9)


def test_loading_keeps_the_sums_of_long_rows_in_float32() -> None:
    """Their cosines depend on the order of summation; the state is nevertheless the saved one, bit for bit."""
    for options in ({}, EXP | {"temperature": 0.05}):
        first, second = (StatisticsMatching(12, queue_dtype=torch.bfloat16, **options) for _ in range(2))
        for step in range(7):
            restored, clean = rows(3, 65_536, seed=step, dtype=torch.float32)
            first(restored.abs(), clean.abs())
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert_same_state(second.state_dict(), first.state_dict())


def test_loading_keeps_a_precision_that_was_asked_for() -> None:
    first = StatisticsMatching(9)
    for step in range(5):
        first(*rows(3, 64, seed=step, dtype=torch.float32))
    for dtype in (None, torch.bfloat16, torch.float64):
        second = StatisticsMatching(9, queue_dtype=dtype)
        second.load_state_dict(first.state_dict())
        given = rows(3, 64, seed=9, dtype=torch.float32)
        assert second(*given).item() == pytest.approx(copy.deepcopy(first)(*given).item(), rel=2e-2)
        assert second.memory.rings.dtype == (dtype or torch.float32)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_converting_the_module_leaves_its_state(divergence: Divergence, dtype: torch.dtype) -> None:
    """Bit for bit, also back; devices change."""
    plain, converted = (StatisticsMatching(9, divergence, center=True) for _ in range(2))
    for step in range(8):
        if step == 4:
            before = copy.deepcopy(converted.state_dict())
            converted.to(dtype)
            assert_same_state(converted.state_dict(), before)
            converted.float()
        restored, clean = rows(4, seed=step, dtype=torch.float32)
        assert torch.equal(plain(restored, clean), converted(restored, clean))
    assert {buffer.device.type for buffer in converted.to("meta", dtype).buffers()} == {"meta"}
    assert {name: buffer.dtype for name, buffer in converted.named_buffers()} == {
        name: buffer.dtype for name, buffer in plain.named_buffers()
    }


def test_mean_is_the_sum_per_sample_present() -> None:
    restored, clean = rows(5, seed=0)
    total = StatisticsMatching(16, reduction="sum")(restored, clean)
    assert StatisticsMatching(16)(restored, clean).item() == pytest.approx(total.item() / 5, rel=1e-12)


def test_gradients_of_two_steps_may_be_taken_late() -> None:
    # Gradient accumulation: the queues move on before backward runs.
    matching, queue, total, wanted = StatisticsMatching(5), reference.Queue(5), [], []
    leaves = []
    for step in range(3):
        restored, clean = rows(2, seed=step)
        leaves.append(restored.requires_grad_())
        x, y = queue.enter(restored, clean)
        wanted.append(torch.autograd.grad(reference.differentiable(x, y) / len(x), restored)[0])
        total.append(matching(restored, clean))
    torch.stack(total).sum().backward()
    for leaf, gradient in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "restored, clean, words",
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), r"restored: .*\(2, 3, 4\)"),
        (torch.zeros(2, 3), torch.zeros(3, 3), r"clean: .*\(3, 3\).*\(2, 3\)"),
        (torch.zeros(0, 3), torch.zeros(0, 3), r"restored: .*\(0, 3\)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), "restored: .*int64"),
        (torch.zeros(9, 3), torch.zeros(9, 3), "queue_size=8: .* 9 "),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "clean: .*meta.*cpu"),
    ],
)
def test_bad_input_names_the_argument(restored: Tensor, clean: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StatisticsMatching(8)(restored, clean)


def test_bad_options_and_changed_lengths() -> None:
    with pytest.raises(ValueError, match="queue_size=1"):
        StatisticsMatching(1)
    with pytest.raises(ValueError, match="divergence='l2'"):
        StatisticsMatching(8, "l2")  # type: ignore[arg-type]
    matching = StatisticsMatching(8)
    matching(restored=torch.ones(2, 3), clean=torch.ones(2, 3))
    with pytest.raises(ValueError, match="features: 4 .* 3"):
        matching(restored=torch.ones(2, 4), clean=torch.ones(2, 4))
    with pytest.raises(ValueError, match="queue_size: .*queue_size=8"):
        StatisticsMatching(9).load_state_dict(matching.state_dict())


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    "count, length, device, words",
    [
        (7, 6, "cpu", "queue_size=6: .* 7 "),
        (2, 5, "cpu", "features: 5 .* 6"),
        (2, 6, "meta", "features: on meta.*cpu"),
    ],
)
def test_a_refused_step_leaves_no_trace(center: bool, count: int, length: int, device: str, words: str) -> None:
    matching = StatisticsMatching(6, center=center)
    matching(*rows(4, seed=0, dtype=torch.float32))
    before = copy.deepcopy(matching.state_dict())
    given = rows(count, length, seed=1, dtype=torch.float32)
    with pytest.raises(ValueError, match=words), nullcontext() if device == "cpu" else without_autocast():
        matching(*(tensor.to(device) for tensor in given))
    assert_same_state(matching.state_dict(), before)


def without_autocast() -> AbstractContextManager[Any]:
    """There is none for torch's meta device, which stands for an accelerator."""
    return patch.object(torch, "autocast", lambda *_, **__: nullcontext())


def test_the_two_references_agree() -> None:
    x, y = rows(6, seed=4)
    for divergence in DIVERGENCES:
        loops = reference.eq1(np.asarray(x), np.asarray(y), divergence)
        assert reference.differentiable(x, y, divergence).item() == pytest.approx(loops, rel=1e-12)
