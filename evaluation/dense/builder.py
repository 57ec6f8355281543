"""DensePrompts as the paper builds it: images, a description of each, and many prompts from each description.

The paper ("DensePrompts Benchmark") takes 100 images, half of them real and half generated, lets GPT-4V describe them
and GPT-4 expand the descriptions into more than 7,000 prompts of more than 40 words. It gives neither images nor the
questions to the models; those are in `writing`. Filters and the removal of near-duplicates are ours.

A build is a folder:

    build.json          what was asked for; another build does not go on in this folder
    descriptions.jsonl  what was seen in each image
    answers.jsonl       what the LLM answered, as it stands
    prompts.jsonl       the set: made anew from the answers at the end of every sitting
    rejected.jsonl      what was left out, and why

A description or an answer is stored before the next one is asked for, under a key that says what it answers, and never
asked for again. So a build can be killed at any moment: what is stored is whole, and nothing comes twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import JsonValue

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines, write_json_lines, write_text
from llm4gen_diffusers.provenance import fingerprint

from ..prompts import Prompt, write_prompts
from .duplicates import NearDuplicates
from .filters import reason_against
from .image_folder import SourceImage
from .writing import ASPECTS, DESCRIBE, EXPAND, Request, Writer, expansion_text, split_answer, template_hash

SHORTEST_DESCRIPTION = 40
"""Words; a description with fewer, or one that is a refusal, is of no use."""


@dataclass(frozen=True)
class BuildSettings:
    """What a build asks for.

    Attributes:
        prompts_per_image: wanted of the LLM, before filters; 70 and more make the paper's 7,000 of 100 images.
        prompts_per_answer: that the LLM writes at once.
        seed: of the sampling.
        temperature: of the LLM; descriptions are always the likeliest ones.
        similar: Jaccard similarity of word shingles that no two prompts reach, see `NearDuplicates`.
    """

    prompts_per_image: int = 80
    prompts_per_answer: int = 8
    seed: int = 1
    temperature: float = 0.9
    similar: float = 0.5

    def __post_init__(self) -> None:
        if self.prompts_per_image < 1 or not 1 <= self.prompts_per_answer <= 50:
            raise LLM4GENError(
                f"Build: {self.prompts_per_image} prompts an image, {self.prompts_per_answer} an answer; expected at "
                "least 1, and 1 to 50."
            )
        if not 0.0 <= self.temperature <= 2.0 or not 0.5 <= self.similar <= 1.0:
            raise LLM4GENError(
                f"Build: temperature {self.temperature}, similarity {self.similar}; expected 0 to 2, and .5 to 1."
            )


@dataclass
class BuildReport:
    """What came of a build.

    Attributes:
        images: that there are; `described` of them have a description that is of use.
        answers: of the LLM.
        prompts: of the set.
        rejected: texts that were left out, by reason.
        without_licence: names of images of which the list of licences says nothing.
    """

    images: int
    described: int = 0
    answers: int = 0
    prompts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    without_licence: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """A question whose answer is not stored."""

    key: str
    request: Callable[[], Request]
    about: dict[str, Any]


class Build:
    """A build in its folder.

    Args:
        folder: for everything; need not exist.
        images: to describe.
        vision: describes.
        writer: expands.
        settings: of the build.
        unsafe: words that no prompt may hold.

    Raises:
        LLM4GENError: the folder holds a build with other settings or models.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[SourceImage],
        vision: Writer,
        writer: Writer,
        settings: BuildSettings,
        unsafe: frozenset[str],
    ) -> None:
        self.folder, self.images, self.settings = folder, images, settings
        self._vision, self._writer, self._unsafe = vision, writer, unsafe
        self._descriptions = JSONLines(folder / "descriptions.jsonl", "Descriptions")
        self._answers = JSONLines(folder / "answers.jsonl", "Answers")

    def run(self, parallel: int = 1, told: Callable[[str, int, int], None] = lambda *_: None) -> BuildReport:
        """Ask what is not stored yet, and write the set.

        Args:
            parallel: questions at a time; more than one only for endpoints.
            told: is called with "describe" or "expand", how many are done, and how many there are.

        Raises:
            LLM4GENError: a model gives no answer, another process is at this folder, or it holds another build.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "build.lock", timeout=0):
                self._settle()
                self._ask("describe", self._vision, self._descriptions, list(self._description_tasks()), parallel, told)
                self._ask("expand", self._writer, self._answers, list(self._expansion_tasks()), parallel, told)
                return self._finish()
        except Timeout:
            raise LLM4GENError(
                f"Another process builds in {self.folder}; wait for it, or take another folder."
            ) from None

    def _settle(self) -> None:
        """Write what is asked for, or check that it is what was asked for before. Images may be added."""
        settings = self.settings
        wanted = {
            "vision": self._vision.describe,
            "writer": self._writer.describe,
            "templates": template_hash(DESCRIBE, EXPAND, json.dumps(ASPECTS)),
            "prompts_per_answer": settings.prompts_per_answer,
            "seed": settings.seed,
            "temperature": settings.temperature,
        }
        path = self.folder / "build.json"
        if not path.exists():
            write_text(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            differing = sorted(key for key in {*old, *wanted} if old.get(key) != wanted.get(key))
        except (ValueError, TypeError, AttributeError) as error:
            raise LLM4GENError(f"{path} is damaged ({error}); take another folder.") from error
        if differing:
            raise LLM4GENError(
                f"{self.folder} holds a build with other {', '.join(differing)}; go on with the same, or take another "
                "folder."
            )

    def _description_tasks(self) -> Iterator[_Task]:
        for image in self.images:
            about = {"image": image.name, "sha256": image.sha256}
            yield _Task(self._description_key(image), partial(self._description_request, image), about)

    def _description_request(self, image: SourceImage) -> Request:
        return Request(DESCRIBE, self.settings.seed, 500, 0.0, image.open())

    @staticmethod
    def _description_key(image: SourceImage) -> str:
        return fingerprint([image.sha256, DESCRIBE])

    def _expansion_tasks(self) -> Iterator[_Task]:
        texts = _stored(self._descriptions)
        for image in self.images:
            description = texts[self._description_key(image)]["text"]
            if is_useful(description):
                for place, (aspect, count) in enumerate(self._portions()):
                    yield self._expansion_task(image, description, place, aspect, count)

    def _portions(self) -> Iterator[tuple[str, int]]:
        """Aspect and number of prompts of every question about a description; aspects take turns."""
        left, place, aspects = self.settings.prompts_per_image, 0, list(ASPECTS)
        while left > 0:
            count = min(left, self.settings.prompts_per_answer)
            yield aspects[place % len(aspects)], count
            left, place = left - count, place + 1

    def _expansion_task(self, image: SourceImage, description: str, place: int, aspect: str, count: int) -> _Task:
        text = expansion_text(description, aspect, count)
        seed = self.settings.seed + place
        return _Task(
            fingerprint([text, seed]),
            lambda: Request(text, seed, 160 * count, self.settings.temperature),
            {"sha256": image.sha256, "aspect": aspect, "seed": seed},
        )

    def _ask(
        self,
        what: str,
        model: Writer,
        store: JSONLines,
        tasks: list[_Task],
        parallel: int,
        told: Callable[[str, int, int], None],
    ) -> None:
        """Answer what is not stored, several at a time; every answer is on the disk before it counts."""
        stored = _stored(store)
        wanted = {task.key: task for task in tasks}  # two images may be described in the same words
        waiting = iter([task for key, task in wanted.items() if key not in stored])
        done = sum(key in stored for key in wanted)
        told(what, done, len(wanted))

        def answer(task: _Task) -> None:
            text = model.write(task.request())
            store.append({"key": task.key, **task.about, "text": text})

        running: set[Future[None]] = set()
        with ThreadPoolExecutor(max_workers=parallel) as pool:
            while True:
                while len(running) < parallel and (task := next(waiting, None)):
                    running.add(pool.submit(answer, task))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()  # where one fails, the others that run are still waited for and stored
                    done += 1
                    told(what, done, len(wanted))

    def _finish(self) -> BuildReport:
        """Filter what is stored, in the order of images and questions, and write the set."""
        report = BuildReport(len(self.images), without_licence=[one.name for one in self.images if not one.licence])
        descriptions, answers = _stored(self._descriptions), _stored(self._answers)
        known = NearDuplicates(self.settings.similar)
        prompts: list[Prompt] = []
        rejected: list[dict[str, Any]] = []
        for image in self.images:
            description = descriptions[self._description_key(image)]["text"]
            if not is_useful(description):
                rejected.append({"image": image.name, "reason": "useless description", "text": description})
                continue
            report.described += 1
            for place, (aspect, count) in enumerate(self._portions()):
                row = answers[self._expansion_task(image, description, place, aspect, count).key]
                report.answers += 1
                for number, text in enumerate(split_answer(row["text"]), 1):
                    name = f"{image.sha256[:10]}-{aspect}-{place + 1:02d}-{number:02d}"
                    if reason := reason_against(text, self._unsafe) or self._twin(known, name, text):
                        rejected.append({"image": image.name, "id": name, "reason": reason, "text": text})
                    else:
                        about: dict[str, JsonValue] = {"provenance": self._provenance(image, row["seed"])}
                        prompts.append(Prompt(id=name, text=text, category=aspect, about=about))
        report.prompts = len(prompts)
        report.rejected = Counter(row["reason"].partition(" of ")[0] for row in rejected)
        write_json_lines(self.folder / "rejected.jsonl", rejected)
        if not prompts:
            raise LLM4GENError(
                f"Build {self.folder}: no prompt is left of {report.answers:,} answers about {report.described:,} of "
                f"{report.images:,} images; rejected.jsonl there says why."
            )
        write_prompts(self.folder / "prompts.jsonl", prompts)
        return report

    @staticmethod
    def _twin(known: NearDuplicates, name: str, text: str) -> str | None:
        found = known.add(name, text)
        return f"near-duplicate of {found}" if found else None

    def _provenance(self, image: SourceImage, seed: int) -> dict[str, JsonValue]:
        return {
            "image": image.name,
            "sha256": image.sha256,
            "licence": image.licence,
            "source": image.source,
            "described_by": self._vision.describe,
            "written_by": self._writer.describe,
            "seed": seed,
            "templates": template_hash(DESCRIBE, EXPAND, json.dumps(ASPECTS)),
        }


def is_useful(description: str) -> bool:
    """Whether prompts can be made from a description: it is long enough and no refusal."""
    reason = reason_against(" ".join(description.split()), ())
    return len(description.split()) >= SHORTEST_DESCRIPTION and reason not in ("refusal", "not English")


def _stored(store: JSONLines) -> dict[str, dict[str, Any]]:
    """Rows by their key.

    Raises:
        LLM4GENError: a line is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in store.lines():
        try:
            row = json.loads(line)
            found[row["key"]] = {**row, "text": str(row["text"])}
        except (ValueError, TypeError, LookupError) as error:
            raise LLM4GENError(
                f"{store.path}, line {number}, is damaged; delete the line, and it is asked for again."
            ) from error
    return found
