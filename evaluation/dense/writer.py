"""Writes one prompt about a scene, sentence by sentence.

First comes who or what the prompt is about, what it does and where; then, in an order and by constructions that the
seed decides, what it is like, what stands around it, what lies behind, the light, the view and the style, until the
prompt is as long as it should be. Every sentence is made from the things themselves, so that attributes, their
entities and the questions are known and need not be found in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import backdrop, details, markup, surroundings
from .draw import Draw
from .opening import open_story
from .questions import Questions
from .story import Story
from .vocabulary import Scene, Vocabulary

SHORTEST, LONGEST = 30, 120
"""Words of a prompt."""

Move = Callable[[Story], str | None]

_ABOUT_HERO: Sequence[tuple[Move, float]] = (
    (details.detail, 4.0),
    (details.deed, 1.5),
    (details.more_about, 1.0),
)
_AROUND: Sequence[tuple[Move, float]] = (
    (surroundings.beside, 3.5),
    (surroundings.beside_two, 3.0),
    (surroundings.both_sides, 1.2),
    (surroundings.upon, 3.0),
    (surroundings.zone, 2.5),
    (surroundings.surrounded, 0.8),
    (surroundings.in_picture, 1.8),
    (details.more_about, 0.8),
    (details.detail, 1.0),
)
_FILLING: Sequence[tuple[Move, float]] = ((surroundings.beside, 1.0), (surroundings.in_picture, 1.0))
_TAIL_WORDS = 12
"""Words that a sentence about the picture as a whole takes, about."""


def write(vocabulary: Vocabulary, scene: Scene, draw: Draw, words: int) -> tuple[str, list[markup.Pair], Questions]:
    """One prompt.

    Args:
        vocabulary: everything there is.
        scene: where it is set.
        draw: decides.
        words: that it should have, about.

    Returns:
        Its text, its attribute-entity pairs, and its questions.
    """
    story = Story(vocabulary, scene, draw)
    styled = draw.weighted((("first", 4.0), ("last", 3.0), ("never", 2.0)))
    story.styled = styled != "never"
    open_story(story, styled == "first")
    tail: list[Move] = draw.shuffled((backdrop.background, backdrop.light, backdrop.view))
    tail = tail[: draw.between(1, 3)]
    if styled == "last":
        tail.append(backdrop.style)
    if len(tail) > 1 and draw.chance(0.25):  # some begin with the light or the background
        _add(story, tail.pop(0))
    for _ in range(draw.between(1, 2)):
        _add(story, draw.weighted(_ABOUT_HERO))
    last: Move | None = None
    for _ in range(12):
        if story.words + _TAIL_WORDS * len(tail) >= words:
            break
        last = draw.weighted([choice for choice in _AROUND if choice[0] != last])
        _add(story, last)
    for move in tail:
        _add(story, move)
    for _ in range(20):
        if story.words >= SHORTEST + 2:
            break
        _add(story, draw.weighted(_FILLING))
    return (*markup.resolve(story.sentences), story.questions)


def _add(story: Story, move: Move) -> None:
    """Add a sentence where there is room for the longest one."""
    if story.words > LONGEST - 35:
        return
    sentence = move(story)
    if sentence:
        story.add(sentence)
        if move in (details.detail, details.deed):
            story.subject = story.hero
        elif move != details.more_about:
            story.subject = None
