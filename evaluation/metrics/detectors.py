"""Objects in images, found by models of transformers: as boxes for given nouns, and as masks of COCO's classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    Mask2FormerForUniversalSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from llm4gen_core import LLM4GENError

from .base import Judge
from .judge_model import CONFIG, PREPROCESSOR, SHARDED_WEIGHTS, WEIGHTS, JudgeModel, load_part

DETECTOR = Judge(
    "object-detector",
    "google/owlv2-base-patch16-ensemble (or any Grounding DINO, RT-DETR, ...)",
    (CONFIG, SHARDED_WEIGHTS, PREPROCESSOR),
    "Apache-2.0",
    "620 MB",
)
MASK2FORMER = Judge(
    "mask2former",
    "facebook/mask2former-swin-small-coco-instance",
    (CONFIG, WEIGHTS, PREPROCESSOR),
    "CC BY-NC 4.0, as its authors' model zoo says",
    "280 MB",
)

_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt")

COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
"""GenEval's class names that differ from COCO's; the other 77 are the same."""
MOST_PAIRS = 100
"""Pairs of query and class that are considered per image, as in mmdet."""
_EDGES = {"shortest_edge": 800, "longest_edge": 1333}
"""Size in pixels to which images are scaled, as in mmdet; the folder's configuration says squares of 384."""

Result = TypeVar("Result")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detections:
    """Boxes found in one image, in order of confidence.

    Attributes:
        boxes: [N, 4], left, top, right and bottom in pixels, inside the image and not empty.
        scores: [N], confidences from 0 to 1.
        labels: N of the requested nouns.
    """

    boxes: Tensor
    scores: Tensor
    labels: tuple[str, ...]

    def of(self, noun: str) -> tuple[Tensor, Tensor]:
        """Boxes and scores of a noun."""
        rows = [row for row, label in enumerate(self.labels) if label == noun]
        return self.boxes[rows], self.scores[rows]


Found = list[tuple[Tensor, Tensor, list[str]]]
"""Boxes, scores and labels of each image, in any order."""


class Detector(JudgeModel, ABC):
    """Detector that looks for nouns, in float32; see `JudgeModel`.

    Args:
        threshold: confidence above which a box counts; None for `default_threshold`.
    """

    loader: ClassVar[Any] = AutoModelForZeroShotObjectDetection
    processor_loader: ClassVar[Any] = AutoProcessor
    default_threshold: ClassVar[float]

    def __init__(self, folder: Path, device: str = "cpu", threshold: float | None = None) -> None:
        super().__init__(folder, device)
        self.processor = load_part(self.processor_loader, folder, "processor")
        self.threshold = self.default_threshold if threshold is None else threshold

    def knows(self, noun: str) -> bool:
        """Whether the detector can look for a noun."""
        return True

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "type": self._model.config.model_type,
            # The class tells whether torchvision or Pillow resizes the images.
            "processor": type(getattr(self.processor, "image_processor", self.processor)).__name__,
            "threshold": self.threshold,
        }

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], nouns: Sequence[Sequence[str]]) -> list[Detections]:
        """Find objects in B images.

        A batch holds images of one size, so the result for an image does not depend on padding to its neighbours.

        Args:
            images: B RGB images of any sizes.
            nouns: nouns to look for in each image, at least one that the detector knows.
        """

        def found(places: list[int]) -> list[Detections]:
            answers = self._detect([images[place] for place in places], [tuple(nouns[place]) for place in places])
            return [_tidy(*answer, images[place]) for place, answer in zip(places, answers, strict=True)]

        return _by_size(images, found)

    @abstractmethod
    def _detect(self, images: list[Image.Image], nouns: list[tuple[str, ...]]) -> Found:
        """Find objects in images of one size."""


class OwlDetector(Detector):
    """OWL-ViT and OWLv2 (Minderer et al., arXiv 2205.06230, 2306.09683): any noun, as the query "a photo of a NOUN".

    A box gets the noun with the highest score. The default threshold is VISOR's (Gokhale et al., arXiv 2212.10015) for
    spatial relations in generated images.
    """

    default_threshold = 0.1
    query = "a photo of a {}"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "query": self.query}

    def _detect(self, images: list[Image.Image], nouns: list[tuple[str, ...]]) -> Found:
        longest = max(len(asked) for asked in nouns)
        # The processor pads short lists with a query " ", which would win boxes of its own.
        nouns = [asked + asked[-1:] * (longest - len(asked)) for asked in nouns]
        inputs = self.processor(
            text=[[self.query.format(noun) for noun in asked] for asked in nouns],
            images=images,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self._model.device)
        answers = self.processor.post_process_grounded_object_detection(
            self._model(**inputs), threshold=self.threshold, target_sizes=[image.size[::-1] for image in images]
        )
        return [
            (answer["boxes"], answer["scores"], [asked[label] for label in answer["labels"].tolist()])
            for answer, asked in zip(answers, nouns, strict=True)
        ]


class GroundingDetector(Detector):
    """Grounding DINO (Liu et al., arXiv 2303.05499): any noun; all nouns of an image form one sentence.

    The score of a box for a noun is the mean probability of the noun's tokens, as in the authors' evaluation on COCO; a
    box gets the noun with the highest score. The post-processing of transformers gives words instead, which may belong
    to two nouns or to none. The default threshold is that of the authors' demo.
    """

    default_threshold = 0.35

    def _detect(self, images: list[Image.Image], nouns: list[tuple[str, ...]]) -> Found:
        text = self.processor.tokenizer(
            [" ".join(f"{noun}." for noun in asked).lower() for asked in nouns],
            padding=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = text.pop("offset_mapping")
        inputs = {**text, **self.processor.image_processor(images, return_tensors="pt")}
        outputs = self._model(**{name: value.to(self._model.device) for name, value in inputs.items()})
        probabilities = outputs.logits.float().sigmoid()  # [images, queries, tokens]
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
            boxes = box_convert(outputs.pred_boxes[place].float(), "cxcywh", "xyxy")
            boxes = boxes * boxes.new_tensor([width, height, width, height])
            answers.append((boxes[kept], scores[kept], [asked[label] for label in labels[kept].tolist()]))
        return answers


class LabelDetector(Detector):
    """DETR, RT-DETR and similar models: the labels that the model was trained on, and synonyms of them.

    "girl", "boy", "man" and "woman" look for a person, as in T2I-CompBench, whose threshold for UniDet is the default.
    """

    loader = AutoModelForObjectDetection
    processor_loader = AutoImageProcessor  # it reads no text, and its folder may hold no tokenizer
    default_threshold = 0.5
    synonyms: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("girl", "boy", "man", "woman"), "person"),
        "sofa": "couch",
        "television": "tv",
        "phone": "cell phone",
        "table": "dining table",
        "plant": "potted plant",
    }

    def __init__(self, folder: Path, device: str = "cpu", threshold: float | None = None) -> None:
        super().__init__(folder, device, threshold)
        self._names = {number: name.lower() for number, name in self._model.config.id2label.items()}

    def knows(self, noun: str) -> bool:
        return self._label(noun) is not None

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "synonyms": dict(self.synonyms)}

    def _label(self, noun: str) -> str | None:
        for name in (noun.lower(), self.synonyms.get(noun.lower())):
            if name in self._names.values():
                return name
        return None

    def _detect(self, images: list[Image.Image], nouns: list[tuple[str, ...]]) -> Found:
        inputs = self.processor(images=images, return_tensors="pt").to(self._model.device)
        found = self.processor.post_process_object_detection(
            self._model(**inputs), threshold=self.threshold, target_sizes=[image.size[::-1] for image in images]
        )
        answers = []
        for answer, asked in zip(found, nouns, strict=True):
            names = [self._names[label] for label in answer["labels"].tolist()]
            # If "boy" and "girl" are wanted, every person may be either.
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
    """Load the detector of a folder; see `Detector`.

    Raises:
        LLM4GENError: the model cannot be loaded, or is not a supported detector.
    """
    config = load_part(AutoConfig, folder, "config.json")
    kinds: dict[str, type[Detector]] = {
        **dict.fromkeys(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, LabelDetector),
        **dict.fromkeys(("owlvit", "owlv2"), OwlDetector),
        **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), GroundingDetector),
    }
    if (kind := kinds.get(config.model_type)) is None:
        raise LLM4GENError(
            f"Judge {folder} is a model of type {config.model_type!r}; expected an object detector: OWLv2, Grounding "
            "DINO, or one with fixed labels such as RT-DETR. Put one there, or name its folder with the metric's "
            "options."
        )
    if kind is not LabelDetector and not any((folder / name).is_file() for name in _TOKENIZERS):
        # transformers would create a tokenizer with an empty vocabulary.
        raise LLM4GENError(
            f"Judge {folder} has no tokenizer; expected one of {', '.join(_TOKENIZERS)}. Download the folder again."
        )
    return kind(folder, device, threshold)


@dataclass(frozen=True)
class Instance:
    """An object in an image.

    Attributes:
        box: left, top, right and bottom of its mask in pixels; right and bottom are the first ones outside.
        score: confidence.
        mask: [height, width], bool, on the CPU.
    """

    box: Box
    score: float
    mask: Tensor


class InstanceSegmenter(JudgeModel):
    """Mask2Former (Cheng et al., arXiv 2112.01527), trained on COCO's instances; see `JudgeModel`.

    Confidences and masks follow mmdet's head: the 100 most likely pairs of query and class count; a mask is where its
    logit is positive, at the size of the image; the confidence is the class probability times the mean probability
    inside the mask. The post-processing of transformers makes masks of 384 x 384 pixels for every image.

    Args:
        edges: {"shortest_edge", "longest_edge"}, size in pixels to which images are scaled.
    """

    loader = Mask2FormerForUniversalSegmentation
    kind = "mask2former"

    def __init__(self, folder: Path, device: str = "cpu", edges: Mapping[str, int] = _EDGES) -> None:
        super().__init__(folder, device)
        self._edges = dict(edges)
        self._processor = load_part(AutoImageProcessor, folder, "preprocessor")
        names = {number: name.lower() for number, name in self._model.config.id2label.items()}
        if len(names) != 80 or not {"person", *COCO_NAMES.values()} <= {*names.values()}:
            raise LLM4GENError(
                f"Judge {folder} knows {len(names)} classes ({', '.join(list(names.values())[:3])}, ...); expected the "
                f"80 of COCO's instances. Download {MASK2FORMER.repository} into it."
            )
        renamed = {coco: name for name, coco in COCO_NAMES.items()}
        self.names = {number: renamed.get(name, name) for number, name in names.items()}

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "processor": type(self._processor).__name__,
            "edges": self._edges,
            "pairs": MOST_PAIRS,
        }

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], thresholds: Sequence[float]) -> list[dict[str, list[Instance]]]:
        """Find objects in B images.

        Args:
            images: B RGB images of any sizes; a batch holds those of one size.
            thresholds: confidence above which an object counts, per image.

        Returns:
            Objects of each image by GenEval's class names, in order of confidence.
        """

        def found(places: list[int]) -> list[dict[str, list[Instance]]]:
            inputs = self._processor(
                [images[place] for place in places],
                size=self._edges,
                size_divisor=32,
                do_resize=True,
                return_tensors="pt",
            )
            pixels = inputs.pixel_values.to(self._model.device)
            outputs = self._model(pixel_values=pixels)
            return [
                self._instances(
                    outputs.class_queries_logits[row],
                    outputs.masks_queries_logits[row],
                    pixels.shape[-2:],
                    images[place].size[::-1],
                    thresholds[place],
                )
                for row, place in enumerate(places)
            ]

        return _by_size(images, found)

    def _instances(
        self, classes: Tensor, masks: Tensor, scaled: tuple[int, int], size: tuple[int, int], threshold: float
    ) -> dict[str, list[Instance]]:
        """Objects of one image from class logits [queries, classes + 1] and mask logits [queries, h, w].

        Masks are resized to the size that the model saw, and then to that of the image, as in mmdet.
        """
        likely = classes.float().softmax(dim=-1)[:, :-1].flatten()
        values, pairs = likely.topk(min(MOST_PAIRS, len(likely)))
        # A confidence is never above the class probability, so the other masks need no resizing.
        values, pairs = values[values > threshold], pairs[values > threshold]
        labels = (pairs % (classes.shape[-1] - 1)).tolist()
        found: dict[str, list[Instance]] = {}
        for value, pair, label in zip(values.tolist(), pairs.tolist(), labels, strict=True):
            logits = masks[pair // (classes.shape[-1] - 1)][None, None].float()
            for target in (scaled, size):
                logits = F.interpolate(logits, target, mode="bilinear", align_corners=False)
            mask = logits[0, 0] > 0
            score = value * float((logits[0, 0].sigmoid() * mask).sum() / (mask.sum() + 1e-6))
            if score > threshold:
                mask = mask.cpu()
                left, top, right, bottom = Image.fromarray(mask.numpy()).getbbox() or (0, 0, 0, 0)
                box = (float(left), float(top), float(right), float(bottom))
                found.setdefault(self.names[label], []).append(Instance(box, score, mask))
        return {name: sorted(ones, key=lambda one: -one.score) for name, ones in found.items()}


def _by_size(images: Sequence[Image.Image], found: Callable[[list[int]], Sequence[Result]]) -> list[Result]:
    """Results for all images, where `found` returns them for the indices of images of one size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.size, []).append(place)
    results: dict[int, Result] = {}
    for places in groups.values():
        results.update(zip(places, found(places), strict=True))
    return [results[place] for place in range(len(images))]


def _tidy(boxes: Tensor, scores: Tensor, labels: Sequence[str], image: Image.Image) -> Detections:
    """Boxes clipped to the image, in order of confidence, without empty ones."""
    boxes, scores = boxes.detach().float().cpu(), scores.detach().float().cpu()
    boxes = clip_boxes_to_image(boxes, (image.height, image.width))
    whole = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    order = [row for row in scores.argsort(descending=True, stable=True).tolist() if whole[row]]
    return Detections(boxes[order], scores[order], tuple(labels[row] for row in order))
