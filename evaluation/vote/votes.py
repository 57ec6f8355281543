"""The votes: one row each, on the disk before anybody is told so; the later row of the same vote counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines

from .schedule import Task, schedule
from .study import Study

Choice = Literal["left", "right", "tie"]

LONGEST_NAME = 60
LONGEST_PAUSE = 24 * 3600.0
"""Seconds: the page says no more."""


class Ballot(BaseModel):
    """What the page sends.

    Attributes:
        id: drawn by the page, so that a vote that is sent again after a lost answer is written once.
        study: `Study.id`; the page may be older than the study that is served.
        rater: name as typed.
        task: `Task.id`.
        question: `Question.id`.
        choice: the better side.
        seconds: that both images were to be seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: str = Field(pattern=r"^[0-9a-f]{16,64}$")
    study: str
    rater: str
    task: str
    question: str
    choice: Choice
    seconds: float = Field(ge=0, le=LONGEST_PAUSE)


class Vote(BaseModel):
    """A row of `votes.jsonl`.

    Attributes:
        id: of the ballot.
        rater: `rater_name` of who voted.
        pair: id of the pair.
        repeat: the pair was shown for the second time, with sides swapped.
        question: id of the question.
        choice: the better side.
        left, right: the models that stood there.
        seconds: that the rater took.
        time: when the server wrote it, ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

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
        """What there is one vote of: rater, pair, first or second showing, question."""
        return self.rater, self.pair, self.repeat, self.question

    @property
    def winner(self) -> str | None:
        """The model that was chosen; None for a tie."""
        return {"left": self.left, "right": self.right, "tie": None}[self.choice]


def rater_name(typed: str) -> str:
    """A name as votes carry it: small and capital letters, and blanks around it, do not make another rater.

    Raises:
        LLM4GENError: nothing is left, it is too long, or it holds characters that cannot be shown.
    """
    name = " ".join(unicodedata.normalize("NFKC", typed).split()).casefold()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise LLM4GENError(
            f"Name {typed[:LONGEST_NAME]!a} cannot be used; expected 1 to {LONGEST_NAME} letters that can be shown."
        )
    return name


class VoteFile:
    """The votes of a study, and the one writer of them.

    Args:
        study: that they belong to.
        lines: the file.

    Raises:
        LLM4GENError: a line is no vote, or one for a pair that the study does not have.
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
        """The rater's schedule, by id."""
        if rater not in self._tasks:
            self._tasks[rater] = {task.id: task for task in schedule(self.study, rater)}
        return self._tasks[rater]

    def choices(self, rater: str) -> dict[str, dict[str, Choice]]:
        """What the rater has said so far: choice by question, by id of the task."""
        found: dict[str, dict[str, Choice]] = {}
        for task in self.tasks(rater).values():
            for question in self.study.questions:
                if vote := self._votes.get((rater, task.pair.id, task.repeat, question.id)):
                    found.setdefault(task.id, {})[question.id] = vote.choice
        return found

    def check(self, ballot: Ballot) -> Vote:
        """The vote that a ballot stands for.

        Raises:
            LLM4GENError: it names a pair or a question that the rater is not asked.
        """
        rater = rater_name(ballot.rater)
        task = self.tasks(rater).get(ballot.task)
        if task is None:
            raise LLM4GENError(
                f"Pair {ballot.task[:40]!a} is not among those that {rater!a} is asked about; load the page again."
            )
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
        """Have the vote on the disk; one that is there already is not written again. Not for several threads at once.

        Raises:
            OSError: it could not be written.
        """
        if vote.id not in self._written:
            self._lines.append(vote.model_dump())
            self._keep(vote)

    def _keep(self, vote: Vote) -> None:
        self._votes[vote.key] = vote
        self._written.add(vote.id)


def read_votes(study: Study, lines: JSONLines) -> Iterator[Vote]:
    """All rows in the order in which they were written.

    Raises:
        LLM4GENError: a line is no vote, or one for a pair that the study does not have.
    """
    pairs = {pair.id: pair for pair in study.pairs}
    questions = {question.id for question in study.questions}
    for number, line in lines.lines():
        try:
            vote = Vote.model_validate_json(line)
        except ValidationError as error:
            raise LLM4GENError(
                f"{lines.path}, line {number}, is no vote ({error.errors()[0]['msg']}); mend or delete the line."
            ) from error
        pair = pairs.get(vote.pair)
        if pair is None or vote.question not in questions or {vote.left, vote.right} != set(pair.models):
            raise LLM4GENError(
                f"{lines.path}, line {number}, is a vote in another study; expected votes of the study.json beside it."
            )
        yield vote


def counted(votes: Iterable[Vote]) -> list[Vote]:
    """Those that count: of several for the same thing, the last one."""
    last: dict[tuple[str, str, bool, str], Vote] = {}
    for vote in votes:
        last[vote.key] = vote
    return list(last.values())
