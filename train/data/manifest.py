"""The pairs of a run, in a table that is mapped into memory: ten million of them cost nothing to open.

`scan` writes it. Every pair that was found has a row, the unusable ones too, so that a report can list them; sizes
are judged when the table is opened, because what is too small depends on the recipe.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair

from ..recipe import Data
from .buckets import assign, bucket_sizes
from .images import BadImage
from .order import GlobalOrder
from .sources import SourceReader, open_source
from .sources.base import reason

ROWS = pa.schema(
    [
        ("source", pa.int16()),
        ("unit", pa.binary(16)),
        ("unit_row", pa.int32()),
        ("key", pa.large_string()),
        ("ordinal", pa.int32()),
        ("path", pa.large_binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("caption", pa.large_string()),
        ("caption_digest", pa.binary(16)),
        ("pairs", pa.large_list(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.binary(16)),
        ("note", pa.string()),
        ("kind", pa.string()),
        ("problem", pa.string()),
    ]
)
"""One row a pair. `unit` and `unit_row`: what it was read with (see `sources.Unit`). `ordinal`: 0, or how many pairs
of the same key come before. `path`, `offset`, `size`: where the image is. `pairs`: those of the data, four numbers
each. `kind` and `problem`: why the pair is left out, null for a good one. `note`: how it was handled."""

BLOCK = 65536
"""Rows that are computed with at once."""


class Problem(NamedTuple):
    """A pair that was left out."""

    source: str
    key: str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.sentence}"


class Manifest:
    """The usable pairs, numbered from 0.

    Args:
        rows: file of the table.
        data: the recipe's section, which says what is too small or too long.
        entities: file with the entity pairs of each row; without it, only pairs that came with the data are known.

    Attributes:
        kept: [N] rows of the usable pairs.
    """

    def __init__(self, rows: Path, data: Data, entities: Path | None = None) -> None:
        self.data, self.rows_file, self.entities_file = data, rows, entities
        self._table = open_table(rows)
        self._pairs = open_table(entities)["pairs"] if entities else self._table["pairs"]
        self._prefixes = key_prefixes(data)
        self.kept = np.concatenate([*self._kept_blocks(), np.zeros(0, np.uint32)])
        if not len(self.kept):
            counts = ", ".join(f"{number} {kind}" for kind, number in self.left_out().most_common()) or "nothing found"
            sources = ", ".join(source.path for source in data.sources)
            raise LLM4GENError(
                f"Data {sources}: none of the {self._table.num_rows} pairs can be used ({counts}); expected images "
                "with captions. See data.sources, data.min_size and data.max_ratio."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self.rows_file, self.data, self.entities_file)

    def __len__(self) -> int:
        return len(self.kept)

    def key(self, index: int) -> str:
        """Unique name of a sample, the same in every run with these sources."""
        row = int(self.kept[index])
        ordinal = self._value("ordinal", row)
        key = self._prefixes[self._value("source", row)] + self._value("key", row)
        return f"{key}#{ordinal + 1}" if ordinal else key

    def caption(self, index: int) -> str:
        return self._value("caption", int(self.kept[index]))

    def pairs(self, index: int) -> list[EntityPair]:
        """Its entity pairs: those of the data, else the parser's."""
        row = int(self.kept[index])
        numbers = self._pairs[row].as_py() or []
        caption = self._value("caption", row)
        return [EntityPair.from_offsets(caption, *numbers[i : i + 4]) for i in range(0, len(numbers), 4)]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the upright image."""
        row = int(self.kept[index])
        return self._value("width", row), self._value("height", row)

    def digest(self, index: int) -> bytes:
        """16 bytes, a hash of the image file."""
        return self._value("digest", int(self.kept[index]))

    def problem(self, index: int, kind: str, sentence: str) -> Problem:
        """A usable pair that turned out not to be, as it stands in reports."""
        source = self.data.sources[self._value("source", int(self.kept[index]))]
        return Problem(source.path, self.key(index), kind, sentence)

    def read(self, index: int) -> bytes:
        """The image file, which must be the one that was scanned.

        Raises:
            BadImage: it cannot be read any more, or has changed.
        """
        row = int(self.kept[index])
        reader = self._readers[self._value("source", row)]
        try:
            path = decode_path(self._value("path", row))
            data = reader.read(path, self._value("offset", row), self._value("size", row))
        except (OSError, LookupError, ValueError) as error:
            raise BadImage("unreadable", f"It cannot be read ({reason(error)}).") from error
        if digest(data) != self._value("digest", row):
            raise BadImage("changed", "It has changed since the data was scanned; start a new run to use it as it is.")
        return data

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights of all, [N] each."""
        return self.column("width"), self.column("height")

    def repeats(self) -> np.ndarray:
        """[N], how often an epoch sees each."""
        return np.array([source.repeats for source in self.data.sources])[self.column("source")]

    def column(self, name: str) -> np.ndarray:
        """A column of numbers for all usable pairs."""
        return self._table[name].to_numpy()[self.kept]

    def blocks(self, names: list[str]) -> Iterator[pa.Table]:
        """Columns of the usable pairs, block by block; "pairs" are those that `pairs` gives."""
        table = self._table.select([name for name in names if name != "pairs"])
        for start in range(0, len(self.kept), BLOCK):
            rows = pa.array(self.kept[start : start + BLOCK])
            block = table.take(rows)
            yield block.append_column("pairs", self._pairs.take(rows)) if "pairs" in names else block

    def captions(self) -> Iterator[str]:
        """Each different caption once, in the order of first use."""
        _, first = np.unique(self._caption_digests(), return_index=True)
        first.sort()
        for start in range(0, len(first), BLOCK):
            rows = pa.array(self.kept[first[start : start + BLOCK]])
            yield from self._table["caption"].take(rows).to_pylist()

    def different_captions(self) -> int:
        return len(np.unique(self._caption_digests()))

    def _caption_digests(self) -> np.ndarray:
        return as_bytes16(self._table["caption_digest"])[self.kept]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what a run learns from: keys, captions, image digests and entity pairs, in their order.

        It does not depend on where the data is or when it was scanned. A run that goes on checks it.
        """
        total = hashlib.blake2b(digest_size=16)
        for number in range(0, len(self), BLOCK):
            rows = pa.array(self.kept[number : number + BLOCK])
            block = self._table.select(["source", "key", "ordinal", "caption", "digest"]).take(rows).combine_chunks()
            total.update(np.ascontiguousarray(block["source"].to_numpy()).tobytes())
            total.update(np.ascontiguousarray(block["ordinal"].to_numpy()).tobytes())
            total.update(as_bytes16(block["digest"]).tobytes())
            for column in (block["key"], block["caption"]):
                total.update(pc.binary_length(column).to_numpy().tobytes())
                total.update("".join(column.to_pylist()).encode())
            pairs = self._pairs.take(rows).combine_chunks()
            total.update(pc.fill_null(pc.list_value_length(pairs), 0).to_numpy(zero_copy_only=False).tobytes())
            total.update(pc.list_flatten(pairs).to_numpy(zero_copy_only=False).tobytes())
        return total.hexdigest()

    def left_out(self) -> Counter[str]:
        """How many pairs were left out, by kind."""
        return Counter(problem.kind for problem in self.problems())

    def notes(self) -> Counter[str]:
        """How many of the usable pairs were handled, by what was done to them."""
        total: Counter[str] = Counter()
        for block in self.blocks(["note"]):
            for count in pc.value_counts(pc.filter(block["note"], pc.not_equal(block["note"], ""))).to_pylist():
                for note in count["values"].split(", "):
                    total[note] += count["counts"]
        return total

    def problems(self) -> Iterator[Problem]:
        """What was left out and why, in the order of the sources."""
        usable = np.zeros(self._table.num_rows, bool)
        usable[self.kept] = True
        names = ["source", "key", "ordinal", "kind", "problem", "width", "height"]
        bad = np.flatnonzero(~usable)
        for start in range(0, len(bad), BLOCK):
            for row in self._table.select(names).take(pa.array(bad[start : start + BLOCK])).to_pylist():
                kind, sentence = (row["kind"], row["problem"]) if row["problem"] else self._misfit(row)
                key = row["key"] + (f"#{row['ordinal'] + 1}" if row["ordinal"] else "")
                yield Problem(self.data.sources[row["source"]].path, key, kind, sentence)

    @property
    def min_size(self) -> int:
        """Pixels that the shorter side of an image needs."""
        return self.data.min_size if self.data.min_size is not None else self.data.resolution // 2

    def order(self, batch_size: int, seed: int) -> GlobalOrder:
        """The order of these pairs; the bucket of a step is an index of `bucket_sizes(data)`."""
        buckets = assign(*self.sizes(), bucket_sizes(self.data))
        return GlobalOrder(buckets, batch_size, seed, self.repeats())

    def _misfit(self, row: dict[str, Any]) -> tuple[str, str]:
        size = f"It has {row['width']}x{row['height']} pixels"
        short, long = sorted((row["width"], row["height"]))
        if long > short * self.data.max_ratio:
            return (
                "too long",
                f"{size}; expected the longer side to be at most {self.data.max_ratio:g} times the other.",
            )
        return "too small", f"{size}; expected at least {self.min_size} on the shorter side."

    def _kept_blocks(self) -> Iterator[np.ndarray]:
        start = 0
        for batch in self._table.select(["width", "height", "problem"]).to_batches():
            width, height = (batch[name].to_numpy(zero_copy_only=False) for name in ("width", "height"))
            good = pc.is_null(batch["problem"]).to_numpy(zero_copy_only=False)
            short, long = np.minimum(width, height), np.maximum(width, height)
            good &= (short >= self.min_size) & (long <= short * self.data.max_ratio)
            yield (start + np.flatnonzero(good)).astype(np.uint32)
            start += len(batch)

    def _value(self, name: str, row: int) -> Any:
        return self._table[name][row].as_py()

    @cached_property
    def _readers(self) -> list[SourceReader]:
        return [open_source(source) for source in self.data.sources]


def open_table(path: Path) -> pa.Table:
    """A table that stays on the disk until it is read.

    Raises:
        OSError, pa.ArrowInvalid: the file is missing or damaged.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def encode_path(path: str) -> bytes:
    """File names need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def key_prefixes(data: Data) -> list[str]:
    """What stands before the keys of each source: nothing for a single one, else its name."""
    if len(data.sources) == 1:
        return [""]
    names = [Path(source.path).name or str(number) for number, source in enumerate(data.sources)]
    seen: Counter[str] = Counter()
    prefixes = []
    for name in names:
        seen[name] += 1
        prefixes.append(f"{name}/" if seen[name] == 1 else f"{name}~{seen[name]}/")
    return prefixes


def as_bytes16(column: pa.ChunkedArray) -> np.ndarray:
    """Digests as numpy's S16; null becomes zeros."""
    chunks = []
    for chunk in column.chunks:
        values = np.frombuffer(chunk.buffers()[1], "S16", len(chunk), 16 * chunk.offset).copy()
        if chunk.null_count:
            values[pc.is_null(chunk).to_numpy(zero_copy_only=False)] = b""
        chunks.append(values)
    return np.concatenate(chunks) if chunks else np.zeros(0, "S16")
