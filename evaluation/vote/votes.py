"""Votes of a study: one row each, on the disk before it is acknowledged; the last row of the same vote counts."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_core.files import JSONLines, write_json_lines

from .study import PairImage, Record, Study, StudyFolder, Task, relative, schedule

Choice = Literal["left", "right", "tie"]

LONGEST_NAME = 60
LONGEST_PAUSE = 24 * 3600.0
"""Seconds; the page sends at most this."""


class Ballot(Record):
    """A vote as the page sends it.

    Attributes:
        id: drawn by the page, so that a vote that is sent again after a lost answer is written once.
        study: `Study.id`; the page may have been loaded from another study.
        rater: name as typed.
        task: `Task.id`.
        question: `Question.id`.
        choice: the better side.
        seconds: for which both images were visible.
    """

    id: str = Field(pattern=r"^[0-9a-f]{16,64}$")
    study: str
    rater: str
    task: str
    question: str
    choice: Choice
    seconds: float = Field(ge=0, le=LONGEST_PAUSE)


class Vote(Record):
    """A row of `votes.jsonl`.

    Attributes:
        id: of the ballot.
        rater: `rater_name` of who voted.
        pair: id of the pair.
        repeat: whether it was the second showing, with sides swapped.
        question: id of the question.
        choice: the better side.
        left, right: models on the sides.
        seconds: time of the rater.
        time: when the server wrote it, ISO 8601 in UTC.
    """

    id: str
    rater: str
    pair: str
    repeat: bool
    question: str
    choice: Choice
    left: str
    right: str
    seconds: float
    time: str

    @property
    def key(self) -> tuple[str, str, bool, str]:
        """Rater, pair, whether it is the second showing, question; a later vote with the same key replaces this one."""
        return self.rater, self.pair, self.repeat, self.question

    @property
    def winner(self) -> str | None:
        """Name of the chosen model; None for a tie."""
        return {"left": self.left, "right": self.right, "tie": None}[self.choice]


def rater_name(typed: str) -> str:
    """Normalise a rater's name: case and surrounding spaces do not make another rater.

    Raises:
        LLM4GENError: the name is empty, too long, or has characters that cannot be printed.
    """
    name = " ".join(unicodedata.normalize("NFKC", typed).split()).casefold()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise LLM4GENError(
            f"Name {typed[:LONGEST_NAME]!a} cannot be used; expected 1 to {LONGEST_NAME} printable characters."
        )
    return name


class VoteFile:
    """Votes of a study, and their only writer.

    Args:
        study: of the votes.
        lines: the file.

    Raises:
        LLM4GENError: a line is not a vote, or is about a pair that the study does not have.
    """

    def __init__(self, study: Study, lines: JSONLines) -> None:
        self.study = study
        self._lines = lines
        self._tasks: dict[str, dict[str, Task]] = {}
        self._votes: dict[tuple[str, str, bool, str], Vote] = {}
        self._written: set[str] = set()
        for vote in read_votes(study, lines):
            self._keep(vote)

    def __len__(self) -> int:
        return len(self._votes)

    @property
    def raters(self) -> set[str]:
        return {vote.rater for vote in self._votes.values()}

    def tasks(self, rater: str) -> dict[str, Task]:
        """Return the rater's schedule by task id."""
        if rater not in self._tasks:
            self._tasks[rater] = {task.id: task for task in schedule(self.study, rater)}
        return self._tasks[rater]

    def choices(self, rater: str) -> dict[str, dict[str, Choice]]:
        """Return the rater's choices so far: {task id: {question: choice}}."""
        found: dict[str, dict[str, Choice]] = {}
        for task in self.tasks(rater).values():
            for question in self.study.questions:
                if vote := self._votes.get((rater, task.pair.id, task.repeat, question.id)):
                    found.setdefault(task.id, {})[question.id] = vote.choice
        return found

    def check(self, ballot: Ballot) -> Vote:
        """Turn a ballot into a vote.

        Raises:
            LLM4GENError: the pair or the question is not among the rater's.
        """
        rater = rater_name(ballot.rater)
        task = self.tasks(rater).get(ballot.task)
        if task is None:
            raise LLM4GENError(f"Pair {ballot.task[:40]!a} is not in the schedule of {rater!a}; reload the page.")
        if ballot.question not in (question.id for question in self.study.questions):
            raise LLM4GENError(
                f"Question {ballot.question[:40]!a} is not in this study; expected one of "
                f"{', '.join(question.id for question in self.study.questions)}."
            )
        return Vote(
            id=ballot.id,
            rater=rater,
            pair=task.pair.id,
            repeat=task.repeat,
            question=ballot.question,
            choice=ballot.choice,
            left=task.left.model,
            right=task.right.model,
            seconds=round(ballot.seconds, 2),
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def write(self, vote: Vote) -> None:
        """Write the vote to the disk, unless it is there already. Not for several threads at once.

        Raises:
            OSError: the vote could not be written.
        """
        if vote.id not in self._written:
            self._lines.append(vote.model_dump())
            self._keep(vote)

    def _keep(self, vote: Vote) -> None:
        self._votes[vote.key] = vote
        self._written.add(vote.id)


def read_votes(study: Study, lines: JSONLines) -> Iterator[Vote]:
    """Yield all rows in the order in which they were written.

    Raises:
        LLM4GENError: a line is not a vote, or is about a pair that the study does not have.
    """
    pairs = {pair.id: pair for pair in study.pairs}
    questions = {question.id for question in study.questions}
    for number, line in lines.lines():
        try:
            vote = Vote.model_validate_json(line)
        except ValidationError as error:
            raise LLM4GENError(
                f"{lines.path}, line {number}, is not a vote ({first_problem(error)}); correct or delete the line."
            ) from error
        pair = pairs.get(vote.pair)
        if pair is None or vote.question not in questions or {vote.left, vote.right} != set(pair.models):
            raise LLM4GENError(
                f"{lines.path}, line {number}, belongs to another study; expected votes on the study.json in the "
                "same folder."
            )
        yield vote


def counted(votes: Iterable[Vote]) -> list[Vote]:
    """Return the votes that count: the last one of each key."""
    return list({vote.key: vote for vote in votes}.values())


def aliases(votes: Iterable[Vote], names: bool) -> dict[str, str]:
    """Return what each rater is called: by name, or "rater 1" and so on in the order of their first votes."""
    raters = dict.fromkeys(vote.rater for vote in votes)
    return {rater: rater if names else f"rater {number}" for number, rater in enumerate(raters, 1)}


def export(folder: StudyFolder, output: Path, *, names: bool = False) -> int:
    """Write the pairs with their votes as JSONL, a row for each pair, for other programs.

    A row has id, prompt (its id), text, category and seed of the pair; `images`, for both models the file, relative to
    the output's folder, and its hash; and `votes`, those that count, each with the rater, the question, the preferred
    model (or "tie"), the models on both sides, seconds, time, and whether it was the second showing.

    Args:
        folder: of the study.
        output: .jsonl to write.
        names: call raters by their names, not "rater 1" and so on.

    Returns:
        Number of votes written.

    Raises:
        LLM4GENError: the study or its votes are damaged.
    """
    study = folder.study
    rows = list(read_votes(study, folder.votes))
    called = aliases(rows, names)
    exported: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for vote in counted(rows):
        row = vote.model_dump(include={"question", "left", "right", "seconds", "time", "repeat"})
        exported[vote.pair].append({"rater": called[vote.rater], "preferred": vote.winner or "tie", **row})

    def image(one: PairImage) -> dict[str, Any]:
        file = relative(output.resolve().parent, folder.file(study, one).resolve())
        return {"model": one.model, "file": file, "sha256": one.sha256}

    write_json_lines(
        output,
        (
            {
                **pair.model_dump(include={"id", "prompt", "text", "category", "seed"}),
                "images": [image(pair.first), image(pair.second)],
                "votes": exported[pair.id],
            }
            for pair in study.pairs
        ),
    )
    return sum(map(len, exported.values()))
