"""The phrases that speak of things, and the questions that they answer."""

from __future__ import annotations

from collections.abc import Sequence

from . import grammar, markup
from .draw import Draw
from .questions import Questions
from .things import ORDER, SEVERAL, WORN, Thing
from .vocabulary import Attribute


class Speaker:
    """Makes the phrases, and asks the questions that they answer.

    Args:
        draw: decides between phrases.
        questions: to add to.
    """

    def __init__(self, draw: Draw, questions: Questions) -> None:
        self._draw = draw
        self._questions = questions
        self._mentions = 0

    def mention(self, count: int = 1) -> int:
        """Number of the next mention; `count` of them are taken."""
        first = self._mentions + 1
        self._mentions += count
        return first

    def next_mention(self) -> int:
        """Number that the next mention will have, for what is said before it is made."""
        return self._mentions + 1

    def introduce(self, thing: Thing, most: int = 3, parts: int = 0) -> str:
        """The phrase by which a thing comes in: "two small white cats with bushy tails".

        Args:
            most: attributes before or behind the noun; the others stay left.
            parts: of them, joined by "with" or what joins them.
        """
        number = self.mention()
        self.ask_for(thing)
        chosen = self.in_order(thing.left[:most])
        thing.left = thing.left[most:]
        before, behind = self._placed(thing, chosen, number)
        words = [*before, markup.entity(number, thing.word)]
        if thing.content:
            words += ["of", self._content(thing.content, thing)]
        phrase = " ".join([*self._quantity(thing, " ".join(words)), *words, *behind])
        self.say(thing, chosen)
        if parts and thing.parts:
            taken, thing.parts = thing.parts[:parts], thing.parts[parts:]
            joined = "wearing" if taken[0].item.most == WORN else thing.noun.joined
            if behind and behind[0] == joined:
                joined = "and"
            phrase += f" {joined} " + grammar.listed([self.introduce(part) for part in taken])
        return phrase

    @staticmethod
    def in_order(attributes: Sequence[Attribute]) -> list[Attribute]:
        """As English puts them before a noun."""
        return sorted(attributes, key=lambda attribute: ORDER.index(attribute.kind))

    def _placed(self, thing: Thing, chosen: list[Attribute], number: int) -> tuple[list[str], list[str]]:
        """Attributes before and behind the noun."""
        behind: list[str] = []
        last = chosen[-1] if chosen else None
        if last and last.noun and last not in thing.item.fixed and not (thing.content or thing.owner):
            if last.kind == "material" and self._draw.chance(0.2):
                chosen, behind = chosen[:-1], ["made of", markup.attribute(number, last.noun)]
            elif last.kind == "pattern" and self._draw.chance(0.35):
                chosen, behind = chosen[:-1], ["with", markup.attribute(number, last.noun)]
        before = []
        for place, attribute in enumerate(chosen, 1):
            comma = attribute.kind == "state" and place < len(chosen) and chosen[place].kind == "texture"
            before.append(markup.attribute(number, attribute.word) + ("," if comma else ""))
        return before, behind

    def _content(self, content: Thing, holder: Thing) -> str:
        number = self.mention()
        chosen, content.left = content.left, []
        content.asked = holder.asked
        self.say(content, chosen)
        return " ".join(
            [*(markup.attribute(number, attribute.word) for attribute in chosen), markup.entity(number, content.word)]
        )

    def _quantity(self, thing: Thing, words: str) -> list[str]:
        if thing.noun.form == "unique":
            return ["the"]
        if thing.noun.form in ("mass", "plural") or (thing.owner and thing.number == SEVERAL):
            return []
        if thing.number == 1:
            return [grammar.article(markup.plain(words))]
        if thing.number == SEVERAL:
            return list(self._draw.weighted((((), 3.0), (("several",), 1.0), (("a few",), 1.0))))
        return [grammar.NUMBERS[thing.number]]

    def definite(self, thing: Thing, described: float = 0.2) -> str:
        """The phrase for a thing that is known: "the cat", and sometimes "the white cat"."""
        number = self.mention()
        words = markup.entity(number, thing.word)
        if thing.content:
            words += f" of {thing.content.word}"
        elif thing.said and self._draw.chance(described):
            shown = [attribute for attribute in thing.said if attribute.kind in ("color", "material", "pattern")]
            if shown and thing.noun.pronoun == "it":
                words = f"{markup.attribute(number, self._draw.one(shown).word)} {words}"
        return f"the {words}"

    def predicate(self, thing: Thing, attributes: Sequence[Attribute], number: int) -> str:
        """What is said of a thing: "is worn, dark green, and made of wood", for the mention with that number."""
        words = []
        for attribute in self.in_order(attributes):
            if attribute.kind == "material":
                words.append("made of " + markup.attribute(number, attribute.noun))
            else:
                words.append(markup.attribute(number, attribute.word))
        self.say(thing, attributes)
        return ("are " if thing.plural else "is ") + grammar.listed(words)

    def ask_for(self, thing: Thing) -> None:
        """Ask whether a thing is there, and how many there are."""
        if thing.asked:
            return
        if thing.owner is None:
            thing.asked = self._questions.ask("entity", self._existence(thing))
            if thing.number > 1:
                text = f"Are there {grammar.NUMBERS[thing.number]} {thing.name}?"
                self._questions.ask("count", text, [thing.asked])
        elif thing.noun.attached or thing.owner.noun.joined != "with":
            text = self._possession(thing, thing.owner)
            thing.asked = self._questions.ask("entity", text, [thing.owner.asked])
        else:
            thing.asked = thing.owner.asked

    def _existence(self, thing: Thing) -> str:
        if thing.plural:
            return f"Are there {thing.name}?"
        if thing.noun.form == "count":
            return f"Is there {grammar.article(thing.name)} {thing.name}?"
        return f"Is there {'the ' if thing.noun.form == 'unique' else ''}{thing.name}?"

    def _possession(self, part: Thing, owner: Thing) -> str:
        what = part.word if part.plural or part.noun.form == "mass" else f"{grammar.article(part.word)} {part.word}"
        be, do = ("Are", "Do") if owner.plural else ("Is", "Does")
        if owner.noun.joined != "with":
            return f"{be} the {owner.name} {owner.noun.joined} {what}?"
        if part.item.most == WORN:
            return f"{be} the {owner.name} wearing {what}?"
        return f"{do} the {owner.name} have {what}?"

    def say(self, thing: Thing, attributes: Sequence[Attribute]) -> None:
        """Ask for attributes that the text has just named."""
        be = "Are" if thing.plural else "Is"
        for attribute in attributes:
            if attribute in thing.said:
                continue
            thing.said.append(attribute)
            if attribute.unseen:
                continue
            what = attribute.word
            if attribute.kind == "material":
                what = f"made of {attribute.noun}"
            text = f"{be} the {self._reference(thing)} {what}?"
            if not self._questions.asked(text):
                self._questions.ask("attribute", text, [thing.asked])

    def _reference(self, thing: Thing) -> str:
        """ "cat", or "cat's collar"."""
        if thing.owner is None:
            return thing.word
        owner = thing.owner.name
        return f"{owner}{chr(39) if owner.endswith('s') and thing.owner.plural else chr(39) + 's'} {thing.word}"
