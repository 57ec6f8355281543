from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_detectors import COCO, write_mask2former, write_rt_detr

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.detectors import MASK2FORMER, Instance, InstanceSegmenter
from evaluation.metrics.geneval import (
    COLORS,
    TEMPLATES,
    Box,
    ColorJudge,
    GenEval,
    Row,
    Settings,
    check,
    cut_out,
    keep,
    read_row,
    relative_position,
)
from llm4gen_core import LLM4GENError

NAMES = {*COCO} - {"mouse", "remote", "keyboard"} | {"computer mouse", "tv remote", "computer keyboard"}


def thing(box: Box, score: float = 0.9, size: tuple[int, int] = (100, 100)) -> Instance:
    mask = torch.zeros(size[1], size[0], dtype=torch.bool)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return Instance(box, score, mask)


def wants(*include: dict[str, Any], exclude: Sequence[dict[str, Any]] = (), tag: str = "x") -> dict[str, Any]:
    return {"tag": tag, "include": [{"count": 1, **one} for one in include], "exclude": list(exclude)}


def found(row: dict[str, Any], *, colors: Sequence[str] = (), **objects: list[Instance]) -> list[str]:
    """Reasons for objects whose colours are `colors`, in the order in which they are looked up."""
    rest = iter(colors)
    return check(Row.model_validate_json(json.dumps(row)), objects, lambda ones, name: [next(rest) for _ in ones])


HERE, THERE = (0.0, 0.0, 20.0, 20.0), (60.0, 0.0, 80.0, 20.0)


def test_requested_objects_are_present() -> None:
    row = wants({"class": "cup"}, {"class": "dog"})
    assert found(row, cup=[thing(HERE)], dog=[thing(THERE)]) == []
    assert found(row, cup=[thing(HERE)] * 3, dog=[thing(THERE)]) == []
    assert found(row, cup=[thing(HERE)]) == ["Expected 1 of dog, found 0."]
    assert len(found(row)) == 2


def test_counting_requires_the_exact_number() -> None:
    row = wants({"class": "cup", "count": 3}, exclude=[{"class": "cup", "count": 4}])
    assert found(row, cup=[thing(HERE)] * 3) == []
    assert found(row, cup=[thing(HERE)] * 2) == ["Expected 3 of cup, found 2."]
    assert found(row, cup=[thing(HERE)] * 4) == ["Expected fewer than 4 of cup, found 4."]


def test_the_most_confident_object_decides_the_colour() -> None:
    row = wants({"class": "cup", "color": "red"})
    assert found(row, cup=[thing(HERE)], colors=["red"]) == []
    # One of two cups is requested, and the most confident one is blue.
    assert found(row, cup=[thing(HERE), thing(THERE)], colors=["blue", "red"]) == [
        "Expected 1 of cup in red, found blue."
    ]
    pair = wants({"class": "cup", "color": "red", "count": 2})
    assert found(pair, cup=[thing(HERE), thing(THERE)], colors=["red", "blue"]) == [
        "Expected 2 of cup in red, found red, blue."
    ]


def test_both_colours_must_be_right() -> None:
    row = wants({"class": "cup", "color": "red"}, {"class": "dog", "color": "blue"})
    assert found(row, cup=[thing(HERE)], dog=[thing(THERE)], colors=["red", "blue"]) == []
    assert len(found(row, cup=[thing(HERE)], dog=[thing(THERE)], colors=["blue", "red"])) == 2


@pytest.mark.parametrize(
    ("box", "sides"),
    [
        # 20 x 20 each, so the centres must be 0.1 * 40 = 4 pixels apart.
        ((46.0, 50.0, 66.0, 70.0), set()),
        ((45.0, 50.0, 65.0, 70.0), set()),  # (5 - 4) / 5 = 0.2
        ((41.0, 50.0, 61.0, 70.0), {"left of"}),  # (9 - 4) / 9 = 0.56
        ((42.0, 50.0, 62.0, 70.0), set()),  # (8 - 4) / 8 = 0.5, not more
        ((59.0, 50.0, 79.0, 70.0), {"right of"}),
        ((50.0, 10.0, 70.0, 30.0), {"above"}),
        ((50.0, 90.0, 70.0, 110.0), {"below"}),
        ((90.0, 90.0, 110.0, 110.0), {"right of", "below"}),  # 36 / 56.6 = 0.64 along both
        ((90.0, 70.0, 110.0, 90.0), {"right of"}),  # along y 16 / 44.7 = 0.36
        ((50.0, 50.0, 70.0, 70.0), set()),
    ],
)
def test_sides(box: Box, sides: set[str]) -> None:
    target = (50.0, 50.0, 70.0, 70.0)
    assert relative_position(box, target) == sides


def test_a_larger_threshold_requires_more_distance() -> None:
    assert relative_position((30.0, 50.0, 50.0, 70.0), (50.0, 50.0, 70.0, 70.0), 0.1) == {"left of"}
    assert relative_position((30.0, 50.0, 50.0, 70.0), (50.0, 50.0, 70.0, 70.0), 0.3) == set()


def test_position() -> None:
    row = wants({"class": "dog"}, {"class": "cup", "position": ["left of", 0]})
    assert found(row, dog=[thing(THERE)], cup=[thing(HERE)]) == []
    assert found(row, dog=[thing(HERE)], cup=[thing(THERE)]) == ["Expected cup left of its target, found right of."]
    assert found(row, dog=[thing(HERE)], cup=[thing(HERE)]) == ["Expected cup left of its target, found no side."]
    assert found(row, cup=[thing(HERE)]) == [
        "Expected 1 of dog, found 0.",
        "There is no target that cup could be left of.",
    ]


def test_position_holds_for_every_pair() -> None:
    row = wants({"class": "dog", "count": 2}, {"class": "cup", "position": ["left of", 0]})
    middle = (30.0, 0.0, 40.0, 10.0)
    assert found(row, dog=[thing(THERE), thing(THERE)], cup=[thing(middle)]) == []
    assert found(row, dog=[thing(THERE), thing(HERE)], cup=[thing(middle)]) != []


def test_an_object_in_the_wrong_colour_is_no_target() -> None:
    row = wants({"class": "dog", "color": "red"}, {"class": "cup", "position": ["left of", 0]})
    reasons = found(row, dog=[thing(THERE)], cup=[thing(HERE)], colors=["blue"])
    assert reasons == ["Expected 1 of dog in red, found blue.", "There is no target that cup could be left of."]


def test_sixteen_of_a_class_are_kept() -> None:
    many = [thing(HERE, 1 - at / 100) for at in range(20)]
    assert keep(many, Settings()) == many[:16]
    assert keep(many, Settings(max_objects=3)) == many[:3]


def test_overlapping_objects_are_dropped_on_request() -> None:
    # Boxes are a pixel wider and higher, as in the authors' script: IoU of the first two 21 * 16 / (2 * 441 - 336).
    ones = [thing((0, 0, 20, 20), 0.9), thing((0, 5, 20, 25), 0.8), thing((0, 10, 20, 30), 0.7)]
    overlap = 21 * 16 / (2 * 441 - 21 * 16)
    assert keep(ones, Settings()) == ones
    assert keep(ones, Settings(max_overlap=overlap + 1e-6)) == ones
    # The second is dropped for the first, and a dropped object drops no others.
    assert keep(ones, Settings(max_overlap=overlap - 1e-6)) == [ones[0], ones[2]]
    # The limit comes first: the third object is not considered.
    assert keep(ones, Settings(max_overlap=overlap - 1e-6, max_objects=2)) == [ones[0]]


def test_rows_of_geneval_are_read() -> None:
    about = {
        "tag": "position",
        "include": [
            {"class": "computer keyboard", "count": 1},
            {"class": "tv remote", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a tv remote right of a computer keyboard",
    }
    row = read_row(Prompt(id="p", text="x", about=about), NAMES)
    assert row.include[1].position == ("right of", 0)
    assert row.exclude == []
    assert GenEval.applies(Prompt(id="p", text="x", about=about))
    assert not GenEval.applies(Prompt(id="p", text="x", about={"tag": "x"}))


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        (wants({"class": "keyboard"}), "asks for the class 'keyboard'; expected one of GenEval's 80"),
        (wants(exclude=[{"class": "unicorn", "count": 1}]), "asks for the class 'unicorn'"),
        (
            wants({"class": "cup", "color": "grey"}),
            "not a GenEval metadata row .include.0.color: Input should be 'red'",
        ),
        (wants({"class": "cup", "count": 0}), "include.0.count"),
        (wants({"class": "cup", "position": ["near", 0]}), "include.0.position"),
        (wants({"class": "cup", "position": ["left of", 0]}), "entry 0 of include is left of entry 0; expected"),
        ({"include": []}, "is not a GenEval metadata row .tag: Field required"),
    ],
)
def test_invalid_rows_are_refused(about: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LLM4GENError, match=f"Prompt 'p'.*{sentence}"):
        read_row(Prompt(id="p", text="x", about=about), NAMES)


def test_an_object_is_cut_out_on_grey() -> None:
    image = Image.new("RGB", (40, 30), "red")
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[10:20, 5:25] = True
    mask[10:12, 5:7] = False
    crop = cut_out(image, Instance((5.0, 10.0, 25.0, 20.0), 0.9, mask))
    assert crop.size == (20, 10)
    pixels = np.asarray(crop)
    assert (pixels[:2, :2] == 0x99).all()
    assert (pixels[2:] == (255, 0, 0)).all()


class Palette:
    """Stand-in for CLIP: an image embeds as its mean colour, a text as `read` says."""

    def __init__(self, read: Callable[[str], torch.Tensor]) -> None:
        self.read, self.asked = read, 0

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        means = torch.stack([torch.from_numpy(np.asarray(image).reshape(-1, 3).mean(0)).float() for image in images])
        return torch.nn.functional.normalize(means, dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        self.asked += 1
        vectors = torch.nn.functional.normalize(torch.stack([self.read(text) for text in texts]), dim=-1)
        return vectors, []


def test_colours_are_those_of_the_masks() -> None:
    image = Image.new("RGB", (100, 100), "green")
    image.paste("red", (0, 0, 20, 20))
    image.paste("blue", (60, 0, 80, 20))
    pure = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    def read(text: str) -> torch.Tensor:
        (color,) = [color for color in COLORS if f" {color} " in text or f" {color}-" in text]
        return torch.tensor(pure.get(color, (-1, -1, -1)), dtype=torch.float32)

    clip = Palette(read)
    judge = ColorJudge(clip)  # type: ignore[arg-type]
    assert judge(image, [thing(HERE), thing(THERE), thing((30.0, 50.0, 40.0, 60.0))], "cup") == ["red", "blue", "green"]
    judge(image, [thing(HERE)], "cup")
    assert clip.asked == 1
    judge(image, [thing(HERE)], "dog")
    assert clip.asked == 2


def test_a_colour_is_the_mean_of_its_templates() -> None:
    """The mean of blue's texts is nearest to this purple, although no single text of blue is."""
    seen: list[str] = []
    angles = {"red": (0.0, 0.0, -0.3), "blue": (1.4, 0.9, 1.0)}

    def read(text: str) -> torch.Tensor:
        seen.append(text)
        (color,) = [color for color in COLORS if color in text.replace("-", " ").split()]
        number = next(at for at, one in enumerate(TEMPLATES) if one.format(color=color, name="cup") == text)
        angle = torch.tensor(angles.get(color, (3.0, 3.0, 3.0))[number])
        return torch.stack([angle.cos(), torch.tensor(0.0), angle.sin()])

    judge = ColorJudge(Palette(read))  # type: ignore[arg-type]
    angle = 0.55  # nearer to blue's mean (1.1) than to red's (-0.1)
    image = Image.new("RGB", (100, 100), (round(200 * np.cos(angle)), 0, round(200 * np.sin(angle))))
    assert judge(image, [thing((0, 0, 100, 100))], "cup") == ["blue"]
    assert len(seen) == 30
    assert seen[:3] == ["a photo of a red cup", "a photo of a red-colored cup", "a photo of a red object"]


class Segments(InstanceSegmenter):
    """Segmenter with given objects; records the thresholds."""

    def __init__(self, objects: dict[str, list[Instance]]) -> None:
        self.objects, self.names, self.thresholds = objects, dict(enumerate(NAMES)), []  # type: ignore[var-annotated]

    def segment(self, images: Sequence[Image.Image], thresholds: Sequence[float]) -> list[dict[str, list[Instance]]]:
        self.thresholds += thresholds
        return [
            {name: [one for one in ones if one.score > threshold] for name, ones in self.objects.items()}
            for threshold in thresholds
        ]


def test_an_image_scores_1_or_0_with_reasons() -> None:
    segments = Segments({"cup": [thing(HERE, 0.95), thing(THERE, 0.5)], "dog": [thing(THERE, 0.4)]})
    metric = GenEval(segments, lambda image, ones, name: ["red"] * len(ones), Settings())  # type: ignore[arg-type]
    abouts = [
        wants({"class": "cup", "color": "red"}, {"class": "dog", "color": "red"}, tag="color_attr"),
        wants({"class": "cup", "count": 2}, exclude=[{"class": "cup", "count": 3}], tag="counting"),
        wants({"class": "cup", "count": 2}, exclude=[{"class": "cup", "count": 3}], tag="two_object"),
    ]
    prompts = [Prompt(id=f"p{at}", text="x", about=about) for at, about in enumerate(abouts)]
    rows = metric.score([Image.new("RGB", (100, 100))] * 3, prompts)
    assert [row["score"] for row in rows] == [1, 0, 1]
    assert [row["reason"] for row in rows] == ["", "Expected 2 of cup, found 1.", ""]
    assert segments.thresholds == [0.3, 0.9, 0.3]
    assert rows[0]["objects"] == {"cup": [[*HERE, 0.95], [*THERE, 0.5]], "dog": [[*THERE, 0.4]]}


@pytest.fixture(scope="session")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask2former(tmp_path_factory.mktemp("judges") / MASK2FORMER.folder)


@pytest.fixture(scope="session")
def scenes() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(384, 384), (60, 40), (384, 384)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


SQUARE = {"shortest_edge": 384, "longest_edge": 384}


def test_masks_are_those_of_transformers_at_the_size_it_works_in(mask2former: Path, scenes: list[Image.Image]) -> None:
    """The post-processing of transformers makes masks of 384 x 384 pixels, so images of that size are comparable."""
    segmenter = InstanceSegmenter(mask2former, edges=SQUARE)
    inputs = segmenter._processor(scenes[0], return_tensors="pt")
    assert inputs.pixel_values.shape[-2:] == (384, 384)
    with torch.no_grad():
        outputs = segmenter._model(pixel_values=inputs.pixel_values)
    (expected,) = segmenter._processor.post_process_instance_segmentation(
        outputs, threshold=0.02, target_sizes=[(384, 384)], return_binary_maps=True
    )
    (mine,) = segmenter.segment(scenes[:1], [0.02])
    # transformers keeps as many pairs as there are queries, ten; they are among the most likely pairs here too.
    assert 0 < len(expected["segments_info"]) <= 10
    for info, mask in zip(expected["segments_info"], expected["segmentation"], strict=True):
        found = mine[segmenter.names[info["label_id"]]]
        same = min(found, key=lambda one: abs(one.score - info["score"]))
        assert same.score == pytest.approx(info["score"], rel=1e-4)
        # Masks of two queries differ in 2 % of their pixels or more.
        assert (same.mask != mask.bool()).float().mean() < 1e-3
    assert {name.replace("computer ", "").replace("tv ", "") for name in segmenter.names.values()} >= {
        "mouse", "remote", "keyboard",
    }  # fmt: skip


def test_results_do_not_depend_on_the_batch(mask2former: Path, scenes: list[Image.Image]) -> None:
    segmenter = InstanceSegmenter(mask2former, edges={"shortest_edge": 64, "longest_edge": 128})
    together = segmenter.segment(scenes, [0.02, 0.02, 0.05])
    for image, threshold, objects in zip(scenes, [0.02, 0.02, 0.05], together, strict=True):
        (alone,) = segmenter.segment([image], [threshold])
        assert {name: len(ones) for name, ones in alone.items()} == {name: len(ones) for name, ones in objects.items()}
        for name, ones in objects.items():
            assert [one.score for one in ones] == sorted((one.score for one in ones), reverse=True)
            assert all(one.score > threshold and one.mask.shape == (image.height, image.width) for one in ones)
            assert [one.score for one in alone[name]] == pytest.approx([one.score for one in ones], abs=1e-4)


def test_an_instance_by_hand(mask2former: Path) -> None:
    """One query is a cup with probability 3/4, and its mask has the logit ln 3, probability 3/4."""
    segmenter = InstanceSegmenter(mask2former)
    cup, nothing = COCO.index("cup"), 80
    classes = torch.full((2, 81), -50.0)
    classes[0, cup], classes[0, nothing] = np.log(3), 0.0
    classes[1, cup] = classes[1, nothing] = 0.0
    masks = torch.full((2, 10, 10), -float(np.log(3)))
    masks[0, 2:6, 3:8] = float(np.log(3))
    ((name, ones),) = segmenter._instances(classes, masks, (10, 10), (10, 10), 0.3).items()
    assert name == "cup"
    (one,) = ones  # the second has an empty mask and so confidence 0
    assert one.box == (3, 2, 8, 6)
    assert one.score == pytest.approx(0.75 * 0.75, abs=1e-4)
    assert int(one.mask.sum()) == 20
    assert segmenter._instances(classes, masks, (10, 10), (10, 10), 0.6) == {}
    ((_, (large,)),) = segmenter._instances(classes, masks, (20, 20), (40, 60), 0.3).items()
    assert large.mask.shape == (40, 60)
    assert large.box == pytest.approx((18, 8, 48, 24), abs=2)


def test_masks_are_resized_to_the_model_input_and_then_to_the_image(mask2former: Path) -> None:
    """Masks are resized as in mmdet; resizing directly to the image gives another mask."""
    classes = torch.full((1, 81), -50.0)
    classes[0, 0] = 0.0
    masks = torch.randn(1, 10, 10, generator=torch.Generator().manual_seed(0))
    ((_, (one,)),) = InstanceSegmenter(mask2former)._instances(classes, masks, (40, 40), (13, 17), 0.1).items()

    def scale(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    assert torch.equal(one.mask, scale(scale(masks[None], (40, 40)), (13, 17))[0, 0] > 0)
    assert not torch.equal(one.mask, scale(masks[None], (13, 17))[0, 0] > 0)


def test_real_judges_are_loaded_and_score(mask2former: Path, clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(mask2former, tmp_path / MASK2FORMER.folder)
    shutil.copytree(clip_folder, tmp_path / "clip")
    for judge in GenEval.judges_needed:
        Context(tmp_path).folder(judge)
    image = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    plain = GenEval.load(Context(tmp_path))
    assert plain.describe()["settings"] == {
        "threshold": 0.3,
        "counting_threshold": 0.9,
        "position_threshold": 0.1,
        "max_objects": 16,
        "max_overlap": 1.0,
    }
    assert plain.describe()["detector"]["edges"] == {"shortest_edge": 800, "longest_edge": 1333}
    metric = GenEval.load(Context(tmp_path, options={"geneval.threshold": "0", "geneval.max_objects": "2"}))
    assert metric.describe() != plain.describe()
    metric._segmenter._edges = {"shortest_edge": 64, "longest_edge": 128}  # to save time
    (seen,) = metric.score([image], [Prompt(id="p", text="x", about=wants({"class": "cup"}))])
    name = next(iter(seen["objects"]))
    assert all(len(ones) <= 2 for ones in seen["objects"].values())
    asked = [Prompt(id="p", text="x", about=wants({"class": name, "color": color})) for color in COLORS]
    right = [found["score"] for found in metric.score([image] * len(asked), asked)]
    assert set(right) == {0.0, 1.0}, "an object has some colour, and not all of them"


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: write_mask2former(path, COCO[:50]), "knows 50 classes .person, bicycle, car, .*80 of COCO"),
        (write_rt_detr, "type 'rt_detr'; expected type 'mask2former'"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, write: Callable[[Path], Path], sentence: str) -> None:
    with pytest.raises(LLM4GENError, match=sentence):
        InstanceSegmenter(write(tmp_path / "mask2former"))


@pytest.mark.parametrize("value", ["2", "nan", "much"])
def test_bad_thresholds_are_found_by_the_check(value: str) -> None:
    GenEval.check(Context(Path(), options={"geneval.threshold": "0.5", "geneval.max_objects": "4"}))
    with pytest.raises(LLM4GENError, match=f"Option geneval.threshold: .*; found '{value}'"):
        GenEval.check(Context(Path(), options={"geneval.threshold": value}))
