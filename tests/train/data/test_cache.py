"""Caches survive kills, damage and full disks, and return bit-equal values."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import train.data.cache as caching
from llm4gen_core import LLM4GENError
from train.data.cache import TensorCache, model_fingerprint

ABOUT = {"vae": "a", "pixels": 1}


def entry(number: int, size: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    values = torch.randn(2, size, generator=torch.Generator().manual_seed(number))
    return {"mean": values.to(dtype), "std": (values + 1).to(dtype)}


def filled(folder: Path, count: int) -> TensorCache:
    cache = TensorCache(folder, ABOUT)
    with cache.writer() as writer:
        for number in range(count):
            writer.put(str(number), entry(number))
    cache.refresh()
    return cache


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_bit_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = TensorCache(tmp_path, ABOUT)
    with cache.writer() as writer:
        for number in range(30):
            writer.put(f"key {number}", entry(number, size=4 + number % 3, dtype=dtype))
    cache.refresh()
    assert len(cache) == 30
    assert all(equal(cache.get(f"key {n}"), entry(n, 4 + n % 3, dtype)) for n in (29, 0, 7, 13))
    assert "key 30" not in cache
    with pytest.raises(KeyError):
        cache.get("key 30")


def test_a_tensor_is_copied_when_it_is_added(tmp_path: Path) -> None:
    cache, values = TensorCache(tmp_path, ABOUT), torch.ones(3)
    with cache.writer() as writer:
        writer.put("a", {"x": values})
        values.zero_()
    cache.refresh()
    assert cache.get("a")["x"].sum() == 3


def test_several_writers_share_a_folder(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, ABOUT)
    with cache.writer(0) as zero, cache.writer(1) as one:
        zero.put("a", entry(0))
        one.put("b", entry(1))
    cache.refresh()
    assert equal(cache.get("a"), entry(0)) and equal(cache.get("b"), entry(1))


def test_another_fingerprint_is_another_cache(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    assert len(TensorCache(tmp_path, {"pixels": 1, "vae": "a"})) == 2
    assert len(TensorCache(tmp_path, {**ABOUT, "vae": "b"})) == 0


def test_shards_are_written_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "SHARD_BYTES", 800)
    cache = TensorCache(tmp_path, ABOUT)
    with cache.writer() as writer:
        for number in range(25):
            writer.put(str(number), entry(number))
        cache.refresh()
        assert len(cache) == 20
    cache.refresh()
    assert len(cache) == 25
    assert equal(cache.get("24"), entry(24))


_KILLED = """
import os, sys, time, train.data.cache as caching
from pathlib import Path
import torch
caching.SHARD_BYTES = 800
def slow(handle, fsync=os.fsync):
    fsync(handle)
    print("half", flush=True)
    time.sleep(0.02)
os.fsync = slow
with caching.TensorCache(Path(sys.argv[1]), {"vae": "a", "pixels": 1}).writer() as writer:
    for number in range(100000):
        values = torch.randn(2, 4, generator=torch.Generator().manual_seed(number))
        writer.put(str(number), {"mean": values, "std": values + 1})
"""


def test_a_kill_loses_only_unwritten_entries(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = TensorCache(tmp_path, ABOUT)
    assert len(cache) >= 10 and len(cache) % 10 == 0
    assert all(equal(cache.get(str(n)), entry(n)) for n in range(len(cache)))


def test_old_partial_files_are_removed(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, ABOUT)
    old, new = (cache.folder / f".{name}.safetensors.partial" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.writer().flush()
    assert not old.exists() and new.exists()
    assert len(TensorCache(tmp_path, ABOUT)) == 0


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "longer"])
def test_entries_of_a_damaged_shard_are_missing(tmp_path: Path, damage: str) -> None:
    cache = filled(tmp_path, 5)
    with cache.writer() as writer:
        writer.put("whole", entry(9))
    shard = max(cache.folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    data = shard.read_bytes()
    shard.write_bytes(
        {"cut": data[:-8], "header": data[:8] + b"\xff" * 20 + data[28:], "empty": b"", "longer": data + b"x"}[damage]
    )
    with pytest.warns(UserWarning, match="damaged"):
        cache.refresh()
    assert len(cache) == 1 and equal(cache.get("whole"), entry(9))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_space_is_an_error_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TensorCache(tmp_path, ABOUT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 2 * 10**9))
    cache.require_space(10**9)
    with pytest.raises(LLM4GENError, match=r"needs 3.50 GB.*2.00 GB free.*data.cache.folder"):
        cache.require_space(3_500_000_000)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, 3)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LLM4GENError, match="the disk is full"), cache.writer() as writer:
        writer.put("more", entry(5))
        writer.flush()
    assert not list(cache.folder.glob(".*.partial"))
    cache.refresh()
    assert len(cache) == 3


class Model(nn.Module):
    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 3)
        self.config = config or {"act": "silu"}


def test_a_models_fingerprint_is_its_weights_and_configuration() -> None:
    first = model_fingerprint(Model())
    assert first == model_fingerprint(Model())
    assert first == model_fingerprint(Model({"act": "silu", "_name_or_path": "/moved", "transformers_version": "9"}))
    assert first != model_fingerprint(Model({"act": "gelu"}))
    assert first != model_fingerprint(Model().half())
    assert first == model_fingerprint(Model().requires_grad_(False).eval())


def test_a_models_fingerprint_follows_its_weights() -> None:
    model = Model()
    before = model_fingerprint(model)
    with torch.no_grad():
        model.layer.bias[1] += 1e-6
    assert model_fingerprint(model) != before
