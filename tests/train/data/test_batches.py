"""Micro-batches: from any step, for any number of processes, with or without workers, the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_text import make_pairs, open_manifest, write_folder

from llm4gen_core import LLM4GENError
from train.data.batches import Batch, micro_batches
from train.data.cache import TensorCache, fill_text
from train.data.manifest import Manifest

SIZES = [(64, 64), (100, 64), (64, 128), (90, 70)]
SETTINGS: dict[str, Any] = {
    "crop": "random",
    "flip": 0.5,
    "buckets": {"enabled": True, "step": 16},
}


def text_cache(folder: Path, encoders: dict[str, str]) -> TensorCache:
    return TensorCache(folder / "text", encoders)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(11, SIZES)), **SETTINGS)


def run(manifest: Manifest, first: int = 0, steps: int = 8, **settings: Any) -> Iterator[list[Batch]]:
    given = {"micro_batch": 2, "accumulation": 2, **settings}
    return micro_batches(manifest, manifest.order(4, 5), first_step=first, steps=steps, **given)


def same(one: Batch, other: Batch) -> bool:
    assert one.pixels is not None and other.pixels is not None
    names = ("keys", "epochs", "captions", "pairs", "problems")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and torch.equal(one.pixels, other.pixels)
        and torch.equal(one.valid, other.valid)
        and torch.equal(one.sizes, other.sizes)
    )


def test_a_batch_is_complete(manifest: Manifest) -> None:
    (batch, _), *_ = run(manifest)
    assert batch.pixels is not None
    target = batch.sizes[0, 4:].tolist()
    assert batch.pixels.shape == (2, 3, *target) and batch.pixels.dtype == torch.float32
    assert batch.pixels.min() >= -1 and batch.pixels.max() <= 1 and batch.pixels.std() > 0.1
    assert batch.captions == [f"a red cat number {int(key[:4])}" for key in batch.keys]
    assert batch.valid.all() and batch.latents is None and batch.text is None


def test_resuming_gives_the_batches_of_running_through(manifest: Manifest) -> None:
    through = list(run(manifest))
    resumed = list(run(manifest, first=5, steps=3))
    assert len(resumed) == 3
    assert all(same(a, b) for x, y in zip(through[5:], resumed, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_have_the_batches_of_one(manifest: Manifest, world_size: int) -> None:
    alone = run(manifest, micro_batch=1, accumulation=4)
    accumulation = 4 // world_size
    together = [
        run(manifest, micro_batch=1, accumulation=accumulation, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(alone, *together, strict=True):
        joined = [parts[rank][step] for step in range(accumulation) for rank in range(world_size)]
        assert all(same(a, b) for a, b in zip(whole, joined, strict=True))


def test_workers_change_nothing_and_end(manifest: Manifest) -> None:
    alone = list(run(manifest, steps=4))
    random_state = torch.get_rng_state()
    manifest.data = manifest.data.model_copy(update={"workers": 2})
    steps = run(manifest, steps=1000)
    for expected in alone:
        assert all(same(a, b) for a, b in zip(expected, next(steps), strict=True))
    assert len(multiprocessing.active_children()) == 2
    steps.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_disappears_is_an_invalid_sample(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    expected = [batch for step in run(manifest) for batch in step]
    (tmp_path / "data" / "0003.png").unlink()
    manifest.data = manifest.data.model_copy(update={"workers": workers})
    found = [batch for step in run(manifest) for batch in step]
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    gone = [(batch, place) for batch in found for place, key in enumerate(batch.keys) if key == "0003.png"]
    assert gone
    for batch, place in gone:
        assert batch.pixels is not None
        assert not batch.valid[place] and not batch.pixels[place].any()
        assert "0003.png: It cannot be read" in str(batch.problems[0])
    assert sum(int((~batch.valid).sum()) for batch in found) == len(gone)


def test_cached_text_is_stacked_in_the_order_of_the_captions(manifest: Manifest, tmp_path: Path) -> None:
    cache = text_cache(tmp_path, {})
    fill_text(manifest.captions(), cache, lambda group: [{"clip": torch.full((2, 3), len(c))} for c in group])
    for step in run(manifest, text_cache=cache):
        for batch in step:
            assert batch.text is not None
            assert batch.text["clip"].shape == (2, 2, 3)
            assert batch.text["clip"][:, 0, 0].tolist() == [len(caption) for caption in batch.captions]


def test_a_cache_that_was_not_filled_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="lacks the caption 'a red cat"):
        list(run(manifest, text_cache=text_cache(tmp_path, {})))
    with pytest.raises(LLM4GENError, match="holds none of the 11 images"):
        run(manifest, latent_cache=text_cache(tmp_path, {}))


def test_sizes_that_do_not_fit_are_an_error(manifest: Manifest) -> None:
    with pytest.raises(LLM4GENError, match="Batch size 4 is not micro_batch 2 x accumulation 2 x 2 processes"):
        run(manifest, world_size=2)
