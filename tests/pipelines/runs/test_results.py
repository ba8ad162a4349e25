"""The results of an evaluation as a file, and the direction of every metric."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.utils.validation import validate_param_and_metric_name

from d2sm.chain import parse
from d2sm.objectives import TERMS
from pipelines.config import Config
from pipelines.runs.results import (
    CONVENTION,
    CONVENTION_OF_PAIRS,
    RESULTS,
    EvaluationError,
    ImageRow,
    ImageScore,
    Judge,
    Results,
    Score,
    convention,
    facts_of,
    higher_is_better,
    identity,
    in_order,
    level_key,
    level_title,
    metric_name,
)
from pipelines.training.log import Log
from tests.helpers.finished_runs import results

EVALUATED = sorted(results().flat())
LOSSES = ["loss", *(f"loss.{name}" for term in TERMS.values() for name in (term.name, *term.extra_losses))]


class Queue:
    """Stands in for the actor that carries messages to the driver."""

    def __init__(self) -> None:
        self.send, self.messages = self, list[Any]()

    def remote(self, message: Any) -> None:
        self.messages.append(message)


def logged() -> set[str]:
    """The metrics of one log entry of a training that uses every term."""
    queue = Queue()
    log = Log(queue, 0, rank=0, loss=Config().loss)
    log.add({name: torch.tensor(1.0) for name in [*LOSSES, "gradient_norm", "discriminator_gradient_norm"]})
    log.flush(1, lr=1e-4)
    return set(queue.messages[-1].metrics)


def test_the_direction_of_every_metric() -> None:
    higher = {name for name in EVALUATED if higher_is_better(name)}
    assert higher == set(EVALUATED) and {"psnr.sigma25", "noisy.ssim.sigma50", "clean.miou"} <= higher
    trained = logged() - {"lr"}
    assert {name for name in trained if higher_is_better(name)} == {"steps_per_second"}
    assert trained >= {*LOSSES, "data_wait"}
    for name in ("distance.noisy", "kl.D2SM weight=2.5", "best.loss.d2sm"):  # logged by the t-SNE figure and a sweep
        assert not higher_is_better(name)
    for level in ("jpeg10", "blur2+noise10", "noise_clip12.5", "25", "pair"):
        assert higher_is_better(metric_name("psnr", level)) and higher_is_better(metric_name("noisy.miou", level))
    assert higher_is_better("best.miou.sigmapair") and higher_is_better("psnr.sigma2.5")


@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "weight_scale",
        "psnr",
        "psnr.sigma",
        "psnr.jpeg",
        "psnr.blur-noise10",
        "loss.psnr",
        "lpips.sigma",
        "miou-.sigma25",
        "miou_sigma25",
        "",
    ],
)
def test_a_metric_without_a_direction_is_refused(name: str) -> None:
    with pytest.raises(EvaluationError, match=f"^metric {name}: ") as caught:
        higher_is_better(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_brings_up_the_nearest() -> None:
    with pytest.raises(EvaluationError, match=r"miou\.sigma25\?$"):
        higher_is_better("miou_sigma25")


def with_rows() -> Results:
    noisy = ImageScore(27.5, 0.8, 0.5)
    score = replace(noisy, counts={"miou": ((3, 4, 5), (0, 0, 0)), "miou-other": ((1, 4, 1), (0, 0, 3))})
    row = ImageRow("ulm/a", {"25": noisy}, {"25": score}, ImageScore(None, None, 0.7))
    return replace(results(), rows=(row, replace(row, name="ulm/b")), skipped={"ulm/c": "is damaged"}, weights="abc")


@pytest.mark.parametrize("written", [results(), with_rows()])
def test_results_come_back_as_they_were_saved(tmp_path: Path, written: Results) -> None:
    written.save(tmp_path / RESULTS)
    assert Results.load(tmp_path / RESULTS) == written
    tree = json.loads((tmp_path / RESULTS).read_text())
    assert [row["name"] for row in tree["rows"]] == [row.name for row in written.rows]


@pytest.mark.parametrize("text", ['{"images": 3}', "", "[1]", '{"images": ', "null", "[" * 900])
def test_a_file_that_holds_no_results_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(
        EvaluationError, match=r"^[^\n]*results\.json: [^\n]*; `d2sm evaluate` on the run writes it again$"
    ):
        Results.load(tmp_path / RESULTS)


def test_a_number_that_is_not_finite_is_null_in_the_file_a_dash_in_the_table_and_not_in_mlflow(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    found = replace(
        results(miou=nan), noisy={"25": Score(infinite, 1.0, nan, {"road": nan, "car": 0.5})},
        restored={"25": Score(27.0, nan, nan, {})}, clean=Score(None, None, nan, {}),
        rows=(ImageRow("a", {"25": ImageScore(infinite, 1.0, nan)}, {}, ImageScore(nan, nan, nan)),),
    )  # fmt: skip
    found.save(tmp_path / RESULTS)

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    tree = json.loads((tmp_path / RESULTS).read_text(), parse_constant=refuse)
    assert tree["noisy"]["25"] == {"psnr": None, "ssim": 1.0, "miou": None, "iou": {"car": 0.5}}
    assert tree["rows"][0]["noisy"]["25"]["psnr"] is None
    assert found.flat() == {"psnr.sigma25": 27.0, "noisy.ssim.sigma25": 1.0}
    assert "- / 1.000 / -" in found.table() and "27.00 / - / -" in found.table() and "nan" not in found.table()
    notes = " ".join(found.notes())
    assert "all pixels of the labels are void" in notes and "PSNR of the noisy images is infinite at sigma 25" in notes


def test_a_file_of_an_earlier_version_with_nan_is_read(tmp_path: Path) -> None:
    """Earlier versions wrote NaN and Infinity, and no rows."""
    old = asdict(results())
    for name in ("rows", "skipped", "weights"):
        del old[name]
    old["noisy"]["25"]["psnr"], old["clean"]["miou"] = float("inf"), float("nan")
    (tmp_path / RESULTS).write_text(json.dumps(old))
    found = Results.load(tmp_path / RESULTS)
    assert found.noisy["25"].psnr is None and found.clean.miou is None and found.rows == ()
    assert found.restored == results().restored


@pytest.mark.parametrize(
    "level, key, title",
    [
        ("25", "sigma25", "sigma 25"),
        ("12.5", "sigma12.5", "sigma 12.5"),
        ("1e-05", "sigma1e-05", "sigma 1e-05"),
        ("pair", "sigmapair", "photographed noise"),
        ("jpeg10", "jpeg10", "jpeg10"),
        ("blur2+noise10", "blur2-noise10", "blur2+noise10"),
    ],
)
def test_a_level_has_one_name_in_metrics_and_one_for_people(level: str, key: str, title: str) -> None:
    assert (level_key(level), level_title(level), metric_name("psnr", level)) == (key, title, f"psnr.{key}")
    assert validate_param_and_metric_name(metric_name("psnr", level))


def test_levels_are_in_order() -> None:
    assert in_order({"50", "5", "25"}, ["25", "50", "5"]) == ["5", "25", "50"]
    assert in_order({"blur2+noise10", "jpeg5", "jpeg10", "30"}, ["jpeg10", "jpeg5", "30", "blur2+noise10"]) == [
        "30", "jpeg10", "jpeg5", "blur2+noise10",
    ]  # fmt: skip


def test_the_convention_says_how_images_were_degraded() -> None:
    assert convention(Config().levels) == CONVENTION
    assert convention(map(parse, ["noise:5", "noise:9"])) == CONVENTION
    found = convention(map(parse, ["jpeg:10", "jpeg:40", "blur:2+noise:10", "my.own:fog:3"]))
    assert found.startswith(
        "RGB in [0, 1]; degraded by JPEG with 4:2:0 chroma (jpeg), or by Gaussian blur (blur), then additive Gaussian "
        "noise, not clipped (noise), or by the function my.own:fog (my.own:fog), seeded by file name; restored"
    )


def test_levels_have_their_names_in_tables_and_lines() -> None:
    score = Score(30.0, 0.9, None, {})
    by_level = {"25": score, "jpeg10": score, "blur2+noise10": score}
    found = replace(results(), noisy=by_level, restored=by_level)
    assert found.line() == "sigma 25 30.00 / 0.900 / -, jpeg10 30.00 / 0.900 / -, blur2+noise10 30.00 / 0.900 / -"
    assert "sigma 25" in found.table() and "blur2+noise10" in found.table()
    assert {"psnr.sigma25", "psnr.jpeg10", "noisy.ssim.blur2-noise10"} <= found.flat().keys()


def test_nan_and_an_infinite_psnr_have_notes_of_their_own() -> None:
    """Both are null in a file. SSIM tells them apart: of equal images it is 1."""
    nan, infinite, usual = float("nan"), float("inf"), Score(30.0, 0.9, None, {})
    by_level = {"5": Score(infinite, 1.0, None, {}), "25": usual, "50": Score(nan, nan, None, {})}
    found = replace(results(), noisy=dict.fromkeys(by_level, usual), restored=by_level).notes()
    assert found == [
        "PSNR of the restored images is infinite at sigma 5: an image equals its clean one",
        "PSNR and SSIM of the restored images have no value at sigma 50: an image holds NaN",
    ]


def test_pairs_have_a_convention_of_their_own_also_in_files_of_earlier_versions(tmp_path: Path) -> None:
    """Earlier versions wrote that of Gaussian noise; the numbers were taken alike, and stay comparable."""
    assert convention(Config().levels, pairs=True) == CONVENTION_OF_PAIRS
    assert CONVENTION_OF_PAIRS.startswith("RGB in [0, 1]; photographed noise; restored (and noisy, ")
    assert CONVENTION_OF_PAIRS.partition("; restored")[2] == CONVENTION.partition("; restored")[2]
    score = {"pair": Score(30.0, 0.9, None, {})}
    for written, levels, read in (
        (CONVENTION, score, CONVENTION_OF_PAIRS),
        (CONVENTION_OF_PAIRS, score, CONVENTION_OF_PAIRS),
        (CONVENTION, results().noisy, CONVENTION),
        ("as somebody else takes them", score, "as somebody else takes them"),
    ):
        replace(results(), convention=written, noisy=levels, restored=levels).save(tmp_path / RESULTS)
        assert Results.load(tmp_path / RESULTS).convention == read


def judged() -> Results:
    """Results by two segmenters and LPIPS on a label set."""
    return replace(
        results(), weights="w", judges={"b": Judge("b:b", "v")}, lpips="vgg16", labels="camvid", lpips_weights="u"
    )


def test_results_with_all_facts_come_back(tmp_path: Path) -> None:
    judged().save(tmp_path / RESULTS)
    assert Results.load(tmp_path / RESULTS) == judged()
    assert identity(Results.load(tmp_path / RESULTS)) == {
        "data": "abc", "split": "val", "convention": CONVENTION, "segmenter": "espnet-camvid", "segmenter_weights": "w",
        "labels": "camvid", "lpips": "vgg16", "lpips_weights": "u", "judge-b": "b:b", "judge_weights-b": "v",
    }  # fmt: skip
    assert "lpips_weights" not in json.loads(_saved(results(), tmp_path))
    assert identity(replace(results(), segmenter=""))["labels"] == ""


def _saved(found: Results, folder: Path) -> str:
    found.save(folder / RESULTS)
    return (folder / RESULTS).read_text()


def test_every_measured_metric_depends_on_facts_of_its_own() -> None:
    plain = ("data", "convention")
    for metric, facts in (
        ("psnr.sigma25", ()),
        ("noisy.ssim.blur2-noise10", ()),
        ("miou.sigma25", ("segmenter", "segmenter_weights", "labels")),
        ("clean.miou", ("segmenter", "segmenter_weights", "labels")),
        ("noisy.miou-b.sigma25", ("judge-b", "judge_weights-b", "labels")),
        ("clean.miou-espnet-camvid-no2", ("judge-espnet-camvid-no2", "judge_weights-espnet-camvid-no2", "labels")),
        ("lpips.jpeg10", ("lpips", "lpips_weights")),
    ):
        assert facts_of(metric) == (*plain, *facts)
    assert {fact for metric in judged().flat() for fact in facts_of(metric)} <= {*identity(judged())}
