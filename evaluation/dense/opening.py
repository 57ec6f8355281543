"""The first sentence: who or what, what it does, where, and sometimes when and in which style."""

from __future__ import annotations

from . import grammar, markup
from .story import Story
from .things import WORN, Thing
from .vocabulary import Item, Noun

_OF_SEVERAL = ("=lined up", "=arranged", "=piled", "gather")
"""What one thing alone cannot do."""


def open_story(story: Story, with_style: bool) -> None:
    """Write the first sentence, or the first two.

    Args:
        with_style: say in which style the picture is made.
    """
    draw, speaker, hero = story.draw, story.speaker, story.hero
    possible = [one for one in story.heroes.actions if hero.plural or not one.verb.startswith(_OF_SEVERAL)]
    action = draw.one(possible)
    who = speaker.introduce(hero, 3, _parts_at_once(story))
    if (
        hero.parts
        and hero.noun.pronoun == "it"
        and hero.noun.joined == "with"
        and " with " not in who
        and draw.chance(0.15)
    ):
        who += f", {absolute(story, hero.parts.pop(0))},"
    target = story.pick(action.objects, (1, 2), 2, least=2 if action.verb.endswith("between") else 1)
    if target is None:
        raise ValueError(f"Nothing new to {action.verb!r} in {story.scene.name!r}.")
    what = speaker.introduce(target, 2, draw.weighted(((0, 4.0), (1, 1.0))))
    story.relate(hero, grammar.reduced(action.verb), target)
    story.remember(target, action.verb)
    where, when = f"{story.scene.preposition} {_place(story)}", _when(story)
    plural = hero.plural
    does, doing = f"{grammar.finite(action.verb, plural)} {what}", f"{grammar.reduced(action.verb)} {what}"
    is_ = story.be(hero)
    if with_style:
        story.ask_global([story.style.question])
        start = markup.chosen(draw.one(story.style.openings), draw)
        forms = [
            f"{start} {who} {doing} {where}{when}.",
            f"{start} {who} {doing}, set {where}{when}.",
            f"{start} {who} {where}{when}, {doing}.",
            f"{start} {_bare(where)}{when}, with {who} {doing}.",
        ]
    else:
        forms = [
            f"{who} {does} {where}{when}.",
            f"{who} {does} {where}{when}.",
            f"{where}{when}, {who} {does}.",
            f"{doing} {where}{when} {is_} {who.rstrip(',')}.",
            f"{where}{when}, there {is_} {who} {doing}.",
            f"the picture shows {who} {doing} {where}{when}.",
            draw.one(
                (
                    f"the focus is on {who} {doing} {where}{when}.",
                    f"the main subject is {who} {doing} {where}{when}.",
                    f"in the middle of the picture, {who} {does} {where}{when}.",
                )
            ),
            f"{_bare(where)}{when}: {who} {doing}.",
        ]
        if "table" not in story.scene.tags:
            setting = draw.one(("the setting is", "the scene is", "this is"))
            forms.append(f"{setting} {_bare(where)}{when}, where {who} {does}.")
        if when:
            forms.append(f"{when.strip()}, {who} {does} {where}.")
    story.add(draw.one(forms))


def absolute(story: Story, part: Thing) -> str:
    """ "its ears pointed and gray": a part and what it is like, without a verb."""
    number = story.speaker.mention()
    story.speaker.ask_for(part)
    attributes, part.left = part.left, []
    said = story.speaker.predicate(part, attributes, number).partition(" ")[2]
    return f"{story.hero.possessive} {markup.entity(number, part.word)} {said}"


def _parts_at_once(story: Story) -> int:
    """How many parts or clothes come with the hero."""
    hero = story.hero
    if not hero.parts or (hero.parts[0].item.most != WORN and hero.noun.pronoun != "it"):
        return 0
    worn = sum(part.item.most == WORN for part in hero.parts)
    most = min(2, worn) if worn else 1
    return most if story.draw.chance(0.4) else 0


def _bare(where: str) -> str:
    """The place without its preposition."""
    return where.partition(" ")[2]


def _place(story: Story) -> str:
    """The setting with its attributes: "a wide sandy beach"."""
    scene, speaker, draw = story.scene, story.speaker, story.draw
    form = "plural" if scene.name.endswith("terraces") else "count"
    place = Thing(Item(Noun(scene.name, scene.name, form, attributes=scene.like), fixed=scene.fixed))
    described = draw.weighted(((0, 1.0), (1, 4.0), (2, 2.0)))
    place.left = story.maker.attributes(scene.like, described, ())
    article = "" if form == "plural" else f"{grammar.article(scene.name)} "
    place.asked = story.questions.ask("entity", f"Is the scene set {scene.preposition} {article}{scene.name}?")
    number = speaker.mention()
    chosen = speaker.in_order(place.left) + list(scene.fixed)
    speaker.say(place, chosen)
    words = [*(markup.attribute(number, one.word) for one in chosen), markup.entity(number, scene.name)]
    phrase = " ".join(words)
    return phrase if form == "plural" else f"{grammar.article(markup.plain(phrase))} {phrase}"


def _when(story: Story) -> str:
    """ " at dusk", or nothing."""
    if "outdoors" not in story.scene.tags or story.draw.chance(0.4):
        return ""
    possible = [
        remark
        for remark in story.vocabulary.times
        if story.time in remark.conditions[0] and story.weather in remark.conditions[1]
    ]
    if not possible:
        return ""
    remark = story.draw.one(possible)
    story.ask_global(remark.questions)
    return f" {remark.sentence}"
