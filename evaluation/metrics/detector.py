"""Objects in images as boxes, found by a detector of transformers from a folder of this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from llm4gen_core import LLM4GENError

from .base import Context
from .judge_model import description, load_model, read_part

Usual = TypeVar("Usual", float, None)

_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the surest first.

    Attributes:
        boxes: N x 4, left, top, right and bottom in pixels of the image, none outside of it, none empty.
        scores: N, the detector's confidences from 0 to 1.
        labels: N of the nouns that were asked for.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: tuple[str, ...]

    def of(self, noun: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes and scores of a noun."""
        rows = [row for row, label in enumerate(self.labels) if label == noun]
        return self.boxes[rows], self.scores[rows]


class Detector(ABC):
    """A detector, asked for nouns.

    Args:
        model, processor: of transformers.
        threshold: confidence above which a box counts; None for the usual one of the architecture.
        judge: what `describe` says of the model.
    """

    usual_threshold: ClassVar[float]

    def __init__(
        self, model: Any, processor: Any, threshold: float | None = None, judge: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.threshold = self.usual_threshold if threshold is None else threshold
        self._judge = dict(judge or {})

    def knows(self, noun: str) -> bool:
        """Whether the detector can be asked for a noun."""
        return True

    def describe(self) -> dict[str, Any]:
        """Everything that decides what is found. JSON values."""
        return {
            **self._judge,
            "type": self.model.config.model_type,
            # Its name tells by what images are scaled: torchvision, or Pillow where that is not installed.
            "processor": type(getattr(self.processor, "image_processor", self.processor)).__name__,
            "threshold": self.threshold,
        }

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]]) -> list[Detections]:
        """Find objects.

        Images of one size are judged together, so that what is found in one never depends on how much its neighbours
        were padded.

        Args:
            images: B images in RGB, of any sizes.
            nouns: what to look for in each, at least one that the detector knows.

        Returns:
            One for each image.
        """
        found: dict[int, Detections] = {}
        for places in same_size(images):
            answers = self._detect([images[place] for place in places], [tuple(nouns[place]) for place in places])
            for place, (boxes, scores, labels) in zip(places, answers, strict=True):
                found[place] = _tidy(boxes, scores, labels, images[place].size)
        return [found[place] for place in range(len(images))]

    @abstractmethod
    def _detect(
        self, images: list[Image.Image], nouns: list[tuple[str, ...]]
    ) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        """Boxes, scores and labels for images of one size, in any order."""


class OwlDetector(Detector):
    """OWL-ViT and OWLv2 (Minderer et al., arXiv 2205.06230, 2306.09683): any noun, as the query "a photo of a NOUN".

    A box belongs to the noun that scores highest for it. The threshold is the one that VISOR (Gokhale et al., arXiv
    2212.10015) took for spatial relations in generated images.
    """

    usual_threshold = 0.1
    query = "a photo of a {}"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "query": self.query}

    def _detect(
        self, images: list[Image.Image], nouns: list[tuple[str, ...]]
    ) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        longest = max(len(asked) for asked in nouns)
        # Left to itself the processor fills up short lists with a query " ", which would win boxes of its own.
        nouns = [asked + asked[-1:] * (longest - len(asked)) for asked in nouns]
        inputs = self.processor(
            text=[[self.query.format(noun) for noun in asked] for asked in nouns],
            images=images,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        answers = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=_sizes(images)
        )
        return [
            (answer["boxes"], answer["scores"], [asked[label] for label in answer["labels"].tolist()])
            for answer, asked in zip(answers, nouns, strict=True)
        ]


class GroundingDetector(Detector):
    """Grounding DINO (Liu et al., arXiv 2303.05499): any noun; all nouns of an image stand in one sentence.

    The score of a box for a noun is the mean probability of the noun's tokens, as in the authors' evaluation on COCO;
    a box belongs to the noun that scores highest for it. transformers' own post-processing gives words instead, which
    may belong to two nouns or to none. The threshold is that of the authors' demonstration.
    """

    usual_threshold = 0.35

    def _detect(
        self, images: list[Image.Image], nouns: list[tuple[str, ...]]
    ) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        text = self.processor.tokenizer(
            [" ".join(f"{noun}." for noun in asked).lower() for asked in nouns],
            padding=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = text.pop("offset_mapping")
        inputs = {**text, **self.processor.image_processor(images, return_tensors="pt")}
        outputs = self.model(**{name: value.to(self.model.device) for name, value in inputs.items()})
        probabilities = outputs.logits.float().sigmoid()  # images, queries, tokens
        answers = []
        for place, asked in enumerate(nouns):
            start, columns = 0, []
            for noun in asked:
                inside = (offsets[place, :, 0] >= start) & (offsets[place, :, 1] <= start + len(noun))
                tokens = torch.nonzero(inside & (offsets[place, :, 1] > offsets[place, :, 0])).flatten()
                columns.append(probabilities[place][:, tokens.to(probabilities.device)].mean(dim=1))
                start += len(noun) + len(". ")
            scores, labels = torch.stack(columns).max(dim=0)
            kept = scores > self.threshold
            width, height = images[place].size
            boxes = _corners(outputs.pred_boxes[place].float())
            boxes = boxes * boxes.new_tensor([width, height, width, height])
            answers.append((boxes[kept], scores[kept], [asked[label] for label in labels[kept].tolist()]))
        return answers


class LabelDetector(Detector):
    """DETR, RT-DETR and their kin: the labels that the model was trained on, and words that mean the same.

    "girl", "boy", "man" and "woman" ask for a person, as in T2I-CompBench. The threshold is the one that T2I-CompBench
    gave UniDet.
    """

    usual_threshold = 0.5
    synonyms: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("girl", "boy", "man", "woman"), "person"),
        "sofa": "couch",
        "television": "tv",
        "phone": "cell phone",
        "table": "dining table",
        "plant": "potted plant",
    }

    def __init__(
        self, model: Any, processor: Any, threshold: float | None = None, judge: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(model, processor, threshold, judge)
        self._names = {number: name.lower() for number, name in model.config.id2label.items()}

    def knows(self, noun: str) -> bool:
        return self._label(noun) is not None

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "synonyms": dict(self.synonyms)}

    def _label(self, noun: str) -> str | None:
        for name in (noun.lower(), self.synonyms.get(noun.lower())):
            if name in self._names.values():
                return name
        return None

    def _detect(
        self, images: list[Image.Image], nouns: list[tuple[str, ...]]
    ) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        found = self.processor.post_process_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=_sizes(images)
        )
        answers = []
        for answer, asked in zip(found, nouns, strict=True):
            names = [self._names[label] for label in answer["labels"].tolist()]
            # Of "boy" and "girl" every person may be either.
            pairs = [
                (row, noun)
                for noun in dict.fromkeys(asked)
                for row, name in enumerate(names)
                if name == self._label(noun)
            ]
            rows = [row for row, _ in pairs]
            answers.append((answer["boxes"][rows], answer["scores"][rows], [noun for _, noun in pairs]))
        return answers


def load_detector(folder: Path, device: str = "cpu", threshold: float | None = None) -> Detector:
    """The detector of a folder, in float32.

    Args:
        folder: with a model and its processor.
        device: torch's name.
        threshold: see `Detector`.

    Raises:
        LLM4GENError: the model cannot be loaded, or is no detector that is known here.
    """
    config = read_part(folder, "config.json", lambda: AutoConfig.from_pretrained(folder, local_files_only=True))
    found: type[Detector]
    loader: Any = AutoModelForZeroShotObjectDetection
    if config.model_type in ("owlvit", "owlv2"):
        found = OwlDetector
    elif config.model_type in ("grounding-dino", "mm-grounding-dino"):
        found = GroundingDetector
    elif config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        found, loader = LabelDetector, AutoModelForObjectDetection
    else:
        raise LLM4GENError(
            f"Judge {folder} is a model of type {config.model_type!r}; expected a detector of objects: OWLv2, "
            "Grounding DINO, or one with fixed labels such as RT-DETR. Put one there, or name its folder by the "
            "metric's options."
        )
    if found is not LabelDetector and not any((folder / name).is_file() for name in _TOKENIZERS):
        # transformers would make a tokenizer of no words.
        raise LLM4GENError(
            f"Judge {folder} has no tokenizer; expected one of {', '.join(_TOKENIZERS)}. Download the folder again."
        )
    model = load_model(loader, folder, torch.float32, device)
    # One with fixed labels reads no text, and its folder may hold an image processor alone.
    parts: Any = AutoImageProcessor if found is LabelDetector else AutoProcessor
    processor = read_part(folder, "processor", lambda: parts.from_pretrained(folder, local_files_only=True))
    return found(model, processor, threshold, description(folder, torch.float32))


def number_option(context: Context, name: str, usual: Usual, low: float, high: float) -> float | Usual:
    """A number among a metric's options.

    Args:
        name: such as "spatial.threshold".
        usual: where the option was not given.
        low, high: that it may lie between, both included.

    Raises:
        LLM4GENError: it is no number, or lies outside.
    """
    text = context.options.get(name)
    if text is None:
        return usual
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise LLM4GENError(f"Option {name} is {text!r}; expected a number from {low:g} to {high:g}.")
    return number


def same_size(images: Sequence[Image.Image]) -> list[list[int]]:
    """Indices of images, those of one size together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.size, []).append(place)
    return list(groups.values())


def _sizes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """Height and width of each, as transformers wants them."""
    return [(image.height, image.width) for image in images]


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """Left, top, right and bottom of boxes given by centre, width and height."""
    centres, sizes = boxes.split(2, dim=-1)
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1)


def _tidy(boxes: torch.Tensor, scores: torch.Tensor, labels: Sequence[str], size: tuple[int, int]) -> Detections:
    """Boxes cut at the edges of the image, the surest first; what lies outside, or is empty, goes."""
    boxes, scores = boxes.detach().float().cpu(), scores.detach().float().cpu()
    boxes = torch.minimum(boxes.clamp_min(0), boxes.new_tensor([*size, *size]))
    whole = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    order = [row for row in scores.argsort(descending=True, stable=True).tolist() if whole[row]]
    return Detections(boxes[order], scores[order], tuple(labels[row] for row in order))
