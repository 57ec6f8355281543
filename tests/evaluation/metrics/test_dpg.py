"""DPG-Bench: which questions count, and the questions that a real judge is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.questions import ASKED, DPG, Answer, VQAJudge, questions_of
from llm4gen_core import LLM4GENError

QUESTIONS: list[dict[str, Any]] = [
    {"id": 1, "category": "entity", "text": "Is there a cat?", "parents": []},
    {"id": 2, "category": "attribute - color", "text": "Is the cat red?", "parents": [1]},
    {"id": 3, "category": "entity - whole", "text": "Is there a book?", "parents": []},
    {"id": 4, "category": "relation - spatial", "text": "Is the cat on the book?", "parents": [1, 3]},
    {"id": 5, "category": "attribute", "text": "Is the cat on the book asleep?", "parents": [4]},
]


def prompt_of(questions: Any, name: str = "1") -> Prompt:
    return Prompt(id=name, text="A cat.", about={"questions": questions})


class Told(VQAJudge):
    """Judge that answers yes to the given questions only."""

    def __init__(self, *yes: str) -> None:
        self._yes = [ASKED.format(question=question) for question in yes]

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Answer | None]:
        return [Answer(0.4, 0.1) if question in self._yes else Answer(0.1, 0.4) for question in questions]


def scored(questions: Any, *yes: str) -> Any:
    [score] = DPG(Told(*yes)).score([Image.new("RGB", (8, 8))], [prompt_of(questions)])
    return score


def test_all_yes_is_one() -> None:
    assert scored(QUESTIONS, *(one["text"] for one in QUESTIONS))["score"] == 1


def test_questions_that_depend_on_a_no_do_not_count() -> None:
    """Without the book, neither "on the book" nor the question about that counts: 2 of 5."""
    score = scored(QUESTIONS, *(one["text"] for one in QUESTIONS if one["id"] != 3))
    assert score["score"] == pytest.approx(2 / 5)
    assert {int(name) for name, one in score["answers"].items() if one["counts"]} == {1, 2}
    assert {int(name) for name, one in score["answers"].items() if one["yes"]} == {1, 2, 4, 5}


def test_the_order_of_questions_does_not_matter() -> None:
    yes = [one["text"] for one in QUESTIONS if one["id"] != 1]
    assert scored(QUESTIONS, *yes)["score"] == scored(QUESTIONS[::-1], *yes)["score"] == pytest.approx(1 / 5)


def test_categories_count_the_bare_answers() -> None:
    score = scored(QUESTIONS, "Is the cat red?", "Is there a book?")
    assert score["score"] == pytest.approx(1 / 5)
    assert score["categories"] == {
        "attribute": {"asked": 2, "yes": 1},
        "entity": {"asked": 2, "yes": 1},
        "relation": {"asked": 1, "yes": 0},
    }


def test_a_real_judge_is_asked_of_each_image(llava_folder: Path, pictures: list[Image.Image]) -> None:
    metric = DPG.load(Context(judges=llava_folder.parent))
    prompts = [prompt_of(QUESTIONS, "1"), prompt_of(QUESTIONS[:1], "2"), prompt_of(QUESTIONS[:3], "3")]
    scores = metric.score(pictures, prompts)
    judge = VQAJudge(llava_folder)
    for picture, prompt, score in zip(pictures, prompts, scores, strict=True):
        for question in questions_of(prompt):
            [answer] = judge.ask([picture], [f"{question.text} Please answer yes or no."])
            assert answer is not None
            assert score["answers"][str(question.id)]["yes"] == (answer.yes > answer.no)
    assert metric.describe()["protocol"].startswith("DPG by vqa")


def test_an_image_with_too_long_a_question_has_no_score(llava_folder: Path, pictures: list[Image.Image]) -> None:
    long = [{**QUESTIONS[0], "text": "cat " * 200}, {**QUESTIONS[1]}]
    first, second = DPG.load(Context(judges=llava_folder.parent)).score(
        pictures[:2], [prompt_of(long, "1"), prompt_of(QUESTIONS, "2")]
    )
    assert first["score"] is None and first["reason"]
    assert second["score"] is not None and len(second["answers"]) == 5


@pytest.mark.parametrize(
    ("questions", "what"),
    [
        (None, "no questions"),
        ([], "no questions"),
        ([{"id": "1", "category": "entity", "text": "Is there a cat?"}], "0.id: Input should be a valid integer"),
        ([QUESTIONS[0], QUESTIONS[0]], "two questions with the same id"),
        ([{**QUESTIONS[0], "parents": [7]}], "question 7, which is missing"),
        ([{**QUESTIONS[0], "parents": [2]}, {**QUESTIONS[1], "parents": [1]}], "in a circle"),
        ([{**QUESTIONS[0], "parents": [1]}], "in a circle"),
    ],
)
def test_invalid_questions_are_refused(questions: Any, what: str) -> None:
    with pytest.raises(LLM4GENError, match=what):
        questions_of(prompt_of(questions))


def test_only_prompts_with_questions_apply() -> None:
    assert DPG.applies(prompt_of(QUESTIONS)) and not DPG.applies(Prompt(id="1", text="A cat."))
