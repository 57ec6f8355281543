"""Questions of yes or no about a prompt, as in the Davidsonian Scene Graph (Cho et al. 2023, arXiv 2310.18235).

Each asks for one thing, and depends on those that have to be true for it to make sense: the colour of a cat is asked
for only where there is a cat. The answer to all of them is yes for a picture that shows the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from .draw import Draw

Category = Literal["entity", "attribute", "relation", "count", "global"]


@dataclass(frozen=True)
class _Question:
    category: Category
    text: str
    parents: tuple[int, ...]


class Questions:
    """The questions of one prompt, in the order in which its text answers them."""

    def __init__(self) -> None:
        self._questions: list[_Question] = []
        self._texts: set[str] = set()

    def ask(self, category: Category, text: str, parents: Iterable[int] = ()) -> int:
        """Add a question.

        Returns:
            Its id, from 1.

        Raises:
            ValueError: it was asked before, or depends on a later one; a mistake in the writer.
        """
        number, known = len(self._questions) + 1, tuple(parents)
        if text in self._texts or any(not 0 < parent < number for parent in known):
            raise ValueError(f"Question {text!r} comes twice or depends on {list(known)}.")
        self._texts.add(text)
        self._questions.append(_Question(category, text, known))
        return number

    def asked(self, text: str) -> bool:
        return text in self._texts

    def chosen(self, most: int, draw: Draw) -> list[JsonValue]:
        """So many of them, with all that they depend on, numbered anew.

        Every question costs a look of the judge at every image; a picture of a dense prompt could be asked 25. Two of
        three that are chosen are about attributes and relations, which is what dense prompts are for.
        """
        kept: set[int] = set()
        turns = (
            "attribute",
            "relation",
            "attribute",
            "attribute",
            "count",
            "relation",
            "attribute",
            "global",
            "entity",
        )
        left: dict[str, list[int]] = {kind: [] for kind in turns}
        for place in draw.shuffled(range(len(self._questions))):
            left[self._questions[place].category].append(place + 1)
        turn = 0
        while any(left.values()):
            waiting = left[turns[turn % len(turns)]]
            turn += 1
            if not waiting:
                continue
            wanted = self._with_parents(waiting.pop()) - kept
            if len(kept) + len(wanted) <= most:
                kept |= wanted
        numbers = {old: new for new, old in enumerate(sorted(kept), 1)}
        return [self._row(numbers[old], self._questions[old - 1], numbers) for old in sorted(kept)]

    def _with_parents(self, number: int) -> set[int]:
        found = {number}
        for parent in self._questions[number - 1].parents:
            found |= self._with_parents(parent)
        return found

    @staticmethod
    def _row(number: int, question: _Question, numbers: Mapping[int, int]) -> JsonValue:
        parents: list[JsonValue] = [numbers[parent] for parent in question.parents]
        return {"id": number, "category": question.category, "text": question.text, "parents": parents}
