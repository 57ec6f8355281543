"""A folder of generated images: what was asked for, what each image was made with, and the scores it has got."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines, write_text
from llm4gen_diffusers.provenance import fingerprint

from .prompts import Prompt, read_prompts, write_prompts


class ImageRow(BaseModel):
    """One image of the manifest.

    Attributes:
        id: of the image, `image_id(prompt, seed)`.
        file: below the set's folder, with forward slashes.
        prompt: id of the prompt.
        text: of the prompt, so that a row says by itself what it shows.
        category: of the prompt.
        seed: of the set's seeds; see `noise_seed`.
        width, height: pixels.
        settings: `ImageSettings.fingerprint`, that of everything in `settings.json` that changes pixels.
        seconds: that painting took, its share of a batch.
        made: what painted it: device, process, program.
        sha256: of the file.
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
    """What all images of a set were made with.

    Attributes:
        name: of the model, as tables show it.
        benchmark: whose prompts these are; "" for prompts of the user's.
        seeds: of every prompt, one image each.
        generation: everything that changes pixels: model, adapter and LLM with their hashes, sampler, steps, guidance,
            size, precision; or a workflow and the hash of its models' names. JSON values.
        notes: sentences that a reader of the scores should know, such as where the painting differs from a protocol.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    benchmark: str = ""
    seeds: list[int] = Field(min_length=1)
    generation: dict[str, JsonValue] = Field(validation_alias=AliasChoices("generation", "painting"))
    notes: list[str] = Field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Of what changes pixels; images with another one do not belong into the same set."""
        return fingerprint(self.generation)


class ImageSet:
    """The folder.

    Contents: `settings.json`, `prompts.jsonl`, `images.jsonl` (the manifest, a row for each image that is complete),
    `images/`, and `scores/`.

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
        """Write what is asked for; a folder that asks for the same goes on.

        Seeds and prompts may be added to: what is there stays.

        Raises:
            LLM4GENError: the folder holds images of other settings, or other prompts under the same ids.
        """
        if self._settings.exists():
            old = self.settings
            if old.fingerprint != settings.fingerprint:
                differing = sorted(
                    name
                    for name in {*old.generation, *settings.generation}
                    if old.generation.get(name) != settings.generation.get(name)
                )
                raise LLM4GENError(
                    f"{self.path} holds images made with other settings ({', '.join(differing)}); go on with the same "
                    "ones, or choose another folder."
                )
            known = {prompt.id: prompt for prompt in self.prompts}
            if changed := [prompt.id for prompt in prompts if prompt.id in known and known[prompt.id] != prompt]:
                raise LLM4GENError(
                    f"{self.path} knows another prompt with the id {changed[0]!r}; choose another folder."
                )
            prompts = [*known.values(), *(prompt for prompt in prompts if prompt.id not in known)]
            settings = settings.model_copy(update={"seeds": sorted({*old.seeds, *settings.seeds})})
        write_prompts(self._prompts, prompts)
        write_text(self._settings, json.dumps(settings.model_dump(), indent=1, ensure_ascii=False) + "\n")

    @property
    def settings(self) -> ImageSettings:
        """What all images are made with.

        Raises:
            LLM4GENError: the folder is no set of images, or its settings are damaged.
        """
        try:
            return ImageSettings.model_validate_json(self._settings.read_bytes())
        except FileNotFoundError:
            raise self._no_set() from None
        except ValidationError as error:
            raise LLM4GENError(f"{self._settings} is damaged ({error.errors()[0]['msg']}).") from error

    @property
    def prompts(self) -> list[Prompt]:
        """All that is asked for.

        Raises:
            LLM4GENError: the folder is no set of images, or its prompts are damaged.
        """
        if not self._prompts.is_file():
            raise self._no_set()
        return read_prompts(self._prompts)

    def rows(self) -> list[ImageRow]:
        """The images that are complete, in the order of prompts, then of seeds, whichever was painted first.

        Raises:
            LLM4GENError: a line of the manifest is no image.
        """
        found: dict[str, ImageRow] = {}
        for number, line in self.manifest.lines():
            try:
                row = ImageRow.model_validate_json(line)
            except ValidationError as error:
                raise LLM4GENError(
                    f"{self.manifest.path}, line {number}, is no image ({error.errors()[0]['msg']}); delete the line, "
                    "and the image is painted again."
                ) from error
            found[row.id] = row
        order = {prompt.id: place for place, prompt in enumerate(self.prompts)}
        return sorted(
            (row for row in found.values() if row.prompt in order), key=lambda row: (order[row.prompt], row.seed)
        )

    def missing(self) -> Iterator[tuple[int, tuple[Prompt, int]]]:
        """Number, prompt and seed of images that are asked for and not there; a file that has gone is not there either.

        The number is that among all images that are asked for, so that it stays the same while others are painted.
        """
        have = {row.id for row in self.rows() if (self.path / row.file).is_file()}
        for number, (prompt, seed) in enumerate(itertools.product(self.prompts, self.settings.seeds)):
            if image_id(prompt.id, seed) not in have:
                yield number, (prompt, seed)

    def open(self, row: ImageRow) -> Image.Image:
        """The image in RGB.

        Raises:
            LLM4GENError: the file is missing or is no image.
        """
        try:
            with Image.open(self.path / row.file) as image:
                return image.convert("RGB")
        except OSError as error:
            raise LLM4GENError(
                f"Image {self.path / row.file} cannot be read ({error}); `generate` with the same settings paints what "
                "is missing."
            ) from error

    def _no_set(self) -> LLM4GENError:
        return LLM4GENError(
            f"{self.path} is no set of images (it lacks settings.json or prompts.jsonl); expected a folder that "
            "`python -m evaluation generate` made."
        )

    def score_file(self, metric: str) -> JSONLines:
        """Scores of single images by one metric.

        Rows of {"image": id, "sha256": of its file, "scores": {"score": x, ...}, "judge": fingerprint}.
        """
        return JSONLines(self.scores / f"{metric}.jsonl", "Scores")


def image_id(prompt: str, seed: int) -> str:
    """Name of the image of a prompt with a seed; its file is images/ID.png."""
    return f"{prompt}.{seed}"


def noise_seed(prompt: Prompt, seed: int) -> int:
    """Seed of the noise: that of the set, and of a prompt that has one of its own (`about["seed"]`, as MS-COCO's
    captions do) the sum of both."""
    own = prompt.about.get("seed", 0)
    if not isinstance(own, int) or own < 0:
        raise LLM4GENError(f"Prompt {prompt.id} has the seed {own!r}; expected a whole number of at least 0.")
    return own + seed


def read_scores(images: ImageSet, metric: str, judge: str | None = None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Scores by image.

    Args:
        judge: fingerprint of the judge and its settings; None for that of the last row.

    Returns:
        For each id and SHA-256 of an image the values of the metric. An image that was painted anew has another one.
    """
    rows = [json.loads(line) for _, line in images.score_file(metric).lines()]
    if judge is None and rows:
        judge = rows[-1]["judge"]
    return {(row["image"], row["sha256"]): row["scores"] for row in rows if row["judge"] == judge}
