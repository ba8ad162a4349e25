"""The report as text: the numbers in it, the names it escapes, and that it loads nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2sm import metrics
from pipelines.comparison.report import pictures, tables
from pipelines.comparison.report.page import LIMIT, html
from pipelines.comparison.report.pictures import ReportError
from pipelines.comparison.rows import read_rows
from pipelines.recipes import recipe
from tests.helpers.finished_runs import results, write_run
from tests.helpers.report_page import EVIL, WRITTEN, ParsedPage, compared_rows, page, photograph


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    rows = compared_rows(tmp_path)
    parsed = ParsedPage(page(rows))
    text = parsed.text
    assert text.count("26.50 ± 0.71") == 1 and "28.00 best of its column" in text
    assert "in the paper 35.03 0.925 0.605 34.07" in text  # beside L1's row
    assert "arXiv 2207.09302" in text
    assert "noisy 20.00 0.300 0.200" in text and "clean (ceiling) – not measured – not measured 0.700" in text
    assert "3 images" in text and "espnet-camvid" in text and "fingerprint abc" in text and "c0ffee+" in text
    assert results().convention in text and "23 November 2026, 05:40 UTC" in text
    assert all(run.name in text and run.config.recipe in text and run.commit in text for r in rows for run in r.runs)
    heads = [attrs.get("scope") for tag, attrs in parsed.elements if tag == "th"]
    assert heads and None not in heads
    images = [attrs for tag, attrs in parsed.elements if tag == "img"]
    assert len(images) == 2 * 4 * 2 + 1 and all(attrs["alt"] for attrs in images)
    assert images[1]["alt"] == "Segmentation (noisy): road 50%, sky 50%"


def test_the_page_loads_nothing_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    text = page(compared_rows(tmp_path))
    parsed = ParsedPage(text)
    for _, attrs in parsed.elements:
        assert "style" not in attrs and not [key for key in attrs if key.startswith("on")]
        assert attrs.get("src", "data:").startswith("data:") and attrs.get("href", "#").startswith("#")
    assert "url(" not in parsed.raw["style"] and "@import" not in parsed.raw["style"]
    assert not re.search(r"https?://", re.sub(r'data:[^"]*', "", text))
    policy = next(attrs["content"] for _, attrs in parsed.elements if "http-equiv" in attrs)
    hashes = {
        f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(parsed.raw[tag].encode()).digest()).decode()}'"
        for tag in ("style", "script")
    }
    assert set(policy.split("; ")) == hashes | {
        "default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"
    }  # fmt: skip
    assert len(text) < LIMIT


def test_names_are_words_never_html(tmp_path: Path) -> None:
    text = page(compared_rows(tmp_path))
    assert "alert(1)" in text and EVIL not in text
    assert [tag for tag, _ in ParsedPage(text).elements].count("script") == 1


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = replace(results(27.0, None), segmenter="", clean=replace(results().clean, miou=None, iou={}))
    rows = read_rows([write_run(tmp_path / "a", recipe("ffdnet_l1_cpu"), bare)])
    parsed = ParsedPage(html(rows, [], [], written=WRITTEN))
    assert "none, so no MIoU" in parsed.text and "best of its column" not in parsed.text  # one row is best of nothing
    ids = {attrs.get("id") for _, attrs in parsed.elements}
    assert "runs" in ids and not ids & {"classes", "pictures", "figures", "level", "view"}


def test_every_class_that_was_measured_has_its_bars(tmp_path: Path) -> None:
    rows = compared_rows(tmp_path)
    found = tables.bars(rows, "25")
    assert list(found) == ["road"]
    assert [(bar.name, bar.kind, bar.mean, bar.percent) for bar in found["road"]] == [
        ("noisy", "noisy", "0.500", 50), ("L1", "row", "0.900", 90), ("D2SM", "row", "0.900", 90),
        ("clean", "clean", "1.000", 100),
    ]  # fmt: skip
    assert [bar.deviation for bar in found["road"]] == ["", "0.000", "", ""]


def test_means_that_are_equal_as_printed_are_all_best(tmp_path: Path) -> None:
    rows = compared_rows(tmp_path)
    first, second = tables.table(rows).lines
    assert [cell.best for cell in first.cells] == [False, True, False] * 3
    assert [cell.best for cell in second.cells] == [True] * 9


def test_pictures_keep_their_pixels_as_far_as_there_is_room(tmp_path: Path) -> None:
    rows = compared_rows(tmp_path)
    drawn = photograph(rows, size=(300, 400))
    large, small = (pictures.pictures([drawn], limit=limit)[0] for limit in (10**7, 250_000))
    assert (large.width, large.height, large.scaled) == (400, 300, False)
    assert (small.width, small.height, small.scaled) == (384, 288, True)
    assert decoded(large.versions[-1].image).astype(int) == pytest.approx(drawn.images["clean"].astype(int), abs=12)
    assert np.array_equal(decoded(large.versions[0].segmentation), metrics.COLOURS[drawn.classes["noisy"]])
    assert set(map(tuple, decoded(small.versions[0].segmentation).reshape(-1, 3))) == {(128, 64, 128), (70, 130, 180)}
    assert [version.name for version in large.versions] == ["noisy", "L1", "D2SM", "clean"]
    ours = [float(version.psnr) for version in large.versions[:-1]]
    assert ours == sorted(ours) and large.versions[-1].psnr == ""
    assert pictures.legend([drawn]) == [("road", "#804080"), ("sky", "#4682b4")]
    with pytest.raises(ReportError, match="--pictures 1: .*0.0 MB"):
        pictures.pictures([drawn], limit=1000)


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
