"""The things of a prompt: how many, what they are like, and what they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .draw import Draw
from .vocabulary import Attribute, Item, Noun

SEVERAL = 0
"""The number of things that are more than one and are not counted."""

WORN = -1
"""`Item.most` of clothes: they are worn, not had."""

ORDER = ("size", "state", "texture", "shape", "color", "pattern", "material")
"""Kinds of attributes as they stand before a noun."""

_OWN_COLOR = frozenset(
    "brass copper bronze gold pewter tin steel chrome aluminum oak pine walnut mahogany bamboo wicker rattan straw "
    "terracotta crystal cork driftwood jade pearl clay earthenware cardboard brick sandstone limestone slate burlap "
    "bone wax cast-iron granite obsidian foil parchment".split()
)
"""Materials beside which no colour is named."""

_METALS = frozenset("metal brass copper iron steel bronze tin aluminum chrome wrought-iron cast-iron wire".split())
_UNPATTERNED = _METALS | frozenset("leather wooden velvet glass marble stone".split())
_SEVERAL_COLORS = frozenset(
    "black-and-white blue-and-white red-and-white multicolored rainbow-colored two-tone".split()
)
_NEEDS_METAL = frozenset("rusty tarnished dented".split())
_NEVER_METAL = frozenset("cracked chipped mossy wrinkled tattered frayed folded crumpled".split())
_OPPOSED = tuple(
    (frozenset(first.split()), frozenset(second.split()))
    for first, second in (
        ("rusty dusty muddy dirty tarnished stained worn faded", "shiny spotless sparkling polished glossy brand-new"),
        ("small tiny narrow cramped miniature", "vast spacious grand enormous massive broad wide majestic"),
        ("quiet peaceful deserted lonely secluded remote", "busy crowded lively bustling"),
        ("old ancient antique vintage weathered crumbling", "modern brand-new young"),
        ("dim", "bright"),
        ("straight", "curved twisted crooked winding"),
    )
)
_YOUNG = frozenset("boy girl child paperboy apprentice student ballerina".split()) | {"art student"}
_GRAY_HAIR = frozenset(("gray", "white"))


@dataclass
class Thing:
    """A thing, or several of a kind.

    Attributes:
        item: of the vocabulary.
        number: 1, more, or `SEVERAL`.
        pronoun: "it", "he", "she" or "they".
        left: attributes that the text has not named yet.
        said: those that it has.
        content: what it holds, of "bowl of soup".
        parts: that it has and the text has not named yet.
        owner: of a part.
        asked: id of the question whether it is there; 0 before it was asked.
    """

    item: Item
    number: int = 1
    pronoun: str = "it"
    left: list[Attribute] = field(default_factory=list)
    said: list[Attribute] = field(default_factory=list)
    content: Thing | None = None
    parts: list[Thing] = field(default_factory=list)
    owner: Thing | None = None
    asked: int = 0

    @property
    def noun(self) -> Noun:
        return self.item.noun

    @property
    def plural(self) -> bool:
        """Whether its verb is."""
        return self.noun.form == "plural" or (self.noun.form == "count" and self.number != 1)

    @property
    def word(self) -> str:
        """The noun in its number."""
        return self.noun.plural if self.plural else self.noun.singular

    @property
    def name(self) -> str:
        """The noun and what it holds: "bowl of soup"."""
        return f"{self.word} of {self.content.word}" if self.content else self.word

    @property
    def possessive(self) -> str:
        """ "its", "his", "her" or "their"."""
        return {"it": "its", "he": "his", "she": "her", "they": "their"}[self.pronoun]


def is_possible(attribute: Attribute, others: Sequence[Attribute]) -> bool:
    """Whether a thing can have an attribute beside others: one of each kind, and no brown brass."""
    words = {other.word for other in others} | {attribute.word}
    kinds = {other.kind for other in others}
    if attribute.kind in kinds:
        return False
    kinds.add(attribute.kind)
    materials = {one.word for one in (*others, attribute) if one.kind == "material"}
    if "color" in kinds and (materials & _OWN_COLOR or (materials and words & {"silver", "golden"})):
        return False
    if materials and not materials & _METALS and words & _NEEDS_METAL:
        return False
    if words & _NEEDS_METAL and words & {"silver", "golden"}:
        return False
    if any(words & first and words & second for first, second in _OPPOSED):
        return False
    if materials & _METALS and words & _NEVER_METAL:
        return False
    if "pattern" in kinds and (words & _SEVERAL_COLORS or materials & _OWN_COLOR or "colorful" in words):
        return False
    if "pattern" in kinds and materials & _UNPATTERNED:
        return False
    return not ("color" in kinds and words & {"thatched", "ivy-covered"})


def _not_named(noun: Noun) -> list[Attribute]:
    """Attributes that do not sound like the noun itself: no rocky rock, no arched archway."""
    return [attribute for attribute in noun.attributes if attribute.word[:4] not in noun.singular]


class Maker:
    """Makes things.

    Args:
        draw: decides what they are like.
        names: of things that there are; no part has one of them, in singular or plural as it stands.
    """

    def __init__(self, draw: Draw, names: set[str]) -> None:
        self._draw = draw
        self.names = names
        self._used: set[str] = set()

    def thing(self, item: Item, attributes: int, parts: int = 0, least: int = 1) -> Thing:
        """One with up to so many attributes beside the fixed ones, up to so many parts, and of at least such number."""
        noun = item.noun
        number = 1
        if noun.form == "count":
            number = SEVERAL if item.several else max(least, self._number(item.most))
        made = Thing(item, number, self._pronoun(noun, number))
        made.left = self.attributes(_not_named(noun), attributes, item.fixed)
        if item.content:
            content = item.content
            made.content = Thing(Item(content), SEVERAL if content.form == "count" else 1)
            apart = [attribute for attribute in content.attributes if attribute.kind != "size"]
            made.content.left = self.attributes(apart, self._draw.between(0, 1), ())
        if parts and not item.content:
            chosen = self._draw.some([part for part in noun.parts if part.singular not in self.names], parts)
            made.parts = [self._part(part, made) for part in chosen]
        return made

    def _number(self, most: int) -> int:
        return 1 if most == 1 or self._draw.chance(0.35) else self._draw.between(2, most)

    def _pronoun(self, noun: Noun, number: int) -> str:
        if (noun.form == "count" and number != 1) or noun.form == "plural":
            return "they"
        return self._draw.one(("he", "she")) if noun.pronoun == "person" else noun.pronoun

    def _part(self, noun: Noun, owner: Thing) -> Thing:
        part = Thing(Item(noun), SEVERAL if owner.number != 1 and noun.form == "count" else 1, owner=owner)
        known = {attribute.word for attribute in (*owner.left, *owner.said)}
        allowed = noun.attributes
        if noun.singular in ("hair", "beard") and (owner.noun.singular in _YOUNG or "young" in known):
            allowed = tuple(attribute for attribute in allowed if attribute.word not in _GRAY_HAIR)
        allowed = tuple(attribute for attribute in allowed if attribute.word not in known)
        part.left = self.attributes(allowed, self._draw.weighted(((1, 3.0), (2, 2.0))), ())
        return part

    def attributes(self, choices: Sequence[Attribute], count: int, fixed: Sequence[Attribute]) -> list[Attribute]:
        """So many that go together; what the prompt has not named yet comes first, to keep its things apart."""
        taken = list(fixed)
        shuffled = self._draw.shuffled(choices)
        for attribute in [*(a for a in shuffled if a.word not in self._used), *shuffled]:
            if len(taken) >= count + len(fixed):
                break
            if is_possible(attribute, taken):
                taken.append(attribute)
        self._used.update(attribute.word for attribute in taken)
        return taken
