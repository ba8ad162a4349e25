"""The demo: the whole pipeline on built-in street scenes, without any download."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipelines import registry, restore, tracking
from pipelines.experiment import Outcome, run
from pipelines.recipes import recipe
from pipelines.runtime.progress import Line
from pipelines.scenes import segmenter, write_scenes

TRAIN, VAL, SEGMENTER_STEPS = 24, 6, 1000
MODEL, ALIAS = "d2sm-demo", "champion"


def demo(folder: Path, *, say: Callable[[str], None] = print, verbose: bool = False) -> Outcome:
    """Draw scenes, train a segmenter and a denoiser on them, evaluate, register, look up, restore; all in `folder`.

    A second call in the same folder resumes what the first left unfinished.

    Args:
        folder: for everything the demo makes.
        say: is told each result as a line of text.
        verbose: let Ray's own log through.

    Raises:
        ValueError: whatever a step raises for bad input, such as a folder of another demo. One line.
    """
    started, folder = time.monotonic(), folder.absolute()
    scenes = write_scenes(folder / "scenes", train=TRAIN, val=VAL)
    say(f"scenes     {TRAIN} for training, {VAL} for evaluation: {scenes}")
    weights = folder / "segmenter.safetensors"
    if not weights.exists():
        with Line("segmenter", SEGMENTER_STEPS) as line:
            segmenter.fit(
                scenes,
                out=weights,
                steps=SEGMENTER_STEPS,
                progress=lambda step, _, loss: line.to(step, {"loss": loss}),
            )
    say(f"segmenter  a small ESPNet, trained on these scenes: {weights}")
    config = recipe("demo").replace(
        {
            "data.root": str(scenes),
            "evaluate.segmenter_weights": str(weights),
            "train.name": "demo",
            "train.storage": str(folder / "runs"),
            "tracking.uri": f"sqlite:///{folder / 'runs' / 'mlflow.db'}",  # not a store that the environment names
            "tracking.register_as": MODEL,
            "tracking.alias": ALIAS,
        }
    )
    outcome = run(config, verbose=verbose)
    record = registry.lookup(f"{MODEL}@{ALIAS}", uri=outcome.trained.uri)
    say(f"registry   {MODEL}@{ALIAS} is now version {record.version} of model {MODEL}")
    restored = restore.restore(
        scenes / "leftImg8bit" / "val", folder / "restored", model=record.load(), add=35.0, clip=False, quiet=True
    )
    say(f"restored   {len(restored)} images with the model looked up in the registry: {folder / 'restored'}")
    say(f"\n{outcome.results.table('L1 + D2SM')}\n")
    for path in outcome.pictures:
        say(f"picture    {path}  (noisy | restored | clean; segmentation below)")
    say(f"MLflow     {tracking.ui_command(outcome.trained.uri)}  then open http://127.0.0.1:5000/{outcome.page}")
    say(f"time       {time.monotonic() - started:.0f} s")
    return outcome
