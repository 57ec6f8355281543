"""Forms of English words: articles, plurals, verbs, and the order of adjectives."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_CONSONANT_SPOKEN = re.compile(r"uni[cftqv]|us[ei]|eu|one\b|one-|ukulele", re.IGNORECASE)
_DOUBLED = frozenset("sit run swim trot strut chop cut stop plan knit skid hop dip drag spin nod wag".split())


def article(words: str) -> str:
    """ "a" or "an", as the first word sounds."""
    vowel = re.match(r"[aeiou]|hour|honest|heir", words, re.IGNORECASE)
    return "an" if vowel and not _CONSONANT_SPOKEN.match(words) else "a"


def plural(noun: str) -> str:
    """The regular plural."""
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def third_person(verb: str) -> str:
    """ "carry" to "carries"."""
    return plural(verb) if not verb.endswith("o") else verb + "es"


def present_participle(verb: str) -> str:
    """ "lie" to "lying"."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + "ing"


def finite(phrase: str, plural_subject: bool) -> str:
    """A verb phrase with its subject's number: "sit on" to "sits on"; "=parked beside" to "is parked beside"."""
    if phrase.startswith("="):
        return ("are " if plural_subject else "is ") + phrase[1:]
    verb, _, rest = phrase.partition(" ")
    return " ".join(filter(None, (verb if plural_subject else third_person(verb), rest)))


def reduced(phrase: str) -> str:
    """What can follow its noun or "is": "sit on" to "sitting on"; "=parked beside" to "parked beside"."""
    if phrase.startswith("="):
        return phrase[1:]
    verb, _, rest = phrase.partition(" ")
    return " ".join(filter(None, (present_participle(verb), rest)))


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b, and c"."""
    if len(items) < 3:
        return " and ".join(items)
    return ", ".join(items[:-1]) + ", and " + items[-1]
