"""Cached values equal computed ones, and are computed once by any number of processes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from image_text import encoded, make_pairs, noise, open_manifest, write_folder
from torch import Tensor

from llm4gen_core import LLM4GENError
from train.data.batches import Batch, micro_batches
from train.data.cache import EMPTY, TensorCache, fill_latents, fill_text
from train.data.manifest import Manifest

SIZES = [(64, 64), (100, 64), (64, 128)]


def latent_cache(folder: Path, vae: dict[str, str]) -> TensorCache:
    return TensorCache(folder / "latents", vae)


def text_cache(folder: Path, encoders: dict[str, str]) -> TensorCache:
    return TensorCache(folder / "text", encoders)


class Encoder:
    """A VAE of average pooling that counts images."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.images += len(pixels)
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return small, small.abs() + 0.1


def batches(manifest: Manifest, steps: int, cache: TensorCache | None = None, seed: int = 0) -> list[Batch]:
    order = manifest.order(2, seed)
    of_steps = micro_batches(
        manifest,
        order,
        first_step=0,
        steps=steps,
        micro_batch=2,
        accumulation=1,
        latent_cache=cache,
    )
    return [batch for step in of_steps for batch in step]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": 0.5, "cache": {"crops": 3}},
        {"crop": "random", "cache": {"crops": 2}, "buckets": {"enabled": True, "step": 16}},
    ],
)
def test_cached_latents_are_bit_equal(tmp_path: Path, settings: dict[str, Any]) -> None:
    """In the first epochs every cached cut is the one of its epoch."""
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(6, SIZES)), **settings)
    cache, encoder = latent_cache(tmp_path / "cache", {"vae": "pool"}), Encoder()
    assert not fill_latents(manifest, cache, encoder, seed=0, batch=4)
    crops = settings.get("cache", {}).get("crops", 1)
    compared = 0
    for plain, cached in zip(batches(manifest, 9), batches(manifest, 9, cache), strict=True):
        assert plain.keys == cached.keys and plain.pixels is not None and cached.latents is not None
        for i, epoch in enumerate(plain.epochs):
            if epoch < crops:
                mean, std = Encoder()(plain.pixels[i : i + 1])
                assert torch.equal(cached.latents[0][i], mean[0]) and torch.equal(cached.latents[1][i], std[0])
                assert torch.equal(plain.sizes[i], cached.sizes[i])
                compared += 1
    assert compared >= 6


def test_later_epochs_use_the_cuts_in_turn(tmp_path: Path) -> None:
    manifest = open_manifest(
        tmp_path, write_folder(tmp_path / "data", make_pairs(2, [(300, 64)])), crop="random", cache={"crops": 2}
    )
    cache = latent_cache(tmp_path / "cache", {"vae": "pool"})
    fill_latents(manifest, cache, Encoder(), seed=0)
    lefts: dict[str, dict[int, int]] = {}
    for batch in batches(manifest, 4, cache):
        for key, epoch, sizes in zip(batch.keys, batch.epochs, batch.sizes.tolist(), strict=True):
            lefts.setdefault(key, {})[epoch] = sizes[3]
    for left in lefts.values():
        assert left[0] == left[2] != left[1] == left[3]


def test_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(5))
    encoder = Encoder()

    def fill(seed: int = 0, vae: str = "a", **settings: Any) -> int:
        before = encoder.images
        manifest = open_manifest(tmp_path, folder, **settings)
        fill_latents(manifest, latent_cache(tmp_path / "cache", {"vae": vae}), encoder, seed=seed)
        return encoder.images - before

    assert fill() == 5
    # Nothing that leaves the values as they are costs anything.
    assert fill(seed=1) == fill(cache={"crops": 4}) == fill(workers=2) == fill(caption_dropout=0.5) == 0
    assert fill(vae="b") == 5
    assert fill(resolution=32) == 5
    assert fill(flip=1.0) == 5
    (folder / "0002.png").write_bytes(encoded(noise(99)))
    assert fill() == 1


def test_processes_share_the_work(tmp_path: Path) -> None:
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(7, SIZES)))
    encoders = [Encoder(), Encoder()]
    for rank, encoder in enumerate(encoders):
        fill_latents(manifest, latent_cache(tmp_path / "cache", {}), encoder, seed=0, rank=rank, world_size=2, batch=2)
    cache = latent_cache(tmp_path / "cache", {})
    assert [encoder.images for encoder in encoders] == [4, 3]
    assert len(cache) == 7
    assert all(bool(batch.valid.all()) for batch in batches(manifest, 5, cache))


def test_interrupted_filling_continues(tmp_path: Path) -> None:
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(6)))
    encoder = Encoder()

    def stop(what: str, done: int, total: int) -> None:
        assert (what, total) == ("caching latents", 6)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_latents(manifest, latent_cache(tmp_path / "cache", {}), encoder, seed=0, batch=2, progress=stop)
    fill_latents(manifest, latent_cache(tmp_path / "cache", {}), encoder, seed=0, batch=2)
    assert encoder.images == 6


def with_half_its_pixels(png: bytes) -> bytes:
    """A PNG whose chunks and checksums are in order, so that the scan accepts it."""
    start = png.index(b"IDAT")
    length = int.from_bytes(png[start - 4 : start], "big")
    content = b"IDAT" + png[start + 4 : start + 4 + length // 2]
    checksum = zlib.crc32(content).to_bytes(4, "big")
    return png[: start - 4] + (length // 2).to_bytes(4, "big") + content + checksum + png[start + 8 + length :]


def test_an_image_that_only_decoding_finds_bad_is_listed_and_invalid(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(3))
    (folder / "0001.png").write_bytes(with_half_its_pixels(encoded(noise(0))))
    manifest = open_manifest(tmp_path, folder)
    assert len(manifest) == 3
    cache = latent_cache(tmp_path / "cache", {})
    assert [(p.key, p.kind) for p in fill_latents(manifest, cache, Encoder(), seed=0)] == [("0001.png", "truncated")]
    for batch in (*batches(manifest, 3), *batches(manifest, 3, cache)):
        bad = [key == "0001.png" for key in batch.keys]
        assert batch.valid.tolist() == [not is_bad for is_bad in bad]
        assert [problem.key for problem in batch.problems] == ["0001.png"] * sum(bad)
        images = batch.latents[0] if batch.latents else batch.pixels
        assert images is not None and all(not images[i].any() for i, is_bad in enumerate(bad) if is_bad)


def test_an_overflowing_vae_is_an_error_at_once(tmp_path: Path) -> None:
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(3)))
    with pytest.raises(LLM4GENError, match="vae_dtype"):
        fill_latents(manifest, latent_cache(tmp_path, {}), lambda x: (x * float("nan"), x), seed=0)


def test_space_is_checked_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(4)))
    asked: list[int] = []
    monkeypatch.setattr(TensorCache, "require_space", lambda self, needed: asked.append(needed))
    fill_latents(manifest, latent_cache(tmp_path / "c", {}), Encoder(), seed=0, rank=0, world_size=2, batch=1)
    assert asked == [4 * (16 + 2 * 3 * 8 * 8 * 4)]


def text_features(captions: list[str]) -> list[dict[str, Tensor]]:
    return [
        {
            "clip": torch.full((3, 2), float(len(caption))),
            "llm": torch.full((4, 2), len(caption), dtype=torch.bfloat16),
        }
        for caption in captions
    ]


def test_text_is_cached_once_for_each_caption_with_the_empty_one(tmp_path: Path) -> None:
    pairs = [(data, f"caption {n % 3}") for n, (data, _) in enumerate(make_pairs(7))]
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", pairs))
    seen: list[str] = []

    def encode(captions: list[str]) -> Sequence[dict[str, Tensor]]:
        seen.extend(captions)
        return text_features(captions)

    for rank in (0, 1, 0, 1):
        fill_text(manifest.captions(), text_cache(tmp_path, {}), encode, rank=rank, world_size=2, batch=2)
    assert sorted(seen) == ["", "caption 0", "caption 1", "caption 2"]
    cache = text_cache(tmp_path, {})
    assert cache.get(EMPTY)["llm"].dtype == torch.bfloat16
    assert torch.equal(cache.get("caption 2")["clip"], torch.full((3, 2), 9.0))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def overflow(captions: list[str]) -> list[dict[str, Tensor]]:
        return [{"llm": torch.tensor([1.0, float("inf")])} for _ in captions]

    with pytest.raises(LLM4GENError, match="llm features of ''.*llm_dtype"):
        fill_text([], text_cache(tmp_path, {}), overflow)
