"""Pairs of a run in a memory-mapped table, so that ten million of them open at once, and the report about them.

`scan` writes the table. Every pair that was found has a row, the unusable ones too, so that the report can list them;
sizes are checked when the table is opened, because the smallest size depends on the recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair
from llm4gen_core.errors import first_line
from llm4gen_core.files import JSONLines, write_json, write_json_lines

from ..recipe import Data
from .images import BadImage, Cut, Size, assign, bucket_sizes, cut_pixels, decode, plan_cut
from .order import GlobalOrder
from .sources import SourceReader, open_source

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
"""One row a pair. `unit` and `unit_row`: the unit that it was read with (see `sources.Unit`). `ordinal`: number of
pairs of the same key before it. `path`, `offset`, `size`: position of the image. `pairs`: entity pairs of the data,
four numbers each. `kind` and `problem`: why the pair is left out, null for a usable one. `note`: its conversion."""

BLOCK = 65536
"""Number of rows that are processed at once."""


class Problem(NamedTuple):
    """A pair that was left out."""

    source: str
    key: str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.sentence}"


class Manifest:
    """Usable pairs, numbered from 0.

    Args:
        rows: file of the table.
        data: section of the recipe, with the limits on sizes.
        entities: file with the entity pairs of each row; without it, only pairs stored with the data are known.
        count: number of pairs to use; None for all.

    Attributes:
        kept: [N] rows of the usable pairs.
    """

    def __init__(self, rows: Path, data: Data, entities: Path | None = None, count: int | None = None) -> None:
        self.data, self.rows_file, self.entities_file = data, rows, entities
        self._table = open_table(rows)
        self._pairs = open_table(entities)["pairs"] if entities else self._table["pairs"]
        self._prefixes = key_prefixes(data)
        self._usable = np.concatenate([*self._kept_blocks(), np.zeros(0, np.uint32)])
        self.kept = self._usable[:count]
        if not len(self.kept):
            counts = ", ".join(f"{number} {kind}" for kind, number in self.left_out().most_common()) or "nothing found"
            sources = ", ".join(source.path for source in data.sources)
            raise LLM4GENError(
                f"Data {sources}: none of the {self._table.num_rows} pairs can be used ({counts}); expected images "
                "with captions. See data.sources, data.min_size and data.max_ratio."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self.rows_file, self.data, self.entities_file, len(self))

    def shorten(self, count: int) -> None:
        """Keep the first pairs only."""
        self.kept = self.kept[:count]

    def __len__(self) -> int:
        return len(self.kept)

    def key(self, index: int) -> str:
        """Name of a sample, unique and the same in every run with these sources."""
        row = int(self.kept[index])
        ordinal = self._value("ordinal", row)
        key = self._prefixes[self._value("source", row)] + self._value("key", row)
        return f"{key}#{ordinal + 1}" if ordinal else key

    def caption(self, index: int) -> str:
        return self._value("caption", int(self.kept[index]))

    def pairs(self, index: int) -> list[EntityPair]:
        """Entity pairs of a sample: those of the data, else the parser's."""
        row = int(self.kept[index])
        numbers = self._pairs[row].as_py() or []
        caption = self._value("caption", row)
        return [EntityPair.from_offsets(caption, *numbers[i : i + 4]) for i in range(0, len(numbers), 4)]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the upright image."""
        row = int(self.kept[index])
        return self._value("width", row), self._value("height", row)

    def digest(self, index: int) -> bytes:
        """Hash of the image file, 16 bytes."""
        return self._value("digest", int(self.kept[index]))

    def problem(self, index: int, kind: str, sentence: str) -> Problem:
        """Problem of a pair that was usable when it was scanned."""
        source = self.data.sources[self._value("source", int(self.kept[index]))]
        return Problem(source.path, self.key(index), kind, sentence)

    def read(self, index: int) -> bytes:
        """Read the image file, which must be the one that was scanned.

        Raises:
            BadImage: it can no longer be read, or has changed.
        """
        row = int(self.kept[index])
        reader = self._readers[self._value("source", row)]
        try:
            path = decode_path(self._value("path", row))
            data = reader.read(path, self._value("offset", row), self._value("size", row))
        except (OSError, LookupError, ValueError) as error:
            raise BadImage("unreadable", f"It cannot be read ({first_line(error)}).") from error
        if digest(data) != self._value("digest", row):
            raise BadImage("changed", "It has changed since the data was scanned; start a new run to use it as it is.")
        return data

    def cut(self, index: int, size: Size, seed: int, epoch: int) -> Cut:
        """Cut of a sample of a bucket in an epoch; with cached latents, `epoch` is the number of the variation."""
        data = self.data
        width, height = self.size(index)
        key = self.key(index) if data.crop == "random" or data.flip > 0 else ""
        return plan_cut(width, height, size, crop=data.crop, flip=data.flip, seed=seed, key=key, epoch=epoch)

    def pixels(self, index: int, cut: Cut) -> Tensor:
        """Pixels [3, H, W] uint8 of a sample.

        Raises:
            BadImage: the image cannot be read, is damaged, or is not the one that was scanned.
        """
        image = decode(self.read(index))
        if image.size[::-1] != cut.original:
            found = f"{image.size[0]}x{image.size[1]}"
            raise BadImage("changed", f"It decodes to {found} pixels, but its header says otherwise.")
        return cut_pixels(image, cut)

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights of all images, [N] each."""
        return self.column("width"), self.column("height")

    def repeats(self) -> np.ndarray:
        """Number of times that an epoch sees each pair [N]."""
        return np.array([source.repeats for source in self.data.sources])[self.column("source")]

    def column(self, name: str) -> np.ndarray:
        """Column of numbers of all usable pairs."""
        return self._table[name].to_numpy()[self.kept]

    def blocks(self, names: list[str]) -> Iterator[pa.Table]:
        """Columns of the usable pairs, block by block; "pairs" are the entity pairs of `pairs`."""
        table = self._table.select([name for name in names if name != "pairs"])
        for start in range(0, len(self.kept), BLOCK):
            rows = pa.array(self.kept[start : start + BLOCK])
            block = table.take(rows)
            yield block.append_column("pairs", self._pairs.take(rows)) if "pairs" in names else block

    def captions(self) -> Iterator[str]:
        """Distinct captions, in the order of their first use."""
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
        """Hash of all that a run learns from: keys, captions, image digests and entity pairs, in their order.

        It does not depend on the place of the data or the time of the scan. A resumed run checks it.
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
        """Number of pairs that were left out, by kind."""
        return Counter(problem.kind for problem in self.problems())

    def notes(self) -> Counter[str]:
        """Number of usable pairs that were converted, by kind of conversion."""
        total: Counter[str] = Counter()
        for block in self.blocks(["note"]):
            for count in pc.value_counts(pc.filter(block["note"], pc.not_equal(block["note"], ""))).to_pylist():
                for note in count["values"].split(", "):
                    total[note] += count["counts"]
        return total

    def problems(self) -> Iterator[Problem]:
        """Pairs that were left out and why, in the order of the sources."""
        usable = np.zeros(self._table.num_rows, bool)
        usable[self._usable] = True
        names = ["source", "key", "ordinal", "kind", "problem", "width", "height"]
        bad = np.flatnonzero(~usable)
        for start in range(0, len(bad), BLOCK):
            for row in self._table.select(names).take(pa.array(bad[start : start + BLOCK])).to_pylist():
                kind, sentence = (row["kind"], row["problem"]) if row["problem"] else self._misfit(row)
                key = row["key"] + (f"#{row['ordinal'] + 1}" if row["ordinal"] else "")
                yield Problem(self.data.sources[row["source"]].path, key, kind, sentence)

    @property
    def min_size(self) -> int:
        """Smallest accepted shorter side of an image, in pixels."""
        return self.data.min_size if self.data.min_size is not None else self.data.resolution // 2

    def order(self, batch_size: int, seed: int) -> GlobalOrder:
        """Order of these pairs; the bucket of a step is an index of `bucket_sizes(data)`."""
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
    """Open a table without reading it.

    Raises:
        OSError, pa.ArrowInvalid: the file is missing or damaged.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def encode_path(path: str) -> bytes:
    """Encode a file name, which need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def key_prefixes(data: Data) -> list[str]:
    """Prefix of the keys of each source: nothing for a single one, else its name."""
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
    """Column of digests as numpy's S16; null becomes zeros."""
    chunks = []
    for chunk in column.chunks:
        values = np.frombuffer(chunk.buffers()[1], "S16", len(chunk), 16 * chunk.offset).copy()
        if chunk.null_count:
            values[pc.is_null(chunk).to_numpy(zero_copy_only=False)] = b""
        chunks.append(values)
    return np.concatenate(chunks) if chunks else np.zeros(0, "S16")


SUMMARY, LEFT_OUT, UNREADABLE = "data.json", "data_left_out.jsonl", "data_unreadable.jsonl"

SHOWN = 10
"""Number of pairs that the console names; the file lists all."""


@dataclass(frozen=True)
class Bucket:
    """Size of samples: its images, samples of an epoch, and the share of the images' area that is cut off."""

    height: int
    width: int
    images: int
    samples: int
    cut_off: float


@dataclass(frozen=True)
class Summary:
    """Statistics of the usable pairs, and counts of those left out.

    Attributes:
        samples: in an epoch, repeats included.
        left_out: pairs by kind of problem; handled: images by kind of conversion.
        words: 5th, 50th and 95th percentile of the words of a caption, and the mean.
        different_captions: number of distinct captions.
        other_scripts: captions without a letter from a to z.
        with_pairs, pairs: captions with at least one entity pair, and all pairs; None if captions were not parsed.
        sides: 5th, 50th and 95th percentile of the shorter side in pixels.
        enlarged: images with fewer pixels than their sample.
    """

    pairs_found: int
    usable: int
    samples: int
    left_out: dict[str, int]
    handled: dict[str, int]
    words: dict[str, float]
    different_captions: int
    other_scripts: int
    with_pairs: int | None
    pairs: int | None
    sides: dict[str, float]
    enlarged: int
    buckets: list[Bucket]
    fingerprint: str


def summarize(manifest: Manifest) -> Summary:
    """Compute the statistics of a manifest; takes some seconds for a million pairs."""
    widths, heights = manifest.sizes()
    sizes = bucket_sizes(manifest.data)
    bucket_of = assign(widths, heights, sizes)
    targets = np.array(sizes)[bucket_of]
    scale = np.maximum(targets[:, 0] / heights, targets[:, 1] / widths)
    seen = targets[:, 0] * targets[:, 1] / (heights * widths * scale**2)
    repeats = manifest.repeats()
    words, with_pairs, pairs, other, different = _captions(manifest)
    left_out = manifest.left_out()
    buckets = []
    for number, (height, width) in enumerate(sizes):
        own = bucket_of == number
        if own.any():
            cut_off = round(float(1 - seen[own].mean()), 4)
            buckets.append(Bucket(height, width, int(own.sum()), int(repeats[own].sum()), max(0.0, cut_off)))
    looked = manifest.entities_file is not None
    return Summary(
        pairs_found=len(manifest) + left_out.total(),
        usable=len(manifest),
        samples=int(repeats.sum()),
        left_out=dict(left_out.most_common()),
        handled=dict(manifest.notes().most_common()),
        words={**_percentiles(words), "mean": round(float(words.mean()), 2)},
        different_captions=different,
        other_scripts=other,
        with_pairs=with_pairs if looked else None,
        pairs=pairs if looked else None,
        sides=_percentiles(np.minimum(widths, heights)),
        enlarged=int((scale > 1).sum()),
        buckets=buckets,
        fingerprint=manifest.fingerprint,
    )


def write_report(manifest: Manifest, folder: Path, later: Iterable[Problem] = ()) -> Summary:
    """Write the summary and the complete list of left-out pairs into the folder of a run.

    Args:
        manifest: the pairs.
        folder: of the run.
        later: images found to be unusable after the scan, when latents were cached.
    """
    summary = summarize(manifest)
    write_json(folder / SUMMARY, asdict(summary))
    write_json_lines(folder / LEFT_OUT, (problem._asdict() for problem in (*manifest.problems(), *later)))
    return summary


def describe(summary: Summary, problems: Iterable[Problem] = ()) -> list[str]:
    """Format the summary for a console; the first few of `problems` are named."""
    lines = [f"{summary.usable:,} of {summary.pairs_found:,} pairs can be used, {summary.samples:,} samples an epoch"]
    if summary.left_out:
        lines.append("left out: " + ", ".join(f"{number:,} {kind}" for kind, number in summary.left_out.items()))
    if summary.handled:
        lines.append("handled: " + ", ".join(f"{number:,} {note}" for note, number in summary.handled.items()))
    for number, problem in enumerate(problems):
        if number == SHOWN:
            lines.append(f"  ... and more; all are listed in {LEFT_OUT} of the run")
            break
        lines.append(f"  {problem}")
    words = summary.words
    lines.append(
        f"captions: {summary.different_captions:,} different, {words['50%']:g} words "
        f"({words['5%']:g} to {words['95%']:g}), {summary.other_scripts:,} without Latin letters"
    )
    if summary.with_pairs is not None and summary.pairs is not None:
        share = summary.with_pairs / summary.usable
        lines.append(f"entity pairs: {summary.pairs:,}, in {share:.1%} of the captions")
    sides = summary.sides
    lines.append(
        f"images: shorter side {sides['50%']:g} pixels ({sides['5%']:g} to {sides['95%']:g}), "
        f"{summary.enlarged:,} have to be enlarged"
    )
    for bucket in summary.buckets:
        lines.append(
            f"  {bucket.width:>5} x {bucket.height:<5} {bucket.images:>10,} images  {bucket.cut_off:.1%} cut off"
        )
    return lines


class ProblemLog:
    """Images that could not be read during a run, in a list that outlives its restarts; each is listed once.

    Args:
        folder: of the run. Only one process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._file = JSONLines(folder / UNREADABLE, "List of unreadable images")
        rows = (json.loads(line) for _, line in self._file.lines())
        self._known = {(row["source"], row["key"]) for row in rows}

    def add(self, problems: Iterable[Problem]) -> list[Problem]:
        """Write down the problems that are new, and return them."""
        new = []
        for problem in problems:
            if (problem.source, problem.key) not in self._known:
                self._known.add((problem.source, problem.key))
                new.append(problem)
        if new:
            self._file.append(*(problem._asdict() for problem in new))
        return new


def _captions(manifest: Manifest) -> tuple[np.ndarray, int, int, int, int]:
    """Words of each caption; captions with pairs, pairs, captions without Latin letters, distinct captions."""
    words, with_pairs, pairs, other = [], 0, 0, 0
    for block in manifest.blocks(["caption", "pairs"]):
        words.append(pc.count_substring_regex(block["caption"], r"\S+").to_numpy())
        other += int(pc.sum(pc.invert(pc.match_substring_regex(block["caption"], "[A-Za-z]"))).as_py() or 0)
        numbers = pc.fill_null(pc.list_value_length(block["pairs"]), 0).to_numpy()
        with_pairs += int((numbers > 0).sum())
        pairs += int(numbers.sum()) // 4
    return np.concatenate(words), with_pairs, pairs, other, manifest.different_captions()


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {
        f"{share}%": float(value) for share, value in zip((5, 50, 95), np.percentile(values, (5, 50, 95)), strict=True)
    }
