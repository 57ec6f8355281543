from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import spacy
from PIL import Image
from small_detectors import write_owl
from spacy.language import Language

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context, ImageMetric, Scores
from evaluation.metrics.clip import NonSpatial
from evaluation.metrics.detectors import DETECTOR
from evaluation.metrics.noun_chunks import TemplateChunker, find_chunker
from evaluation.metrics.questions import BlipVQA
from evaluation.metrics.spatial import Spatial
from evaluation.metrics.three_in_one import ThreeInOne, kind_of
from llm4gen_core import LLM4GENError

HAT = "The red hat was on top of the brown coat rack."
DOG = "The brown dog was lying on the green mat."
CAT = "The sleek black cat sat next to the fluffy white pillow."


def asks(text: str, **about: Any) -> Prompt:
    return Prompt(id="p", text=text, category="complex", about=about)


def part(kind: type[ImageMetric], value: float | None) -> Any:
    """Stand-in for a metric with a constant score; records its prompts."""

    class Part(ImageMetric):
        name = kind.name
        share = True

        def __init__(self) -> None:
            self.asked: list[tuple[tuple[int, int], Prompt]] = []

        @classmethod
        def load(cls, context: Context) -> Part:
            return cls()

        def describe(self) -> dict[str, Any]:
            return {"value": value}

        def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
            assert len(images) == len(prompts) > 0
            assert all(kind.applies(prompt) for prompt in prompts)
            self.asked += [(image.size, prompt) for image, prompt in zip(images, prompts, strict=True)]
            return [{"score": value, **({"reason": "Too dark."} if value is None else {})} for _ in prompts]

    return Part()


def whole(blip: float | None = 0.9, spatial: float | None = 0.6, clip: float | None = 0.3) -> ThreeInOne:
    parts = [part(BlipVQA, blip), part(Spatial, spatial), part(NonSpatial, clip)]
    return ThreeInOne({one.name: one for one in parts}, TemplateChunker())


IMAGES = [Image.new("RGB", (8, width)) for width in (1, 2, 3)]


def test_the_kind_decides_which_parts_count() -> None:
    rows = whole().score(IMAGES, [asks(HAT), asks(DOG), asks(CAT)])
    assert [row["kind"] for row in rows] == ["spatial", "action", "spatialaction"]
    assert [row["score"] for row in rows] == pytest.approx([(0.9 + 0.6) / 2, (0.9 + 0.3) / 2, (0.9 + 0.6 + 0.3) / 3])
    assert [{*row} - {"score", "kind"} for row in rows] == [
        {"blip_vqa", "spatial"},
        {"blip_vqa", "non_spatial"},
        {"blip_vqa", "spatial", "non_spatial"},
    ]
    assert rows[0]["spatial"] == {"score": 0.6}


def test_parts_score_their_own_images_only() -> None:
    metric = whole()
    metric.score(IMAGES, [asks(HAT), asks(DOG), asks(CAT)])
    asked = {name: [(size[1], prompt.text) for size, prompt in one.asked] for name, one in metric._parts.items()}  # type: ignore[attr-defined]
    assert asked == {
        "blip_vqa": [(1, HAT), (2, DOG), (3, CAT)],
        "spatial": [(1, HAT), (3, CAT)],
        "non_spatial": [(2, "The dog was lying on the mat."), (3, "The cat sat next to the pillow.")],
    }


@pytest.mark.parametrize("count", [1, 2, 25])
def test_any_number_of_images(count: int) -> None:
    rows = whole().score([IMAGES[0]] * count, [asks(HAT)] * count)
    assert [row["score"] for row in rows] == pytest.approx([0.75] * count)


def test_without_a_score_of_a_part_there_is_none() -> None:
    (spatial, action) = whole(spatial=None).score(IMAGES[:2], [asks(HAT), asks(DOG)])
    assert spatial["score"] is None
    assert spatial["reason"] == "spatial: Too dark."
    assert spatial["blip_vqa"] == {"score": 0.9}
    assert action["score"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The green plant is on the left of the white lamp.", "spatial"),
        ("The black headphones were next to the green phone.", "spatial"),
        ("The bright orange pumpkin sat next to the crisp green apples.", "spatialaction"),
        ("The delicate butterfly fluttered near the fragrant flower and the rustling leaves.", "spatialaction"),
        ("The rectangular mirror was hung above the white sink.", "action"),
        ("The nearby river is wide.", "action"),
    ],
)
def test_kinds_are_read_from_the_text(text: str, kind: str) -> None:
    assert kind_of(asks(text)) == kind


def test_about_may_name_the_kind() -> None:
    assert kind_of(asks(HAT, kind="spatialaction")) == "spatialaction"
    with pytest.raises(LLM4GENError, match="Prompt 'p' is of the kind 'odd'; expected one of spatial, action"):
        kind_of(asks(HAT, kind="odd"))


@Language.component("red_and_brown", assigns=["token.dep", "token.head", "token.pos", "token.tag"])
def red_and_brown(doc: Any) -> Any:
    for token in doc:
        token.pos_ = "ADJ" if token.text in ("red", "brown") else "NOUN"
    return doc


def test_a_pipeline_finds_the_adjectives(tmp_path: Path) -> None:
    pipeline = spacy.blank("en")
    pipeline.add_pipe("red_and_brown")
    pipeline.meta.update(name="probe", version="1.2.3")
    pipeline.to_disk(tmp_path / "probe")
    adjectives = find_chunker(str(tmp_path / "probe"))
    # As in the authors' script, tokens are joined by spaces, and the full stop is one of them.
    assert adjectives.without_adjectives(HAT) == "The hat was on top of the coat rack ."
    assert "en_probe 1.2.3" in adjectives.adjectives


def test_it_applies_to_the_complex_category() -> None:
    assert ThreeInOne.applies(asks(HAT))
    assert not ThreeInOne.applies(Prompt(id="p", text=HAT, category="spatial"))


def test_real_parts_are_loaded_and_score(clip_folder: Path, blip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder.parent / "clip-b32", tmp_path / "clip-b32")
    shutil.copytree(blip_folder, tmp_path / "blip-vqa")
    write_owl(tmp_path / DETECTOR.folder)
    for judge in ThreeInOne.judges_needed:
        Context(tmp_path).folder(judge)
    context = Context(tmp_path, options={"pipeline": "template", "spatial.threshold": "0"})
    metric = ThreeInOne.load(context)
    image = Image.linear_gradient("L").convert("RGB")
    # A prompt that follows the template, with kind and relation in `about`.
    relation = {"first": "cat", "relation": "near", "second": "dog"}
    told = asks("a red bench and a blue bowl", kind="spatialaction", **relation)
    row, sentence = metric.score([image, image], [told, asks(HAT)])
    values = [row[name]["score"] for name in ("blip_vqa", "spatial", "non_spatial")]
    assert row["score"] == pytest.approx(sum(values) / 3)
    alone = {
        "blip_vqa": BlipVQA.load(context).score([image], [told])[0]["score"],
        "spatial": Spatial.load(context).score([image], [told.model_copy(update={"category": "spatial"})])[0]["score"],
        "non_spatial": NonSpatial.load(context).score([image], [asks("a bench and a bowl")])[0]["score"],
    }
    assert dict(zip(alone, values, strict=True)) == pytest.approx(alone)
    assert sentence["score"] is None and "spaCy" in sentence["reason"]
    assert {*metric.describe()} == {"blip_vqa", "spatial", "non_spatial", "adjectives", "version"}


def test_judges_of_all_parts_are_declared() -> None:
    assert {judge.folder for judge in ThreeInOne.judges_needed} == {"blip-vqa", "object-detector", "clip-b32"}
