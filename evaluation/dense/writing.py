"""What is asked of the builder's models, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from llm4gen_diffusers.provenance import fingerprint

DESCRIBE = """\
Describe this image in as much detail as you can, in one paragraph of 120 to 200 words. Name every object. For each, \
say its color, shape, size, material or texture, and how many there are. Say where the objects are relative to each \
other, what the background is, how the light falls, and in what style the picture is made (a photograph, an oil \
painting, and so on). Write only what can be seen. Do not guess names of people, do not mention text in the image that \
you cannot read, and do not begin with "The image".\
"""

EXPAND = """\
Below is a description of a picture. Write {count} different prompts for a text-to-image model that are inspired by \
it. Every prompt is one English paragraph of 45 to 90 words that describes one complete scene on its own: several \
objects, each with its attributes, their spatial relations, the surroundings, the light and the style. Do not copy the \
description: keep its kind of scene, but change {aspect}. The prompts must differ clearly from each other.
Answer with the {count} prompts alone, one on each line, numbered "1." to "{count}.", without headings or remarks.

Description:
{description}\
"""

ASPECTS = {
    "color": "above all the colors, and give every object a color of its own, so that no two share one",
    "texture": "above all the materials and textures, and say of every object what it is made of or how it feels",
    "count": "above all which objects there are and their numbers, and say exactly how many there are of each",
    "spatial": "above all where things are, and place every object relative to another (left of, behind, on top of)",
    "style": "above all the medium, the style, the light, the season, and the viewpoint",
}
"""What the prompts of one request vary."""


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes:
        text: of the question.
        seed: of the sampling.
        tokens: of the answer, at most.
        temperature: of the sampling; 0 always takes the likeliest token.
        image: that the question is about, in RGB.
    """

    text: str
    seed: int
    tokens: int
    temperature: float
    image: Image.Image | None = None


class Writer(Protocol):
    """A model that answers in words."""

    @property
    def describe(self) -> dict[str, Any]:
        """What a prompt's provenance says of it. JSON values, the same in every sitting."""

    def write(self, request: Request) -> str:
        """The model's answer.

        Raises:
            LLM4GENError: it gives none.
        """


def template_hash(*templates: str) -> str:
    """Sixteen hexadecimal digits of what was asked."""
    return fingerprint(list(templates))


def expansion_text(description: str, aspect: str, count: int) -> str:
    """The request for so many prompts that vary an aspect of `ASPECTS`."""
    return EXPAND.format(count=count, aspect=ASPECTS[aspect], description=description)


_NUMBER = re.compile(r"^\s*(?:[-*•]\s+|\(?\d{1,3}[.):]\s*)")
_FRAME = re.compile(r"^(?:\*\*|[\"“”'`])+|(?:\*\*|[\"“”'`])+$")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)


def split_answer(answer: str) -> list[str]:
    """The prompts of an answer: its numbered paragraphs, or its lines where none has a number.

    What is no prompt stays in it, for the filters to name; thoughts that a model shows are left out.
    """
    lines = [line.strip() for line in _THOUGHT.sub("", answer).splitlines()]
    if any(_NUMBER.match(line) for line in lines):
        parts: list[str] = []
        for line in lines:
            if _NUMBER.match(line) or not parts:
                parts.append(_NUMBER.sub("", line))
            elif line:  # a model that breaks its lines
                parts[-1] += f" {line}"
    else:
        parts = lines
    cleaned = (" ".join(_FRAME.sub("", part.strip()).split()) for part in parts)
    return [part for part in cleaned if part]
