"""Backbones that are not in the list: a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2sm.models import BACKBONES
from d2sm.models.activation_checkpointing import CheckpointedModule
from pipelines.config import Config, ConfigError
from pipelines.networks.models import ModelError, build, check, is_random
from pipelines.runs import checkpoint
from tests.helpers.checkpoints import bundle_of

MINE = "tests.foreign.tiny_network"


def configured(name: str, **changes: Any) -> Config:
    return Config().replace({"model.name": name, **{key.replace("__", "."): value for key, value in changes.items()}})


def test_a_users_own_network_is_built_with_its_options() -> None:
    config = configured(f"{MINE}:TinyNetwork", model__options={"width": 5}, model__options__scale=100.0)
    network = check(config)
    assert network is not None and network.label == "TinyNetwork" and not network.blind
    assert network.state_dict()["down.weight"].shape[0] == 5
    assert config.model.title == f"{MINE}:TinyNetwork width=5 scale=100.0"
    assert check(configured(f"{MINE}:blind")).blind  # type: ignore[union-attr]
    assert all(check(configured(name)) is None for name in BACKBONES)


def test_its_weights_are_a_function_of_the_seed() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append((build(configured(f"{MINE}:TinyNetwork").model).state_dict(), torch.rand(1)))
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("nowhere:Net", {}, "cannot be imported: No module named 'nowhere'; .*PYTHONPATH"),
        (f"{MINE}:Missing", {}, "cannot be imported: .*Missing"),
        (f"{MINE}:NUMBER", {}, "is a int: needs a callable"),
        (f"{MINE}:fails", {}, "cannot be built with model.options={}: no such luck"),
        (f"{MINE}:TinyNetwork", {"depth": 3}, "model.options={'depth': 3}: .*depth"),
        ("builtins:dict", {}, "returned a dict: needs a torch module"),
        (f"{MINE}:Halved", {}, r"gives \(1, 3, 16, 20\) for an image of 33x41"),
        (f"{MINE}:Weightless", {}, "no parameters"),
        (f"{MINE}:Three", {}, r"needs \(noisy\) or \(noisy, sigma\)"),
        (f"{MINE}:Infinite", {}, "37x43: its result is not finite"),
        (f"{MINE}:Detached", {}, "no gradient"),
        (f"{MINE}:Double", {}, "torch.float64, not torch.float32"),
        (f"{MINE}:Forgetful", {}, "does not load its own state dict: .*bias"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"^model.name={name}.*{message}") as error:
        check(configured(name, model__options=options))
    assert "\n" not in str(error.value)


def test_a_weight_without_a_part_is_refused_where_several_workers_train() -> None:
    assert check(configured(f"{MINE}:Spare")) is not None
    with pytest.raises(ModelError, match=r"its spare takes no part.*train.num_workers=1"):
        check(configured(f"{MINE}:Spare", train__num_workers=2, train__batch_size=4))


def test_recomputing_needs_a_network_that_supports_it() -> None:
    with pytest.raises(ModelError, match="train.recompute=true.*CheckpointedModule"):
        check(configured(f"{MINE}:TinyNetwork", train__recompute=True))


class Segmented(CheckpointedModule):
    """A network with BatchNorm, within the part that is recomputed or before it."""

    def __init__(self, *, within: bool) -> None:
        super().__init__()
        norm, convolution = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *([] if within else [norm]))
        self.second = nn.Sequential(*([norm] if within else []), nn.ReLU(), nn.Dropout(0.1), convolution)

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy - self.checkpointed(self.second, self.first(noisy))


def test_a_segment_whose_buffers_change_is_not_recomputed() -> None:
    """Each step would count twice in the running statistics."""
    name = f"{__name__}:Segmented"
    assert check(configured(name, model__options={"within": False}, train__recompute=True)) is not None
    within = configured(name, model__options={"within": True})
    assert check(within) is not None
    message = f"^train.recompute=true: model.name={name}: its second.0.running_mean changes .*recompute=false"
    with pytest.raises(ModelError, match=message) as error:
        check(within.replace({"train.recompute": True}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("normalised", {}, r"its 1 \(BatchNorm2d\) normalises by all images"),
        ("normalised", {"norm": "spectral"}, "its 1.parametrizations.weight.0._u changes in every forward pass"),
        ("Unseeded", {}, "two results for one image"),
    ],
)
def test_a_network_that_differs_from_pass_to_pass_is_refused_in_micro_batches(
    name: str, options: dict[str, Any], message: str
) -> None:
    once = configured(f"{MINE}:{name}", model__options=options)
    assert check(once) is not None
    with pytest.raises(ModelError, match=f"^train.accumulate=2: model.name={MINE}:{name}.*{message}.*accumulate=1$"):
        check(once.replace({"train.accumulate": 2}))


@pytest.mark.parametrize("name, options", [("dropout", {}), ("normalised", {"norm": "Identity"}), ("TinyNetwork", {})])
def test_other_networks_are_taken_in_micro_batches(name: str, options: dict[str, Any]) -> None:
    assert check(configured(f"{MINE}:{name}", model__options=options, train__accumulate=2)) is not None


@pytest.mark.parametrize("name, options", [("dropout", {}), ("normalised", {}), ("TinyNetwork", {})])
def test_a_network_that_is_random_in_training_is_told(name: str, options: dict[str, Any]) -> None:
    """Its result depends on the number of workers, as no other's does; `d2sm check` says so."""
    network, state = check(configured(f"{MINE}:{name}", model__options=options)), torch.get_rng_state()
    assert network is not None and is_random(network) == (name == "dropout")
    assert torch.equal(torch.get_rng_state(), state)


def test_another_name_leaves_the_options_of_the_former_behind() -> None:
    config = Config().replace({"model.width": 24, "model.depth": 7})
    assert config.replace({"model.name": f"{MINE}:blind"}).model.width == 96
    assert config.replace({"model.name": "ffdnet"}).model.width == 24
    with pytest.raises(ConfigError, match="model.width=8: model.name=mine:net.*model.options.width"):
        config.replace({"model.name": "mine:net", "model.width": 8})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.options": {"width": 3}}, "model.options={'width': 3}: .*model.width, model.depth"),
        ({"model.weights": "w.pth"}, "model.weights=w.pth: is for model.name=spandrel"),
        ({"model.name": "spandrell"}, "model.name=spandrell: .*did you mean spandrel"),
        ({"model.name": "a:b", "model.options.x": float("nan")}, "model.options.x=nan"),
        ({"model.name": "a:b", "model.options": {"two words": 1}}, "model.options.two words=1: is no name"),
        ({"model.options.a-b": 1}, "model.options.a-b: no such key"),
        ({"model.name": "a:b", "model.options.url": "http://me:hunter2@host"}, r"model.options=http://\*\*\*@host"),
    ],
)
def test_wrong_options_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Config().replace(changes)
    assert "\n" not in str(error.value) and "hunter2" not in str(error.value)


def test_a_checkpoint_of_it_is_opened_by_those_who_trust_it(tmp_path: Path) -> None:
    config = configured(f"{MINE}:TinyNetwork", model__options={"width": 6})
    folder = bundle_of(tmp_path / "bundle", config)
    with pytest.raises(ConfigError, match=f"^model.name={MINE}:TinyNetwork: .*--trust.*trust=True"):
        checkpoint.load_model(folder)
    model, found = checkpoint.load_model(folder, trust=True)
    assert found.model.options == {"width": 6} and not model.training
    checkpoint.load_model(folder, named=f"{MINE}:TinyNetwork")
    with pytest.raises(ConfigError, match="model.name"):
        checkpoint.load_model(folder, named="another:net")


def test_a_checkpoint_whose_code_is_missing_says_so(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "bundle", configured(f"{MINE}:TinyNetwork"))
    text = (folder / "config.yaml").read_text().replace(MINE, "gone.away")
    (folder / "config.yaml").write_text(text)
    (folder / "meta.json").unlink()
    message = r"config.yaml: model.name=gone.away:TinyNetwork cannot be imported: No module named 'gone'"
    with pytest.raises(checkpoint.CheckpointError, match=message) as error:
        checkpoint.load_model(folder, trust=True)
    assert "\n" not in str(error.value)


def test_a_network_with_a_part_called_network_is_saved_and_read(tmp_path: Path) -> None:
    config = configured(f"{MINE}:Nested")
    assert check(config) is not None
    torch.manual_seed(0)
    network = build(config.model)
    again = checkpoint.load_model(bundle_of(tmp_path / "bundle", config), trust=True)[0]
    for mine, theirs in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_tied_weights_are_saved_and_read(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "bundle", configured(f"{MINE}:Tied"))
    assert checkpoint.load_model(folder, trust=True)[0].state_dict().keys() >= {"first.weight", "second.weight"}
