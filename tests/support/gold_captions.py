"""Captions whose attribute-entity pairs are known, because they are built from them.

A template is a sentence with slots and the pairs of slots that belong together. Some nouns are invented, and some
adjectives are held out of the parser's word lists (a test checks it), so that knowing the lists by heart is no help.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words(
    "big small tall tiny huge round square old new fluffy shiny wooden soft smooth rough striped dirty wet "
    "ancient modern beautiful cute furry rusty empty thin long curved golden metallic ornate happy sad"
)
HELD_OUT_ADJECTIVES = _words(
    "mossy pebbly cavernous bulbous luminous fanciful graceless spotless conic volcanic prismatic botanical floury "
    "skeletal bluish-green coppery frothy cubistic reptilian-like spiderlike reversible collapsible festive "
    "opalescent radiant bookish knobbly svelte gaunt sunlit"
)
COLORS = _words("red blue green yellow black white brown purple pink orange gray teal beige turquoise")
MATERIALS = _words("wood gold leather glass stone marble steel plastic silk brick paper bronze velvet")
PATTERNS = ["stripes", "spots", "dots", "polka dots", "freckles"]
STATES = _words("broken folded closed parked wrapped cracked abandoned torn crumpled locked")
BEFORE_NOUN = _words("running sleeping jumping dancing flying painted carved polished hovering quilted zoned")
NOUNS = _words(
    "cat dog chair table car house bird horse bench bottle cup vase tree flower hat dress bag boat train lamp clock "
    "book bowl sofa pillow backpack giraffe elephant robot dragon castle bridge door window wall mountain suitcase"
)
COMPOUNDS = [
    "coffee table", "teddy bear", "fire hydrant", "traffic light", "kitchen shelf", "flower vase", "dog collar",
]  # fmt: skip
HYPHENATED = _words("red-haired long-legged well-lit light-green heart-shaped blue-eyed")
SHADED = ["dark red", "light blue", "pale green", "bright yellow", "navy blue", "olive green"]
ADVERBS = _words("very extremely slightly really")
VERBS = ["sits on", "stands near", "lies under", "hangs above", "leans against", "runs past", "looks at"]
ACTIONS = ["sitting on", "holding", "standing behind", "riding", "next to", "watching", "under", "in front of"]
RELATIONS = ["on", "under", "near", "next to", "behind", "in front of", "on the left of", "inside"]
NUMBERS = _words("two three four five")

SLOTS: dict[str, Sequence[str]] = {
    "color": COLORS, "material": MATERIALS, "pattern": PATTERNS, "state": STATES, "pre": BEFORE_NOUN,
    "compound": COMPOUNDS, "hyphen": HYPHENATED, "shade": SHADED, "adverb": ADVERBS, "verb": VERBS, "doing": ACTIONS,
    "where": RELATIONS, "number": NUMBERS,
}  # fmt: skip

CONSTRUCTIONS: dict[str, list[tuple[str, str]]] = {
    # one line a template: a slot is {kind} or {kind.number}, a pair is attribute:entity
    "one adjective": [("a {adj.1} {noun.1}", "adj.1:noun.1"), ("the {color.1} {noun.1}", "color.1:noun.1")],
    "two objects": [
        ("a {adj.1} {noun.1} and a {adj.2} {noun.2}", "adj.1:noun.1 adj.2:noun.2"),
        ("a {color.1} {noun.1} and a {color.2} {noun.2}", "color.1:noun.1 color.2:noun.2"),
        ("a {material.1} {noun.1} and a {material.2} {noun.2}", "material.1:noun.1 material.2:noun.2"),
        ("a {adj.1} {noun.1} {where} a {color.1} {noun.2}", "adj.1:noun.1 color.1:noun.2"),
    ],
    "several attributes": [
        ("a {adj.1} {color.1} {noun.1}", "adj.1:noun.1 color.1:noun.1"),
        ("a {adj.1}, {adj.2} {noun.1} {where} the {noun.2}", "adj.1:noun.1 adj.2:noun.1"),
        ("the {adj.1} {color.1} {material.1} {noun.1}", "adj.1:noun.1 color.1:noun.1 material.1:noun.1"),
    ],
    "joined attributes": [
        ("a {color.1} and {color.2} {noun.1}", "color.1:noun.1 color.2:noun.1"),
        ("{color.1} and {color.2} {nouns.1} {where} a {noun.2}", "color.1:nouns.1 color.2:nouns.1"),
        ("a {color.1}, {color.2} and {color.3} {noun.1}", "color.1:noun.1 color.2:noun.1 color.3:noun.1"),
    ],
    "joined entities": [
        ("{color.1} {nouns.1} and {nouns.2}", "color.1:nouns.1"),
        ("a {adj.1} {noun.1} and a {noun.2}", "adj.1:noun.1"),
        ("a {noun.1}, a {noun.2} and a {adj.1} {noun.3}", "adj.1:noun.3"),
    ],
    "participle before": [("a {pre.1} {noun.1} {where} a {noun.2}", "pre.1:noun.1")],
    "participle behind": [
        ("a {noun.1} painted {color.1}", "color.1:noun.1"),
        ("a {noun.1} dyed {color.1} and {color.2}", "color.1:noun.1 color.2:noun.1"),
        ("a {state.1} {noun.1} and a {noun.2} dressed in {color.1}", "state.1:noun.1 color.1:noun.2"),
        ("the {noun.1} {state.1} in the {adj.1} {noun.2}", "state.1:noun.1 adj.1:noun.2"),
    ],
    "compound attribute": [
        ("a {material.1} {noun.1} {where} the {material.2} {noun.2}", "material.1:noun.1 material.2:noun.2"),
        ("a {material.1} {compound.1}", "material.1:compound.1"),
    ],
    "compound name": [
        ("a {color.1} {compound.1} {where} a {noun.1}", "color.1:compound.1"),
        ("the {compound.1} is {color.1}", "color.1:compound.1"),
        ("a {compound.1} and a {noun.1}", ""),
    ],
    "made of": [
        ("a {noun.1} made of {material.1}", "material.1:noun.1"),
        ("the {noun.1} carved from {material.1} and a {color.1} {noun.2}", "material.1:noun.1 color.1:noun.2"),
        ("a {noun.1} of {material.1}", "material.1:noun.1"),
        ("a {noun.1} is made out of {material.1}", "material.1:noun.1"),
    ],
    "in colour, with pattern": [
        ("a {noun.1} in {color.1}", "color.1:noun.1"),
        ("a {noun.1} in {color.1} and {color.2} {where} a {noun.2}", "color.1:noun.1 color.2:noun.1"),
        ("a {noun.1} with {pattern.1}", "pattern.1:noun.1"),
        ("a {adj.1} {noun.1} with {color.1} {pattern.1}", "adj.1:noun.1 color.1:pattern.1 pattern.1:noun.1"),
        ("a {noun.1} in a {color.1} {noun.2}", "color.1:noun.2"),
        ("a {noun.1} with a {adj.1} {noun.2}", "adj.1:noun.2"),
    ],
    "copula": [
        ("the {noun.1} is {color.1}", "color.1:noun.1"),
        ("the {noun.1} is {adj.1} and the {noun.2} is {color.1}", "adj.1:noun.1 color.1:noun.2"),
        ("the {nouns.1} are {color.1} and {adj.1}", "color.1:nouns.1 adj.1:nouns.1"),
        ("the {noun.1} and the {noun.2} are {color.1}", "color.1:noun.1 color.1:noun.2"),
        ("the {noun.1} {where} the {adj.1} {noun.2} is {color.1}", "color.1:noun.1 adj.1:noun.2"),
        ("the {noun.1} looks {adj.1}", "adj.1:noun.1"),
        ("the {noun.1} is painted {color.1}", "color.1:noun.1"),
    ],
    "relative clause": [
        ("a {noun.1} that is {color.1}", "color.1:noun.1"),
        ("a {noun.1} which is {adj.1} {where} a {noun.2} that is {color.1}", "adj.1:noun.1 color.1:noun.2"),
        ("a {noun.1} {where} a {noun.2} that looks {adj.1}", "adj.1:noun.2"),
    ],
    "repeated noun": [
        ("a {color.1} {noun.1:same} and a {color.2} {noun.2:same}", "color.1:noun.1 color.2:noun.2"),
        ("a {noun.1:same} {where} a {color.1} {noun.2:same} and a {noun.3:same}", "color.1:noun.2"),
    ],
    "numerals": [
        ("{number} {color.1} {nouns.1}", "color.1:nouns.1"),
        ("{number} {nouns.1} {where} a {noun.1}", ""),
        ("there are {number} {adj.1} {nouns.1} and one {color.1} {noun.1}", "adj.1:nouns.1 color.1:noun.1"),
    ],
    "adverbs": [
        ("a {adverb} {adj.1} {noun.1}", "adj.1:noun.1"),
        ("the {noun.1} is {adverb} {adj.1}", "adj.1:noun.1"),
        ("a {adverb} {adj.1}, {adverb} {adj.2} {noun.1}", "adj.1:noun.1 adj.2:noun.1"),
    ],
    "possessives": [
        ("the {noun.1}'s {color.1} {noun.2}", "color.1:noun.2"),
        ("a {adj.1} {noun.1}'s {noun.2}", "adj.1:noun.1"),
        ("her {color.1} {noun.1} and its {adj.1} {noun.2}", "color.1:noun.1 adj.1:noun.2"),
    ],
    "negation": [
        ("the {noun.1} is not {color.1}", ""),
        ("the {noun.1} isn't {color.1} or {color.2}", ""),
        ("a {noun.1} that is not {adj.1} and a {color.1} {noun.2}", "color.1:noun.2"),
        ("a {color.1} {noun.1} without {pattern}", "color.1:noun.1"),
        ("a {adj.1} {noun.1} with no {color} {pattern}", "adj.1:noun.1"),
        ("the {noun.1} is not {color} but {color.1}", "color.1:noun.1"),
    ],
    "shades and hyphens": [
        ("a {shade.1} {noun.1} {where} a {hyphen.1} {noun.2}", "shade.1:noun.1 hyphen.1:noun.2"),
        ("the {noun.1} is {shade.1}", "shade.1:noun.1"),
    ],
    "verbs": [
        ("a {color.1} {noun.1} {verb} a {adj.1} {noun.2}", "color.1:noun.1 adj.1:noun.2"),
        ("the {adj.1} {noun.1} {verb} the {noun.2}", "adj.1:noun.1"),
        ("a {adj.1} {noun.1} {doing} a {color.1} {noun.2}", "adj.1:noun.1 color.1:noun.2"),
        ("a {noun.1} {doing} a {noun.2}", ""),
    ],
    "several sentences": [
        (
            "A {adj.1} {noun.1} {verb} the {noun.2}. The {noun.3} is {color.1}; a {color.2} {noun.4} is {where} it.",
            "adj.1:noun.1 color.1:noun.3 color.2:noun.4",
        ),
        (
            "A photo of a {color.1} {noun.1} and {number} {adj.1} {nouns.1}, made of {material.1}, {where} a {noun.2}",
            "color.1:noun.1 adj.1:nouns.1 material.1:nouns.1",
        ),
    ],
}


@dataclass(frozen=True)
class GoldCaption:
    """A caption, its construction, and its pairs as (a_start, a_end, e_start, e_end)."""

    construction: str
    text: str
    pairs: frozenset[tuple[int, int, int, int]]


def invent_noun(random_: random.Random) -> str:
    """A word that is in no dictionary, made of two syllables: it may well end like an adjective."""
    first = "".join(random_.choice(letters) for letters in ("bdfgklmnprstvz", "aeiou", "bdgklmnprt"))
    return first + "".join(random_.choice(letters) for letters in ("bdfgklmnpt", "aeio", "bdgkmnpt"))


def _fill(kind: str, random_: random.Random) -> str:
    if kind in ("noun", "nouns"):
        noun = invent_noun(random_) if random_.random() < 0.4 else random_.choice(NOUNS)
        plural = noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")
        return plural if kind == "nouns" else noun
    if kind == "adj":
        return random_.choice(HELD_OUT_ADJECTIVES if random_.random() < 0.35 else ADJECTIVES)
    return random_.choice(SLOTS[kind])


def build(construction: str, template: str, pairs: str, random_: random.Random, case: str = "") -> GoldCaption:
    """Fill a template. `case` is "upper", "title" or nothing; none of them moves a character."""
    text, spans, used = "", {}, set()
    same = _fill("noun", random_)
    for literal, slot in re.findall(r"([^{]*)(?:\{([^}]*)\})?", template):
        text += literal
        if not slot:
            continue
        name, _, repeated = slot.partition(":")
        word = same if repeated else _fill(name.split(".")[0], random_)
        while word in used and not repeated:
            word = _fill(name.split(".")[0], random_)
        used.add(word)
        if word[0] in "aeiou" and re.search(r"\b[Aa] $", text):
            text = text[:-1] + "n "
        spans[name] = (len(text), len(text) + len(word))
        text += word
    gold = frozenset((*spans[a], *spans[e]) for a, e in (pair.split(":") for pair in pairs.split()))
    changed = {"upper": text.upper(), "title": re.sub(r"\b[a-z](?=\w)", lambda m: m.group().upper(), text)}
    return GoldCaption(construction, changed.get(case, text), gold)


def gold_captions(count: int, seed: int = 0) -> list[GoldCaption]:
    """`count` captions of every construction; one in ten in capitals or Title Case."""
    random_ = random.Random(seed)
    captions = []
    for construction, templates in CONSTRUCTIONS.items():
        for i in range(count):
            case = random_.choice(["upper", "title"]) if random_.random() < 0.1 else ""
            captions.append(build(construction, *templates[i % len(templates)], random_, case))
    return captions


@dataclass
class Score:
    """Counts of exact pairs."""

    right: int = 0
    found: int = 0
    gold: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.gold if self.gold else 1.0

    @property
    def f1(self) -> float:
        total = self.found + self.gold
        return 2 * self.right / total if total else 1.0


def score(captions: Iterable[GoldCaption], found: Iterable[Iterable[Sequence[int]]]) -> dict[str, Score]:
    """Scores by construction, and of all under "all": a pair is right if all four offsets are."""
    scores: dict[str, Score] = {}
    for caption, pairs in zip(captions, found, strict=True):
        predicted = {tuple(pair) for pair in pairs}
        for name in (caption.construction, "all"):
            entry = scores.setdefault(name, Score())
            entry.right += len(predicted & caption.pairs)
            entry.found += len(predicted)
            entry.gold += len(caption.pairs)
    scores["all"] = scores.pop("all")
    return scores


def table(scores: dict[str, Score]) -> str:
    lines = [f"{'construction':<26} {'pairs':>6} {'precision':>9} {'recall':>7} {'F1':>6}"]
    for name, entry in scores.items():
        lines.append(f"{name:<26} {entry.gold:>6} {entry.precision:>9.3f} {entry.recall:>7.3f} {entry.f1:>6.3f}")
    return "\n".join(lines)
