"""Sentences about things that are known: what the hero has, wears and holds, and what things are like.

Each function returns a sentence, or None where it has nothing to say.
"""

from __future__ import annotations

from . import grammar, markup
from .story import Story
from .things import WORN, Thing, is_possible


def detail(story: Story) -> str | None:
    """Parts or clothes of the hero that were not spoken of."""
    hero = story.hero
    if not hero.parts:
        return None
    worn = [part for part in hero.parts if part.item.most == WORN]
    taken = worn or hero.parts[: 2 if hero.noun.joined == "with" else 3]
    hero.parts = [part for part in hero.parts if part not in taken]
    if worn:
        return _clothes(story, worn)
    if hero.noun.joined != "with":
        verb = "hold" if hero.noun.joined == "holding" else f"={hero.noun.joined}"
        return f"{subject(story)} {grammar.finite(verb, hero.plural)} {_introduced(story, taken)}."
    if story.draw.chance(0.5) and all(part.left and not part.noun.attached for part in taken):
        return _descriptions(story, taken)
    return f"{subject(story)} {'have' if hero.plural else 'has'} {_introduced(story, taken)}."


def _introduced(story: Story, things: list[Thing]) -> str:
    return grammar.listed([story.speaker.introduce(thing) for thing in things])


def _clothes(story: Story, worn: list[Thing]) -> str:
    hero, clothes = story.hero, _introduced(story, worn)
    who = subject(story)
    story.subject = hero
    return story.draw.one(
        (
            f"{who} {grammar.finite('wear', hero.plural)} {clothes}.",
            f"{who} {story.be(hero)} wearing {clothes}.",
            f"{who} {story.be(hero)} dressed in {clothes}.",
        )
    )


def _descriptions(story: Story, parts: list[Thing]) -> str:
    """ "Its ears are pointed, and its tail is bushy."."""
    hero, speaker = story.hero, story.speaker
    clauses = []
    for place, part in enumerate(parts):
        number = speaker.mention()
        speaker.ask_for(part)
        genitive = "'" if hero.plural and hero.word.endswith("s") else "'s"
        whose = hero.possessive if place or story.subject is hero else f"the {hero.name}{genitive}"
        attributes, part.left = part.left, []
        clauses.append(f"{whose} {markup.entity(number, part.word)} {speaker.predicate(part, attributes, number)}")
    return ", and ".join(clauses) + "."


def subject(story: Story) -> str:
    """The hero at the beginning of a sentence: a pronoun, where nothing else can be meant by it."""
    hero = story.hero
    if story.subject is hero and story.draw.chance(0.7):
        return hero.pronoun
    return story.speaker.definite(hero)


def deed(story: Story) -> str | None:
    """Something that a person holds, where the hands are free."""
    hero = story.hero
    first = markup.plain(story.sentences[0])
    free = ("sit", "seated", "stand", "wait", "lean", "look")
    if hero.number != 1 or hero.noun.pronoun == "it" or not any(word in first for word in free):
        return None
    actions = [one for one in story.heroes.actions if one.verb in ("hold", "carry")]
    if not actions or story.hands_full:
        return None
    action = story.draw.one(actions)
    held = story.pick(action.objects)
    if held is None:
        return None
    story.hands_full = True
    words = story.speaker.introduce(held)
    doing = grammar.reduced(action.verb)
    story.relate(hero, doing, held)
    who = subject(story)
    return f"{who} {story.draw.one((grammar.finite(action.verb, False), f'is {doing}'))} {words}."


def more_about(story: Story) -> str | None:
    """What else a known thing is like: "The armchair is worn, dark green, and made of velvet."."""
    known = [thing for thing in (story.hero, *story.around) if thing.asked not in story.described]
    if not known:
        return None
    thing = story.draw.one(known)
    story.described.add(thing.asked)
    more = list(thing.left)
    for attribute in story.maker.attributes(thing.noun.attributes, 4, ()):
        if len(more) < 2 and attribute.kind != "size" and is_possible(attribute, [*thing.said, *more]):
            more.append(attribute)
    if len(more) < 2 and not (more and more[0].kind in ("material", "color", "pattern")):
        return None
    thing.left = []
    number = story.speaker.mention()
    story.subject = thing
    return f"the {markup.entity(number, thing.word)} {story.speaker.predicate(thing, more, number)}."
