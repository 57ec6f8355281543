"""Objects in images as masks, found by a Mask2Former of transformers, by GenEval's class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

from llm4gen_core import LLM4GENError

from ..judges import Judge
from .detector import same_size
from .judge_model import description, load_model, read_part

MASK2FORMER = Judge(
    folder="mask2former",
    repository="facebook/mask2former-swin-small-coco-instance",
    files=(
        "config.json",
        "model.safetensors|pytorch_model.bin",
        "preprocessor_config.json|processor_config.json",
    ),
    licence="CC BY-NC 4.0, as its authors' model zoo says",
    size="280 MB",
)

COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
"""GenEval's names that COCO has otherwise; the other 77 are COCO's."""

_EDGES = {"shortest_edge": 800, "longest_edge": 1333}
"""Pixels that images are scaled to, as mmdet does; the folder's own configuration asks for squares of 384."""
MOST_PAIRS = 100
"""Of query and class that are looked at in an image, as in mmdet."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Instance:
    """An object in an image.

    Attributes:
        box: left, top, right, bottom of its mask, in pixels; right and bottom are the first ones outside.
        score: confidence.
        mask: height x width, bool, on the CPU.
    """

    box: Box
    score: float
    mask: torch.Tensor


class InstanceSegmenter:
    """Mask2Former (Cheng et al., arXiv 2112.01527), trained on COCO's instances.

    Confidences and masks are made as in mmdet's head: of all pairs of query and class the 100 likeliest; the mask is
    where its logit is positive, in pixels of the image; the confidence is the class's probability times the mean
    probability inside the mask. transformers' own post-processing makes masks of 384 x 384 pixels for every image.

    Args:
        folder: with model and processor.
        device: torch's name.
        edges: {"shortest_edge", "longest_edge"}, pixels that images are scaled to.

    Raises:
        LLM4GENError: it is another model, or is damaged.
    """

    def __init__(self, folder: Path, device: str = "cpu", edges: Mapping[str, int] = _EDGES) -> None:
        self._folder, self._edges = folder, dict(edges)
        self._model = load_model(Mask2FormerForUniversalSegmentation, folder, torch.float32, device, kind="mask2former")
        self._processor: Any = read_part(
            folder, "preprocessor", lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        )
        names = {number: name.lower() for number, name in self._model.config.id2label.items()}
        if len(names) != 80 or not {"person", *COCO_NAMES.values()} <= {*names.values()}:
            raise LLM4GENError(
                f"Judge {folder} knows {len(names)} classes ({', '.join(list(names.values())[:3])}, ...); expected the "
                f"80 of COCO's instances. Download {MASK2FORMER.repository} into it."
            )
        renamed = {coco: name for name, coco in COCO_NAMES.items()}
        self.names = {number: renamed.get(name, name) for number, name in names.items()}

    def describe(self) -> dict[str, Any]:
        """Everything that decides what is found. JSON values."""
        return {
            **description(self._folder, torch.float32),
            "processor": type(self._processor).__name__,
            "edges": self._edges,
            "pairs": MOST_PAIRS,
        }

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], thresholds: Sequence[float]) -> list[dict[str, list[Instance]]]:
        """Find objects.

        Args:
            images: B images in RGB, of any sizes; those of one size are judged together.
            thresholds: confidence of each image above which an object counts.

        Returns:
            For each image its objects by GenEval's class names, the surest first.
        """
        found: dict[int, dict[str, list[Instance]]] = {}
        for places in same_size(images):
            inputs = self._processor(
                [images[place] for place in places],
                size=self._edges,
                size_divisor=32,
                do_resize=True,
                return_tensors="pt",
            )
            pixels = inputs.pixel_values.to(self._model.device)
            outputs = self._model(pixel_values=pixels)
            for row, place in enumerate(places):
                found[place] = self._instances(
                    outputs.class_queries_logits[row],
                    outputs.masks_queries_logits[row],
                    (pixels.shape[-2], pixels.shape[-1]),
                    (images[place].height, images[place].width),
                    thresholds[place],
                )
        return [found[place] for place in range(len(images))]

    def _instances(
        self,
        classes: torch.Tensor,
        masks: torch.Tensor,
        scaled: tuple[int, int],
        size: tuple[int, int],
        threshold: float,
    ) -> dict[str, list[Instance]]:
        """Objects of one image from logits of classes, queries x (classes + 1), and masks, queries x h x w."""
        likely = classes.float().softmax(dim=-1)[:, :-1].flatten()
        values, pairs = likely.topk(min(MOST_PAIRS, len(likely)))
        # A confidence is never above its class's probability, so these masks need not be looked at.
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
                found.setdefault(self.names[label], []).append(Instance(_bounds(mask), score, mask.cpu()))
        return {name: sorted(ones, key=lambda one: -one.score) for name, ones in found.items()}


def _bounds(mask: torch.Tensor) -> Box:
    """Of a mask's pixels; zeros if there are none."""
    columns, rows = mask.any(dim=0).nonzero().flatten().tolist(), mask.any(dim=1).nonzero().flatten().tolist()
    if not columns:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
