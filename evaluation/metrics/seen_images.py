"""The images of a set as the Inception network has seen them, gathered batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .inception import InceptionNetwork
from .reference import size_of
from .spread import complete_seeds


class SeenImages:
    """What is kept of each image: its row of numbers (8 KiB of features, 4 KiB of logits), its prompt and its seed."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self._parts: list[NDArray[np.float32]] = []
        self._sizes: Counter[str] = Counter()

    def add(
        self,
        rows: NDArray[np.float32],
        images: Sequence[Image.Image],
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
    ) -> None:
        self._parts.append(rows)
        self._sizes.update(size_of(image) for image in images)
        self.prompts.extend(prompt.id for prompt in prompts)
        self.seeds.extend(seeds)

    def rows(self) -> NDArray[np.float32]:
        """[N, D] of all images.

        Raises:
            LLM4GENError: there are fewer than two.
        """
        if len(self.prompts) < 2:
            raise LLM4GENError(f"The set has {len(self.prompts)} images; expected two or more to score it as a whole.")
        return np.concatenate(self._parts)

    def by_seed(self) -> dict[int, NDArray[np.intp]]:
        """See `complete_seeds`."""
        return complete_seeds(self.prompts, self.seeds)

    def details(self, network: InceptionNetwork) -> dict[str, Any]:
        """What stands beside every number. "images_each" is how many images a value is made from: with complete seeds
        each seed has one."""
        return {
            "images_each": len(self.prompts) // (len(self.by_seed()) or 1),
            "prompts": len(set(self.prompts)),
            "format": "PNG, 8 bits, RGB",  # of every set of images
            "sizes": dict(self._sizes.most_common(10)),
            "preparation": network.preparation.describe(),
            "official_weights": network.official,
        }
