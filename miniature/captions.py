"""Captions of scenes, from "a red circle and a blue square" to paragraphs, with the objects and bindings they ask for.

A caption that names no places lists objects in reading order from the top left. Then nothing but sizes and textures is
left to guess, which makes learning several times faster than with objects in random places.

The attribute-entity pairs of a caption and what an image must show are known by construction; nothing is parsed. Some
wordings (`held_out`) describe no training image, but language models may have read them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .scenes import Object, Scene

WORDS = tuple(
    "a above an and appear are bearing below blue bottom checkered checks circle circles cross "
    "cross-shaped crosses cyan dark diamond diamond-shaped diamonds empty exactly figures four green ground "
    "has here image in is it large left lies lower no object objects of on orange over pattern picture plain "
    "purple red rest right ring ring-shaped rings round scene see shows side simple sits small something square "
    "squares striped stripes that the there thing things this three to together top triangle triangles triangular "
    "two under upper we what white with yellow".split()
)
"""All words of captions. The language models know each as one token; CLIP splits some, as real ones do."""

CATEGORIES = ("color", "shape", "texture", "spatial", "count", "complex", "dense")
"""Categories of captions; all but the last are T2I-CompBench's."""

RELATIONS = ("left", "right", "above", "below")

ADJECTIVES = {
    "circle": "round",
    "square": "square",
    "triangle": "triangular",
    "cross": "cross-shaped",
    "diamond": "diamond-shaped",
    "ring": "ring-shaped",
}
PATTERNS = {"striped": "stripes", "checkered": "checks"}
SIDES = {
    "left": ("to the left of", "on the left side of"),
    "right": ("to the right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Words of a relation: in training captions, and held out."""
_PLURALS = {"cross": "crosses"}
_NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class Ask:
    """Objects that an image must show; None stands for anything.

    Attributes:
        shape, color, texture, size, cell: required of each of them.
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
    """A text and its meaning.

    Attributes:
        text: lower-case words and punctuation.
        category: one of `CATEGORIES`.
        pairs: (start, end) of an attribute and of its entity, in characters of `text`.
        asks: objects that an image must show.
        relations: (i, relation, j): object i of `asks` is left of, right of, above or below object j.
    """

    text: str
    category: str
    pairs: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    asks: tuple[Ask, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


def _caption(
    marked: str, category: str, asks: Iterable[Ask], relations: tuple[tuple[int, str, int], ...] = ()
) -> Caption:
    """Caption of a marked text, in which "[red 1]" is an attribute of object 1 and "[circle 1 *]" is the entity."""
    text = ""
    attributes: list[tuple[tuple[int, int], str]] = []
    entities = {}
    for number, part in enumerate(re.split(r"\[([^]]+)]", marked)):
        word, *mark = part.split() if number % 2 else [part]
        span = len(text), len(text) + len(word)
        text += word
        if len(mark) == 2:
            entities[mark[0]] = span
        elif mark:
            attributes.append((span, mark[0]))
    pairs = tuple((span, entities[name]) for span, name in attributes)
    return Caption(text, category, pairs, tuple(asks), relations)


def _join(parts: Sequence[str], last: str = "and") -> str:
    """Join parts as in "x, y and z"."""
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}" if len(parts) > 1 else parts[0]


def cell_name(cell: tuple[int, int], held_out: bool = False) -> str:
    """Name a cell of a grid of two by two: "top left" and the like; held out: "upper left"."""
    row, column = cell
    return f"{(('upper', 'lower') if held_out else ('top', 'bottom'))[row]} {('left', 'right')[column]}"


def article(word: str) -> str:
    """Return "a" or "an", as the word needs."""
    return "an" if word[0] in "aeiou" else "a"


def holds(relation: str, cell: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether `cell` is on that side of `other`."""
    return {
        "left": cell[1] < other[1],
        "right": cell[1] > other[1],
        "above": cell[0] < other[0],
        "below": cell[0] > other[0],
    }[relation]


def _marked(words: Iterable[str], number: int) -> list[str]:
    """Mark the words that are not empty as attributes of an object."""
    return [f"[{word} {number}]" for word in words if word]


def _noun_phrase(number: int, thing: Object, told: set[str], rng: random.Random, held_out: bool) -> str:
    """Return "a small striped red circle" and the like, with those of color, texture and size that are in `told`."""
    size, texture, color = (getattr(thing, name) if name in told else "" for name in ("size", "texture", "color"))
    pattern = PATTERNS.get(texture, "")
    if held_out:
        form = "in" if color or pattern else "before"
    else:
        form = rng.choice(["before", "before", "that"] + (["with"] if pattern else []))
    before = {
        "before": (size, texture, color),
        "with": (size, color),
        "that": (),
        "in": (size, "" if pattern else texture),
    }[form]
    first = next(filter(None, before), thing.shape)
    phrase = " ".join([article(first), *_marked(before, number), f"[{thing.shape} {number} *]"])
    if form == "that" and told:
        phrase += f" that is {_join(_marked((size, color, texture), number))}"
    after = {"with": [("with", pattern)], "in": [("in", color), ("bearing", pattern)]}.get(form, [])
    return phrase + "".join(f" {preposition} [{word} {number}]" for preposition, word in after if word)


def _ask(thing: Object, told: set[str], cell: tuple[int, int] | None = None) -> Ask:
    return Ask(thing.shape, cell=cell, **{name: getattr(thing, name) for name in told})


def _some(thing: Object, rng: random.Random) -> set[str]:
    """Draw which of color, texture and size to tell of an object."""
    told = {"color"} if rng.random() < 0.8 else set()
    if rng.random() < (0.2 if thing.texture == "plain" else 0.6):
        told.add("texture")
    if rng.random() < 0.35:
        told.add("size")
    return told


def listing(
    scene: Scene,
    rng: random.Random,
    category: str = "complex",
    told: Sequence[str] | None = None,
    held_out: bool = False,
    cells: bool = False,
) -> Caption:
    """Name every object: "a red circle and a small blue square".

    Args:
        scene: what is described.
        rng: wording, and with `cells` the order.
        category: category of the caption.
        told: of "color", "texture" and "size"; by default, some at random for each object.
        held_out: use wordings that describe no training image.
        cells: say of every object where it is; then the scene may have any places.
    """
    items = list(scene.objects)
    if cells:
        rng.shuffle(items)
    chosen = [_some(thing, rng) if told is None else set(told) for _, thing in items]
    last = rng.choice(("and", "and", "together with")) if held_out else "and"
    parts = []
    for number, ((cell, thing), words) in enumerate(zip(items, chosen, strict=True)):
        phrase = _noun_phrase(number, thing, words, rng, held_out)
        parts.append(f"{phrase} in the {cell_name(cell, held_out)}" if cells else phrase)
    asks = [_ask(thing, words, cell if cells else None) for (cell, thing), words in zip(items, chosen, strict=True)]
    return _caption(_join(parts, last), category, asks)


def shapes_told(scene: Scene, rng: random.Random, held_out: bool = False) -> Caption:
    """Name objects with the shape as an attribute: "a round red thing and a triangular blue thing"."""
    parts = []
    for number, (_, thing) in enumerate(scene.objects):
        shape, color = _marked((ADJECTIVES[thing.shape], thing.color), number)
        if held_out:
            parts.append(f"[something {number} *] {shape} in {color}")
        else:
            noun = rng.choice(("thing", "object"))
            parts.append(f"{article(ADJECTIVES[thing.shape])} {shape} {color} [{noun} {number} *]")
    return _caption(_join(parts), "shape", [Ask(thing.shape, thing.color) for _, thing in scene.objects])


def related(scene: Scene, rng: random.Random, told: Sequence[str] | None = (), held_out: bool = False) -> Caption:
    """Relate the object at the top left to one beside or below it: "a circle to the left of a square".

    Args: see `listing`, for a scene of `line_up`; other objects are appended in reading order ("and a ring").
    """
    (corner, first), *others = scene.objects
    other = rng.choice([item for item in others if 0 in item[0]])
    rest = [item for item in others if item is not other]
    pair = [(corner, first), other]
    rng.shuffle(pair)
    items = [*pair, *rest]
    [relation] = [relation for relation in RELATIONS if holds(relation, pair[0][0], pair[1][0])]
    text, asks = "", []
    for number, (_, thing) in enumerate(items):
        words = _some(thing, rng) if told is None else set(told)
        between = ["", f" {SIDES[relation][held_out]} ", " and " if number == len(items) - 1 else ", "][min(number, 2)]
        text += between + _noun_phrase(number, thing, words, rng, held_out)
        asks.append(_ask(thing, words))
    category = "complex" if rest or told is None else "spatial"
    return _caption(text, category, asks, ((0, relation, 1),))


def counted(things: Sequence[tuple[Object, int]], held_out: bool = False) -> Caption:
    """Count objects: "three red circles and a green square".

    Args:
        things: objects, and how many of each.
        held_out: use wordings that describe no training image.
    """
    parts = []
    for number, (thing, count) in enumerate(things):
        plural = _PLURALS.get(thing.shape, thing.shape + "s")
        start, noun = (article(thing.color), thing.shape) if count == 1 else (_NUMBERS[count], plural)
        exactly = "exactly " if held_out and count > 1 else ""
        parts.append(f"{exactly}{start} [{thing.color} {number}] [{noun} {number} *]")
    return _caption(_join(parts), "count", [Ask(thing.shape, thing.color, count=count) for thing, count in things])


def paragraph(scene: Scene, rng: random.Random, held_out: bool = False) -> Caption:
    """Describe every object, its attributes and its place in sentences, with pronouns and repetitions."""
    items = list(scene.objects)
    rng.shuffle(items)
    count = _NUMBERS[len(items)]
    openings: tuple[str, ...] = (
        f"the picture shows {count} objects on a dark ground.",
        f"there are {count} things in this image.",
        "this is a simple picture with a dark ground.",
    )
    if held_out:
        openings = (f"here we see {count} figures.", f"{count} figures appear in this scene.")
    sentences = [rng.choice(openings)]
    sentences += [_description(n, cell, thing, rng, held_out) for n, (cell, thing) in enumerate(items)]
    relations: dict[str, None] = {}
    while len(relations) < 2:
        (cell, first), (other, second) = rng.sample(items, 2)
        held = [relation for relation in RELATIONS if holds(relation, cell, other)]
        relations[f"the {first.shape} is {SIDES[rng.choice(held)][held_out]} the {second.shape}."] = None
    sentences += relations
    if rng.random() < 0.5:
        sentences.append("the rest of the picture is empty.")
    asks = [_ask(thing, {"color", "texture", "size"}, cell) for cell, thing in items]
    return _caption(" ".join(sentences), "dense", asks)


def _description(number: int, cell: tuple[int, int], thing: Object, rng: random.Random, held_out: bool) -> str:
    """Return two sentences about an object."""
    where = f"in the {cell_name(cell, held_out)}"
    rest = [thing.size, thing.texture, thing.color]
    rng.shuffle(rest)
    first = rest[: rng.choice((0, 1, 2))]
    later = rest[len(first) :]
    form = rng.choice(("there", "stands", "the"))
    start = f"{where} {'lies' if held_out else 'there is'} " if form == "there" else ""
    end = "" if form == "there" else f" {'sits' if held_out else 'is'} {where}"
    determiner = "the" if form == "the" else article([*first, thing.shape][0])
    phrase = " ".join([determiner, *_marked(first, number), f"[{thing.shape} {number} *]"])
    subject = "it is" if rng.random() < 0.6 else f"this {thing.shape} is"
    return f"{start}{phrase}{end}. {subject} {_join(_marked(later, number))}."
