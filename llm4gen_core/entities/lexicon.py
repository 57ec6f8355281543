"""Word lists of both entity parsers: nouns that are attributes, adjectives that are not, names of several words.

The lists are short and cover common words of image captions. Other words are classified by their ending and position
(`rules`) or by the dependency parse (`spacy`).
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

VERSION = 1
"""Version of the lists and rules of both parsers. Increase it with every change: the trainer's caches depend on it."""

MOST_JOINED = 12
"""Maximum number of conjuncts of one phrase, which bounds the time for texts that are not captions."""

LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
"""Any Latin letter; words without one are neither attributes nor entities."""


_lists = configparser.RawConfigParser()
_lists.read(Path(__file__).with_suffix(".ini"), encoding="utf-8")


def _words(name: str) -> frozenset[str]:
    return frozenset(_lists["words"][name].split())


def _pairs(name: str) -> frozenset[tuple[str, str]]:
    """Pairs of words, also with the second word in the plural."""
    pairs = [tuple(pair.split()) for pair in _lists["pairs"][name].split(",")]
    return frozenset((first, second + ending) for first, second in pairs for ending in ("", "s", "es"))


COLORS = _words("COLORS")
"""Names of colours: attributes before a noun, and after "painted" or "in"."""

MATERIALS = _words("MATERIALS")
"""Nouns for materials."""

PATTERNS = _words("PATTERNS")
"""Nouns for patterns of a surface."""

DESCRIPTIVE_NOUNS = COLORS | MATERIALS | PATTERNS
"""Nouns that can be attributes."""

SHADES = _words("SHADES")
"""Words that are part of a following colour: "dark red" is one attribute."""

COMPOUND_ATTRIBUTES = _pairs("COMPOUND_ATTRIBUTES")
"""Attributes of two words."""

NAMES = _pairs("NAMES")
"""Names of two words, of which the first is not an attribute."""

QUANTITIES = _words("QUANTITIES")
"""Nouns after which "of" introduces the content instead of the material: a pile of wood is not wooden."""

NOT_ENTITIES = _words("NOT_ENTITIES")
"""Nouns that do not name anything visible."""

NOT_ATTRIBUTES = _words("NOT_ATTRIBUTES")
"""Adjectives of order, amount or position, which do not describe how a thing looks."""

NEGATIONS = _words("NEGATIONS")

STATES = _words("STATES")
"""Participles that describe the look of a thing when they follow its noun or are its predicate."""

MAKING = _words("MAKING")
"""Participles of which the complement ("of wood", "in red", "with stripes") is the attribute."""

ADJECTIVES = _words("ADJECTIVES")

ADJECTIVE_OR_NOUN = _words("ADJECTIVE_OR_NOUN")
"""Adjectives that can also be nouns: "the light", "a cold"."""

NOUNS = _words("NOUNS")
"""Nouns with endings of adjectives or participles."""

VERBS = _words("VERBS")
"""Finite verbs that follow a noun in captions."""

SINGULAR_COPULAS = _words("SINGULAR_COPULAS")
PLURAL_COPULAS = _words("PLURAL_COPULAS")
COPULAS = SINGULAR_COPULAS | PLURAL_COPULAS
NEGATED_COPULAS = _words("NEGATED_COPULAS")

DETERMINERS = _words("DETERMINERS")

PREPOSITIONS = _words("PREPOSITIONS")

PRONOUNS = _words("PRONOUNS")
RELATIVES = _words("RELATIVES")
CONJUNCTIONS = _words("CONJUNCTIONS")
ADVERBS = _words("ADVERBS")
