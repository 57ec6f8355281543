"""DensePrompts as the paper builds it: describe images, then write many prompts from each description.

The paper ("DensePrompts Benchmark") takes 100 images, half of them real and half generated, lets GPT-4V describe them
and GPT-4 expand the descriptions into more than 7,000 prompts of more than 40 words. It publishes neither the images
nor its instructions to the models. The instructions below, the filters and the removal of near-duplicates are ours.

A build is a folder:

    build.json          settings and models; a build with others does not continue in this folder
    descriptions.jsonl  description of each image
    answers.jsonl       answers of the LLM, unchanged
    prompts.jsonl       the prompt set, made from the answers at the end of every run
    rejected.jsonl      texts that were left out, with the reason

Each description or answer is stored before the next request, under a key that is a hash of its request, and is never
requested again. A build can be killed at any moment: what is stored is whole, and nothing is stored twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from pydantic import Field, JsonValue
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines, read_json, write_json, write_json_lines
from llm4gen_diffusers.machine import fingerprint
from llm4gen_diffusers.options import Options

from ..image_set import Prompt, write_prompts
from .chat_models import ChatModel, Request
from .filters import NearDuplicates, is_useful, reason_against, split_answer
from .image_folder import SourceImage

# A change of these texts is another build: their hash is stored, and is part of each answer's key.
DESCRIBE = """\
Describe this image in as much detail as you can, in one paragraph of 120 to 200 words. Name every object. For each, \
say its color, shape, size, material or texture, and how many there are. Say where the objects are relative to each \
other, what the background is, how the light falls, and in what style the picture is made (a photograph, an oil \
painting, and so on). Write only what can be seen. Do not guess names of people, do not mention text in the image that \
you cannot read, and do not begin with "The image".\
"""

EXPAND = """\
Below is a description of a picture. Write {count} different prompts for a text-to-image model that are inspired by \
it. Every prompt is one English paragraph of 45 to 90 words that describes one complete scene on its own: several \
objects, each with its attributes, their spatial relations, the surroundings, the light and the style. Do not copy the \
description: keep its kind of scene, but change {aspect}. The prompts must differ clearly from each other.
Answer with the {count} prompts alone, one on each line, numbered "1." to "{count}.", without headings or remarks.

Description:
{description}\
"""

ASPECTS = {
    "color": "above all the colors, and give every object a color of its own, so that no two share one",
    "texture": "above all the materials and textures, and say of every object what it is made of or how it feels",
    "count": "above all which objects there are and their numbers, and say exactly how many there are of each",
    "spatial": "above all where things are, and place every object relative to another (left of, behind, on top of)",
    "style": "above all the medium, the style, the light, the season, and the viewpoint",
}
"""Aspects that the prompts of one request vary; also the categories of the prompt set."""

TEMPLATES = fingerprint([DESCRIBE, EXPAND, json.dumps(ASPECTS)])


class BuildSettings(Options):
    """Settings of a build."""

    prompts_per_image: int = Field(
        default=80,
        ge=1,
        json_schema_extra={"metavar": "N"},
        description="prompts per image, before the filters; 70 make the paper's set",
    )
    prompts_per_answer: int = Field(
        default=8, ge=1, le=50, json_schema_extra={"metavar": "N"}, description="prompts in one answer of the writer"
    )
    seed: int = Field(default=1, description="seed of the sampling")
    temperature: float = Field(
        default=0.9, ge=0, le=2, description="temperature of the writer; descriptions are decoded greedily"
    )
    similar: float = Field(
        default=0.5,
        ge=0.5,
        le=1,
        description="Jaccard similarity of word shingles from which a prompt is a near-duplicate",
    )


@dataclass
class BuildReport:
    """Counts of a build.

    Attributes:
        images: number of images; `described` of them have a useful description.
        answers: of the LLM.
        prompts: in the prompt set.
        rejected: texts that were left out, by reason.
        without_licence: names of the images without a known licence.
    """

    images: int
    described: int = 0
    answers: int = 0
    prompts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    without_licence: list[str] = field(default_factory=list)


class _Task(NamedTuple):
    """A request to a model; its answer is stored under `key`, with `about` beside it."""

    key: str
    request: Callable[[], Request]
    about: dict[str, Any]


class Build:
    """A build in its folder.

    Args:
        folder: for all files; need not exist.
        images: to describe.
        vision: vision-language model that describes them.
        writer: LLM that writes the prompts.
        settings: of the build.
        unsafe: words that no prompt may contain.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[SourceImage],
        vision: ChatModel,
        writer: ChatModel,
        settings: BuildSettings,
        unsafe: frozenset[str],
    ) -> None:
        self.folder, self.images, self.settings = folder, images, settings
        self._vision, self._writer, self._unsafe = vision, writer, unsafe
        self._descriptions = JSONLines(folder / "descriptions.jsonl", "Descriptions")
        self._answers = JSONLines(folder / "answers.jsonl", "Answers")

    def run(self, parallel: int = 1) -> BuildReport:
        """Request what is not stored yet, and write the prompt set.

        Args:
            parallel: requests at a time; more than one only for endpoints.

        Raises:
            LLM4GENError: a model does not answer, another process works in this folder, or it holds another build.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "build.lock", timeout=0):
                self._check_settings()
                descriptions = [self._description_task(image) for image in self.images]
                self._request("describe", self._vision, self._descriptions, descriptions, parallel)
                texts = _stored(self._descriptions)
                expansions = [task for image in self.images for task in self._expansions(image, texts)]
                self._request("expand", self._writer, self._answers, expansions, parallel)
                return self._finish()
        except Timeout:
            raise LLM4GENError(
                f"Another process builds in {self.folder}; wait for it, or choose another folder."
            ) from None

    def _check_settings(self) -> None:
        """Write the settings, or check that they are those of the folder. Images may be added."""
        wanted = {
            "vision": self._vision.describe,
            "writer": self._writer.describe,
            "templates": TEMPLATES,
            "prompts_per_answer": self.settings.prompts_per_answer,
            "seed": self.settings.seed,
            "temperature": self.settings.temperature,
        }
        path = self.folder / "build.json"
        if not path.exists():
            write_json(path, wanted)
            return
        old = read_json(path, "Build", "choose another folder")
        if differing := sorted(key for key in {*old, *wanted} if old.get(key) != wanted.get(key)):
            raise LLM4GENError(
                f"{self.folder} holds a build with a different {', '.join(differing)}; use the same, or choose another "
                "folder."
            )

    def _description_task(self, image: SourceImage) -> _Task:
        return _Task(
            fingerprint([image.sha256, DESCRIBE]),
            lambda: Request(DESCRIBE, self.settings.seed, 500, 0.0, image.open()),
            {"image": image.name, "sha256": image.sha256},
        )

    def _expansions(self, image: SourceImage, descriptions: dict[str, dict[str, Any]]) -> Iterator[_Task]:
        """Requests for the prompts of an image, none if its description is useless; the aspects take turns."""
        description = descriptions[self._description_task(image).key]["text"]
        if not is_useful(description):
            return
        each, aspects = self.settings.prompts_per_answer, list(ASPECTS)
        for place, first in enumerate(range(0, self.settings.prompts_per_image, each)):
            count = min(each, self.settings.prompts_per_image - first)
            aspect, seed = aspects[place % len(aspects)], self.settings.seed + place
            text = EXPAND.format(count=count, aspect=ASPECTS[aspect], description=description)
            request = partial(Request, text, seed, 160 * count, self.settings.temperature)
            yield _Task(fingerprint([text, seed]), request, {"sha256": image.sha256, "aspect": aspect, "seed": seed})

    def _request(self, what: str, model: ChatModel, store: JSONLines, tasks: Sequence[_Task], parallel: int) -> None:
        """Answer the tasks that are not stored, several at a time; an answer is on the disk before it counts."""
        stored = _stored(store)
        wanted = {task.key: task for task in tasks}  # two images may have the same description
        waiting = iter([task for key, task in wanted.items() if key not in stored])

        def answer(task: _Task) -> None:
            text = model.write(task.request())
            store.append({"key": task.key, **task.about, "text": text})

        running: set[Future[None]] = set()
        done = sum(key in stored for key in wanted)
        with (
            tqdm(total=len(wanted), initial=done, unit=" answers", desc=what, mininterval=0.5) as bar,
            ThreadPoolExecutor(max_workers=parallel) as pool,
        ):
            while True:
                # After a failure nothing new is submitted, while the requests that run are waited for and stored.
                while len(running) < parallel and (task := next(waiting, None)):
                    running.add(pool.submit(answer, task))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    bar.update()

    def _finish(self) -> BuildReport:
        """Filter what is stored, in the order of images and requests, and write the prompt set."""
        report = BuildReport(len(self.images), without_licence=[one.name for one in self.images if not one.licence])
        descriptions, answers = _stored(self._descriptions), _stored(self._answers)
        known = NearDuplicates(self.settings.similar)
        prompts: list[Prompt] = []
        rejected: list[dict[str, Any]] = []
        for image in self.images:
            description = descriptions[self._description_task(image).key]["text"]
            if not is_useful(description):
                rejected.append({"image": image.name, "reason": "useless description", "text": description})
                continue
            report.described += 1
            for place, task in enumerate(self._expansions(image, descriptions), 1):
                row, aspect = answers[task.key], task.about["aspect"]
                report.answers += 1
                for number, text in enumerate(split_answer(row["text"]), 1):
                    name = f"{image.sha256[:10]}-{aspect}-{place:02d}-{number:02d}"
                    reason = reason_against(text, self._unsafe)
                    if not reason and (twin := known.add(name, text)):
                        reason = f"near-duplicate of {twin}"
                    if reason:
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
                f"{report.images:,} images; see the reasons in its rejected.jsonl."
            )
        write_prompts(self.folder / "prompts.jsonl", prompts)
        return report

    def _provenance(self, image: SourceImage, seed: int) -> dict[str, JsonValue]:
        return {
            "image": image.name,
            "sha256": image.sha256,
            "licence": image.licence,
            "source": image.source,
            "described_by": self._vision.describe,
            "written_by": self._writer.describe,
            "seed": seed,
            "templates": TEMPLATES,
        }


def _stored(store: JSONLines) -> dict[str, dict[str, Any]]:
    """Return the rows of a file by their key.

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
                f"{store.path}, line {number}, is damaged; delete the line and run the command again, which requests "
                "it anew."
            ) from error
    return found
