"""FID, KID and Inception score of a set of images, by torch-fidelity.

With several seeds that each have every prompt, a number is computed per seed; its value is the mean and its interval
Student's t over seeds, so it covers other noise for the same prompts. A single FID or KID has no interval. A bootstrap
over images would be no replacement: it repeats images, which biases the FID of every draw upwards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import Field
from scipy import stats
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from llm4gen_core import LLM4GENError

from ..image_set import Prompt
from ..statistics import CONFIDENCE
from .base import Context, SetMetric, SetScore
from .inception import (
    CLASSES,
    FEATURES,
    INCEPTION,
    InceptionNetwork,
    Preparation,
    Reference,
    open_reference,
    reference_path,
)

_NO_INTERVAL = "no interval: one value, because the images do not come from several seeds that each have every prompt"
_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000
_SHUFFLE_SEED = 2020
"""Seed of the order in which images are split; torch-fidelity's default."""

_FID_BIAS = (
    "The FID of n images is above that of more images, by roughly a constant over n (Chong and Forsyth 2020, arXiv "
    "1911.07023): compare it only with FIDs of the same images_each."
)
_FID_SINGULAR = (
    f" images_each is not above the {FEATURES} dimensions of the features, so the covariance is singular and most of "
    "this number may be bias; KID has no bias."
)


class InceptionMetric(SetMetric):
    """Metric over the Inception outputs of a whole set; keeps 8 KiB of features or 4 KiB of logits per image."""

    judges_needed = (INCEPTION,)
    Options = Preparation
    _output: ClassVar[int]
    """Index of the network output that the metric uses: 0 for features, 1 for logits."""

    def __init__(self, network: InceptionNetwork) -> None:
        self._network = network
        self._outputs: list[Tensor] = []
        self._prompts: list[str] = []
        self._seeds: list[int] = []
        self._sizes: Counter[str] = Counter()

    def update(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
        self._outputs.append(self._network(images)[self._output])
        self._prompts.extend(prompt.id for prompt in prompts)
        self._seeds.extend(seeds)
        self._sizes.update(f"{image.width}x{image.height}" for image in images)

    def _details(self) -> dict[str, Any]:
        """Details of every number. "images_each" is the number of images that a value is computed from."""
        n = len(self._prompts)
        each = n // (len(complete_seeds(self._prompts, self._seeds)) or 1)
        if each < 2:
            raise LLM4GENError(
                f"The set has {each} images{' per seed' if each < n else ''}; expected two or more to score it as a "
                "whole. Generate more."
            )
        return {
            "images_each": each,
            "prompts": len(set(self._prompts)),
            "format": "PNG, 8 bits, RGB",  # every image set stores its images so
            "sizes": dict(self._sizes.most_common(10)),
            "preparation": self._network.preparation.describe(),
            "official_weights": self._network.official,
        }

    def _score(
        self, measure: Callable[[Tensor], tuple[float, float | None]], details: dict[str, Any], least: float = -math.inf
    ) -> SetScore:
        """Mean over seeds if seeds are complete, else the value of all images.

        Args:
            measure: value of outputs [N, D], and its standard deviation over parts of the set or None.
            details: see `_details`.
            least: lower bound of the number, and of its interval.
        """
        outputs = torch.cat(self._outputs)
        seeds = complete_seeds(self._prompts, self._seeds)
        if not seeds:
            value, std = measure(outputs)
            return SetScore(
                value, None, None, len(outputs), _NO_INTERVAL, details if std is None else {**details, "std": std}
            )
        found = {seed: measure(outputs[rows]) for seed, rows in seeds.items()}
        values = torch.tensor([value for value, _ in found.values()], dtype=torch.float64)
        mean = float(values.mean())
        half = _quantile(len(values) - 1) * float(values.std()) / len(values) ** 0.5
        how = (
            f"mean of {len(values)} seeds' values, each of {details['images_each']} images; Student's t over seeds "
            "(other noise, same prompts)"
        )
        by_seed = {str(seed): v if std is None else {"mean": v, "std": std} for seed, (v, std) in found.items()}
        details = {**details, "seeds": by_seed}
        return SetScore(mean, max(mean - half, least), mean + half, len(outputs), how, details)


class FIDOptions(Preparation):
    """Options of `FID`."""

    reference: str = ""


class FID(InceptionMetric):
    """Fréchet and kernel Inception distance to real images; KID has no bias if there are few images.

    FID (Heusel et al. 2017): |m - r|² + tr(S + R - 2 (S R)^1/2) for features with mean m and covariance S, and real
    ones with r and R. KID (Bińkowski et al. 2018, arXiv 1801.01401): the unbiased squared maximum mean discrepancy with
    the kernel (x'y / D + 1)³, mean over 100 random subsets of 1000 images, or of half of the smaller set if that has
    fewer; "std" is their standard deviation. It can be slightly below 0.

    Options: `reference`, a folder of real images or a file of their features (`open_reference`); `crop`, `side` and
    `resize` (`Preparation`), for real and generated images.
    """

    name = "fid"
    Options = FIDOptions
    _output = 0

    def __init__(self, network: InceptionNetwork, reference: Reference) -> None:
        super().__init__(network)
        self._reference = reference

    @classmethod
    def check(cls, context: Context) -> None:
        super().check(context)
        reference_path(cls.options(context).reference)

    @classmethod
    def load(cls, context: Context) -> FID:
        options = cls.options(context)
        path = reference_path(options.reference)
        network = InceptionNetwork.load(context, options)
        return cls(network, open_reference(path, network))

    def describe(self) -> dict[str, Any]:
        kid = {"subsets": _KID_SUBSETS, "subset_size": _KID_SUBSET_SIZE, "seed": _SHUFFLE_SEED}
        return {**self._network.describe(), "kid": kid, "reference": dict(self._reference.about)}

    def compute(self) -> dict[str, SetScore]:
        details = {**self._details(), "reference": dict(self._reference.about)}
        each = details["images_each"]
        bias = _FID_BIAS + _FID_SINGULAR * (each <= FEATURES)
        smaller = min(each, len(self._reference.features))
        size = _KID_SUBSET_SIZE if smaller >= _KID_SUBSET_SIZE else max(smaller // 2, 2)
        subsets = {"subsets": _KID_SUBSETS, "subset_size": size}

        def fid(features: Tensor) -> tuple[float, None]:
            # In double precision, because the root of a product of covariances halves the number of exact digits.
            ours = fid_features_to_statistics(features.double())
            distance = fid_statistics_to_metric(ours, self._reference.statistics, verbose=False)[KEY_METRIC_FID]
            return max(distance, 0.0), None

        def kid(features: Tensor) -> tuple[float, float]:
            found = kid_features_to_metric(
                features,
                self._reference.features,
                kid_subsets=_KID_SUBSETS,
                kid_subset_size=size,
                rng_seed=_SHUFFLE_SEED,
                verbose=False,
            )
            return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]

        return {"fid": self._score(fid, {**details, "bias": bias}, least=0), "kid": self._score(kid, details | subsets)}


class InceptionScoreOptions(Preparation):
    """Options of `InceptionScore`; ten splits as in Salimans et al. 2016."""

    splits: int = Field(default=10, ge=2)


class InceptionScore(InceptionMetric):
    """exp of the mean of KL(p(class | image) || p(class)) over a split, mean over splits (Salimans et al. 2016, arXiv
    1606.03498). Images are shuffled first, because splits in the order of prompts would lack classes.

    Options: `splits`; `crop`, `side` and `resize` (`Preparation`).
    """

    name = "inception_score"
    Options = InceptionScoreOptions
    _output = 1

    def __init__(self, network: InceptionNetwork, splits: int = 10) -> None:
        super().__init__(network)
        self._splits = splits

    @classmethod
    def load(cls, context: Context) -> InceptionScore:
        options = cls.options(context)
        return cls(InceptionNetwork.load(context, options), options.splits)

    def describe(self) -> dict[str, Any]:
        return {**self._network.describe(), "splits": self._splits, "shuffle": _SHUFFLE_SEED}

    def compute(self) -> dict[str, SetScore]:
        details = self._details()
        n, splits = details["images_each"], self._splits
        if n < 2 * splits:
            raise LLM4GENError(
                f"The set has {n} images{' per seed' if n < len(self._prompts) else ''}; expected two or more in each "
                f"of the {splits} splits of the Inception score. Generate more, or set the option splits=N."
            )
        details |= {
            "splits": splits,
            "images_a_split": n // splits,
            "bias": "The score of few images is below that of more, and is never above the number of images in a split "
            f"or the {CLASSES} classes: compare it only with scores of the same n and splits.",
        }

        def measure(logits: Tensor) -> tuple[float, float]:
            found = isc_features_to_metric(logits, splits, shuffle=True, rng_seed=_SHUFFLE_SEED)
            return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]

        found = self._score(measure, details, least=1)
        if found.low is None:
            # Splits are independent samples; torch-fidelity divides the variance by their number.
            half = _quantile(splits - 1) * found.details["std"] / (splits - 1) ** 0.5
            how = f"mean of {splits} splits; Student's t over splits"
            found = replace(found, low=max(found.value - half, 1.0), high=found.value + half, how=how)
        return {self.name: found}


def complete_seeds(prompts: Sequence[str], seeds: Sequence[int]) -> dict[int, list[int]]:
    """Indices of each seed's images, if there are two seeds or more and each has every prompt once; else nothing.

    Args:
        prompts: prompt id of each image.
        seeds: seed of each image.
    """
    rows: dict[int, list[int]] = {}
    for row, seed in enumerate(seeds):
        rows.setdefault(seed, []).append(row)
    every = sorted(set(prompts))
    if len(rows) < 2 or any(sorted(prompts[row] for row in own) != every for own in rows.values()):
        return {}
    return dict(sorted(rows.items()))


def _quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
