"""A degradation named as module:callable is tried before anything starts; what breaks the contract is one line."""

from __future__ import annotations

import pytest

from pipelines.config import Config
from pipelines.data import degradation
from pipelines.data.degradation import DegradationError

HELPERS = "tests.helpers.degradations"


def test_one_that_keeps_the_contract_passes() -> None:
    degradation.check(Config().replace({"degrade.chain": f"blur:2+{HELPERS}:darker:2..4"}))
    degradation.check(Config().replace({"evaluate.levels": [f"{HELPERS}:darker:3"]}))
    degradation.check(Config())


@pytest.mark.parametrize(
    "name, says",
    [
        (
            "smaller",
            r"gives torch.float32 \(2, 3, 17, 24\) for torch.float32 \(2, 3, 33, 47\); needs \(images, \*, level",
        ),
        ("doubled", r"gives torch.float64 \(2, 3, 33, 47\)"),
        ("arrays", "gives ndarray"),
        ("forgetful", "gives an image other values in another batch"),
        ("mixed", "gives an image other values in another batch"),
        ("in_place", "writes into the images"),
        ("endless", r"gives values that are not finite at levels \[0.0, 3.0\]"),
        ("old", r"fails on images of \(2, 3, 33, 47\) .*unexpected keyword argument"),
        ("NOTHING", "is a int: needs a callable"),
        ("missing", "cannot be imported: .*missing"),
    ],
)
@pytest.mark.parametrize("key", ["degrade.chain", "evaluate.levels"])
def test_one_that_breaks_the_contract_is_named_with_its_key(key: str, name: str, says: str) -> None:
    steps = f"{HELPERS}:{name}"
    value = f"{steps}:0..3" if key == "degrade.chain" else [f"jpeg:10+{steps}:0", f"{steps}:3+jpeg:9"]
    if key == "evaluate.levels" and name == "endless":
        says = r"not finite at levels \[0.0, 0.0\]"
    with pytest.raises(DegradationError, match=rf"^{key}=.*{steps}.*{says}") as caught:
        degradation.check(Config().replace({key: value}))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(DegradationError, match=r"^degrade.chain=no.such:fog:1: no.such:fog cannot be imported"):
        degradation.check(Config().replace({"degrade.chain": "no.such:fog:1"}))
