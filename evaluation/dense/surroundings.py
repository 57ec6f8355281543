"""Sentences that bring in what is around the hero.

Each function returns a sentence, or None where it finds nothing to say.
"""

from __future__ import annotations

from . import grammar
from .story import SIDES, Story
from .things import Thing

_PICTURE = ("on the left side of the picture", "on the right side of the picture", "in the foreground")


def beside(story: Story) -> str | None:
    """One thing beside another one."""
    anchor = story.anchor()
    place = story.place_beside(anchor)
    new = story.pick(story.scene.near, (1, 3), 2)
    if new is None or place is None:
        return None
    parts = story.draw.weighted(((0, 2.0), (1, 2.0), (2, 1.0)))
    aside = _which_is(story, anchor)
    known = story.speaker.definite(anchor, 0 if aside else 0.2)
    words = story.speaker.introduce(new, 3, parts)
    story.relate(new, place, anchor)
    story.remember(new)
    verb = story.verb(new)
    does, is_ = story.does(new, verb), story.be(new)
    if aside:
        return f"{place} {known}{aside}, {story.inverted(new, verb)} {words}."
    forms = [
        f"{place} {known} {story.inverted(new, verb)} {words}.",
        f"{place} {known} {is_} {words}.",
        f"{place} {known}, there {is_} {words}.",
        f"there {is_} {words} {place} {known}.",
        f"{place} {known}, you can see {words}.",
    ]
    if len(words.split()) < 8:
        forms += [
            f"{words} {does} {place} {known}.",
            f"{words} {does} {place} {known}.",
            f"{words} can be seen {place} {known}.",
        ]
        if verb and not verb.startswith("="):
            forms.append(
                f"{words} {grammar.reduced(verb)} {place} {known} {'catch' if new.plural else 'catches'} the eye."
            )
    return story.draw.one(forms)


def _which_is(story: Story, thing: Thing) -> str:
    """A clause with what was not said of a thing yet: ", which is worn and green"."""
    if not thing.left or thing.content or thing.noun.pronoun != "it" or story.draw.chance(0.4):
        return ""
    attributes, thing.left = thing.left, []
    number = story.speaker.next_mention()
    return f", which {story.speaker.predicate(thing, attributes, number)}"


def beside_two(story: Story) -> str | None:
    """Two things beside another one, or one beside the other."""
    anchor = story.anchor()
    place = story.place_beside(anchor)
    first = story.pick(story.scene.near, (1, 2), 1)
    if first is None or place is None:
        return None
    known = story.speaker.definite(anchor)
    one = story.speaker.introduce(first, 2, story.draw.between(0, 1))
    story.relate(first, place, anchor)
    second = story.pick(story.scene.near, (1, 2), 1)
    if second is None:
        story.remember(first)
        return f"{one} {story.does(first)} {place} {known}."
    two = story.speaker.introduce(second, 2)
    near = story.near_places()
    same = first.noun.verbs == second.noun.verbs
    if story.draw.chance(0.5) or not near:
        story.relate(second, place, anchor)
        story.remember(first)
        story.remember(second)
        together = story.verb(first) if same and not story.verb(first).startswith("=") else ""
        forms = [
            f"{place} {known} {together or 'are'} {one} and {two}.",
            f"{place} {known} there are {one} and {two}.",
            f"{one} and {two} {together or 'are'} {place} {known}.",
            f"{one} {story.does(first)} {place} {known}, along with {two}.",
        ]
        if story.be(first) == "is":
            forms[1] = f"{place} {known} there is {one}, and beside it {two}."
            if place in ("in front of", "behind"):
                forms[1] = forms[0]
        return story.draw.one(forms)
    closer = story.draw.one(near)
    story.relate(second, closer, first)
    story.remember(first)
    story.remember(second)
    pronoun = "them" if first.plural else "it"
    again = f"the {first.name}"
    return story.draw.one(
        (
            f"{one} {story.does(first)} {place} {known}, and {two} {story.does(second)} {closer} {again}.",
            f"{one} {story.does(first)} {place} {known}, while {two} {story.does(second)} {closer} {again}.",
            f"{one} {story.does(first)} {place} {known}, with {two} {closer} {pronoun}.",
            f"{place} {known} {story.inverted(first)} {one}, with {two} {closer} {pronoun}.",
        )
    )


def both_sides(story: Story) -> str | None:
    """The hero between two things."""
    hero = story.hero
    if hero.plural or not story.sides_are_free():
        return None
    first, second = story.pick(story.scene.near), story.pick(story.scene.near)
    if first is None or second is None:
        return None
    for side in SIDES:
        story.take(hero, side)
    one, two = story.speaker.introduce(first, 2), story.speaker.introduce(second, 2)
    known = story.speaker.definite(hero)
    for thing in (first, second):
        story.remember(thing)
    if story.draw.chance(0.3):
        story.relate(hero, "between", first, second)
        return story.draw.one(
            (
                f"{known} is framed by {one} on one side and {two} on the other.",
                f"{known} is flanked by {one} and {two}.",
            )
        )
    story.relate(first, SIDES[0], hero)
    story.relate(second, SIDES[1], hero)
    is_ = story.be(second)
    return story.draw.one(
        (
            f"to the left of {known} {story.inverted(first)} {one}, and to the right {story.inverted(second)} {two}.",
            f"{one} {story.does(first)} to the left of {known}, and {two} {story.does(second)} to the right.",
            f"to the left of {known} there {story.be(first)} {one}; to the right, there {is_} {two}.",
            f"{known} has {one} to {hero.possessive} left and {two} to {hero.possessive} right.",
        )
    )


def upon(story: Story) -> str | None:
    """Things on another one."""
    if not story.scene.on:
        return None
    holder, items = story.draw.one(story.scene.on)
    known = next((thing for thing in (story.hero, *story.around) if thing.noun == holder.noun), None)
    if (known is None and not story.is_new(holder)) or (known is not None and known.plural):
        return None
    things = [story.pick(items) for _ in range(story.draw.between(2, 3))]
    present = [thing for thing in things if thing is not None]
    if len(present) < 2:
        return None
    where = ""
    if known is None:
        known = story.new(holder, story.draw.between(1, 2))
        near = story.near_places()
        surface = story.speaker.introduce(known, 2)
        if near:
            place = story.draw.one(near)
            where = f" {place} {story.speaker.definite(story.hero, 0)}"
            story.relate(known, place, story.hero)
        story.remember(known)
    else:
        surface = story.speaker.definite(known)
    every = grammar.listed([story.speaker.introduce(thing, 2) for thing in present])
    for thing in present:
        story.relate(thing, "on", known)
    verbs = {thing.noun.verbs for thing in present}
    together = present[0].noun.verbs[0] if len(verbs) == 1 else "are"
    together = "are" if not together or together.startswith("=") else together
    return story.draw.one(
        (
            f"on {surface}{where} {together} {every}.",
            f"on {surface}{where} are {every}.",
            f"{every} are arranged on {surface}{where}.",
            f"{surface}{where} holds {every}.",
        )
    )


def zone(story: Story) -> str | None:
    """Something on the wall, overhead and the like."""
    zones = [one for one in story.scene.zones if not story.is_taken(one.place)]
    if not zones:
        return None
    chosen = story.draw.one(zones)
    new = story.pick(chosen.items, (1, 2), 1)
    if new is None:
        return None
    story.take(None, chosen.place)
    verb = chosen.verb or story.verb(new)
    words = story.speaker.introduce(new, 2, story.draw.between(0, 1))
    story.relate(new, grammar.reduced(verb) if verb else "", where=chosen.place)
    does, is_ = story.does(new, verb), story.be(new)
    forms = [f"{words} {does} {chosen.place}."]
    if verb.startswith("="):
        forms.append(f"{verb[1:]} {chosen.place} {is_} {words}.")
    elif chosen.place == "overhead":
        forms.append(f"{chosen.place}, {words} {does}.")
    else:
        forms.append(f"{chosen.place} {does} {words}.")
        forms.append(f"{chosen.place}, {words} {does}." if chosen.verb else f"{chosen.place}, there {is_} {words}.")
    return story.draw.one(forms)


def surrounded(story: Story) -> str | None:
    """Several things around the hero, with few words for each."""
    things = [story.pick(story.scene.near, (1, 1)) for _ in range(3)]
    present = [thing for thing in things if thing is not None]
    if len(present) < 3:
        return None
    every = grammar.listed([story.speaker.introduce(thing, 2) for thing in present])
    known = story.speaker.definite(story.hero)
    for thing in present:
        story.remember(thing)
        story.relate(thing, "near", story.hero)
    return story.draw.one(
        (
            f"around {known} are {every}.",
            f"{known} {story.be(story.hero)} surrounded by {every}.",
            f"close to {known} there are {every}." if present[0].plural else f"close by {known} are {every}.",
        )
    )


def in_picture(story: Story) -> str | None:
    """Something at a place of the picture."""
    places = [place for place in _PICTURE if not story.is_taken(place)]
    new = story.pick(story.scene.near, (1, 3), 2)
    if not places or new is None:
        return None
    place = story.draw.one(places)
    story.take(None, place)
    words = story.speaker.introduce(new, 3, story.draw.between(0, 2))
    story.remember(new)
    story.relate(new, "", where=place)
    short = place.replace(" side of the picture", "")
    return story.draw.one(
        (
            f"{place} {story.inverted(new)} {words}.",
            f"{short}, there {story.be(new)} {words}.",
            f"{short}, you can see {words}.",
            f"{words} can be seen {place}.",
        )
    )
