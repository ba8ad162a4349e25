"""Adding a thing is local: the recipes of d2sm/README.md, followed word by word, are all that it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.additions import HEADINGS, command, followed, run

TRAINED = """
import json, sys
from pathlib import Path

import torch

from d2sm.noise import seed_of
from d2sm.uniform_noise import uniform_noise
from pipelines import experiment
from pipelines.data.splits import evaluation_images
from pipelines.inference import samples
from tests.conftest import tiny_config

root, storage = map(Path, sys.argv[1:])
config = tiny_config(
    root, storage, degrade__chain="uniform:25", loss__weight=0,
    model__width=24, train__max_steps=1, train__log_every=1, train__num_workers=1,
    evaluate__pictures=0,
)
outcome = experiment.run(config, quiet=True)
errors = []
for item in evaluation_images(config).to_pylist():
    clean = samples.load(config, item).clean
    noisy = uniform_noise(clean, level=torch.tensor([25.0]), seeds=[seed_of(item["name"])]).clamp(0, 1)
    errors.append((noisy - clean).square().mean().item())
print(json.dumps({"l1": outcome.trained.metrics["loss.l1"], "errors": errors,
                  "psnr": outcome.results.noisy["uniform25"].psnr, "convention": outcome.results.convention}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("heading", HEADINGS)
def test_what_is_added_passes_the_tests_that_all_have_to_pass(heading: str, tmp_path: Path) -> None:
    done = run(followed(heading, tmp_path / "code"), *command(heading), "-p", "no:cacheprovider")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_degradation_is_trained_and_evaluated_with(scenes_root: Path, tmp_path: Path) -> None:
    code = followed("How to add a degradation", tmp_path / "code")
    (code / "trained.py").write_text(TRAINED)
    done = run(code, "trained.py", str(scenes_root), str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # FFDNet starts as the identity, so the first step's L1 is the mean absolute noise: sigma x sqrt(3) / 2 of uniform
    # noise, sigma x sqrt(2 / pi) = 0.80 sigma of Gaussian noise. 49,152 numbers: known to 0.26 %; four of these.
    assert found["l1"] == pytest.approx(25 / 255 * 3**0.5 / 2, rel=0.0105)
    assert found["psnr"] == pytest.approx(np.mean([-10 * np.log10(error) for error in found["errors"]]), abs=1e-4)
    assert "uniform" in found["convention"] and "Gaussian noise" not in found["convention"]
