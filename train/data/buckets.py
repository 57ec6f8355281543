"""Aspect-ratio buckets: the sizes that samples can have, and which of them an image goes to."""

from __future__ import annotations

import numpy as np

from ..recipe import Data

Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(data: Data) -> list[Size]:
    """The sizes of a recipe, from the tallest to the widest; one square without buckets.

    For each width that is a multiple of the step, the height is the largest multiple with which the area stays
    within resolution² (the idea of aspect-ratio bucketing is NovelAI's).
    """
    if not data.buckets.enabled:
        return [(data.resolution, data.resolution)]
    step, area = data.buckets.step, data.resolution**2
    sizes = {(data.resolution, data.resolution)}
    for short in range(step, data.resolution, step):
        long = area // short // step * step
        if long <= short * data.buckets.max_ratio:
            sizes |= {(long, short), (short, long)}
    return sorted(sizes, key=lambda size: (size[1] / size[0], size))


def assign(widths: np.ndarray, heights: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """The bucket of each image: the one whose aspect ratio is nearest, as a factor.

    Args:
        widths, heights: [N] pixels.
        sizes: as `bucket_sizes` gives them.

    Returns:
        [N] int32, indices of `sizes`.
    """
    ratios = np.log([width / height for height, width in sizes])
    between = (ratios[1:] + ratios[:-1]) / 2
    return np.searchsorted(between, np.log(widths / heights)).astype(np.int32)
