"""Sentences about the picture as a whole: background, light, view and style.

Each function returns a sentence, or None where it finds nothing to say.
"""

from __future__ import annotations

from . import markup
from .story import Story


def background(story: Story) -> str | None:
    """What lies behind it all."""
    if story.distant:
        return None
    story.distant = True
    first = story.pick(story.scene.far, (1, 2), 1)
    if first is None:
        return None
    draw, speaker = story.draw, story.speaker
    words = speaker.introduce(first, 2, draw.weighted(((0, 2.0), (1, 1.0))))
    story.relate(first, "", where="in the background")
    places = ["in the background", "in the background"]
    if "outdoors" in story.scene.tags and "table" not in story.scene.tags:
        places += ["in the distance", "farther back", f"far behind {speaker.definite(story.hero, 0)}"]
    place = draw.one(places)
    second = story.pick(story.scene.far) if draw.chance(0.35) else None
    if second is not None:
        more = speaker.introduce(second, 2)
        story.relate(second, "", where="in the background")
        return draw.one(
            (
                f"{place} are {words} and {more}.",
                f"{words} and {more} can be seen {place}.",
                f"the background shows {words} and {more}.",
                f"behind it all are {words} and {more}.",
                f"{words} and {more} make up the background.",
            )
        )
    is_, does = story.be(first), story.does(first)
    return draw.one(
        (
            f"{place}, {words} can be made out.",
            f"{place} {story.inverted(first)} {words}.",
            f"{words} {does} {place}.",
            f"{place} {is_} {words}.",
            f"behind it all {is_} {words}.",
            f"the background shows {words}.",
            f"{words} can be seen {place}.",
        )
    )


def light(story: Story) -> str | None:
    """The light, as place, time and weather allow."""
    if story.lit:
        return None
    story.lit = True
    tags = set(story.scene.tags)
    possible = []
    for remark in story.vocabulary.ambience:
        where, times, weathers = remark.conditions
        if not set(where) <= tags or (times != ("*",) and story.time not in times):
            continue
        if weathers == ("*",) or story.weather in weathers:
            possible.append(remark)
    while possible:
        remark = story.draw.one(possible)
        possible.remove(remark)
        words = markup.chosen(remark.sentence, story.draw)
        _, nouns = markup.from_authored(words, 0)
        if not story.names_any(nouns):
            sentence, _ = markup.from_authored(words, story.speaker.mention(len(nouns)))
            story.ask_global(remark.questions)
            return sentence
    return None


def view(story: Story) -> str | None:
    """Camera, composition or palette, so that nothing said before is contradicted."""
    if story.draw.chance(0.5):
        return None
    colors = story.styled and story.style.colors
    possible = []
    for remark in story.vocabulary.views:
        (medium,), (where,), (group,) = remark.conditions
        if medium == "photo" and not (story.styled and story.style.photo):
            continue
        if where != "*" and where not in story.scene.tags:
            continue
        if (group == "far" and story.distant) or (group == "palette" and (story.lit or colors)):
            continue
        possible.append(remark)
    if not possible:
        return None
    remark = story.draw.one(possible)
    story.distant |= remark.conditions[2] == ("far",)
    story.lit |= remark.conditions[2] == ("palette",)
    story.ask_global(remark.questions)
    return markup.chosen(remark.sentence, story.draw)


def style(story: Story) -> str | None:
    """How the picture is made."""
    story.ask_global([story.style.question])
    return markup.chosen(story.draw.one(story.style.closings), story.draw)
