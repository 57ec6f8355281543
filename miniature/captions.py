"""Captions of scenes, from "a red circle and a blue square" to paragraphs, with the objects and bindings they ask for.

A caption that names no places lists objects in reading order from the top left. Then nothing but sizes and textures is
left to guess, which makes learning several times faster than with objects in random places.

The attribute-entity pairs of a caption and what an image must show are known by construction; nothing is parsed. Some
wordings (`held_out`) describe no training image, but language models may have read them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

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

    def add_list(self, parts: Sequence[Callable[[], None]], last: str = "and") -> None:
        """Append parts as in "x, y and z"."""
        for number, part in enumerate(parts):
            if number:
                self.add(last if number == len(parts) - 1 else ",")
            part()

    def add_words(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Append a list of words, as in "small, red and striped", and return their spans."""
        spans: list[tuple[int, int]] = []

        def part(word: str) -> None:
            spans.append(self.add(word))

        self.add_list([partial(part, word) for word in words])
        return spans

    def bind(self, attributes: Sequence[tuple[int, int]], entity: tuple[int, int]) -> None:
        """Record that attributes belong to an entity."""
        self.pairs += [(attribute, entity) for attribute in attributes]


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


def _noun_phrase(text: _Text, thing: Object, told: set[str], draws: random.Random, held_out: bool) -> None:
    """Add "a small striped red circle" and the like, with those of color, texture and size that are in `told`."""
    size, texture, color = (getattr(thing, name) if name in told else "" for name in ("size", "texture", "color"))
    pattern = PATTERNS.get(texture, "")
    if held_out:
        form = "in" if color or pattern else "before"
    else:
        form = draws.choice(["before", "before", "that"] + (["with"] if pattern else []))
    before = {
        "before": (size, texture, color),
        "with": (size, color),
        "that": (),
        "in": (size, "" if pattern else texture),
    }
    words = [word for word in before[form] if word]
    text.add(article([*words, thing.shape][0]))
    spans = [text.add(word) for word in words]
    entity = text.add(thing.shape)
    if form == "that" and told:
        text.add("that is")
        spans += text.add_words([word for word in (size, color, texture) if word])
    after = {"with": [("with", pattern)], "in": [("in", color), ("bearing", pattern)]}
    for preposition, word in after.get(form, []):
        if word:
            text.add(preposition)
            spans.append(text.add(word))
    text.bind(spans, entity)


def _ask(thing: Object, told: set[str], cell: tuple[int, int] | None = None) -> Ask:
    return Ask(thing.shape, cell=cell, **{name: getattr(thing, name) for name in told})


def _some(thing: Object, draws: random.Random) -> set[str]:
    """Draw which of color, texture and size to tell of an object."""
    told = {"color"} if draws.random() < 0.8 else set()
    if draws.random() < (0.2 if thing.texture == "plain" else 0.6):
        told.add("texture")
    if draws.random() < 0.35:
        told.add("size")
    return told


def listing(
    scene: Scene,
    draws: random.Random,
    category: str = "complex",
    told: Sequence[str] | None = None,
    held_out: bool = False,
    cells: bool = False,
) -> Caption:
    """Name every object: "a red circle and a small blue square".

    Args:
        scene: what is described.
        draws: wording, and with `cells` the order.
        category: category of the caption.
        told: of "color", "texture" and "size"; by default, some at random for each object.
        held_out: use wordings that describe no training image.
        cells: say of every object where it is; then the scene may have any places.
    """
    text = _Text()
    items = list(scene.objects)
    if cells:
        draws.shuffle(items)

    def part(cell: tuple[int, int], thing: Object, chosen: set[str]) -> None:
        _noun_phrase(text, thing, chosen, draws, held_out)
        if cells:
            text.add(f"in the {cell_name(cell, held_out)}")

    chosen = [(cell, thing, _some(thing, draws) if told is None else set(told)) for cell, thing in items]
    last = draws.choice(("and", "and", "together with")) if held_out else "and"
    text.add_list([partial(part, *item) for item in chosen], last)
    asks = tuple(_ask(thing, words, cell if cells else None) for cell, thing, words in chosen)
    return Caption(text.text, category, tuple(text.pairs), asks)


def shapes_told(scene: Scene, draws: random.Random, held_out: bool = False) -> Caption:
    """Name objects with the shape as an attribute: "a round red thing and a triangular blue thing"."""
    text = _Text()

    def part(thing: Object) -> None:
        shape = ADJECTIVES[thing.shape]
        if held_out:
            entity = text.add("something")
            spans = [text.add(shape)]
            text.add("in")
            text.bind([*spans, text.add(thing.color)], entity)
        else:
            text.add(article(shape))
            spans = [text.add(shape), text.add(thing.color)]
            text.bind(spans, text.add(draws.choice(("thing", "object"))))

    text.add_list([partial(part, thing) for _, thing in scene.objects])
    asks = tuple(Ask(thing.shape, thing.color) for _, thing in scene.objects)
    return Caption(text.text, "shape", tuple(text.pairs), asks)


def related(scene: Scene, draws: random.Random, told: Sequence[str] | None = (), held_out: bool = False) -> Caption:
    """Relate the object at the top left to one beside or below it: "a circle to the left of a square".

    Args: see `listing`, for a scene of `line_up`; other objects are appended in reading order ("and a ring").
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


def counted(things: Sequence[tuple[Object, int]], held_out: bool = False) -> Caption:
    """Count objects: "three red circles and a green square".

    Args:
        things: objects, and how many of each.
        held_out: use wordings that describe no training image.
    """
    text = _Text()

    def part(thing: Object, count: int) -> None:
        if count == 1:
            text.add(article(thing.color))
        else:
            text.add(f"exactly {_NUMBERS[count]}" if held_out else _NUMBERS[count])
        spans = [text.add(thing.color)]
        text.bind(spans, text.add(thing.shape if count == 1 else _PLURALS.get(thing.shape, thing.shape + "s")))

    text.add_list([partial(part, *thing) for thing in things])
    asks = tuple(Ask(thing.shape, thing.color, count=count) for thing, count in things)
    return Caption(text.text, "count", tuple(text.pairs), asks)


def paragraph(scene: Scene, draws: random.Random, held_out: bool = False) -> Caption:
    """Describe every object, its attributes and its place in sentences, with pronouns and repetitions."""
    text = _Text()
    items = list(scene.objects)
    draws.shuffle(items)
    count = _NUMBERS[len(items)]
    openings: tuple[str, ...] = (
        f"the picture shows {count} objects on a dark ground.",
        f"there are {count} things in this image.",
        "this is a simple picture with a dark ground.",
    )
    if held_out:
        openings = (f"here we see {count} figures.", f"{count} figures appear in this scene.")
    text.add(draws.choice(openings))
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
    asks = tuple(_ask(thing, {"color", "texture", "size"}, cell) for cell, thing in items)
    return Caption(text.text, "dense", tuple(text.pairs), asks)


def _describe(text: _Text, cell: tuple[int, int], thing: Object, draws: random.Random, held_out: bool) -> None:
    """Add two sentences about an object."""
    where = f"in the {cell_name(cell, held_out)}"
    rest = [thing.size, thing.texture, thing.color]
    draws.shuffle(rest)
    first = rest[: draws.choice((0, 1, 2))]
    later = rest[len(first) :]
    form = draws.choice(("there", "stands", "the"))
    if form == "there":
        text.add(f"{where} {'lies' if held_out else 'there is'}")
    text.add("the" if form == "the" else article([*first, thing.shape][0]))
    spans = [text.add(word) for word in first]
    entity = text.add(thing.shape)
    text.bind(spans, entity)
    if form != "there":
        text.add(f"{'sits' if held_out else 'is'} {where}")
    text.add(".")
    text.add("it is" if draws.random() < 0.6 else f"this {thing.shape} is")
    text.bind(text.add_words(later), entity)
    text.add(".")
