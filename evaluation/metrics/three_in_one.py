"""T2I-CompBench's score of complex prompts: the mean of attribute binding, spatial and other relations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from llm4gen_core import LLM4GENError

from ..image_set import Prompt
from .base import Context, ImageMetric, Scores
from .clip import NonSpatial
from .noun_chunks import Chunker, find_chunker
from .questions import BlipOptions, BlipVQA
from .spatial import RELATIONS, Spatial, SpatialOptions

PARTS = {
    "spatial": (BlipVQA.name, Spatial.name),
    "action": (BlipVQA.name, NonSpatial.name),
    "spatialaction": (BlipVQA.name, Spatial.name, NonSpatial.name),
}
"""Kind of a prompt -> metrics whose mean is its score. The kinds are those of T2I-CompBench's files
`complex_val_KIND.txt`."""

_RELATION = re.compile(rf"\b(?:{'|'.join(RELATIONS)})\b")
_IS = re.compile(r"\b(?:is|are|was|were)\s*$")


class ThreeInOneOptions(BlipOptions, SpatialOptions):
    """Options of the parts."""


class ThreeInOne(ImageMetric):
    """3-in-1 metric of T2I-CompBench (Huang et al., arXiv 2307.06350, section 4.4), after the authors' `3_in_1.py`.

    Which parts count depends on the prompt. A prompt that says where something is ("The red hat was on top of the brown
    coat rack.") has the mean of BLIP-VQA and the spatial score; one with another relation ("The brown dog was lying on
    the green mat.") that of BLIP-VQA and the CLIP cosine; one with both ("The sleek black cat sat next to the fluffy
    white pillow.") that of all three. CLIP reads the prompt without its adjectives, because attributes are BLIP-VQA's
    part.

    What differs from the script:
    - It requires ten images per prompt of a fixed list. Here every image is scored by itself, and the kind of a prompt
      is `Prompt.about["kind"]`, or is read from its text (`kind_of`).
    - The parts are this package's; see `BlipVQA`, `Spatial` and `NonSpatial` for how they differ. "on top of", the
      relation of 32 of the 58 prompts of the kind "spatial", has position 0 in the authors' script.
    - An image that one of its parts cannot score has no score; there the part counts as 0.
    - Adjectives are spaCy's, as there, if a trained pipeline is installed, otherwise those of a rule-based parser.

    Scores beside "score": "kind", the scores of each part under its name ("blip_vqa", "spatial", "non_spatial"), and
    "reason" if there is no score.

    Options: those of the parts.
    """

    name = "three_in_one"
    share = False  # a cosine can be negative
    judges_needed = (*BlipVQA.judges_needed, *Spatial.judges_needed, *NonSpatial.judges_needed)
    Options = ThreeInOneOptions

    def __init__(self, parts: Mapping[str, ImageMetric], chunker: Chunker) -> None:
        self._parts, self._chunker = parts, chunker

    @classmethod
    def check(cls, context: Context) -> None:
        for part in (BlipVQA, Spatial, NonSpatial):
            part.check(context)

    @classmethod
    def load(cls, context: Context) -> ThreeInOne:
        parts = {part.name: part.load(context) for part in (BlipVQA, Spatial, NonSpatial)}
        return cls(parts, find_chunker(cls.options(context).pipeline))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return prompt.category == "complex"

    def describe(self) -> dict[str, Any]:
        parts = {name: part.describe() for name, part in self._parts.items()}
        return {**parts, "adjectives": self._chunker.adjectives, "version": 1}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        kinds = [kind_of(prompt) for prompt in prompts]
        found: list[dict[str, Any]] = [{} for _ in images]
        for name, part in self._parts.items():
            places = [place for place, kind in enumerate(kinds) if name in PARTS[kind]]
            if places:
                asked = [self._prompt_for(name, prompts[place]) for place in places]
                scores = part.score([images[place] for place in places], asked)
                for place, one in zip(places, scores, strict=True):
                    found[place][name] = dict(one)
        return [_mean(kind, values) for kind, values in zip(kinds, found, strict=True)]

    def _prompt_for(self, name: str, prompt: Prompt) -> Prompt:
        """The prompt as a prompt of the part's own category."""
        if name == Spatial.name:
            return prompt.model_copy(update={"category": "spatial"})
        if name == NonSpatial.name:
            text = self._chunker.without_adjectives(prompt.text)
            return prompt.model_copy(update={"category": "non-spatial", "text": text})
        return prompt


def kind_of(prompt: Prompt) -> str:
    """Kind of a prompt, a key of `PARTS`; it decides which parts count.

    Read from the text, a prompt without any of `RELATIONS` is "action"; one with "is", "are", "was" or "were" directly
    before the first of them is "spatial", and any other "spatialaction". For T2I-CompBench's 300 validation prompts
    this is the authors' kind for all but one, whose sun "sank below the horizon".

    Raises:
        LLM4GENError: `about` names another kind.
    """
    if "kind" in prompt.about:
        kind = prompt.about["kind"]
        if kind not in PARTS:
            raise LLM4GENError(f"Prompt {prompt.id!r} is of the kind {kind!r}; expected one of {', '.join(PARTS)}.")
        return str(kind)
    text = prompt.text.lower()
    match = _RELATION.search(text)
    if match is None:
        return "action"
    return "spatial" if _IS.search(text[: match.start()]) else "spatialaction"


def _mean(kind: str, parts: Mapping[str, Scores]) -> Scores:
    values = [part["score"] for part in parts.values()]
    if missing := [f"{name}: {part.get('reason')}" for name, part in parts.items() if part["score"] is None]:
        return {"score": None, "reason": " ".join(missing), "kind": kind, **parts}
    return {"score": sum(values) / len(values), "kind": kind, **parts}
