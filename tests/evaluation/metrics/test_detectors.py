from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_detectors import write_grounding_dino, write_mask2former, write_owl, write_rt_detr
from transformers import AutoImageProcessor, AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection

from evaluation.metrics.detectors import (
    Detector,
    GroundingDetector,
    LabelDetector,
    OwlDetector,
    load_detector,
)
from llm4gen_core import LLM4GENError

WRITERS = {"owl": write_owl, "grounding": write_grounding_dino, "labels": write_rt_detr}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("detectors")
    return {name: write(path / name) for name, write in WRITERS.items()}


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(60, 40), (40, 64), (60, 40)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


class Says(torch.nn.Module):
    """Model with a fixed output."""

    device = torch.device("cpu")

    def __init__(self, like: Any, logits: list[list[float]], boxes: list[list[float]]) -> None:
        super().__init__()
        self.config = like.config
        self.answer = SimpleNamespace(logits=torch.tensor([logits]), pred_boxes=torch.tensor([boxes]))

    def forward(self, **_: Any) -> Any:
        return self.answer


def says(
    detector: Detector, logits: list[list[float]], boxes: list[list[float]], threshold: float | None = None
) -> Detector:
    detector._model = Says(detector._model, logits, boxes)
    detector.threshold = detector.default_threshold if threshold is None else threshold
    return detector


@pytest.mark.parametrize("name", WRITERS)
def test_detections_do_not_depend_on_the_batch(folders: dict[str, Path], images: list[Image.Image], name: str) -> None:
    detector = load_detector(folders[name], threshold=0.0)
    nouns = [("cat", "dog", "person"), ("dog",), ("person", "cat")]
    together = detector.detect(images, nouns)
    assert all(len(one.labels) for one in together)
    for image, asked, found in zip(images, nouns, together, strict=True):
        (alone,) = detector.detect([image], [asked])
        assert alone.labels == found.labels
        assert set(found.labels) <= set(asked)
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.scores, found.scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WRITERS)
def test_boxes_are_inside_the_image_in_order_of_confidence(
    folders: dict[str, Path], images: list[Image.Image], name: str
) -> None:
    for image, found in zip(
        images, load_detector(folders[name], threshold=0.0).detect(images, [("cat", "dog")] * 3), strict=True
    ):
        assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([*image.size, *image.size])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.scores[:-1] >= found.scores[1:]).all()


def test_owl_detects_as_transformers_does(folders: dict[str, Path], images: list[Image.Image]) -> None:
    detector = load_detector(folders["owl"], threshold=0.3)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders["owl"]).eval()
    inputs = detector.processor(
        text=[["a photo of a cat", "a photo of a dog"]], images=images[1], padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = detector.processor.post_process_grounded_object_detection(
        outputs, threshold=0.3, target_sizes=[(64, 40)], text_labels=[["cat", "dog"]]
    )
    (found,) = detector.detect([images[1]], [("cat", "dog")])
    inside = (expected["boxes"][:, 0] < 40) & (expected["boxes"][:, 1] < 64)
    order = [row for row in expected["scores"].argsort(descending=True).tolist() if inside[row]]
    assert found.labels == tuple(expected["text_labels"][row] for row in order) != ()
    torch.testing.assert_close(found.scores, expected["scores"][order])


def test_owl_boxes_are_relative_to_the_padded_square(folders: dict[str, Path]) -> None:
    detector = says(
        load_detector(folders["owl"]),
        logits=[[2.0, -2.0], [-2.0, 1.0], [-4.0, -4.0], [3.0, 0.0]],
        boxes=[[0.5, 0.25, 0.5, 0.25], [0.5, 0.5, 0.2, 0.6], [0.5, 0.5, 1.0, 1.0], [0.5, 0.9, 0.2, 0.2]],
        threshold=0.5,
    )
    (found,) = detector.detect([Image.new("RGB", (60, 40))], [("cat", "dog")])
    # The second reaches below the image, the third is below the threshold, the last is entirely in the padding.
    assert found.labels == ("cat", "dog")
    torch.testing.assert_close(found.boxes, torch.tensor([[15.0, 7.5, 45.0, 22.5], [24.0, 12.0, 36.0, 40.0]]))
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.0]).sigmoid())


def test_grounding_dino_scores_a_noun_by_the_mean_of_its_tokens(folders: dict[str, Path]) -> None:
    real = load_detector(folders["grounding"])
    tokens = real.processor.tokenizer("Cat. hotdog. person.".lower()).input_ids
    assert real.processor.tokenizer.convert_ids_to_tokens(tokens) == [
        "[CLS]", "cat", ".", "hot", "##dog", ".", "person", ".", "[SEP]",
    ]  # fmt: skip
    low = -9.0
    rows = [
        [
            low,
            low,
            low,
            2.0,
            0.0,
            5.0,
            0.5,
            low,
            low,
        ],  # hotdog: the mean of two tokens; the full stop belongs to no noun
        [9.0, 1.0, low, 3.0, low, low, low, low, low],  # cat, although one token of hotdog scores higher
        [low, low, low, low, low, low, 2.0, low, low],  # person
    ]
    boxes = [[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0], [0.9, 0.5, 0.4, 0.5]]
    (found,) = says(real, rows, boxes, threshold=0.35).detect(
        [Image.new("RGB", (60, 40))], [("Cat", "hotdog", "person")]
    )
    hotdog = (torch.tensor(2.0).sigmoid() + 0.5) / 2
    assert found.labels == ("person", "Cat", "hotdog")
    torch.testing.assert_close(
        found.scores, torch.stack([torch.tensor(2.0).sigmoid(), torch.tensor(1.0).sigmoid(), hotdog])
    )
    torch.testing.assert_close(
        found.boxes, torch.tensor([[42.0, 10.0, 60.0, 30.0], [0.0, 0.0, 30.0, 40.0], [15.0, 10.0, 45.0, 30.0]])
    )


def test_fixed_labels_are_detected_as_transformers_does(folders: dict[str, Path], images: list[Image.Image]) -> None:
    processor = AutoImageProcessor.from_pretrained(folders["labels"])
    model = AutoModelForObjectDetection.from_pretrained(folders["labels"]).eval()
    with torch.no_grad():
        outputs = model(**processor(images=images[0], return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[(40, 60)])
    names = [model.config.id2label[label].lower() for label in expected["labels"].tolist()]
    (found,) = load_detector(folders["labels"], threshold=0.3).detect([images[0]], [("cat", "dog")])
    assert found.labels == tuple(name for name in names if name in ("cat", "dog")) != ()
    torch.testing.assert_close(
        found.scores, expected["scores"][[row for row, name in enumerate(names) if name in ("cat", "dog")]]
    )


def test_a_person_is_boy_and_girl_to_fixed_labels(folders: dict[str, Path]) -> None:
    detector = says(
        load_detector(folders["labels"]),
        logits=[[-9.0, -9.0, 2.0, -9.0], [-9.0, -9.0, -9.0, 1.0]],
        boxes=[[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]],
    )
    (found,) = detector.detect([Image.new("RGB", (40, 40))], [("boy", "girl")])
    assert sorted(found.labels) == ["boy", "girl"]
    assert torch.equal(found.boxes[0], found.boxes[1])
    (found,) = detector.detect([Image.new("RGB", (40, 40))], [("sofa",)])
    assert found.labels == ("sofa",)
    assert detector.knows("Cat") and detector.knows("sofa") and not detector.knows("giraffe")


def test_an_open_vocabulary_knows_every_noun(folders: dict[str, Path]) -> None:
    assert load_detector(folders["owl"]).knows("zeppelin")


@pytest.mark.parametrize(
    ("name", "kind", "threshold"),
    [("owl", OwlDetector, 0.1), ("grounding", GroundingDetector, 0.35), ("labels", LabelDetector, 0.5)],
)
def test_thresholds_are_described(folders: dict[str, Path], name: str, kind: type[Detector], threshold: float) -> None:
    detector = load_detector(folders[name])
    assert type(detector) is kind
    assert detector.describe()["threshold"] == threshold
    assert load_detector(folders[name], threshold=0.25).describe()["threshold"] == 0.25
    assert len(detector.describe()["hash"]) == 16


def without_tokenizer(path: Path) -> None:
    write_owl(path)
    for name in ("tokenizer.json", "vocab.json"):
        (path / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: write_mask2former(path), "of type 'mask2former'; expected an object detector"),
        (lambda path: path.mkdir(), "config.json cannot be read"),
        (without_tokenizer, "has no tokenizer; expected one of tokenizer.json"),
        (lambda path: (write_owl(path) / "model.safetensors").unlink(), "weights cannot be read"),
    ],
    ids=["other model", "empty", "no tokenizer", "no weights"],
)
def test_other_folders_are_refused(tmp_path: Path, spoil: Callable[[Path], Any], sentence: str) -> None:
    spoil(tmp_path / "object-detector")
    with pytest.raises(LLM4GENError, match=f"Judge .*object-detector.*{sentence}"):
        load_detector(tmp_path / "object-detector")
