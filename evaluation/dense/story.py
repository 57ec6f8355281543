"""What the sentences of one prompt share: the scene, what has been spoken of, and where things are."""

from __future__ import annotations

from collections.abc import Sequence

from . import grammar, markup
from .draw import Draw
from .questions import Questions
from .speaker import Speaker
from .things import WORN, Maker, Thing
from .vocabulary import Item, Noun, Scene, Style, Vocabulary

SIDES = ("to the left of", "to the right of")

_ONE_THERE = frozenset(("in front of", "behind", *SIDES))
"""Places beside a thing that hold one other thing at a time, so that sentences cannot contradict each other."""

_FAR_VERBS = frozenset(("rise", "stretch", "roll", "wind", "tumble"))


class Story:
    """The state of one prompt.

    Args:
        vocabulary: everything there is.
        scene: where it is set.
        draw: decides.

    Attributes:
        hero: what the prompt is about, one of `heroes`.
        around: other things that one can stand beside.
        time, weather: of the scene, whether the text says so or not.
        style: of the picture; `styled` if the text says so somewhere.
        sentences: that were written, with marks, and `words` in them.
        subject: what the last sentence was about, so that a pronoun is clear; None for several things.
        described: things of which no more is said, by their questions.
        hands_full: the hero holds something.
        lit, distant: the light, the background was spoken of, or must not be any more.
    """

    def __init__(self, vocabulary: Vocabulary, scene: Scene, draw: Draw) -> None:
        self.vocabulary, self.scene, self.draw = vocabulary, scene, draw
        self.questions = Questions()
        self.speaker = Speaker(draw, self.questions)
        self._names = {scene.name}
        self.maker = Maker(draw, self._names)
        self.sentences: list[str] = []
        self.words = 0
        self.around: list[Thing] = []
        self.time, self.weather = draw.one(scene.times), draw.one(scene.weathers)
        self.style: Style = draw.one(vocabulary.styles)
        self.lit = self.distant = self.styled = False
        self.described: set[int] = set()
        self.hands_full = False
        self._taken: set[tuple[int, str]] = set()
        self.heroes = draw.one(scene.heroes)
        self.hero = self.new(draw.one(self.heroes.items), draw.between(2, 3), 3)
        self.subject: Thing | None = self.hero
        if self.heroes.wears and self.hero.noun.pronoun not in ("it", "they"):
            garments = [self._garment(item) for item in draw.some(self.heroes.wears, draw.between(1, 3))]
            self.hero.parts = [*garments, *self.hero.parts[:1]]

    def add(self, sentence: str) -> None:
        """Write a sentence, with marks."""
        self.sentences.append(sentence)
        self.words += len(markup.plain(sentence).split())

    def new(self, item: Item, attributes: int, parts: int = 0, least: int = 1) -> Thing:
        """A thing of that kind; see `Maker.thing`."""
        self._names |= {item.name, item.noun.plural}
        return self.maker.thing(item, attributes, parts, least)

    def is_new(self, item: Item) -> bool:
        """Whether nothing of that name was spoken of: "the wall" would be no longer clear beside a brick wall."""
        head = item.name.split(" of ")[0]
        for known in self._names:
            other = known.split(" of ")[0]
            if head == other or head.split()[-1] == other or other.split()[-1] == head:
                return False
        return item.content is None or all(item.content.plural not in known for known in self._names)

    def names_any(self, nouns: Sequence[str]) -> bool:
        """Whether one of these was spoken of."""
        last = {known.split()[-1] for known in self._names}
        return any(noun.split()[-1] in last for noun in nouns)

    def pick(
        self, items: Sequence[Item], attributes: tuple[int, int] = (1, 2), parts: int = 0, least: int = 1
    ) -> Thing | None:
        """Something of these that is new, or None where nothing is."""
        possible = [item for item in items if self.is_new(item)]
        if not possible:
            return None
        return self.new(self.draw.one(possible), self.draw.between(*attributes), parts, least)

    def remember(self, thing: Thing, verb: str = "") -> None:
        """Let others stand beside a thing, if it is of a size and at a distance for that.

        Args:
            verb: by which the hero is joined to it; one that "stretches toward" it is far away.
        """
        far = any(word in verb.split() for word in ("toward", "overlook", "face", "reflect", "above", "over", "into"))
        held = verb.split(" ")[0] in ("hold", "carry", "play", "weigh", "pour", "pick", "read", "knit", "tie", "fly")
        large = _FAR_VERBS & set(thing.noun.verbs)
        if thing.noun.form == "count" and thing.noun.pronoun == "it" and not (far or held or large or thing.content):
            self.around.append(thing)

    def anchor(self) -> Thing:
        """What the next thing stands beside."""
        if not self.around or self.draw.chance(0.55):
            return self.hero
        return self.draw.one(self.around[-3:])

    def place_beside(self, thing: Thing) -> str | None:
        """A place beside a thing where nothing is, such as "behind"; None where there is none."""
        free = [place for place in self.scene.beside if self._is_free(thing, place)]
        if not free:
            return None
        place = self.draw.one(free)
        self.take(thing, place)
        return place

    def _is_free(self, thing: Thing, place: str) -> bool:
        if place not in _ONE_THERE:
            return True
        return thing is self.hero and (thing.asked, place) not in self._taken and not (thing.plural and place in SIDES)

    def near_places(self) -> list[str]:
        """Places beside a thing that hold any number of others."""
        return [place for place in self.scene.beside if place not in _ONE_THERE]

    def sides_are_free(self) -> bool:
        return set(SIDES) <= set(self.scene.beside) and all(self._is_free(self.hero, side) for side in SIDES)

    def take(self, thing: Thing | None, place: str) -> None:
        """Nothing else comes there; None for places of the picture itself."""
        self._taken.add((thing.asked if thing else 0, place))

    def is_taken(self, place: str) -> bool:
        """Whether a place of the picture itself was spoken of."""
        return (0, place) in self._taken

    def verb(self, thing: Thing) -> str:
        """How a thing is somewhere; "" for "is"."""
        return self.draw.one(thing.noun.verbs)

    def does(self, thing: Thing, verb: str | None = None) -> str:
        """The same with its number: "stands", "are"."""
        chosen = self.verb(thing) if verb is None else verb
        return grammar.finite(chosen, thing.plural) if chosen else self.be(thing)

    def inverted(self, thing: Thing, verb: str | None = None) -> str:
        """The same before its subject: "beside the bed is a cat", which is "curled up" though."""
        chosen = self.verb(thing) if verb is None else verb
        return self.be(thing) if chosen.startswith("=") else self.does(thing, chosen)

    @staticmethod
    def be(thing: Thing) -> str:
        return "are" if thing.plural else "is"

    def relate(self, subject: Thing, what: str, *others: Thing, where: str = "") -> None:
        """Ask whether "the cat" is "sitting on" "the rug", or "between" two things, or at a place `where`."""
        be = self.be(subject).capitalize()
        objects = where or grammar.listed([f"the {other.name}" for other in others])
        text = f"{be} the {subject.name} {what} {objects}?".replace("  ", " ")
        if not self.questions.asked(text):
            self.questions.ask("relation", text, sorted({subject.asked, *(other.asked for other in others)}))

    def ask_global(self, texts: Sequence[str]) -> None:
        for text in texts:
            if not self.questions.asked(text):
                self.questions.ask("global", text)

    def _garment(self, item: Item) -> Thing:
        noun = Noun(
            item.noun.singular, item.noun.plural, item.noun.form, attributes=item.noun.attributes, attached=True
        )
        made = self.maker.thing(Item(noun, fixed=item.fixed), self.draw.between(1, 2))
        if self.hero.number != 1 and noun.form == "count":
            made.number = 0
        made.item, made.owner = Item(noun, WORN, fixed=item.fixed), self.hero
        return made
