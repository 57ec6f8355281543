"""Prompt sets and image sets.

A prompt set is a JSONL file with an id and a text in each line, and what a metric needs beside the text. An image set
is a folder of images with settings, prompts, manifest and scores, which several processes may fill.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line, first_problem
from llm4gen_core.files import JSONLines, write_json, write_json_lines
from llm4gen_diffusers.machine import choose_device, fingerprint


class Prompt(BaseModel):
    """One prompt of a benchmark.

    Attributes:
        id: unique in its set; part of file names.
        text: the prompt itself.
        category: category of the benchmark, such as "color"; "" where it has none.
        about: what a metric needs beside the text, such as the questions of DPG-Bench, the objects that GenEval asks
            for, or gold attribute-entity pairs. JSON values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    text: str
    category: str = ""
    about: dict[str, JsonValue] = Field(default_factory=dict)


def write_prompts(path: str | os.PathLike[str], prompts: Iterable[Prompt]) -> None:
    """Write a prompt set as JSONL, complete or not at all."""
    write_json_lines(Path(path), (prompt.model_dump(exclude_defaults=True) for prompt in prompts))


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read a prompt set.

    Args:
        path: JSONL file in the format of `write_prompts`, or the same compressed (.gz).

    Raises:
        LLM4GENError: the file cannot be read, a line is not a prompt, an id occurs twice, or there is no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise LLM4GENError(f"Prompt set {path} does not exist; expected a JSONL file with id and text in each line.")
    prompts = [_prompt(line, f"Prompt set {path}, line {number},") for number, line in _lines(path)]
    return check_prompts(prompts, f"Prompt set {path}")


def check_prompts(prompts: list[Prompt], what: str) -> list[Prompt]:
    """Return the prompts; raise LLM4GENError, which begins with `what`, if there are none or an id occurs twice."""
    if not prompts:
        raise LLM4GENError(f"{what} contains no prompts.")
    if twice := [name for name, number in Counter(prompt.id for prompt in prompts).items() if number > 1]:
        raise LLM4GENError(f"{what} contains the id {twice[0]!r} more than once; expected unique ids.")
    return prompts


def _lines(path: Path) -> Iterable[tuple[int, bytes]]:
    if path.suffix != ".gz":
        return JSONLines(path).lines()
    try:
        return enumerate(gzip.decompress(path.read_bytes()).splitlines(), 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LLM4GENError(f"Prompt set {path} cannot be decompressed ({error}); expected gzip of JSONL.") from error


def _prompt(line: bytes, what: str) -> Prompt:
    try:
        return Prompt.model_validate(json.loads(line))
    except ValueError as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else first_line(error)
        raise LLM4GENError(
            f"{what} is not a prompt ({reason}); expected a JSON object with id, text and optionally category and "
            "about."
        ) from error


if TYPE_CHECKING:
    from accelerate import PartialState


class ImageRow(BaseModel):
    """One image of the manifest.

    Attributes:
        id: `image_id(prompt, seed)`.
        file: path below the set's folder, with forward slashes.
        prompt, text, category: id, text and category of the prompt.
        seed: seed of the set; see `noise_seed`.
        width, height: pixels.
        settings: `ImageSettings.fingerprint`.
        seconds: time of generation, its share of a batch.
        made: device, process and versions that generated it.
        sha256: hash of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: str
    file: str
    prompt: str
    text: str
    category: str
    seed: int
    width: int
    height: int
    settings: str
    seconds: float = Field(ge=0)
    made: dict[str, JsonValue]
    sha256: str


class ImageSettings(BaseModel):
    """Settings of all images of a set.

    Attributes:
        name: name of the model in tables.
        benchmark: key of `BENCHMARKS`; "" for the user's own prompts.
        seeds: seeds of every prompt, one image each.
        generation: everything that changes pixels: model, adapter and LLM with their hashes, sampler, steps, guidance,
            size, precision; or a workflow and the names of its models. JSON values. Stored as "painting" in older
            sets.
        notes: sentences that a reader of the scores should know, such as differences from a protocol.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    benchmark: str = ""
    seeds: list[int] = Field(min_length=1)
    generation: dict[str, JsonValue] = Field(validation_alias=AliasChoices("generation", "painting"))
    notes: list[str] = Field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what changes pixels, the same for all images of a set."""
        return fingerprint(self.generation)


class ImageSet:
    """The folder of an image set.

    It contains `settings.json`, `prompts.jsonl`, `images.jsonl` (the manifest, a row for each complete image),
    `images/` and `scores/`.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.images = self.path / "images"
        self.scores = self.path / "scores"
        self.manifest = JSONLines(self.path / "images.jsonl", "Manifest")
        self._settings = self.path / "settings.json"
        self._prompts = self.path / "prompts.jsonl"

    def create(self, settings: ImageSettings, prompts: Sequence[Prompt]) -> None:
        """Write settings and prompts, or add prompts and seeds to a folder of the same settings.

        Raises:
            LLM4GENError: the folder has images of other settings, or other prompts under the same ids.
        """
        if self._settings.exists():
            old = self.settings
            if old.fingerprint != settings.fingerprint:
                a, b = old.generation, settings.generation
                differing = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
                raise LLM4GENError(
                    f"{self.path} contains images made with other settings ({', '.join(differing)}); use the same "
                    "settings, or choose another folder."
                )
            known = {prompt.id: prompt for prompt in self.prompts}
            if changed := [prompt.id for prompt in prompts if known.get(prompt.id, prompt) != prompt]:
                raise LLM4GENError(f"{self.path} has another prompt with the id {changed[0]!r}; choose another folder.")
            prompts = [*known.values(), *(prompt for prompt in prompts if prompt.id not in known)]
            settings = settings.model_copy(update={"seeds": sorted({*old.seeds, *settings.seeds})})
        write_prompts(self._prompts, prompts)
        write_json(self._settings, settings.model_dump())

    @property
    def settings(self) -> ImageSettings:
        """Settings of all images.

        Raises:
            LLM4GENError: the folder is not an image set, or its settings are damaged.
        """
        try:
            return ImageSettings.model_validate_json(self._settings.read_bytes())
        except FileNotFoundError:
            raise self._not_a_set() from None
        except ValidationError as error:
            raise LLM4GENError(f"{self._settings} is damaged ({first_problem(error)}).") from error

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts.

        Raises:
            LLM4GENError: the folder is not an image set, or its prompts are damaged.
        """
        if not self._prompts.is_file():
            raise self._not_a_set()
        return read_prompts(self._prompts)

    def rows(self) -> list[ImageRow]:
        """Return the complete images, ordered by prompt, then by seed.

        Raises:
            LLM4GENError: a line of the manifest is not an image.
        """
        found: dict[str, ImageRow] = {}
        for number, line in self.manifest.lines():
            try:
                row = ImageRow.model_validate_json(line)
            except ValidationError as error:
                raise LLM4GENError(
                    f"{self.manifest.path}, line {number}, is not an image ({first_problem(error)}); delete the line, "
                    "and the image is generated again."
                ) from error
            found[row.id] = row
        order = {prompt.id: place for place, prompt in enumerate(self.prompts)}
        rows = (row for row in found.values() if row.prompt in order)
        return sorted(rows, key=lambda row: (order[row.prompt], row.seed))

    def missing(self) -> Iterator[tuple[int, tuple[Prompt, int]]]:
        """Yield number, prompt and seed of images without a file.

        The number counts all images of the set, so that it stays the same while other processes generate.
        """
        have = {row.id for row in self.rows() if (self.path / row.file).is_file()}
        for number, (prompt, seed) in enumerate(itertools.product(self.prompts, self.settings.seeds)):
            if image_id(prompt.id, seed) not in have:
                yield number, (prompt, seed)

    def open(self, row: ImageRow) -> Image.Image:
        """Return the image in RGB.

        Raises:
            LLM4GENError: the file is missing or is not an image.
        """
        try:
            with Image.open(self.path / row.file) as image:
                return image.convert("RGB")
        except OSError as error:
            raise LLM4GENError(
                f"Image {self.path / row.file} cannot be read ({error}); delete it and run `generate` with the same "
                "settings again."
            ) from error

    def score_file(self, metric: str) -> JSONLines:
        """Return the scores of single images by one metric.

        Rows are {"image": id, "sha256": hash of its file, "scores": {"score": x, ...}, "judge": fingerprint}.
        """
        return JSONLines(self.scores / f"{metric}.jsonl", "Scores")

    def _not_a_set(self) -> LLM4GENError:
        return LLM4GENError(
            f"{self.path} is not an image set (it lacks settings.json or prompts.jsonl); expected a folder of "
            "`python -m evaluation generate`."
        )


def image_id(prompt: str, seed: int) -> str:
    """Return the name of the image of a prompt id with a seed; its file is images/ID.png."""
    return f"{prompt}.{seed}"


def noise_seed(prompt: Prompt, seed: int) -> int:
    """Return the seed of the noise: the set's, plus the prompt's own (`about["seed"]`), as MS-COCO captions have."""
    own = prompt.about.get("seed", 0)
    if not isinstance(own, int) or own < 0:
        raise LLM4GENError(f"Prompt {prompt.id} has the seed {own!r}; expected a whole number of at least 0.")
    return own + seed


def read_scores(images: ImageSet, metric: str, judge: str | None = None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Read the scores of single images.

    Args:
        judge: fingerprint of the judge and its settings; None for that of the last row.

    Returns:
        (id, SHA-256) of an image -> scores of the metric. An image that was generated again has another hash.
    """
    rows = [json.loads(line) for _, line in images.score_file(metric).lines()]
    if judge is None and rows:
        judge = rows[-1]["judge"]
    return {(row["image"], row["sha256"]): row["scores"] for row in rows if row["judge"] == judge}


def process_state() -> PartialState:
    """Return the state of this process among those of `accelerate launch`; the first call joins them."""
    from accelerate import PartialState

    # Without `cpu`, accelerate takes several processes on CPUs for single ones. The timeout is this long because a set
    # metric of 30,000 images is computed by one process while the others wait.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def process_device(name: str | None) -> str:
    """Return the device of this process: as named, else its own GPU among several processes, else the best one."""
    state = process_state()
    return str(choose_device(name or (str(state.device) if state.num_processes > 1 else None)))


def is_own(number: int) -> bool:
    """Return whether this process does the piece of work of that number; each of n processes takes every n-th."""
    state = process_state()
    return number % state.num_processes == state.process_index
