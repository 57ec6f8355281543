"""Bucket sizes, and which of them an image goes to."""

from __future__ import annotations

import numpy as np
import pytest
from image_text import make_data

from train.data.images import assign, bucket_sizes


def test_one_square_without_buckets() -> None:
    assert bucket_sizes(make_data("x", resolution=512)) == [(512, 512)]


@pytest.mark.parametrize(("resolution", "step", "ratio"), [(1024, 64, 2.0), (512, 64, 3.0), (512, 8, 2.0), (64, 16, 4)])
def test_buckets_have_the_area_the_step_and_the_ratio(resolution: int, step: int, ratio: float) -> None:
    sizes = bucket_sizes(
        make_data("x", resolution=resolution, buckets={"enabled": True, "step": step, "max_ratio": ratio})
    )
    assert (resolution, resolution) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert resolution**2 * 0.7 <= height * width <= resolution**2
        assert max(height, width) <= ratio * min(height, width)


def test_an_image_goes_to_the_nearest_shape() -> None:
    sizes = bucket_sizes(make_data("x", resolution=512, buckets={"enabled": True}))
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(200, 3000, (2, 500))
    chosen = assign(widths, heights, sizes)
    for width, height, bucket in zip(widths, heights, chosen, strict=True):
        distances = [abs(np.log(width / height) - np.log(w / h)) for h, w in sizes]
        assert distances[bucket] == pytest.approx(min(distances))
