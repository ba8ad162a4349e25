"""Which folder an evaluation has that is not the run's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.config import Config
from pipelines.runs.evaluations import folder_of
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import CONVENTION, CONVENTION_OF_PAIRS, Judge, Results, identity
from tests.helpers.finished_runs import results

PAIRS = Config().replace({"data.layout": "pairs", "noise.sigma": [25], "noise.draw": "list"})


def folder(found: Results, config: Config | None = None, step: int = 7) -> str:
    return folder_of(RunFolder(Path("/runs/x")), config or Config(), found, step=step).path.name


def test_folders_of_earlier_versions_are_found_again() -> None:
    full = replace(results(), weights="w", judges={"a-b": Judge("a:b", "v")}, lpips="vgg16", labels="camvid")
    assert folder(results()) == "val-3images-sigma25-35-50-9de1ef68"
    assert folder(full) == "val-3images-sigma25-35-50-d47772a6"
    assert folder(replace(results(), segmenter="")) == "val-3images-sigma25-35-50-6458dd7d"
    score = {"pair": results().noisy["25"]}
    for convention in (CONVENTION, CONVENTION_OF_PAIRS):  # that of earlier versions and of this one
        found = replace(results(), noisy=score, restored=score, convention=convention)
        assert folder(found, PAIRS) == "val-3images-sigmapair-6af760cb"


def test_every_fact_has_a_folder_of_its_own() -> None:
    base = replace(
        results(), weights="w", judges={"b": Judge("b:b", "v")}, lpips="vgg16", labels="camvid", lpips_weights="u"
    )
    changed: dict[str, Results] = {
        "data": replace(base, data="x"),
        "split": replace(base, split="x"),
        "convention": replace(base, convention="x"),
        "segmenter": replace(base, segmenter="x"),
        "segmenter_weights": replace(base, weights="x"),
        "labels": replace(base, labels="x"),
        "lpips": replace(base, lpips="alexnet"),
        "lpips_weights": replace(base, lpips_weights="x"),
        "judge-b": replace(base, judges={"b": Judge("x", "v")}),
        "judge_weights-b": replace(base, judges={"b": Judge("b:b", "x")}),
    }
    assert changed.keys() == identity(base).keys()
    assert len({folder(base), folder(base, step=8), *map(folder, changed.values())}) == 2 + len(changed)
