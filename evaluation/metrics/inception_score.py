"""The Inception score: how sure the network is of each image's class, and how many classes a set has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from scipy import stats
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from ..statistics import CONFIDENCE
from .base import Context, SetMetric, SetScore
from .inception import CLASSES, INCEPTION, InceptionNetwork
from .seen_images import SeenImages
from .spread import over_seeds

SPLITS = 10
"""As in Salimans et al. 2016."""
_SHUFFLE = 2020
"""Seed of the order in which images go into splits; torch-fidelity's own."""


class InceptionScore(SetMetric):
    """exp of the mean of KL(p(class | image) || p(class)) over a split, the mean over splits (Salimans et al. 2016,
    arXiv 1606.03498), by torch-fidelity. Images are shuffled first: in the order of prompts a split would lack
    classes.

    Options: `splits`; `crop`, `side` and `resize` as in `Preparation`.
    """

    name = "inception_score"
    title = "Inception score"
    judges_needed = (INCEPTION,)

    def __init__(self, network: InceptionNetwork, splits: int = SPLITS) -> None:
        self._network = network
        self._splits = splits
        self._seen = SeenImages()

    @classmethod
    def load(cls, context: Context) -> InceptionScore:
        splits = context.options.get("splits", str(SPLITS))
        if not splits.isdecimal() or int(splits) < 2:
            raise LLM4GENError(f"Option splits is {splits!r}; expected a number of 2 or more, {SPLITS} as usual.")
        return cls(InceptionNetwork.load(context), int(splits))

    def describe(self) -> dict[str, Any]:
        return {**self._network.describe(), "splits": self._splits, "shuffle": _SHUFFLE}

    def update(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
        self._seen.add(self._network(images)[1], images, prompts, seeds)

    def compute(self) -> dict[str, SetScore]:
        logits = torch.from_numpy(self._seen.rows())
        groups = self._seen.by_seed()
        details = self._seen.details(self._network)
        n = details["images_each"]
        if n < 2 * self._splits:
            raise LLM4GENError(
                f"The set has {n} images{' a seed' if groups else ''}; the Inception score with "
                f"{self._splits} splits needs two for each. Paint more, or give the option splits=N."
            )
        details |= {
            "splits": self._splits,
            "images_a_split": n // self._splits,
            "bias": f"The score of few images lies below that of more, and cannot pass the number of images of a split "
            f"or of the {CLASSES} classes: compare it with scores of the same n and splits alone.",
        }
        if groups:
            found = {seed: self._of(logits[torch.from_numpy(rows)]) for seed, rows in groups.items()}
            value, low, high, how = over_seeds({seed: mean for seed, (mean, _) in found.items()}, n)
            details["seeds"] = {str(seed): {"mean": mean, "std": std} for seed, (mean, std) in found.items()}
        else:
            value, std = self._of(logits)
            # The splits are independent sets, and `std` is divided by their number. In simulations (100 to 1000 images,
            # 10 splits, 400 sets each) 94 to 96.5 % of these intervals held the score that such sets have on average.
            half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self._splits - 1)) * std / (self._splits - 1) ** 0.5
            low, high, details["std"] = value - half, value + half, std
            how = f"mean of {self._splits} splits; Student's t over splits"
        return {self.name: SetScore(value, max(low, 1.0), high, len(logits), how, details)}

    def _of(self, logits: torch.Tensor) -> tuple[float, float]:
        """Mean and standard deviation over splits."""
        scores = isc_features_to_metric(logits, self._splits, shuffle=True, rng_seed=_SHUFFLE)
        return scores[KEY_METRIC_ISC_MEAN], scores[KEY_METRIC_ISC_STD]
