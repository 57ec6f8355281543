"""Captions of scenes: from "a red circle and a blue square" to paragraphs, with what they ask for and bind.

A caption that tells no places names things in reading order from the top left. So a picture of it has nothing to guess
but sizes and textures, which makes learning to paint several times faster than things in random places do.

A caption knows its attribute-entity pairs and what an image must show by construction, so neither has to be parsed.
Some wordings (`held_out`) describe no training image; a language model may have read them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from .scenes import Object, Scene

CATEGORIES = ("color", "shape", "texture", "spatial", "count", "complex", "dense")
"""Of captions; all but the last are T2I-CompBench's."""

RELATIONS = ("left", "right", "above", "below")

ADJECTIVES = {
    "circle": "round",
    "square": "square",
    "triangle": "triangular",
    "cross": "cross-shaped",
    "diamond": "diamond-shaped",
    "ring": "ring-shaped",
}
_PLURALS = {"cross": "crosses"}
PATTERNS = {"striped": "stripes", "checkered": "checks"}
_NUMBERS = ("no", "one", "two", "three", "four")
SIDES = {
    "left": ("to the left of", "on the left side of"),
    "right": ("to the right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Words of a relation: of training captions, and held out."""


@dataclass(frozen=True)
class Ask:
    """Objects that an image must show; None stands for anything.

    Attributes:
        shape, color, texture, size, cell: of each of them.
        count: how many.
    """

    shape: str | None = None
    color: str | None = None
    texture: str | None = None
    size: str | None = None
    cell: tuple[int, int] | None = None
    count: int = 1


@dataclass(frozen=True)
class Caption:
    """A text and what it means.

    Attributes:
        text: lower-case words and punctuation.
        category: one of `CATEGORIES`.
        pairs: (start, end) of an attribute and of its entity, in characters of `text`.
        asks: what an image must show.
        relations: (i, relation, j): object i of `asks` is left of, right of, above or below object j.
    """

    text: str
    category: str
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    asks: tuple[Ask, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


@dataclass
class _Text:
    """A text that grows by words; spans are of single words."""

    text: str = ""
    pairs: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)

    def add(self, words: str) -> tuple[int, int]:
        """Append words and return their span; punctuation follows without a space."""
        if self.text and words[0] not in ",.":
            self.text += " "
        start = len(self.text)
        self.text += words
        return start, len(self.text)

    def bind(self, attributes: Sequence[tuple[int, int]], entity: tuple[int, int]) -> None:
        self.pairs += [(attribute, entity) for attribute in attributes]


def cell_name(cell: tuple[int, int], held_out: bool = False) -> str:
    """ "top left" and the like; held out: "upper left". Of a grid of two by two."""
    row, column = cell
    return f"{(('upper', 'lower') if held_out else ('top', 'bottom'))[row]} {('left', 'right')[column]}"


def article(word: str) -> str:
    """ "a" or "an", as the word wants it."""
    return "an" if word[0] in "aeiou" else "a"


def _noun_phrase(text: _Text, thing: Object, told: set[str], draws: random.Random, held_out: bool) -> None:
    """ "a small striped red circle" and the like, telling those of colour, texture and size that are in `told`."""
    texture = thing.texture if "texture" in told else ""
    color = thing.color if "color" in told else ""
    size = thing.size if "size" in told else ""
    pattern = PATTERNS.get(texture, "")
    if held_out:
        form = "in" if color or pattern else "before"
    else:
        form = draws.choice(["before", "before", "that"] + (["with"] if pattern else []))
    if form == "before":
        words = [word for word in (size, texture, color) if word]
        text.add(article((words + [thing.shape])[0]))
        spans = [text.add(word) for word in words]
        text.bind(spans, text.add(thing.shape))
    elif form == "with":
        words = [word for word in (size, color) if word]
        text.add(article((words + [thing.shape])[0]))
        spans = [text.add(word) for word in words]
        entity = text.add(thing.shape)
        text.add("with")
        text.bind([*spans, text.add(pattern)], entity)
    elif form == "that":
        text.add(article(thing.shape))
        entity = text.add(thing.shape)
        words = [word for word in (size, color, texture) if word]
        if words:
            text.add("that is")
            text.bind(_listed(text, words), entity)
    else:
        words = [word for word in (size, "" if pattern else texture) if word]
        text.add(article((words + [thing.shape])[0]))
        spans = [text.add(word) for word in words]
        entity = text.add(thing.shape)
        if color:
            text.add("in")
            spans.append(text.add(color))
        if pattern:
            text.add("bearing")
            spans.append(text.add(pattern))
        text.bind(spans, entity)


def _listed(text: _Text, words: Sequence[str]) -> list[tuple[int, int]]:
    """ "small, red and striped"."""
    spans = []
    for number, word in enumerate(words):
        if number:
            text.add("and" if number == len(words) - 1 else ",")
        spans.append(text.add(word))
    return spans


def _join(text: _Text, parts: Sequence[Callable[[], None]], last: str = "and") -> None:
    """ "x, y and z"."""
    for number, part in enumerate(parts):
        if number:
            text.add(last if number == len(parts) - 1 else ",")
        part()


def _ask(thing: Object, told: set[str], cell: tuple[int, int] | None = None) -> Ask:
    return Ask(
        thing.shape,
        thing.color if "color" in told else None,
        thing.texture if "texture" in told else None,
        thing.size if "size" in told else None,
        cell,
    )


def listing(
    scene: Scene,
    draws: random.Random,
    category: str = "complex",
    told: Sequence[str] | None = None,
    held_out: bool = False,
    cells: bool = False,
) -> Caption:
    """ "a red circle and a small blue square": every object by its noun.

    Args:
        scene: what is described.
        draws: wording, and with `cells` the order.
        category: of the caption.
        told: of "color", "texture" and "size"; by default, some at random for each object.
        held_out: use wordings that describe no training image.
        cells: say of every object where it is; the scene may have any places then.
    """
    text = _Text()
    items = list(scene.objects)
    if cells:
        draws.shuffle(items)
    asks = []
    parts: list[Callable[[], None]] = []
    for cell, thing in items:
        chosen = _some(thing, draws) if told is None else set(told)

        def part(cell: tuple[int, int] = cell, thing: Object = thing, chosen: set[str] = chosen) -> None:
            _noun_phrase(text, thing, chosen, draws, held_out)
            if cells:
                text.add(f"in the {cell_name(cell, held_out)}")

        parts.append(part)
        asks.append(_ask(thing, chosen, cell if cells else None))
    _join(text, parts, draws.choice(("and", "and", "together with")) if held_out else "and")
    return Caption(text.text, category, tuple(text.pairs), tuple(asks))


def _some(thing: Object, draws: random.Random) -> set[str]:
    told = {"color"} if draws.random() < 0.8 else set()
    if draws.random() < (0.2 if thing.texture == "plain" else 0.6):
        told.add("texture")
    if draws.random() < 0.35:
        told.add("size")
    return told


def shapes_told(scene: Scene, draws: random.Random, held_out: bool = False) -> Caption:
    """ "a round red thing and a triangular blue thing": the shape is the attribute."""
    text = _Text()

    def part(thing: Object) -> None:
        shape = ADJECTIVES[thing.shape]
        if held_out:
            entity = text.add("something")
            spans = [text.add(shape)]
            text.add("in")
            text.bind([*spans, text.add(thing.color)], entity)
            return
        text.add(article(shape))
        spans = [text.add(shape), text.add(thing.color)]
        text.bind(spans, text.add(draws.choice(("thing", "object"))))

    _join(text, [partial(part, thing) for _, thing in scene.objects])
    asks = tuple(Ask(thing.shape, thing.color) for _, thing in scene.objects)
    return Caption(text.text, "shape", tuple(text.pairs), asks)


def related(scene: Scene, draws: random.Random, told: Sequence[str] | None = (), held_out: bool = False) -> Caption:
    """ "a circle to the left of a square", of the object at the top left and one beside or below it.

    Args: as of `listing`, of a scene of `line_up`; other objects are appended in reading order ("and a ring").
    """
    (corner, first), *others = scene.objects
    other = draws.choice([item for item in others if 0 in item[0]])
    rest = [item for item in others if item is not other]
    pair = [(corner, first), other]
    draws.shuffle(pair)
    items = [*pair, *rest]
    [relation] = [relation for relation in RELATIONS if holds(relation, pair[0][0], pair[1][0])]
    text = _Text()
    asks = []
    for number, (_, thing) in enumerate(items):
        chosen = _some(thing, draws) if told is None else set(told)
        if number == 1:
            text.add(SIDES[relation][held_out])
        elif number > 1:
            text.add("and" if number == len(items) - 1 else ",")
        _noun_phrase(text, thing, chosen, draws, held_out)
        asks.append(_ask(thing, chosen))
    category = "complex" if rest or told is None else "spatial"
    return Caption(text.text, category, tuple(text.pairs), tuple(asks), ((0, relation, 1),))


def holds(relation: str, cell: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether `cell` is on that side of `other`."""
    return {
        "left": cell[1] < other[1],
        "right": cell[1] > other[1],
        "above": cell[0] < other[0],
        "below": cell[0] > other[0],
    }[relation]


def counted(things: Sequence[tuple[Object, int]], draws: random.Random, held_out: bool = False) -> Caption:
    """ "three red circles and a square".

    Args:
        things: what, and how many of it.
        draws: wording.
        held_out: use wordings that describe no training image.
    """
    text = _Text()
    asks = []

    def part(thing: Object, count: int) -> None:
        number = _NUMBERS[count]
        text.add(f"exactly {number}" if held_out and count > 1 else number if count > 1 else "a")
        noun = thing.shape if count == 1 else _PLURALS.get(thing.shape, thing.shape + "s")
        if count == 1:
            text.text = text.text[: -len("a")] + article(thing.color)
        spans = [text.add(thing.color)]
        text.bind(spans, text.add(noun))

    parts: list[Callable[[], None]] = []
    for thing, count in things:
        parts.append(partial(part, thing, count))
        asks.append(Ask(thing.shape, thing.color, count=count))
    _join(text, parts)
    return Caption(text.text, "count", tuple(text.pairs), tuple(asks))


def paragraph(scene: Scene, draws: random.Random, held_out: bool = False) -> Caption:
    """Sentences about every object, its attributes and its place, with pronouns and repetitions; objects differ."""
    text = _Text()
    items = list(scene.objects)
    draws.shuffle(items)
    count = _NUMBERS[len(items)]
    if held_out:
        text.add(draws.choice((f"here we see {count} figures.", f"{count} figures appear in this scene.")))
    else:
        text.add(
            draws.choice(
                (
                    f"the picture shows {count} objects on a dark ground.",
                    f"there are {count} things in this image.",
                    "this is a simple picture with a dark ground.",
                )
            )
        )
    for cell, thing in items:
        _describe(text, cell, thing, draws, held_out)
    sentences: dict[str, None] = {}
    while len(sentences) < 2:
        (cell, first), (other, second) = draws.sample(items, 2)
        held = [relation for relation in RELATIONS if holds(relation, cell, other)]
        sentences[f"the {first.shape} is {SIDES[draws.choice(held)][held_out]} the {second.shape}."] = None
    for sentence in sentences:
        text.add(sentence)
    if draws.random() < 0.5:
        text.add("the rest of the picture is empty.")
    told = {"color", "texture", "size"}
    asks = tuple(_ask(thing, told, cell) for cell, thing in items)
    return Caption(text.text, "dense", tuple(text.pairs), asks)


def _describe(text: _Text, cell: tuple[int, int], thing: Object, draws: random.Random, held_out: bool) -> None:
    """Two sentences about an object of a paragraph."""
    where = f"in the {cell_name(cell, held_out)}"
    rest = [thing.size, thing.texture, thing.color]
    draws.shuffle(rest)
    first = rest[: draws.choice((0, 1, 2))]
    later = rest[len(first) :]
    form = draws.choice(("there", "stands", "the"))
    if form == "there":
        text.add(f"{where} {'lies' if held_out else 'there is'}")
    if form == "the":
        text.add("the")
    else:
        text.add(article((first + [thing.shape])[0]))
    spans = [text.add(word) for word in first]
    entity = text.add(thing.shape)
    text.bind(spans, entity)
    if form != "there":
        text.add(f"{'sits' if held_out else 'is'} {where}")
    text.add(".")
    text.add("it is" if draws.random() < 0.6 else f"this {thing.shape} is")
    text.bind(_listed(text, later), entity)
    text.add(".")
