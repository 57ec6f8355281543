"""The contract of a metric: what it needs, which options it reads, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_problem
from llm4gen_diffusers.machine import DTYPES

from ..image_set import Prompt

Scores = Mapping[str, Any]
"""JSON values of one image. "score" is the number that tables show, None for an image that cannot be scored; then
"reason" says why. Further keys are details."""


@dataclass(frozen=True)
class Judge:
    """A judge model of a metric.

    Attributes:
        folder: name below the folder of judges.
        repository: name on Hugging Face, or address.
        files: required files; "a|b" is one of two.
        licence: licence of the weights.
        size: size of the download, for people.
    """

    folder: str
    repository: str
    files: tuple[str, ...]
    licence: str
    size: str


@dataclass(frozen=True)
class Context:
    """Files and options that a metric is loaded from.

    Attributes:
        judges: folder that holds one folder per judge model.
        device: torch device name.
        options: metric options by name, as text; on the command line NAME=VALUE.
    """

    judges: Path
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)

    def folder(self, judge: Judge) -> Path:
        """Folder of a judge model, or the one that the option FOLDER=OTHER names.

        Raises:
            LLM4GENError: it does not exist or lacks a file; the message says what to download and where to put it.
        """
        folder = self.judges / self.options.get(judge.folder, judge.folder)
        missing = [name for name in judge.files if not any((folder / one).is_file() for one in name.split("|"))]
        if missing:
            lacks = ", ".join(missing).replace("|", " or ")
            raise LLM4GENError(
                f"Judge {folder} {f'lacks {lacks}' if folder.is_dir() else 'does not exist'}; download "
                f"{judge.repository} ({judge.size}, {judge.licence}) into it, or pass another folder of judges "
                "(--judges)."
            )
        return folder

    def dtype(self, on_gpu: torch.dtype = torch.float32) -> torch.dtype:
        """Precision of a judge model: float32 on a CPU; elsewhere the option "dtype", or `on_gpu` if it is not set.

        Raises:
            LLM4GENError: the option is not a precision, or asks for half precision on a CPU.
        """
        on_cpu = torch.device(self.device).type == "cpu"
        name = self.options.get("dtype")
        if name is None:
            return torch.float32 if on_cpu else on_gpu
        if name not in DTYPES or (on_cpu and name != "float32"):
            expected = "float32, because the judge model runs on a CPU" if on_cpu else f"one of {', '.join(DTYPES)}"
            raise LLM4GENError(f"Option dtype is {name!r}; expected {expected}.")
        return DTYPES[name]


class NoOptions(BaseModel):
    """Options of a metric: name, type and range of each; the fields' aliases are the names in NAME=VALUE."""

    model_config = ConfigDict(frozen=True)


class JudgeOptions(NoOptions):
    """Options of a metric with a judge model: its precision, see `Context.dtype`."""

    dtype: str | None = None


class Metric(ABC):
    """Declarations and methods that all metrics share.

    Attributes:
        name: key in `evaluation.benchmarks.METRICS`, which also has the title and the direction.
        judges_needed: judge models; they are looked for before anything is generated. The option FOLDER=OTHER, with a
            judge's folder name, puts another folder in its place.
        Options: model of the other options.
    """

    name: ClassVar[str]
    judges_needed: ClassVar[tuple[Judge, ...]] = ()
    Options: ClassVar[type[BaseModel]] = NoOptions

    @classmethod
    def options(cls, context: Context) -> Any:
        """`Options` with the values in the context.

        Raises:
            LLM4GENError: a value cannot be used.
        """
        try:
            return cls.Options.model_validate(context.options)
        except ValidationError as error:
            found = error.errors()[0]["input"]
            raise LLM4GENError(
                f"Option {first_problem(error)}; found {found!r}. Change it, or leave it out."
            ) from error

    @classmethod
    def check(cls, context: Context) -> None:
        """Check the values of all options, without loading a model. Judge folders are checked elsewhere.

        Raises:
            LLM4GENError: an option is missing, or its value cannot be used.
        """
        cls.options(context)
        context.dtype()

    @classmethod
    @abstractmethod
    def load(cls, context: Context) -> Any:
        """Load the metric with its judge models.

        Raises:
            LLM4GENError: a judge model is missing or is not the expected one, or an option cannot be used.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that changes the score, as JSON values: judge models with hashes, thresholds, versions."""


class ImageMetric(Metric):
    """Metric with a score per image.

    Attributes:
        share: whether scores, and so their interval, lie between 0 and 1.
    """

    share: ClassVar[bool] = True

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        """Whether images of a prompt can be scored. Images of other prompts get no row."""
        return True

    @abstractmethod
    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        """Score a batch.

        Args:
            images: B RGB images of any sizes.
            prompts: B prompts for which `applies` is true.

        Returns:
            B rows, each with "score".
        """


class SetMetric(Metric):
    """Metric of a whole set of images, such as FID; no single image has a score."""

    @abstractmethod
    def update(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
        """Add a batch of B images, with the prompt and the seed of each."""

    @abstractmethod
    def compute(self) -> dict[str, SetScore]:
        """Numbers of all images that were added, by name.

        Raises:
            LLM4GENError: there are too few images.
        """


@dataclass(frozen=True)
class SetScore:
    """A number of a whole set.

    Attributes:
        value: the number.
        low, high: its 95 % interval; both None if there is none.
        n: number of images it was computed from.
        how: how the interval was computed, or why there is none.
        details: sample count, resize, format, the value of each seed. JSON values.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    how: str
    details: Mapping[str, Any] = field(default_factory=dict)


def check_options(metrics: Iterable[type[Metric]], options: Mapping[str, str]) -> None:
    """Check that every option is read by one of the metrics.

    Raises:
        LLM4GENError: none of them reads it.
    """
    chosen = sorted(metrics, key=lambda one: one.name)
    known = {judge.folder for one in chosen for judge in one.judges_needed}
    known |= {field.alias or name for one in chosen for name, field in one.Options.model_fields.items()}
    if unknown := [name for name in options if name not in known]:
        raise LLM4GENError(
            f"Option {unknown[0]}={options[unknown[0]]} is not used by {', '.join(one.name for one in chosen)}; "
            f"expected one of {', '.join(sorted(known)) or 'none'}."
        )
