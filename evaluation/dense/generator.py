"""Dense prompts of ours, made by rules: the paper's own set is not public.

DensePrompts (LLM4GEN, "DensePrompts Benchmark") has more than 7,000 prompts of more than 40 words on average, written
by GPT-4 from descriptions of 100 images. These here are another set, as long, dense and varied, but written by a
grammar, so that what belongs to what is known and not parsed. Scores on it do not compare with the paper's.

Every prompt carries, in `Prompt.about`,

    pairs: [{"attribute": [start, end], "entity": [start, end]}, ...], characters of the text as in
        `llm4gen_core.entities.Span`. Attributes are those of things in the picture, wherever the text says them ("a red
        cat", "its eyes are green", "made of oak", "with stripes"); numbers, positions and the picture's style are none.
        An attribute that is said again of a thing is a pair again.
    questions: [{"id": 1, "category": "entity", "text": "Is there a cat?", "parents": []}, ...], see `questions`.
    scene: name of the setting.

The same seed gives the same prompts on every machine and with every version of Python (see `draw`). A prompt depends on
the seed and on those before it in its category alone, not on how many are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import JsonValue

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .draw import Draw
from .duplicates import NearDuplicates
from .vocabulary import Vocabulary
from .vocabulary_files import load_vocabulary
from .writer import LONGEST, SHORTEST, write

SEED = 1
"""Of the shipped set."""

COUNT = 7200
"""Prompts of the shipped set."""

SIMILAR = 0.5
"""Jaccard similarity of word shingles that no two prompts of a category reach."""

QUESTIONS = 10
"""Questions of a prompt, at most."""

_WORDS = (33, 66)
"""Words that a prompt is meant to have; a sentence that is begun is finished."""

_ATTEMPTS = 50


def generate_prompts(count: int = COUNT, seed: int | str = SEED) -> Iterator[Prompt]:
    """Dense prompts, category by category, as many of each.

    Args:
        count: how many; where it is no multiple of the number of categories, the first ones have one more.
        seed: any number or text.

    Raises:
        LLM4GENError: the count is below 1, or the vocabulary cannot make another prompt that is new.
    """
    if count < 1:
        raise LLM4GENError(f"Dense prompts: a count of {count}; expected at least 1.")
    vocabulary = load_vocabulary()
    categories = sorted(vocabulary.scenes)
    for number, category in enumerate(categories):
        known = NearDuplicates(SIMILAR)
        for place in range(count // len(categories) + (number < count % len(categories))):
            yield _prompt(vocabulary, category, place, str(seed), known)


def _prompt(vocabulary: Vocabulary, category: str, place: int, seed: str, known: NearDuplicates) -> Prompt:
    """The prompt number `place` of a category; its scenes take turns."""
    scene = vocabulary.scenes[category][place % len(vocabulary.scenes[category])]
    name = f"{category}-{place + 1:04d}"
    for attempt in range(_ATTEMPTS):
        draw = Draw(f"{seed}/{name}/{attempt}")
        text, pairs, questions = write(vocabulary, scene, draw, draw.between(*_WORDS))
        if SHORTEST <= len(text.split()) <= LONGEST and known.add(name, text) is None:
            gold: list[JsonValue] = [{"attribute": [*attribute], "entity": [*entity]} for attribute, entity in pairs]
            about: dict[str, JsonValue] = {
                "pairs": gold,
                "questions": questions.chosen(QUESTIONS, draw),
                "scene": scene.name,
            }
            return Prompt(id=name, text=text, category=scene.category, about=about)
    raise LLM4GENError(
        f"Dense prompts: no new prompt of scene {scene.name!r} in {_ATTEMPTS} attempts; ask for fewer, or add words to "
        "the vocabulary."
    )
