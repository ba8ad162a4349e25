"""Adding a thing is local: the recipes of d2sm/README.md, followed word by word, are all that it takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.additions import HEADINGS, followed, named_tests, run

TRAINED = """
import json, sys
from pathlib import Path

import torch

from d2sm.noise import seed_of
from d2sm.uniform_noise import uniform_noise
from pipelines.data.splits import evaluation_images
from pipelines.evaluate import evaluate
from pipelines.inference import samples
from pipelines.training.state import TrainState
from pipelines.training.step import train_step
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.training_steps import CPU, share

root, storage = map(Path, sys.argv[1:])
config = tiny_config(
    root, storage, degrade__chain="uniform:25", loss__weight=0, model__width=24, train__num_workers=1,
    evaluate__actors=0,
)
losses = train_step(TrainState(config, 1, device=CPU), share(config, root), 0)
results = evaluate(bundle_of(storage / "step-00000000", config), quiet=True)
errors = []
for item in evaluation_images(config).to_pylist():
    clean = samples.load(config, item).clean
    noisy = uniform_noise(clean, level=torch.tensor([25.0]), seeds=[seed_of(item["name"])]).clamp(0, 1)
    errors.append((noisy - clean).square().mean().item())
print(json.dumps({"l1": losses["loss.l1"].item(), "errors": errors,
                  "psnr": results.noisy["uniform25"].psnr, "convention": results.convention}))
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code in which all recipes were followed."""
    return followed(HEADINGS, tmp_path_factory.mktemp("added") / "code")


@pytest.mark.slow
def test_what_is_added_passes_the_tests_that_all_have_to_pass(code: Path) -> None:
    """In one process, which loads torch once."""
    named = [named_tests(heading) for heading in HEADINGS]
    files, words = sorted({file for of_one, _ in named for file in of_one}), [word for _, word in named]
    done = run(code, "-m", "pytest", *files, "-k", " or ".join(words), "-rA", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for of_one, word in named:
        for file in of_one:
            assert re.search(rf"^PASSED {file}::.*{word}", done.stdout, re.M), (file, word)


@pytest.mark.slow
def test_a_degradation_is_trained_and_evaluated_with(code: Path, scenes_root: Path, tmp_path: Path) -> None:
    (code / "trained.py").write_text(TRAINED)
    done = run(code, "trained.py", str(scenes_root), str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # FFDNet starts as the identity, so the first step's L1 is the mean absolute noise: sigma x sqrt(3) / 2 of uniform
    # noise, sigma x sqrt(2 / pi) = 0.80 sigma of Gaussian noise. 49,152 numbers: known to 0.26 %; four of these.
    assert found["l1"] == pytest.approx(25 / 255 * 3**0.5 / 2, rel=0.0105)
    assert found["psnr"] == pytest.approx(np.mean([-10 * np.log10(error) for error in found["errors"]]), abs=1e-4)
    assert "uniform" in found["convention"] and "Gaussian noise" not in found["convention"]
