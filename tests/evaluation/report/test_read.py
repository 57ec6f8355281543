from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evaluation.image_set import ImageSet
from evaluation.report.read import read_sets
from llm4gen_core import LLM4GENError

if TYPE_CHECKING:
    from .conftest import SetMaker


@pytest.fixture
def images(make_set: SetMaker) -> ImageSet:
    images = make_set("SD1.5", make_set.prompts(3))
    make_set.scores(images, "blip_vqa", make_set.drawn("x"))
    return images


def test_scores_of_another_judge_and_of_images_generated_again_are_left_out(images: ImageSet) -> None:
    row = json.loads((images.scores / "blip_vqa.jsonl").read_text("utf-8").splitlines()[0])
    images.score_file("blip_vqa").append(
        {**row, "judge": "another", "scores": {"score": 0.123}},
        {**row, "sha256": "of another file", "scores": {"score": 0.456}},
        {**row, "image": "p999.1"},
    )
    (found,) = read_sets([images.path])
    assert found.metrics["blip_vqa"].left_out == 3
    assert found.values("blip_vqa", ["p000"], [1])[0, 0, 0] == row["scores"]["score"]


def test_a_later_score_replaces_the_earlier(images: ImageSet) -> None:
    row = json.loads((images.scores / "blip_vqa.jsonl").read_text("utf-8").splitlines()[0])
    images.score_file("blip_vqa").append({**row, "scores": {"score": 0.25}})
    (found,) = read_sets([images.path])
    assert found.values("blip_vqa", ["p000"], [1, 99])[0, :, 0].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)


def test_a_row_without_the_hash_of_its_image_is_refused(images: ImageSet) -> None:
    path = images.scores / "blip_vqa.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "sha256"}) + "\n" for row in rows), "utf-8"
    )
    with pytest.raises(LLM4GENError, match=r"line 1, is not a score \(sha256: Field required"):
        read_sets([images.path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": 3}', "line 7, is not a score"),
        ("no json", "line 7, is not a score"),
        ('{"image": "p000.1", "sha256": "SHA", "scores": {"score": 1.5}, "judge": "JUDGE"}', "expected 0 to 1"),
    ],
)
def test_damaged_scores_are_named(images: ImageSet, line: str, message: str) -> None:
    path = images.scores / "blip_vqa.jsonl"
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    with open(path, "a", encoding="utf-8") as file:
        file.write(line.replace("JUDGE", row["judge"]).replace("SHA", row["sha256"]) + "\n")
    with pytest.raises(LLM4GENError, match=message) as error:
        read_sets([images.path])
    assert str(path) in str(error.value)


def test_scores_without_a_judge_are_refused(images: ImageSet) -> None:
    (images.scores / "blip_vqa.about.json").unlink()
    with pytest.raises(LLM4GENError, match="which says who judged"):
        read_sets([images.path])


@pytest.mark.parametrize("lacking", ["low", "high", "n", "how"])
def test_a_number_of_a_set_without_interval_or_count_is_refused(
    make_set: SetMaker, images: ImageSet, lacking: str
) -> None:
    number = {"value": 26.1, "low": 25.0, "high": 27.4, "n": 8, "how": "bootstrap"}
    make_set.set_score(images, "fid", {"fid": number})
    assert read_sets([images.path])[0].set_metrics["fid"].scores["fid"].n == 8
    number.pop(lacking)
    make_set.set_score(images, "fid", {"fid": number})
    with pytest.raises(LLM4GENError, match=rf"fid.set.json is damaged .*{lacking}"):
        read_sets([images.path])


def test_folders_are_told_apart(make_set: SetMaker, images: ImageSet) -> None:
    with pytest.raises(LLM4GENError, match="given twice"):
        read_sets([images.path, images.path / "." / ".." / "SD1.5"])
    with pytest.raises(LLM4GENError, match="not an image set"):
        read_sets([images.path / "images"])
    again = make_set("SD1.5", make_set.prompts(3), folder="another")
    assert [one.label for one in read_sets([images.path, again.path])] == ["SD1.5 (SD1.5)", "SD1.5 (another)"]
