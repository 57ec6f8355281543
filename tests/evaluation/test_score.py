"""Scoring: every image once by every judge, and again when image or judge has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.benchmarks import METRICS, MetricEntry, find_metric
from evaluation.generate import generate
from evaluation.image_set import ImageSet, read_scores
from evaluation.metrics.base import Context, ImageMetric, Judge, SetMetric, SetScore
from evaluation.models import open_model
from evaluation.score import check_metrics, score
from llm4gen_core import LLM4GENError
from miniature.captions import Caption
from miniature.dataset import SETS
from miniature.judge import read
from miniature.judge import score as judged


class Red(ImageMetric):
    """Mean of the red channel."""

    name, share = "red", True
    calls = 0
    scale = 1

    @classmethod
    def load(cls, context: Context) -> Red:
        return cls()

    @classmethod
    def applies(cls, prompt) -> bool:
        return prompt.category == "color"

    def describe(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def score(self, images, prompts):
        Red.calls += len(images)
        return [{"score": float(np.asarray(image)[..., 0].mean()) / 255 * self.scale} for image in images]


class Count(SetMetric):
    """Number of images."""

    name = "count"
    computed = 0

    def __init__(self) -> None:
        self.n = 0

    @classmethod
    def load(cls, context: Context) -> Count:
        return cls()

    def describe(self) -> dict[str, Any]:
        return {}

    def update(self, images, prompts, seeds) -> None:
        self.n += len(images)

    def compute(self) -> dict[str, SetScore]:
        Count.computed += 1
        return {"count": SetScore(self.n, self.n, self.n, self.n, "counted")}


def register(monkeypatch, *metrics: type) -> None:
    """Make metrics of the test known by name."""
    monkeypatch.setattr(MetricEntry, "load_class", lambda entry: {one.name: one for one in metrics}[entry.name])
    for one in metrics:
        monkeypatch.setitem(METRICS, one.name, MetricEntry(one.name, one.name.title(), ""))


@pytest.fixture
def images(tmp_path: Path, prompts, base_model, monkeypatch) -> ImageSet:
    register(monkeypatch, Red, Count)
    monkeypatch.setattr(Red, "calls", 0)
    monkeypatch.setattr(Count, "computed", 0)
    return generate(tmp_path / "set", "base", base_model, prompts, [0, 1])


def test_each_image_is_scored_once_and_only_where_the_metric_applies(images: ImageSet) -> None:
    for _ in range(2):
        score(images, ["red"], Context(Path()), batch=4)
    assert Red.calls == 6
    found = read_scores(images, "red")
    rows = [row for row in images.rows() if row.category == "color"]
    assert {*found} == {(row.id, row.sha256) for row in rows}
    expected = np.asarray(images.open(rows[0]))[..., 0].mean() / 255
    assert found[rows[0].id, rows[0].sha256]["score"] == pytest.approx(expected)


def test_an_image_that_was_generated_again_is_scored_again(images: ImageSet) -> None:
    score(images, ["red"], Context(Path()))
    row = images.rows()[0]
    other = row.model_copy(update={"sha256": "0" * 64})
    Image.new("RGB", (16, 16), "red").save(images.path / row.file)
    images.manifest.append(other.model_dump())
    score(images, ["red"], Context(Path()))
    assert Red.calls == 7 and read_scores(images, "red")[row.id, "0" * 64]["score"] == 1


def test_another_judge_scores_all_images_and_earlier_scores_stay(images: ImageSet, monkeypatch) -> None:
    score(images, ["red"], Context(Path()))
    first = read_scores(images, "red")
    judge = json.loads((images.scores / "red.about.json").read_text())["judge"]
    monkeypatch.setattr(Red, "scale", 0.5)
    score(images, ["red"], Context(Path()))
    second = read_scores(images, "red")
    assert Red.calls == 12 and read_scores(images, "red", judge) == first
    assert all(second[key]["score"] == pytest.approx(first[key]["score"] / 2) for key in first)


def test_a_set_metric_is_computed_again_only_for_new_images(images: ImageSet, prompts, base_model) -> None:
    for _ in range(2):
        score(images, ["count"], Context(Path()), batch=5)
    path = images.scores / "count.set.json"
    assert Count.computed == 1 and json.loads(path.read_text())["scores"]["count"]["value"] == 12
    generate(images.path, "base", base_model, prompts, [2])
    score(images, ["count"], Context(Path()))
    assert Count.computed == 2 and json.loads(path.read_text())["scores"]["count"]["n"] == 18


def test_a_set_without_fitting_prompts_or_images_is_refused(images: ImageSet, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(Red, "applies", classmethod(lambda cls, prompt: False))
    with pytest.raises(LLM4GENError, match="Metric red applies to none"):
        score(images, ["red"], Context(Path()))
    with pytest.raises(LLM4GENError, match="is not an image set"):
        score(ImageSet(tmp_path / "nothing"), ["red"], Context(Path()))


def test_all_missing_judges_are_named_at_once(tmp_path: Path, monkeypatch) -> None:
    first = Judge("one", "some/one", ("config.json",), "MIT", "1 GB")
    second = Judge("two", "some/two", ("config.json", "a.safetensors|b.bin"), "Apache-2.0", "2 GB")
    monkeypatch.setattr(Red, "judges_needed", (first, second))
    register(monkeypatch, Red)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.json").touch()
    with pytest.raises(LLM4GENError) as error:
        check_metrics(["red"], Context(tmp_path))
    assert "one does not exist; download some/one (1 GB, MIT)" in str(error.value)
    assert "two lacks a.safetensors or b.bin; download some/two" in str(error.value)
    for name in ("one/config.json", "two/b.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    check_metrics(["red"], Context(tmp_path))
    (tmp_path / "one").rename(tmp_path / "another")
    check_metrics(["red"], Context(tmp_path, options={"one": "another"}))


def test_options_are_checked_before_any_image_is_generated(tmp_path: Path, monkeypatch) -> None:
    from evaluation.metrics.fid import FID

    monkeypatch.setattr(FID, "judges_needed", ())
    with pytest.raises(LLM4GENError, match="set the option reference=FOLDER"):
        check_metrics(["fid"], Context(tmp_path))
    with pytest.raises(LLM4GENError, match="nowhere does not exist"):
        check_metrics(["fid"], Context(tmp_path, options={"reference": str(tmp_path / "nowhere")}))
    check_metrics(["fid"], Context(tmp_path, options={"reference": str(tmp_path)}))


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(LLM4GENError, match="'fdi' is not known; expected one of .*miniature"):
        find_metric("fdi")


def test_every_metric_can_be_imported_and_has_its_own_name() -> None:
    for name, entry in METRICS.items():
        assert entry.load_class().name == entry.name == name


def test_the_miniatures_metric_gives_the_judges_scores(tmp_path, prompts, base, quick) -> None:
    model = open_model(base, quick.model_copy(update={"steps": 10}), "cpu")
    images = generate(tmp_path / "set", "base", model, prompts, [0])
    score(images, ["miniature"], Context(Path()))
    captions: list[Caption] = [*SETS["color"].prompts(3), *SETS["dense"].prompts(3)]
    pixels = np.stack([np.asarray(images.open(row)) for row in images.rows()])
    for row, reading, caption in zip(images.rows(), read(pixels), captions, strict=True):
        expected = judged(reading, caption)
        found = read_scores(images, "miniature")[row.id, row.sha256]
        assert found == {
            "score": expected.accuracy,
            "words": expected.words,
            "binding": expected.binding,
            "exact": expected.exact,
        }
