"""What the generator knows: words, scenes, and sentences about light, view and style. `vocabulary_files` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TIMES = ("dawn", "morning", "noon", "afternoon", "sunset", "dusk", "night")
WEATHERS = ("clear", "cloudy", "foggy", "rain", "snow")
BESIDE = ("beside", "next to", "near", "in front of", "behind", "to the left of", "to the right of")


@dataclass(frozen=True)
class Attribute:
    """An attribute word.

    Attributes:
        word: before a noun.
        kind: "size", "state", "texture", "shape", "color", "pattern" or "material".
        noun: behind "made of" or "with", for materials and patterns; "" where it has none.
        unseen: a picture can hardly show it: "a quiet street".
    """

    word: str
    kind: str
    noun: str = ""
    unseen: bool = False


@dataclass(frozen=True)
class Noun:
    """A kind of thing.

    Attributes:
        singular, plural: equal for mass nouns and what has no singular.
        form: "count", "mass", "plural" (no singular) or "unique" ("the sea").
        pronoun: "it", "he", "she", or "person" for he or she.
        attributes: what it can be.
        parts: what it can have; they are nouns without parts.
        attached: of a part: it need not be there, so that it is worth a question of its own.
        joined: how its parts are joined to it, such as "with" or "topped with".
        verbs: how it is somewhere, such as "stand" or "=parked"; "" for no more than "is".
    """

    singular: str
    plural: str
    form: str = "count"
    pronoun: str = "it"
    attributes: tuple[Attribute, ...] = ()
    parts: tuple[Noun, ...] = ()
    attached: bool = False
    joined: str = "with"
    verbs: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Item:
    """A noun in a scene.

    Attributes:
        noun: of the thing, or of what holds it: "bowl" of "bowl of soup".
        most: of them at once.
        several: always more than one, uncounted.
        fixed: attributes that it always has, such as "wooden" of "wooden crate".
        content: "soup" of "bowl of soup".
    """

    noun: Noun
    most: int = 1
    several: bool = False
    fixed: tuple[Attribute, ...] = ()
    content: Noun | None = None

    @property
    def name(self) -> str:
        return f"{self.noun.singular} of {self.content.plural}" if self.content else self.noun.singular


@dataclass(frozen=True)
class Action:
    """What a hero does: "sit on" one of the objects."""

    verb: str
    objects: tuple[Item, ...]


@dataclass(frozen=True)
class Heroes:
    """Things that a prompt can be about, what they do, and what people among them wear."""

    items: tuple[Item, ...]
    actions: tuple[Action, ...]
    wears: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Zone:
    """Things in a part of the scene that needs no introduction: "on the wall".

    Attributes:
        verb: what they do there; "" for their own.
        place: phrase.
    """

    verb: str
    place: str
    items: tuple[Item, ...]


@dataclass
class Scene:
    """A setting and what can be in it.

    Attributes:
        name: of the setting, such as "living room".
        category: of the prompts.
        preposition: "in" the living room.
        tags: "indoors", "outdoors", "underwater" or "space", and "table" where the setting is one.
        fixed: attribute that the setting always has, such as "sandy" of "sandy beach".
        like: others that it can have.
        heroes: groups that share their actions.
        near: things around the hero, at one of the places `beside`.
        beside: prepositions.
        on: things upon another thing, by that one.
        zones: things on the wall and the like.
        far: things in the background.
        times, weathers: when it can be.
    """

    name: str
    category: str
    preposition: str
    tags: tuple[str, ...]
    fixed: tuple[Attribute, ...]
    like: tuple[Attribute, ...]
    heroes: list[Heroes] = field(default_factory=list)
    near: tuple[Item, ...] = ()
    beside: tuple[str, ...] = BESIDE
    on: list[tuple[Item, tuple[Item, ...]]] = field(default_factory=list)
    zones: list[Zone] = field(default_factory=list)
    far: tuple[Item, ...] = ()
    times: tuple[str, ...] = TIMES
    weathers: tuple[str, ...] = ("clear", "cloudy")


@dataclass(frozen=True)
class Remark:
    """A sentence about light, weather, view or style.

    Attributes:
        conditions: columns before the sentence, each a set of words, "*" for any.
        sentence: see `markup.from_authored`.
        questions: that it answers with yes.
    """

    conditions: tuple[tuple[str, ...], ...]
    sentence: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """How a picture is made.

    Attributes:
        photo: it was taken by a camera.
        colors: it has colors of its own, so that nothing else should be said of them.
        question: that it answers with yes.
        openings: before what is shown: "an oil painting of".
        closings: sentences.
    """

    photo: bool
    colors: bool
    question: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Everything that the generator knows."""

    scenes: Mapping[str, Sequence[Scene]]
    ambience: Sequence[Remark]
    views: Sequence[Remark]
    times: Sequence[Remark]
    styles: Sequence[Style]
