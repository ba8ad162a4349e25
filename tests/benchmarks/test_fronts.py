"""The fronts' reader gives the numbers that README.md states, and the jobs run; on other data, in seconds, on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.comparison import intervals
from tests.benchmarks.fronts import reader
from tests.benchmarks.fronts.__main__ import main
from tests.benchmarks.fronts.data import LABEL_IDS, VOID, read_photographs
from tests.benchmarks.fronts.jobs import jobs

RESULTS = Path(__file__).parent / "results" / "2026-11-27-h100-fronts.jsonl.gz"


@pytest.fixture(scope="module")
def results() -> dict[str, reader.Result]:
    return reader.load([RESULTS])


def rounded(values: intervals.Values, factor: float = 100) -> tuple[float, ...]:
    return tuple(round(number, 2) for number in reader.interval(values, factor))


def test_the_stated_differences_from_l1(results: dict[str, reader.Result]) -> None:
    fronts = reader.Fronts(results, "sr4")
    point = fronts.fronts["d2sm_patches"][0]
    assert (point.ratio, len(point.camvid)) == (3, 2) and point.weight == pytest.approx(35.7, abs=0.05)
    assert rounded(point.difference["camvid"]) == (0.58, 0.32, 0.85)
    assert rounded(point.difference["cityscapes"]) == (6.61, 5.97, 7.26)
    assert rounded(point.difference["psnr"], 1) == (-0.07, -0.07, -0.07)
    fronts = reader.Fronts(results, "noise50")
    for front in fronts.fronts.values():
        for point in front:
            assert reader.interval(point.difference["camvid"])[1] < 0  # no gain beyond the interval


def test_the_stated_comparison_at_equal_psnr(results: dict[str, reader.Result]) -> None:
    fronts = reader.Fronts(results, "sr4")

    def over_perceptual(name: str) -> tuple[float, ...]:
        ours, theirs = fronts.at(name, 0.05), fronts.at("perceptual", 0.05)
        assert ours is not None and theirs is not None
        assert ours["psnr"][0] == theirs["psnr"][0] == pytest.approx(-0.05)
        return rounded(ours["camvid"] - theirs["camvid"])

    assert over_perceptual("d2sm_patches") == (-0.16, -0.26, -0.06)
    assert over_perceptual("task_d2sm") == (0.45, 0.18, 0.71)
    assert fronts.at("cross_entropy", 0.5) is None


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(RESULTS)]) == 0
    printed = capsys.readouterr().out
    assert "62 jobs, 56 of them trainings" in printed
    shares = {
        line.split()[0]: line.split("share ")[1].split()[0] for line in printed.splitlines() if " share 0" in line
    }
    assert shares["task_d2sm"] == "0.113"  # of the last table, sr4
    assert any("d2sm_whole" in line and "of L1's 0.000788" in line for line in printed.splitlines())


def test_the_results_are_jobs_of_the_list(results: dict[str, reader.Result]) -> None:
    listed = {job.id: job for job in jobs()}
    assert set(results) <= set(listed) and len(listed) == len(jobs())
    for name, result in results.items():
        options = (
            "kind",
            "task",
            "batch",
            "side",
            *(("objective", "ratio", "steps", "lr") if "seconds" in result else ()),
        )
        known = {key: result[key] for key in options if key in result}
        assert known == {key: getattr(listed[name], key) for key in known}


def test_miou_counts_classes_that_occur() -> None:
    right, labelled, predicted = [2, 0, 0], [4, 2, 0], [2, 1, 3]
    assert reader.miou(np.array([[right, labelled, predicted]], dtype=float))[0] == (2 / 4 + 0) / 2


def test_labels_become_indices_of_the_classes(shared: Path) -> None:
    from torchvision.io import decode_image

    read = read_photographs(shared / "data/camvid", torch.device("cpu"), dry=True)
    file = min((shared / "data/camvid/gtFine/train").glob("*/*_gtFine_labelIds.png"))
    ids, indices = decode_image(str(file))[0], read.train_labels[0]
    assert set(indices.unique().tolist()) <= {*range(len(LABEL_IDS)), VOID} and len(indices.unique()) > 5
    for index, label in enumerate(LABEL_IDS):
        assert torch.equal(indices == index, ids == label)


@pytest.mark.slow
def test_jobs_run_and_go_on(shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--data", str(shared / "data"), "--out", str(tmp_path), "--seconds", "300", "--device", "cpu"]
    words += ["--processes", "1", "--dry", "--only", "start-sr4", "sr4-l1-s0"]
    assert main(words) == 0
    made = reader.load([tmp_path / "results.jsonl.gz"])
    assert list(made) == ["start-sr4", "sr4-l1-s0"]
    assert main([*words, "sr4-d2sm_patches-r3-s0"]) == 0  # only the third is done
    assert capfd.readouterr().out.count("sr4-l1-s0:") == 1
    made = reader.load([tmp_path / "results.jsonl.gz"])
    third = made["sr4-d2sm_patches-r3-s0"]
    assert third["weight"] > 0 and len(third["evaluation"]["psnr"]) == 4
    assert np.array(third["evaluation"]["camvid"]).shape == (4, 3, 11)
    assert "sr4: difference from L1" in reader.tables(made)
