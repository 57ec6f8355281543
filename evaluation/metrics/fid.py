"""Frechet and kernel Inception distance between a set of images and real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..prompts import Prompt
from .base import Context, SetMetric, SetScore
from .frechet import Distance, frechet_distance
from .inception import FEATURES, INCEPTION, InceptionNetwork
from .kernel import kernel_distance
from .reference import Reference, check_reference, open_reference
from .seen_images import SeenImages
from .spread import over_prompts, over_seeds

_BIASED = (
    "The FID of n images lies above that of more images, roughly by something over n (Chong and Forsyth 2020, arXiv "
    "1911.07023): compare it with FIDs of the same images_each alone. The interval is about the FID of so many images."
)
_SINGULAR = (
    f"images_each is not above the {FEATURES} dimensions of the features, so that the covariance is singular and "
    "most of this number may be bias; kid has none."
)


class FID(SetMetric):
    """Two numbers from the same features: "fid", and "kid" beside it, which has no bias where images are few.

    Options: `reference`, a folder of real images or a file made of one (`open_reference`); `crop`, `side` and `resize`
    as in `Preparation`, for both sides.
    """

    name = "fid"
    title = "Inception distance"
    judges_needed = (INCEPTION,)

    def __init__(self, network: InceptionNetwork, reference: Reference) -> None:
        self._network = network
        self._reference = reference
        self._seen = SeenImages()

    @classmethod
    def check(cls, context: Context) -> None:
        check_reference(context.options)

    @classmethod
    def load(cls, context: Context) -> FID:
        network = InceptionNetwork.load(context)
        return cls(network, open_reference(context.options, network))

    def describe(self) -> dict[str, Any]:
        return {**self._network.describe(), "reference": dict(self._reference.about)}

    def update(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
        self._seen.add(self._network(images)[0], images, prompts, seeds)

    def compute(self) -> dict[str, SetScore]:
        features = self._seen.rows()
        details = {**self._seen.details(self._network), "reference": dict(self._reference.about)}
        singular = details["images_each"] <= FEATURES
        fid = self._score(features, lambda rows: frechet_distance(rows, self._reference.gaussian), details)
        bias = f"{_BIASED} {_SINGULAR}" if singular else _BIASED
        fid = replace(fid, low=max(fid.low, 0.0), details={**fid.details, "bias": bias})
        kid = self._score(features, lambda rows: kernel_distance(rows, self._reference.sample), details)
        return {"fid": fid, "kid": kid}

    def _score(
        self,
        features: NDArray[np.float32],
        distance: Callable[[NDArray[np.float32]], Distance],
        details: dict[str, Any],
    ) -> SetScore:
        """The number for each seed and their mean, if seeds are complete; else that of all images."""
        if groups := self._seen.by_seed():
            values = {seed: distance(features[rows]).value for seed, rows in groups.items()}
            value, low, high, how = over_seeds(values, details["images_each"])
            details = {**details, "seeds": {str(seed): one for seed, one in values.items()}}
        else:
            found = distance(features)
            low, high, how = over_prompts(found.value, found.influence, self._seen.prompts)
            value = found.value
        return SetScore(value, low, high, len(features), how, details)
