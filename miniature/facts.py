"""Sentences that repeat what a caption says: the redundancy of real text, from which language models learn to bind.

"a red circle and a blue square. the color of the square is blue. the red thing is a circle." To predict the last word
of such a sentence a model must know which attribute belongs to which object.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .captions import ADJECTIVES, SIDES, Ask, Caption, article, cell_name

FACT_WORDS = ("color", "shape", "size")
"""Words of facts that no caption contains."""
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Fact:
    """A sentence about a caption.

    Attributes:
        text: such as "the circle is red."
        answer: (start, end) of "red", in characters of `text`; it may be several words.
        kind: what is told: shape, color, texture, size, cell or relation.
    """

    text: str
    answer: tuple[int, int]
    kind: str


def facts(caption: Caption, rng: random.Random, number: int) -> list[Fact]:
    """Draw facts that follow from a caption, in the wordings of all captions, held-out ones too.

    Args:
        caption: with objects of different shapes and colours; nothing follows from one of category "count".
        rng: which facts, and their wording.
        number: facts to try; an object of which only one thing is known gives none.
    """
    if caption.category == "count":
        return []
    found = []
    for _ in range(number):
        if caption.relations and rng.random() < 0.2:
            i, relation, j = rng.choice(caption.relations)
            side = SIDES[_OPPOSITE[relation]][rng.random() < 0.4]
            found.append(_fact(f"the {caption.asks[j].shape} is {side} the", str(caption.asks[i].shape), "relation"))
            continue
        choices = _choices(rng.choice(caption.asks), rng)
        if choices:
            found.append(_fact(*rng.choice(choices)))
    return found


def color_of(ask: Ask) -> Fact:
    """Return the simplest fact about an object of known colour: "the circle is red."."""
    return _fact(f"the {ask.shape} is", str(ask.color), "color")


def _fact(beginning: str, answer: str, kind: str) -> Fact:
    start = len(beginning) + 1
    return Fact(f"{beginning} {answer}.", (start, start + len(answer)), kind)


def _choices(ask: Ask, rng: random.Random) -> list[tuple[str, str, str]]:
    """List what can be said of an object: (beginning of a sentence, its last words, kind).

    The beginning says what kind of answer follows. After "the circle is ..." nobody could know whether a colour or a
    size is meant, and a model would learn to guess.
    """
    assert ask.shape is not None
    place = None if ask.cell is None else cell_name(ask.cell, rng.random() < 0.4)
    subjects = {"shape": f"the {ask.shape}"}
    if ask.color:
        subjects["color"] = f"the {ask.color} {rng.choice(('thing', 'object'))}"
    if place:
        subjects["cell"] = f"what is in the {place}"
    known = rng.choice(sorted(subjects))
    subject = subjects[known]
    found = []
    if known != "shape":
        found += [(f"{subject} is {article(ask.shape)}", ask.shape, "shape")]
        found += [(f"the shape of {subject} is", ADJECTIVES[ask.shape], "shape")]
    if known != "color" and ask.color:
        found += [(f"the color of {subject} is", ask.color, "color")] * 2
    if known != "cell" and place:
        found += [(f"{subject} is in the", place, "cell")] * 2
    if ask.texture:
        found.append((f"the pattern of {subject} is", ask.texture, "texture"))
    if ask.size:
        found.append((f"the size of {subject} is", ask.size, "size"))
    return found
