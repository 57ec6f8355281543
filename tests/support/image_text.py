"""Small data sets on a disk. Images are noise, so that every one of them has its own bytes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.data.manifest import Manifest
from train.data.scan import scan
from train.recipe import Data

Pair = tuple[bytes, str]


def noise(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_pairs(count: int, sizes: list[tuple[int, int]] | None = None) -> list[Pair]:
    sizes = sizes or [(64, 64)]
    return [(encoded(noise(i, *sizes[i % len(sizes)])), f"a red cat number {i}") for i in range(count)]


def write_folder(path: Path, pairs: list[Pair]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number, (data, caption) in enumerate(pairs):
        (path / f"{number:04}.png").write_bytes(data)
        (path / f"{number:04}.txt").write_text(caption, encoding="utf-8")
    return path


def write_jsonl(path: Path, pairs: list[Pair]) -> Path:
    images = write_folder(path / "images", pairs)
    file = path / "list.jsonl"
    rows = [{"image": f"images/{n:04}.png", "caption": caption} for n, (_, caption) in enumerate(pairs)]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for text in images.glob("*.txt"):
        text.unlink()
    return file


def write_shards(path: Path, pairs: list[Pair], per_shard: int = 4) -> str:
    path.mkdir(parents=True, exist_ok=True)
    count = 0
    for shard, start in enumerate(range(0, len(pairs), per_shard)):
        with tarfile.open(path / f"{shard:04}.tar", "w") as tar:
            for number in range(start, min(start + per_shard, len(pairs))):
                data, caption = pairs[number]
                for name, content in ((f"{number:04}.png", data), (f"{number:04}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        count = shard
    return f"{path}/{{0000..{count:04}}}.tar"


def make_data(*sources: Any, **settings: Any) -> Data:
    given = [{"path": str(source)} if not isinstance(source, dict) else source for source in sources]
    return Data(**{"sources": given, "resolution": 64, "workers": 0, "entities": "rules", **settings})


def open_manifest(folder: Path, *sources: Any, **settings: Any) -> Manifest:
    """Scan sources without looking for entity pairs; `folder` holds the cache."""
    return scan(make_data(*sources, **settings), folder / "cache", need_pairs=False)
