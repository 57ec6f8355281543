from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_detectors import write_owl, write_rt_detr

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.detectors import DETECTOR, Detections, LabelDetector, OwlDetector
from evaluation.metrics.spatial import RELATIONS, Relation, Spatial, judge, positions, read_relation
from llm4gen_core import LLM4GENError

SIDE = 479
"""Side of the image in pixels, as in T2I-CompBench, where 150 of them are near."""


def asks(text: str, **about: Any) -> Prompt:
    return Prompt(id="p", text=text, category="spatial", about=about)


def seen(*found: tuple[str, float, tuple[float, float, float, float]]) -> Detections:
    labels, scores, boxes = zip(*found, strict=True) if found else ((), (), ())
    return Detections(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), tuple(labels))


def place(relation: str, first: tuple[float, ...], second: tuple[float, ...], side: float = SIDE) -> float:
    return float(positions(relation, torch.tensor([first]), torch.tensor([second]), side))


LEFT, RIGHT = (0.0, 100.0, 100.0, 200.0), (200.0, 120.0, 300.0, 220.0)
ABOVE, BELOW = (100.0, 0.0, 200.0, 100.0), (120.0, 200.0, 220.0, 300.0)


@pytest.mark.parametrize(
    ("relation", "first", "second"),
    [
        ("on the left of", LEFT, RIGHT),
        ("on the right of", RIGHT, LEFT),
        ("on the top of", ABOVE, BELOW),
        ("on top of", ABOVE, BELOW),
        ("on the bottom of", BELOW, ABOVE),
    ],
)
def test_directions(relation: str, first: tuple[float, ...], second: tuple[float, ...]) -> None:
    assert place(relation, first, second) == 1
    assert place(relation, second, first) == 0
    others = {"on the left of", "on the right of", "on the top of", "on the bottom of"} - {relation}
    if relation == "on top of":
        others -= {"on the top of"}
    assert [place(other, first, second) for other in others] == [0] * len(others)


def test_the_longer_axis_decides_and_a_tie_counts_for_neither() -> None:
    first = (0.0, 0.0, 10.0, 10.0)
    assert place("on the left of", first, (51.0, 50.0, 61.0, 60.0)) == 1
    assert place("on the top of", first, (51.0, 50.0, 61.0, 60.0)) == 0
    assert place("on the left of", first, (50.0, 50.0, 60.0, 60.0)) == 0
    assert place("on the top of", first, (50.0, 50.0, 60.0, 60.0)) == 0


def test_overlap_lowers_the_position() -> None:
    first = (0.0, 0.0, 100.0, 100.0)
    # 20 of 100 pixels overlap: IoU 2000 / 18000 = 1/9, position 0.1 * 9.
    assert place("on the left of", first, (80.0, 0.0, 180.0, 100.0)) == pytest.approx(0.9)
    # IoU 1000 / 19000, below 0.1.
    assert place("on the left of", first, (90.0, 0.0, 190.0, 100.0)) == 1
    # One inside the other, IoU 1/4.
    assert place("on the left of", first, (50.0, 25.0, 100.0, 75.0)) == pytest.approx(0.4)


@pytest.mark.parametrize("relation", ["on side of", "next to", "near"])
def test_beside_is_near_along_one_axis(relation: str) -> None:
    first = (0.0, 0.0, 10.0, 10.0)
    assert place(relation, first, (149.0, 400.0, 159.0, 410.0)) == 1
    assert place(relation, first, (400.0, 149.0, 410.0, 159.0)) == 1
    assert place(relation, first, (200.0, 300.0, 210.0, 310.0)) == pytest.approx(150 / 300)
    assert place(relation, (400.0, 200.0, 410.0, 210.0), first) == pytest.approx(150 / 400)


def test_near_is_relative_to_the_image() -> None:
    first, second = (0.0, 0.0, 10.0, 10.0), (200.0, 300.0, 210.0, 310.0)
    assert place("near", first, second, side=2 * SIDE) == 1
    double = [tuple(2 * edge for edge in box) for box in (first, second)]
    assert place("near", *double, side=2 * SIDE) == pytest.approx(place("near", first, second))


def test_confidences_count_half_and_the_position_half() -> None:
    found = judge(Relation("dog", "on the left of", "cat"), seen(("dog", 0.8, LEFT), ("cat", 0.6, RIGHT)), SIDE)
    assert found["score"] == pytest.approx(0.8 / 4 + 0.6 / 4 + 1 / 2)
    assert found["position"] == 1
    assert found["confidences"] == pytest.approx([0.8, 0.6])
    assert found["boxes"] == [[*LEFT], [*RIGHT]]
    assert "reason" not in found


def test_below_one_half_is_zero() -> None:
    near = (0.0, 0.0, 100.0, 100.0), (50.0, 25.0, 100.0, 75.0)  # position 0.4, as above
    relation = Relation("dog", "on the left of", "cat")
    assert judge(relation, seen(("dog", 0.5, near[0]), ("cat", 0.5, near[1])), SIDE)["score"] == 0
    assert judge(relation, seen(("dog", 0.7, near[0]), ("cat", 0.7, near[1])), SIDE)["score"] == pytest.approx(0.55)
    assert judge(relation, seen(("dog", 0.9, RIGHT), ("cat", 0.9, LEFT)), SIDE)["score"] == 0
    assert judge(relation, seen(("dog", 1.0, RIGHT), ("cat", 1.0, LEFT)), SIDE)["score"] == 0.5


def test_a_missing_object_is_named() -> None:
    relation = Relation("dog", "next to", "cat")
    alone = judge(relation, seen(("dog", 0.9, LEFT)), SIDE)
    assert (alone["score"], alone["position"], alone["boxes"][1]) == (0, None, None)
    assert alone["confidences"] == [pytest.approx(0.9), None]
    assert alone["reason"] == "Not found: cat."
    assert judge(relation, seen(), SIDE)["reason"] == "Not found: dog and cat."


def test_the_best_pair_counts() -> None:
    relation = Relation("dog", "on the left of", "cat")
    # The most confident dog is on the right; a less confident one satisfies the relation.
    found = judge(
        relation, seen(("dog", 0.9, (300.0, 100.0, 400.0, 200.0)), ("cat", 0.8, RIGHT), ("dog", 0.4, LEFT)), SIDE
    )
    assert found["score"] == pytest.approx(0.4 / 4 + 0.8 / 4 + 1 / 2)
    assert found["boxes"][0] == [*LEFT]


def test_one_box_is_not_two_objects() -> None:
    relation = Relation("boy", "next to", "girl")
    found = judge(relation, seen(("boy", 0.9, LEFT), ("girl", 0.9, LEFT)), SIDE)
    assert (found["score"], found["position"]) == (0, None)
    assert found["reason"] == "Not found: girl."
    twins = judge(
        Relation("cat", "next to", "cat"), seen(("cat", 0.9, LEFT), ("cat", 0.7, (110.0, 100.0, 210.0, 200.0))), SIDE
    )
    assert twins["score"] == pytest.approx((0.9 + 0.7) / 4 + 1 / 2)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_spatial_prompts_are_read(relation: str) -> None:
    assert read_relation(asks(f"a dog {relation} a airplane")) == Relation("dog", relation, "airplane")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The red hat was on top of the brown coat rack.", ("hat", "on top of", "coat rack")),
        ("The hardcover book was next to the brown notebook.", ("hardcover book", "next to", "notebook")),
        ("The striped black and white cat lay next to the soft grey blanket.", ("cat", "next to", "blanket")),
        (
            "The yellow cone was suspended in mid-air near the orange pyramid and the green cylinder.",
            ("cone", "near", "pyramid"),
        ),
        ("a man and a dog near a tree and a bush", ("dog", "near", "tree")),
        ("a traffic light on side of two cats", ("traffic light", "on side of", "cats")),
        ("The colorful balloons floated near the shiny silver airplane.", ("balloons", "near", "airplane")),
    ],
)
def test_complex_prompts_are_read(text: str, expected: tuple[str, str, str]) -> None:
    assert read_relation(asks(text)) == Relation(*expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a dog nearby a cat", "The prompt has none of the relations on the left of, "),
        ("The sun sank below the horizon.", "none of the relations"),
        ("near a cat", "No noun was found before 'near'"),
        ("a cat next to", "No noun was found after 'next to'"),
    ],
)
def test_why_a_prompt_cannot_be_read(text: str, reason: str) -> None:
    found = read_relation(asks(text))
    assert isinstance(found, str) and reason in found


def test_about_takes_precedence_over_the_text() -> None:
    prompt = asks("a cat near a dog", first="tall giraffe", relation="on the bottom of", second="bee")
    assert read_relation(prompt) == Relation("tall giraffe", "on the bottom of", "bee")


@pytest.mark.parametrize(
    "about",
    [{"first": "cat", "relation": "behind", "second": "dog"}, {"first": "cat", "relation": "near"}, {"second": 3}],
)
def test_incomplete_relations_are_refused(about: dict[str, Any]) -> None:
    with pytest.raises(LLM4GENError, match="Prompt 'p': field `about` has .*; expected the nouns 'first' and 'second'"):
        read_relation(asks("a cat near a dog", **about))


class Sees(OwlDetector):
    """Detector that finds every noun, side by side, and does not know bees."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []

    def knows(self, noun: str) -> bool:
        return noun != "bee"

    def detect(self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]]) -> list[Detections]:
        self.asked += nouns
        return [
            seen(*((noun, 0.8, (100.0 * at, 0.0, 100.0 * at + 50, 50.0)) for at, noun in enumerate(asked)))
            for asked in nouns
        ]


def test_every_image_has_a_row_with_or_without_score() -> None:
    spatial = Spatial(Sees())
    texts = ["a dog on the left of a cat", "a dog", "a bee near a cat", "a cow on the right of a pig"]
    rows = spatial.score([Image.new("RGB", (SIDE, 100))] * 4, [asks(text) for text in texts])
    assert [row["score"] for row in rows] == [pytest.approx(0.9), None, None, 0]
    assert rows[0]["first"] == "dog" and rows[3]["first"] == "cow"
    assert "none of the relations" in rows[1]["reason"]
    assert rows[2]["reason"] == "The detector does not know the word 'bee'."
    assert spatial.detector.asked == [("dog", "cat"), ("cow", "pig")]  # type: ignore[attr-defined]


def test_near_is_relative_to_the_longer_side() -> None:
    class Far(Sees):
        def detect(self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]]) -> list[Detections]:
            return [seen(("dog", 0.8, (0.0, 0.0, 10.0, 10.0)), ("cat", 0.8, (200.0, 300.0, 210.0, 310.0)))]

    (row,) = Spatial(Far()).score([Image.new("RGB", (300, SIDE))], [asks("a dog near a cat")])
    assert row["position"] == pytest.approx(0.5)


def test_it_applies_to_the_spatial_category() -> None:
    assert Spatial.applies(asks("a dog near a cat"))
    assert not Spatial.applies(Prompt(id="p", text="a dog near a cat", category="complex"))


def test_a_real_detector_is_loaded_and_scores(tmp_path: Path) -> None:
    write_owl(tmp_path / DETECTOR.folder)
    Context(tmp_path).folder(DETECTOR)
    spatial = Spatial.load(Context(tmp_path, options={"spatial.threshold": "0"}))
    rows = spatial.score(
        [Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (40, 30))],
        [asks("a dog near a cat"), asks("a cat next to a dog")],
    )
    assert all(0 <= row["score"] <= 1 and len(row["boxes"]) == 2 for row in rows)
    assert [row["first"] for row in rows] == ["dog", "cat"]
    described = spatial.describe()
    assert described["detector"]["threshold"] == 0 and described["detector"]["type"] == "owlv2"
    assert described != Spatial.load(Context(tmp_path)).describe()


def test_an_option_names_another_detector(tmp_path: Path) -> None:
    write_rt_detr(tmp_path / "rt")
    spatial = Spatial.load(Context(tmp_path, options={"object-detector": "rt"}))
    assert type(spatial.detector) is LabelDetector
    (row,) = spatial.score([Image.new("RGB", (40, 40))], [asks("a giraffe near a cat")])
    assert row == {"score": None, "reason": "The detector does not know the word 'giraffe'."}


def test_a_missing_detector_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="object-detector does not exist; download google/owlv2"):
        Spatial.load(Context(tmp_path))
