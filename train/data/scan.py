"""Scan of the sources: every image-text pair is found, checked and parsed for entity pairs once, in parallel.

Bad data is written down and never stops a run. A distinct caption is parsed once for each parser, in parts that stay
on the disk when the run is stopped in between; the entity pairs of all rows of a table are put together from them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair, entity_backend
from llm4gen_core.files import whole_file

from ..parse import parse_captions
from ..recipe import Data
from .images import BadImage, inspect
from .manifest import BLOCK, ROWS, Manifest, as_bytes16, decode_path, digest, encode_path, open_table
from .sources import NO_CAPTION, Found, SourceReader, Trouble, Unit, open_source, stamp

FORMAT = "1"
"""Version of the table; a table of another version is made again."""

TRANSIENT = "unreadable"
"""Kind of problem that may go away: every scan checks such pairs again."""

DUPLICATE = "duplicate"

PART = 20_000
"""Number of captions that are parsed between two writes."""

PARALLEL_FROM = 5_000
"""Number of captions from which several processes parse, which take seconds to start."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the amount done, and the total."""

_UNITS = pa.schema(
    [
        ("source", pa.int16()),
        ("path", pa.large_binary()),
        ("stamp", pa.binary(16)),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)

_PARTS = pa.schema([("caption_digest", pa.binary(16)), ("pairs", pa.large_list(pa.int32()))])


def scan(data: Data, folder: Path, progress: Progress | None = None, need_pairs: bool = True) -> Manifest:
    """Scan the data of a recipe. Rows of an earlier scan are reused for unchanged files.

    Args:
        data: section of the recipe; `workers` processes read the images.
        folder: of the cache; made if it does not exist.
        progress: callback.
        need_pairs: whether to parse captions for entity pairs where the data gives none.

    Raises:
        LLM4GENError: a source does not exist, or holds no usable pair.
    """
    progress = progress or (lambda what, done, total: None)
    readers = [open_source(source) for source in data.sources]
    folder.mkdir(parents=True, exist_ok=True)
    # Recipes can share a folder: each way to read the sources has its table. Sizes and repeats do not matter.
    settings = [source.model_dump_json(exclude={"repeats"}) for source in data.sources]
    absolute = [os.path.abspath(source.path) for source in data.sources]
    rows = folder / f"pairs-{stamp(FORMAT, *settings, *absolute).hex()[:16]}.arrow"

    units = _list_units(readers, progress)
    listing = _listing_fingerprint(units)
    known = _open_known(rows)
    if known is None or _listing_of(known) != listing or _transient(known).any():
        with tempfile.TemporaryDirectory(prefix=".scan-", dir=folder) as temporary:
            found = Path(temporary) / "rows.arrow"
            _write_rows(found, readers, units, known, data.workers, progress)
            with whole_file(rows, "Table of pairs") as final:
                _write_final(found, final, listing)
    manifest = Manifest(rows, data)
    if not need_pairs:
        return manifest
    return Manifest(rows, data, find_entities(manifest, folder, listing, progress))


def _list_units(readers: list[SourceReader], progress: Progress) -> pa.Table:
    """Table of the units of all sources; reads no image."""
    batches, total = [], 0
    for source, reader in enumerate(readers):
        own = []
        found = reader.units()
        while units := list(islice(found, 4096)):
            own.append(
                pa.record_batch(
                    [
                        pa.array([source] * len(units), pa.int16()),
                        pa.array([encode_path(unit.path) for unit in units], pa.large_binary()),
                        pa.array([unit.stamp for unit in units], pa.binary(16)),
                        pa.array([unit.start for unit in units], pa.int64()),
                        pa.array([unit.length for unit in units], pa.int64()),
                    ],
                    schema=_UNITS,
                )
            )
            total += len(units)
            progress("listing", total, 0)
        table = pa.Table.from_batches(own, _UNITS)
        if reader.unordered:
            table = table.take(pc.sort_indices(table["path"]))
        batches.append(table)
    return pa.concat_tables(batches).combine_chunks()


def _listing_fingerprint(units: pa.Table) -> str:
    total = hashlib.blake2b(FORMAT.encode(), digest_size=16)
    total.update(np.ascontiguousarray(units["source"].to_numpy()).tobytes())
    total.update(as_bytes16(units["stamp"]).tobytes())
    return total.hexdigest()


def _listing_of(table: pa.Table) -> str:
    return (table.schema.metadata or {}).get(b"listing", b"").decode()


def _transient(table: pa.Table) -> np.ndarray:
    return pc.fill_null(pc.equal(table["kind"], TRANSIENT), False).to_numpy()


def _open_known(path: Path) -> pa.Table | None:
    """Open the rows of an earlier scan; None if the file is missing or damaged."""
    try:
        table = open_table(path)
    except (OSError, pa.ArrowInvalid):
        return None
    return table if table.schema.equals(ROWS) else None


def _write_rows(
    path: Path, readers: list[SourceReader], units: pa.Table, known: pa.Table | None, workers: int, progress: Progress
) -> None:
    """Write one row a pair, in the order of the units: copied if the unit is known, else checked."""
    blocks = _Blocks(readers, units, _KnownRows(known) if known is not None else None)
    workers = min(workers, len(blocks) // 2)
    loader = DataLoader(
        blocks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # otherwise it draws a number from the global generator
    )
    done = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ROWS) as writer:
        for rows, number in loader:
            writer.write_table(rows)
            done += number
            progress("checking images", done, units.num_rows)


class _Blocks(Dataset[tuple[pa.Table, int]]):
    """Blocks of units; each item is the rows of a block and its number of units."""

    def __init__(self, readers: list[SourceReader], units: pa.Table, known: _KnownRows | None) -> None:
        self._readers, self._units, self._known = readers, units, known
        sources = units["source"].to_numpy()
        bounds = []
        for source, reader in enumerate(readers):
            first, last = np.searchsorted(sources, [source, source + 1])
            bounds += [
                (start, min(start + reader.units_per_block, last))
                for start in range(first, last, reader.units_per_block)
            ]
        self._bounds = np.array(bounds, np.int64).reshape(-1, 2)
        self._runs = known.runs(as_bytes16(units["stamp"])) if known else np.full(units.num_rows, -1)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, number: int) -> tuple[pa.Table, int]:
        start, end = (int(bound) for bound in self._bounds[number])
        tables: list[pa.Table] = []
        fresh: list[dict[str, Any]] = []
        unit = start
        while unit < end:
            first = int(self._runs[unit])
            if self._known is None or first < 0:
                fresh += self._check(unit)
                unit += 1
                continue
            # Known units mostly stay neighbours: they are copied together.
            last = first
            while unit + 1 < end and int(self._runs[unit + 1]) == last + 1:
                unit, last = unit + 1, last + 1
            tables += [pa.Table.from_pylist(fresh, ROWS)] * bool(fresh) + [self._known.rows(first, last)]
            fresh = []
            unit += 1
        return pa.concat_tables([*tables, pa.Table.from_pylist(fresh, ROWS)]), end - start

    def _check(self, number: int) -> list[dict[str, Any]]:
        source, path, unit_stamp, start, length = (self._units[name][number].as_py() for name in _UNITS.names)
        unit = Unit(decode_path(path), unit_stamp, start, length)
        return [
            {**_row(found), "source": source, "unit": unit_stamp, "unit_row": row}
            for row, found in enumerate(self._readers[source].pairs(unit))
        ]


class _KnownRows:
    """Rows of an earlier scan, by unit."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._starts = np.flatnonzero(table["unit_row"].to_numpy() == 0)
        self._ends = np.append(self._starts[1:], table.num_rows)[: len(self._starts)]
        stamps = as_bytes16(table["unit"])[self._starts]
        transient = _transient(table)
        again = (
            np.add.reduceat(transient.astype(np.int64), self._starts) > 0 if len(self._starts) else np.zeros(0, bool)
        )
        self._order = np.argsort(stamps, kind="stable")
        self._sorted, self._again = stamps[self._order], again

    def runs(self, stamps: np.ndarray) -> np.ndarray:
        """Number of the group of rows of each unit, -1 if the unit has to be checked."""
        if not len(self._sorted):
            return np.full(len(stamps), -1)
        places = np.minimum(np.searchsorted(self._sorted, stamps), len(self._sorted) - 1)
        runs = self._order[places]
        return np.where((self._sorted[places] == stamps) & ~self._again[runs], runs, -1)

    def rows(self, first: int, last: int) -> pa.Table:
        """Rows of consecutive groups."""
        start, end = int(self._starts[first]), int(self._ends[last])
        return self._table.slice(start, end - start).replace_schema_metadata(None)


def _row(found: Found) -> dict[str, Any]:
    """Check a pair and return its row."""
    row: dict[str, Any] = {
        "key": _storable(found.key),
        "ordinal": 0,
        "path": encode_path(found.path),
        "offset": found.offset,
        "size": found.size,
        "width": 0,
        "height": 0,
        "note": "",
    }
    trouble = found.trouble
    notes = []
    if isinstance(found.caption, str):
        caption = _storable(found.caption)
        row["caption"] = caption.strip()
        row["caption_digest"] = digest(row["caption"].encode())
        if found.pairs is not None:
            row["pairs"] = _given_pairs(found.pairs, row["caption"], len(caption) - len(caption.lstrip()))
            if row["pairs"] is None:
                notes.append("impossible entity pairs")
    if trouble is None:
        try:
            facts = inspect(found.data)
            row.update(width=facts.width, height=facts.height, digest=digest(found.data))
            notes += [facts.note] if facts.note else []
        except BadImage as error:
            trouble = Trouble(error.kind, str(error))
    if trouble is None and not row.get("caption"):
        trouble = NO_CAPTION
    if trouble is not None:
        row.update(kind=trouble.kind, problem=_storable(trouble.sentence))
    row["note"] = ", ".join(notes)
    return row


def _given_pairs(pairs: Any, caption: str, stripped: int) -> list[int] | None:
    """Offsets of the data's own pairs in the caption without its leading space; None if one is impossible."""
    numbers: list[int] = []
    try:
        for pair in pairs:
            own = [int(number) - stripped for number in pair]
            if len(own) != 4:
                return None
            EntityPair.from_offsets(caption, *own)
            numbers += own
    except (LLM4GENError, TypeError, ValueError):
        return None
    return numbers


def _storable(text: str) -> str:
    """Replace half surrogate pairs, which JSON allows and UTF-8 does not, by "?"; offsets do not change."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_final(partial: Path, final: Path, listing: str) -> None:
    """Number the pairs that share a key, and leave out those whose caption is the same as well."""
    table = open_table(partial)
    # Copied rows may be marked as duplicates of a pair that no longer exists.
    unmarked = pc.not_equal(pc.fill_null(table["kind"], ""), DUPLICATE).combine_chunks()
    codes = _codes(table["key"]) * np.int64(2**15) + table["source"].to_numpy()
    ordinals = _ordinals(codes)
    captions = _codes(pc.fill_null(table["caption"], ""))
    _, codes = np.unique(codes, return_inverse=True)
    twins = _ordinals(codes * np.int64(captions.max(initial=0) + 1) + captions) > 0
    twins &= pc.or_(pc.is_null(table["problem"]), pc.invert(unmarked)).to_numpy()
    schema = ROWS.with_metadata({"listing": listing})
    with pa.OSFile(str(final), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        start = 0
        for batch in table.to_batches(max_chunksize=16384):
            own = slice(start, start + len(batch))
            columns = {name: batch[name] for name in ROWS.names}
            columns["ordinal"] = pa.array(ordinals[own], pa.int32())
            twin = pa.array(twins[own])
            for name in ("kind", "problem"):
                columns[name] = pc.if_else(unmarked[own], columns[name], None)
            columns["kind"] = pc.if_else(twin, DUPLICATE, columns["kind"])
            columns["problem"] = pc.if_else(
                twin, "The same image with the same caption is listed before.", columns["problem"]
            )
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
            start += len(batch)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Number of each distinct text."""
    return pc.dictionary_encode(column.combine_chunks()).indices.to_numpy().astype(np.int64)


def _ordinals(codes: np.ndarray) -> np.ndarray:
    """Number of equal codes before each."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(codes) else np.zeros(0, bool)
    places = np.arange(len(codes))
    ordinals = np.empty(len(codes), np.int64)
    ordinals[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return ordinals


def find_entities(manifest: Manifest, folder: Path, listing: str, progress: Progress) -> Path:
    """Write the entity pairs of each row of a manifest: those of the data, else the parser's.

    Args:
        manifest: opened without entities.
        folder: of the cache.
        listing: fingerprint of the units that the manifest's table was made from.
        progress: callback.

    Returns:
        The file, for `Manifest(..., entities=file)`. Unusable rows may have no pairs.

    Raises:
        LLM4GENError: the parser is unknown or not installed.
    """
    backend = entity_backend(manifest.data.entities)
    name = stamp(backend).hex()[:16]
    aligned = folder / f"entities-{name}-{manifest.rows_file.name}"
    if _complete(aligned, manifest, listing):
        return aligned
    parts = folder / f"entities-{name}"
    parts.mkdir(exist_ok=True)
    _parse_missing(manifest, parts, progress)
    _align(manifest, _read_parts(parts), aligned, {"listing": listing, "backend": backend})
    return aligned


def _complete(aligned: Path, manifest: Manifest, listing: str) -> bool:
    try:
        table = open_table(aligned)
    except (OSError, pa.ArrowInvalid):
        return False
    known = pc.is_valid(table["pairs"]).to_numpy()
    return _listing_of(table) == listing and len(known) > int(manifest.kept[-1]) and bool(known[manifest.kept].all())


def _parse_missing(manifest: Manifest, parts: Path, progress: Progress) -> None:
    rows = open_table(manifest.rows_file).select(["caption", "caption_digest", "pairs"])
    digests = as_bytes16(rows["caption_digest"])[manifest.kept]
    unparsed = pc.is_null(rows["pairs"]).to_numpy()[manifest.kept]
    distinct, first = np.unique(digests[unparsed], return_index=True)
    known = np.sort(as_bytes16(_read_parts(parts)["caption_digest"]))
    missing = manifest.kept[unparsed][np.sort(first[~np.isin(distinct, known)])]
    # One call for all captions: each process then loads the parser once.
    workers = manifest.data.workers if len(missing) >= PARALLEL_FROM else 0
    captions = (text for start in range(0, len(missing), PART) for text in _take(rows, missing, start)["caption"])
    found = parse_captions((text.as_py() for text in captions), manifest.data.entities, workers)
    for start in range(0, len(missing), PART):
        pairs = [[number for pair in of_caption for number in pair.offsets] for of_caption in islice(found, PART)]
        digests = _take(rows, missing, start)["caption_digest"]
        part = pa.table([digests, pa.array(pairs, pa.large_list(pa.int32()))], schema=_PARTS)
        _write_table(part, parts / f"part-{uuid.uuid4().hex}.arrow")
        progress("finding entities", start + len(pairs), len(missing))


def _take(rows: pa.Table, missing: np.ndarray, start: int) -> pa.Table:
    return rows.take(pa.array(missing[start : start + PART]))


def _read_parts(parts: Path) -> pa.Table:
    tables = []
    for file in sorted(parts.glob("part-*.arrow")):
        try:
            tables.append(open_table(file))
        except (OSError, pa.ArrowInvalid):
            continue  # damaged: its captions are parsed again
    return pa.concat_tables([*tables, _PARTS.empty_table()])


def _align(manifest: Manifest, parsed: pa.Table, file: Path, metadata: dict[str, str]) -> None:
    rows = open_table(manifest.rows_file).select(["caption_digest", "pairs"])
    digests = as_bytes16(parsed["caption_digest"])
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    blocks = []
    for start in range(0, rows.num_rows, BLOCK):
        block = rows.slice(start, BLOCK)
        given = pc.is_valid(block["pairs"]).to_numpy()
        wanted = as_bytes16(block["caption_digest"])
        unknown = np.ones(len(wanted), bool)
        places = np.zeros(len(wanted), np.int64)
        if len(order):
            places = order[np.minimum(np.searchsorted(ordered, wanted), len(order) - 1)]
            unknown = digests[places] != wanted
        # The pairs of the data, then all parsed ones, as one column to pick from.
        both = pa.chunked_array([*block["pairs"].chunks, *parsed["pairs"].chunks], _PARTS.field("pairs").type)
        picked = np.where(given, np.arange(len(wanted)), places + len(wanted))
        blocks.append(both.take(pa.array(picked, mask=unknown & ~given)))
    chunks = [chunk for block in blocks for chunk in block.chunks]
    pairs = pa.chunked_array(chunks, _PARTS.field("pairs").type)
    _write_table(pa.table({"pairs": pairs}).replace_schema_metadata(metadata), file)


def _write_table(table: pa.Table, file: Path) -> None:
    with whole_file(file, "Entity pairs") as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table, max_chunksize=16384)
