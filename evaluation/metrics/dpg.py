"""DPG-Bench (Hu et al. 2024, ELLA, arXiv 2403.05135): a dense prompt as a graph of questions of yes or no.

A question counts 1 if the answer is yes and if those of all questions that it depends on count; asking for the colour
of a cat says nothing where there is no cat. The score of an image is the mean over its questions, and that of a model
the mean over images.

This is "DPG by <judge>", not the official number. What differs from `compute_dpg_bench.py`:
    The official judge is mPLUG-large of modelscope, which cannot be installed beside anything current, and it is asked
    the bare question for free text that has to equal "yes". Here any judge of `vqa_score` is asked, with the request
    to answer yes or no, and says yes if that is likelier than no.
    Officially four images of a prompt come as one 2x2 grid, which is cut into crops. Here an image is a file, at its
    own size.
    The official script drops the first row of its table of questions as if it were a header, takes the answers for
    categories from the last crop only, and leaves out images that failed without a word. Here no question is dropped,
    and categories are counted for every image.
    Where a question stands before the one it depends on, the official script looks at that one's own answer; here its
    dependencies are always settled first.
As there, categories count the bare answers, before dependencies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .base import Context, ImageMetric, Scores
from .vqa_score import VQA, VQAJudge, load_vqa_judge

ASKED = "{question} Please answer yes or no."


class Question(BaseModel):
    """A node of the graph.

    Attributes:
        id: unique in its prompt.
        category: global, entity, attribute, relation or other; of "entity - whole" the first part counts.
        text: the question.
        parents: ids of those it depends on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: int
    category: str
    text: str = Field(min_length=1)
    parents: list[int] = Field(default_factory=list)

    @property
    def group(self) -> str:
        """The broad category."""
        return self.category.split("-")[0].strip()


class _Questions(BaseModel):
    model_config = ConfigDict(strict=True)

    questions: list[Question] = Field(min_length=1)


def questions_of(prompt: Prompt) -> list[Question]:
    """The questions of a prompt, each behind those that it depends on.

    Raises:
        LLM4GENError: they are none, an id occurs twice, one depends on one that is not there, or on itself.
    """
    try:
        questions = _Questions.model_validate({"questions": prompt.about.get("questions")}).questions
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise LLM4GENError(
            f"Prompt {prompt.id!r} has no questions that DPG-Bench can ask ({place}: {error.errors()[0]['msg']}); "
            'expected about.questions as a list of {"id": 1, "category": "entity", "text": "Is there a cat?", '
            '"parents": []}.'
        ) from error
    by_id = {question.id: question for question in questions}
    if len(by_id) < len(questions):
        raise LLM4GENError(f"Prompt {prompt.id!r} has two questions of one id; expected ids that are unique.")
    ordered: dict[int, Question] = {}
    waiting = list(questions)
    while waiting:
        ready = [one for one in waiting if all(parent in ordered for parent in one.parents)]
        if not ready:
            known = {parent for one in waiting for parent in one.parents} <= by_id.keys()
            what = "depend on each other in a circle" if known else "depend on questions that are not there"
            raise LLM4GENError(
                f"Prompt {prompt.id!r}: its questions {', '.join(str(one.id) for one in waiting)} {what}; expected "
                "parents that are ids of other questions of the prompt, and no circle."
            )
        ordered.update((one.id, one) for one in ready)
        waiting = [one for one in waiting if one.id not in ordered]
    return list(ordered.values())


def settle(questions: Sequence[Question], said: Mapping[int, bool]) -> dict[int, bool]:
    """Which questions count: their own answer is yes, and all that they depend on count.

    Args:
        questions: in the order of `questions_of`.
        said: the judge's own answers, by id.
    """
    counts: dict[int, bool] = {}
    for question in questions:
        counts[question.id] = said[question.id] and all(counts[parent] for parent in question.parents)
    return counts


class DPG(ImageMetric):
    """Share of a prompt's questions that count."""

    name = "dpg"
    title = "DPG"
    share = True
    judges_needed = (VQA,)

    def __init__(self, judge: VQAJudge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, context: Context) -> DPG:
        return cls(load_vqa_judge(context))

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        return "questions" in prompt.about

    def describe(self) -> dict[str, Any]:
        judge = self._judge.describe()
        return {"protocol": f"DPG by {judge['judge']}, one image at a time", "question": ASKED, **judge}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        """See `ImageMetric.score`.

        Returns:
            Beside "score": "answers", for each id of a question whether the judge said yes and whether it "counts";
            "categories", by name how many were "asked" and how many answered "yes" before dependencies.
        """
        graphs = [questions_of(prompt) for prompt in prompts]
        asked = [(image, question) for image, graph in zip(images, graphs, strict=True) for question in graph]
        answers = iter(
            self._judge.ask(
                [image for image, _ in asked], [ASKED.format(question=question.text) for _, question in asked]
            )
        )
        return [_scores(graph, [next(answers) for _ in graph]) for graph in graphs]


def _scores(questions: Sequence[Question], answers: Sequence[Any]) -> Scores:
    if any(answer is None for answer in answers):
        return {"score": None, "reason": "A question is longer than the judge reads."}
    said = {question.id: answer.yes > answer.no for question, answer in zip(questions, answers, strict=True)}
    counts = settle(questions, said)
    categories: dict[str, dict[str, int]] = defaultdict(lambda: {"asked": 0, "yes": 0})
    for question in questions:
        categories[question.group]["asked"] += 1
        categories[question.group]["yes"] += said[question.id]
    return {
        "score": sum(counts.values()) / len(counts),
        "answers": {str(one): {"yes": said[one], "counts": counts[one]} for one in sorted(said)},
        "categories": dict(sorted(categories.items())),
    }
