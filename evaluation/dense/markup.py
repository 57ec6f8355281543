"""Sentences with marks: which words are attributes, and of which words.

The writer builds sentences as plain text with marks, `a {a7:red} {e7:cat}`, so that they can be joined and moved like
any text; characters are counted once, when the prompt is complete. Mentions that belong together share a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .draw import Draw

_MARK = re.compile(r"\{([ae])(\d+):([^{}]*)\}")
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_AUTHORED = re.compile(r"([\w'-]+)([*<^])")

Pair = tuple[tuple[int, int], tuple[int, int]]
"""(start, end) of an attribute and of its entity, in characters."""


def attribute(number: int, words: str) -> str:
    """Marked as an attribute of the entity with that number."""
    return f"{{a{number}:{words}}}"


def entity(number: int, words: str) -> str:
    """Marked as an entity."""
    return f"{{e{number}:{words}}}"


def plain(marked: str) -> str:
    """The text alone."""
    return _MARK.sub(lambda match: match.group(3), marked)


def capitalized(marked: str) -> str:
    """With a capital first letter, whether it is marked or not."""
    start = marked.index(":") + 1 if marked.startswith("{") else 0
    return marked[:start] + marked[start : start + 1].upper() + marked[start + 1 :]


def chosen(sentence: str, draw: Draw) -> str:
    """A sentence of the word lists with one of each "[a|b]"."""
    return _ALTERNATIVES.sub(lambda match: draw.one(match.group(1).split("|")), sentence)


def from_authored(sentence: str, first: int) -> tuple[str, list[str]]:
    """A sentence of the word lists, where "word*" belongs to the next "noun^" and "word<" to the last one.

    Args:
        first: number of its first entity; the others follow.

    Returns:
        The sentence with marks, and its nouns.
    """
    nouns: list[str] = []

    def mark(match: re.Match[str]) -> str:
        words, kind = match.group(1).replace("_", " "), match.group(2)
        if kind == "^":
            nouns.append(words)
            return entity(first + len(nouns) - 1, words)
        return attribute(first + len(nouns) - (kind == "<"), words)

    return _AUTHORED.sub(mark, sentence), nouns


def resolve(sentences: Sequence[str]) -> tuple[str, list[Pair]]:
    """The text of a prompt and its pairs, in the order of their attributes.

    Raises:
        ValueError: an attribute has no entity, or an entity's number occurs twice; a mistake in the writer.
    """
    marked = " ".join(capitalized(sentence) for sentence in sentences)
    text: list[str] = []
    length = end = 0
    attributes: list[tuple[int, tuple[int, int]]] = []
    entities: dict[int, tuple[int, int]] = {}
    for match in _MARK.finditer(marked):
        before, words = marked[end : match.start()], match.group(3)
        start = length + len(before)
        length, end = start + len(words), match.end()
        text += before, words
        number = int(match.group(2))
        if match.group(1) == "a":
            attributes.append((number, (start, length)))
        elif number in entities:
            raise ValueError(f"Entity {number} occurs twice in {marked!r}.")
        else:
            entities[number] = (start, length)
    text.append(marked[end:])
    if lost := [number for number, _ in attributes if number not in entities]:
        raise ValueError(f"Attribute of entity {lost[0]} without it in {marked!r}.")
    return "".join(text), [(span, entities[number]) for number, span in attributes]
