"""What a metric is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ..judges import Judge
from ..prompts import Prompt

Scores = Mapping[str, Any]
"""JSON values. "score" is the number that tables show, None where the image cannot be judged; others say why."""


@dataclass(frozen=True)
class Context:
    """What a metric is made from.

    Attributes:
        judges: folder of the judges' folders.
        device: torch's name of a device.
        options: of the metric, from the command line, as NAME=VALUE; text.
    """

    judges: Path
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)


class ImageMetric(ABC):
    """Scores every image by itself.

    Attributes:
        name: of the metric in files and commands.
        title: of the metric in tables.
        share: the score lies from 0 to 1, and so does its interval.
        judges_needed: checked before anything is loaded.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    share: ClassVar[bool]
    judges_needed: ClassVar[tuple[Judge, ...]] = ()

    @classmethod  # noqa: B027
    def check(cls, context: Context) -> None:
        """Raise LLM4GENError if an option that it needs is missing; judges are checked for every metric alike."""

    @classmethod
    @abstractmethod
    def load(cls, context: Context) -> ImageMetric:
        """With its judges.

        Raises:
            LLM4GENError: a judge is missing (what to download and where to put it) or is another model.
        """

    @classmethod
    def applies(cls, prompt: Prompt) -> bool:
        """Whether images of this prompt can be scored at all. Such of others get no row."""
        return True

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that changes the score: judges with their hashes, thresholds, versions. JSON values."""

    @abstractmethod
    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Scores]:
        """Scores of a batch.

        Args:
            images: B images in RGB, of any sizes.
            prompts: one for each, for which `applies` is true.

        Returns:
            One for each, with "score".
        """


class SetMetric(ABC):
    """Scores a whole set of images; another kind of number that no single image has, such as FID.

    Attributes: as of `ImageMetric`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    judges_needed: ClassVar[tuple[Judge, ...]] = ()

    @classmethod  # noqa: B027
    def check(cls, context: Context) -> None:
        """Raise LLM4GENError if an option that it needs is missing; judges are checked for every metric alike."""

    @classmethod
    @abstractmethod
    def load(cls, context: Context) -> SetMetric:
        """See `ImageMetric.load`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """See `ImageMetric.describe`."""

    @abstractmethod
    def update(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
        """Add a batch; `seeds` are those that painted the images, for a spread over seeds."""

    @abstractmethod
    def compute(self) -> dict[str, SetScore]:
        """By name of the number."""


@dataclass(frozen=True)
class SetScore:
    """A number of a whole set.

    Attributes:
        value: the number.
        low, high: its interval of 95 %.
        n: images it was made from.
        how: how the interval was made, in words.
        details: sample count, resize, format, the value of each seed. JSON values.
    """

    value: float
    low: float
    high: float
    n: int
    how: str
    details: Mapping[str, Any] = field(default_factory=dict)
