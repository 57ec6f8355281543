"""The spatial score of T2I-CompBench, with an object detector of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from llm4gen_core import LLM4GENError, entity_backend, parse_entities

from ..judges import Judge
from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .detector import Detections, Detector, load_detector, number_option
from .judge_model import chosen_folder

DETECTOR = Judge(
    folder="object-detector",
    repository="google/owlv2-base-patch16-ensemble (or any Grounding DINO, RT-DETR, ...)",
    files=(
        "config.json",
        "model.safetensors|model.safetensors.index.json|pytorch_model.bin",
        "preprocessor_config.json|processor_config.json",
    ),
    licence="Apache-2.0",
    size="620 MB",
)

BESIDE = ("on side of", "next to", "near")
DIRECTIONS = {
    # Axis, and the sign of the way from the first object's centre to the second's.
    "on the left of": (0, 1),
    "on the right of": (0, -1),
    "on the top of": (1, 1),
    "on top of": (1, 1),
    "on the bottom of": (1, -1),
}
RELATIONS = (*DIRECTIONS, *BESIDE)
LARGEST_IOU = 0.1
"""Above it the position counts less."""
NEAR = 150 / 479
"""Distance of centres that is near, in lengths of the image's longer side: 150 pixels of the 479 to which
T2I-CompBench scales a square image."""

_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")
_ARTICLE = re.compile(r"\b(?:an?|the|one|two|three|four|some|several)\s+")
_PARSER = "rules"  # not "auto": the same nouns on every machine


@dataclass(frozen=True)
class Relation:
    """What a prompt asks for: "a dog on the left of a cat".

    Attributes:
        first: noun whose place is told.
        relation: one of `RELATIONS`.
        second: noun that it is told by.
    """

    first: str
    relation: str
    second: str


class Spatial(ImageMetric):
    """T2I-CompBench's UniDet-based metric for 2D spatial relations (Huang et al., arXiv 2307.06350, section 4.2).

    score = s1 / 4 + s2 / 4 + p / 2, with the detector's confidences s of both objects (0 where one is not found, and
    then p is 0 as well) and the position p from 0 to 1, see `positions`. What is below 1/2 counts as 0: an image with
    one of the objects always, one with both on the wrong sides unless the detector is wholly sure of both.

    What differs from the authors' script:
    - UniDet (NVIDIA's non-commercial licence, detectron2) is not used, but a detector of transformers. Confidences of
      another detector are others, and so are these numbers: compare them only with those of the same `describe`.
    - "on top of" is judged as "on the top of"; the script gives it position 0, always.
    - Of all detections the pair with the highest score counts, not the first of each noun. Objects that stand there
      twice are so judged by those that fit; the same box is never both objects.
    - Distances are relative to the image, not in pixels of one that was scaled to 480.
    - Nouns come from `Prompt.about` or from a parser without a download (`read_relation`), and may have two words;
      those of the script are single words by spaCy. A person is asked for by the prompt's word ("girl") where the
      detector takes any word.
    - A prompt whose nouns or relation are not found, or are unknown to the detector, has no score; there 0.

    Prompts may say themselves what they ask for:
    about = {"first": "dog", "relation": "on the left of", "second": "cat"}.

    Scores beside "score": "first", "relation", "second", "position" (p; None if an object is missing), "confidences"
    and "boxes" of both objects (None for one that is missing), and "reason" where there is something to explain.

    Options: object-detector, the folder of another detector; spatial.threshold, the confidence above which a detection
    counts (see `Detector.usual_threshold`).
    """

    name = "spatial"
    title = "Spatial (T2I-CompBench, detector of transformers)"
    share = True
    judges_needed = (DETECTOR,)

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    @classmethod
    def load(cls, context: Context) -> Spatial:
        threshold = number_option(context, "spatial.threshold", None, 0, 1)
        return cls(load_detector(chosen_folder(context, DETECTOR), context.device, threshold))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category == "spatial"

    def describe(self) -> dict[str, Any]:
        return {
            "detector": self.detector.describe(),
            "parser": entity_backend(_PARSER),
            "largest_iou": LARGEST_IOU,
            "near": NEAR,
            "version": 1,
        }

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        wanted: list[Relation] = []
        places: list[int] = []
        scores: list[Scores] = [{} for _ in images]
        for place, prompt in enumerate(prompts):
            relation = read_relation(prompt)
            if isinstance(relation, str):
                scores[place] = {"score": None, "reason": relation}
            elif unknown := [noun for noun in (relation.first, relation.second) if not self.detector.knows(noun)]:
                scores[place] = {"score": None, "reason": f"The detector does not know the word {unknown[0]!r}."}
            else:
                places.append(place)
                wanted.append(relation)
        if places:
            found = self.detector.detect(
                [images[place] for place in places], [(one.first, one.second) for one in wanted]
            )
            for place, relation, detections in zip(places, wanted, found, strict=True):
                scores[place] = judge(relation, detections, max(images[place].size))
        return scores


def judge(relation: Relation, detections: Detections, side: int) -> Scores:
    """The best score that two detections have together.

    Args:
        relation: what is asked for.
        detections: of both nouns.
        side: pixels of the image's longer side.

    Returns:
        See `Spatial`.
    """
    boxes, confidences = zip(*(detections.of(noun) for noun in (relation.first, relation.second)), strict=True)
    position: float | None = None
    chosen: list[int | None] = [0 if len(one) else None for one in boxes]
    if None not in chosen:
        where = positions(relation.relation, boxes[0], boxes[1], side)
        # One box is not two objects, whatever the detector calls it.
        same = (boxes[0][:, None] == boxes[1][None]).all(dim=2)
        values = (confidences[0][:, None] / 4 + confidences[1][None] / 4 + where / 2).masked_fill(same, -1)
        row, column = divmod(int(values.argmax()), values.shape[1])
        if same.all():
            surer = int(confidences[1][0] > confidences[0][0])
            chosen[1 - surer] = None
        else:
            chosen = [row, column]
            position = float(where[row, column])
    sure = [None if at is None else float(one[at]) for one, at in zip(confidences, chosen, strict=True)]
    score = sum(one or 0.0 for one in sure) / 4 + (position or 0.0) / 2
    values_found: dict[str, Any] = {
        "score": score if score >= 0.5 else 0.0,
        "first": relation.first,
        "relation": relation.relation,
        "second": relation.second,
        "position": position,
        "confidences": sure,
        "boxes": [
            None if at is None else [round(edge, 1) for edge in one[at].tolist()]
            for one, at in zip(boxes, chosen, strict=True)
        ],
    }
    if missing := [noun for noun, at in zip((relation.first, relation.second), chosen, strict=True) if at is None]:
        values_found["reason"] = f"Not found: {' and '.join(dict.fromkeys(missing))}."
    return values_found


def positions(relation: str, first: torch.Tensor, second: torch.Tensor, side: float) -> torch.Tensor:
    """How well pairs of boxes keep a relation, from 0 to 1.

    With the way d from the first centre to the second one:
    - beside ("next to", "near", "on side of"): 1 where |d_x| or |d_y| is less than NEAR of `side`, else that distance
      divided by the larger of the two;
    - left, right, top, bottom: 0 unless d has the sign of the direction and is longest along its axis; then 1 where
      the boxes' IoU is less than `LARGEST_IOU`, else `LARGEST_IOU` / IoU.

    Args:
        relation: one of `RELATIONS`.
        first: N x 4 boxes of the first noun.
        second: M x 4 boxes of the second noun.
        side: pixels of the image's longer side.

    Returns:
        N x M.
    """
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (first, second)]
    way = centres[1][None] - centres[0][:, None]
    far = way.abs()
    if relation in BESIDE:
        near = NEAR * side
        beside = (far < near).any(dim=2)
        return torch.where(beside, 1.0, near / far.amax(dim=2).clamp_min(near))
    axis, sign = DIRECTIONS[relation]
    right = (way[..., axis] * sign > 0) & (far[..., axis] > far[..., 1 - axis])
    return right * (LARGEST_IOU / _iou(first, second).clamp_min(LARGEST_IOU))


def read_relation(prompt: Prompt) -> Relation | str:
    """What a prompt asks for, from its `about`, else from its text.

    The text is read as T2I-CompBench writes its prompts, "a NOUN RELATION a NOUN", with attributes and verbs as in its
    complex prompts: the first relation counts, with the last noun before it and the first one behind it.

    Returns:
        The relation, or a sentence that says why there is none.

    Raises:
        LLM4GENError: `about` has only some of the keys, or no relation that is known.
    """
    keys = ("first", "relation", "second")
    if any(key in prompt.about for key in keys):
        values = [prompt.about.get(key) for key in keys]
        if not all(isinstance(value, str) and value.strip() for value in values) or values[1] not in RELATIONS:
            raise LLM4GENError(
                f"Prompt {prompt.id!r}: its about says {dict(zip(keys, values, strict=True))}; expected the nouns "
                f"'first' and 'second' and a 'relation', one of {', '.join(RELATIONS)}."
            )
        return Relation(*(str(value) for value in values))
    text = " ".join(prompt.text.lower().split())
    match = _RELATION.search(text)
    if match is None:
        return f"The prompt has none of the relations {', '.join(RELATIONS)}."
    before, behind = _nouns(text[: match.start()]), _nouns(text[match.end() :])
    if not before or not behind:
        return f"No noun was found {'behind' if before else 'before'} {match[1]!r}."
    return Relation(before[-1], match[1], behind[0])


def _nouns(text: str) -> list[str]:
    """Names of things, in order.

    The parser gives only things that are described; so everything is called "big" before it is asked.
    """
    described, articles = _ARTICLE.subn("the big ", text)
    pairs = parse_entities(described if articles else f"the big {text.strip()}", _PARSER)
    return [text for _, text in sorted({(pair.entity.start, pair.entity.text) for pair in pairs})]


def _iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """N x M intersections over unions of N and M boxes that are not empty."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clamp_min(0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (first, second)]
    return common / (areas[0][:, None] + areas[1][None] - common)
