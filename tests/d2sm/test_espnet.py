"""ESPNet against the published state dicts and its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from d2sm.models import ESPNet

Shallow = Literal["conv", "pyramid"]
PUBLISHED: list[tuple[str, int, Shallow]] = [
    ("espnet_p2_q8_cityscapes", 20, "conv"),
    ("espnet_p2_q8_camvid", 12, "pyramid"),
]


@pytest.mark.parametrize(("stem", "classes", "shallow"), PUBLISHED)
def test_published_weights_load_with_strict_keys(shared: Path, stem: str, classes: int, shallow: Shallow) -> None:
    model = ESPNet(classes, shallow=shallow)
    state = torch.load(shared / "data/weights" / f"{stem}.pth", weights_only=True)
    model.load_state_dict(state, strict=True)
    torch.testing.assert_close(model.encoder.level1.conv.weight, state["encoder.level1.conv.weight"])


@pytest.mark.parametrize(("stem", "classes", "shallow"), PUBLISHED)
def test_keys_and_shapes_are_the_published_list(shared: Path, stem: str, classes: int, shallow: Shallow) -> None:
    model = ESPNet(classes, shallow=shallow)
    lines = (shared / "data/weights" / f"{stem}.keys.txt").read_text().splitlines()
    listed = dict(line.split("\t") for line in lines)
    ours = {k: str(tuple(v.shape)) for k, v in model.state_dict().items() if "num_batches" not in k}
    assert ours == listed


@pytest.mark.parametrize("size", [(64, 96), (65, 71), (8, 8), (3, 17)])
@pytest.mark.parametrize("shallow", ["conv", "pyramid"])
def test_any_size_in_logits_of_same_size_out(size: tuple[int, int], shallow: Shallow) -> None:
    model = ESPNet(classes=19, p=1, q=1, shallow=shallow).eval()
    assert model(torch.rand(2, 3, *size)).shape == (2, 19, *size)


def test_size_in_parameters() -> None:
    # 364,569 is the sum of the published shapes for Cityscapes, running statistics left out.
    assert sum(p.numel() for p in ESPNet(20).parameters()) == 364_569


def test_p_and_q_count_the_residual_blocks() -> None:
    model = ESPNet(classes=19, p=1, q=3)
    assert (len(model.encoder.level2), len(model.encoder.level3)) == (1, 3)


def test_a_small_one_learns_where_the_bright_half_is() -> None:
    torch.manual_seed(0)
    model = ESPNet(classes=5, p=1, q=1)
    images, labels = torch.rand(4, 3, 32, 32) * 0.3, torch.zeros(4, 32, 32, dtype=torch.long)
    for index, edge in enumerate((8, 12, 16, 20)):
        images[index, :, edge:] += 0.5
        labels[index, edge:] = 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert (model(images).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    "arguments", [{"classes": 4}, {"p": 0}, {"q": 0}, {"shallow": "deep"}], ids=lambda a: next(iter(a))
)
def test_impossible_arguments_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ESPNet(**arguments)  # type: ignore[arg-type]
