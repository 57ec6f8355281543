"""Training pairs and prompt sets: scenes with their captions, drawn from a seed.

Training pairs never contain the colour-shape combinations of `scenes.HELD_OUT`, four different objects, or the held-out
wordings of `captions`; the prompt sets named after these contain nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .captions import Caption, counted, listing, paragraph, related, shapes_told
from .scenes import Object, Scene, draw_objects, line_up, place

Drawn = tuple[Scene, Caption]


def pairs(seed: int, dense: float = 0.35) -> Iterator[Drawn]:
    """Yield training scenes and their captions without end.

    Args:
        seed: seed of the pairs.
        dense: share of paragraphs; the other captions are short.
    """
    rng = random.Random(f"pairs {seed}")
    while True:
        yield draw_pair(rng, rng.random() < dense)


def documents(seed: int) -> Iterator[Caption]:
    """Yield captions of all combinations, wordings and numbers of objects without end, for language models."""
    rng = random.Random(f"documents {seed}")
    while True:
        yield draw_pair(rng, rng.random() < 0.35, everything=True)[1]


def draw_pair(rng: random.Random, dense: bool, everything: bool = False) -> Drawn:
    """Draw a scene and a caption of it.

    Args:
        rng: random number generator.
        dense: a paragraph about two objects or more; otherwise any shorter form.
        everything: held-out combinations, wordings and numbers of objects may occur.
    """
    rare = everything and rng.random() < 0.3
    unusual = everything and rng.random() < 0.4
    most = 4 if everything else 3
    if dense:
        scene = place(rng, draw_objects(rng, rng.randint(2, most), rare))
        return scene, paragraph(scene, rng, unusual)
    form = rng.choices(("list", "places", "relation", "shapes", "count"), (35, 20, 20, 10, 15))[0]
    if form == "count":
        return _count(rng, draw_objects(rng, 2, rare), unusual)
    numbers = (2, 2, 2, 3, most) if form == "relation" else (1, 2, 2, 2, 3, most)
    things = draw_objects(rng, rng.choice(numbers), rare)
    if form == "places":
        scene = place(rng, things)
        return scene, listing(scene, rng, held_out=unusual, cells=True)
    if form == "relation":
        scene = _pair_first(things, rng)
        return scene, related(scene, rng, rng.choice((None, None, ())), unusual)
    scene = line_up(things)
    if form == "list":
        return scene, listing(scene, rng, held_out=unusual)
    return scene, shapes_told(scene, rng, unusual)


def _pair_first(things: Sequence[Object], rng: random.Random) -> Scene:
    """Place the second object beside the first or below it."""
    return line_up(things, below=rng.random() < 0.5)


def _count(rng: random.Random, things: list[Object], held_out: bool = False) -> Drawn:
    """Draw two or three equal objects, alone or beside another one."""
    number, others = rng.choice((2, 3)), rng.choice((0, 1))
    scene = line_up([things[0]] * number + [things[1]] * others)
    return scene, counted([(things[0], number), (things[1], 1)][: 1 + others], held_out)


@dataclass(frozen=True)
class PromptSet:
    """A prompt set, which measures one skill.

    Attributes:
        name: name in tables and files.
        title: title in reports.
        draw: draws a prompt; None to draw again.
    """

    name: str
    title: str
    draw: Callable[[random.Random], Caption | None]

    def prompts(self, number: int, seed: int = 0) -> list[Caption]:
        """Return prompts, always the same ones for a seed; the first of more are the same as fewer."""
        rng = random.Random(f"{self.name} {seed}")
        found: list[Caption] = []
        while len(found) < number:
            caption = self.draw(rng)
            if caption is not None:
                found.append(caption)
        return found


def _short(rng: random.Random, count: int = 2, rare: bool = False, unusual: bool = False) -> Caption:
    scene = line_up(draw_objects(rng, count, rare))
    return listing(scene, rng, "color", ("color",), held_out=unusual)


def _texture(rng: random.Random) -> Caption | None:
    things = draw_objects(rng, 2)
    if sorted(thing.texture for thing in things) != ["checkered", "striped"]:
        return None
    return listing(line_up(things), rng, "texture", ("texture",))


def _dense(rng: random.Random, count: int | None = None, rare: bool = False, unusual: bool = False) -> Caption:
    scene = place(rng, draw_objects(rng, 3 if count is None else count, rare))
    return paragraph(scene, rng, unusual)


SETS = {
    one.name: one
    for one in (
        PromptSet("color", "Colour: two objects, a colour each", _short),
        PromptSet(
            "shape",
            "Shape: two things, told by shape and colour",
            lambda d: shapes_told(line_up(draw_objects(d, 2)), d),
        ),
        PromptSet("texture", "Texture: two objects, striped and checkered", _texture),
        PromptSet(
            "spatial",
            "Spatial: one object beside, above or below another",
            lambda d: related(_pair_first(draw_objects(d, 2), d), d),
        ),
        PromptSet("count", "Count: two or three equal objects", lambda d: _count(d, draw_objects(d, 2))[1]),
        PromptSet(
            "complex",
            "Complex: three objects, any attributes, a relation",
            lambda d: related(_pair_first(draw_objects(d, 3), d), d, None),
        ),
        PromptSet("dense", "Dense: paragraphs about three objects", _dense),
        PromptSet("combinations", "Held out: colour-shape combinations", lambda d: _short(d, rare=True)),
        PromptSet("wordings", "Held out: wordings of two coloured objects", lambda d: _short(d, unusual=True)),
        PromptSet("four", "Held out: paragraphs about four objects", lambda d: _dense(d, 4)),
        PromptSet("dense_wordings", "Held out: wordings of paragraphs", lambda d: _dense(d, unusual=True)),
    )
}
"""Prompt sets by name."""

SINGLE = PromptSet("single", "Single: one object with a colour", lambda d: _short(d, 1))
"""The simplest prompts, which the base must master before anything is compared."""
