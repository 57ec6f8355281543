"""Finding and checking every image-text pair once, in parallel; bad data is written down, never a crash."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset

from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair

from ..recipe import Data
from .entities import find_entities
from .images import BadImage, inspect
from .manifest import ROWS, Manifest, as_bytes16, decode_path, digest, encode_path, open_table
from .sources import Found, SourceReader, Trouble, Unit, open_source
from .sources.base import NO_CAPTION, stamp

FORMAT = "1"
"""Of the table; another one is scanned again."""

TRANSIENT = "unreadable"
"""Kind of problem that may be gone the next time: such pairs are looked at again by every scan."""

DUPLICATE = "duplicate"

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and out of how much."""

_UNITS = pa.schema(
    [
        ("source", pa.int16()),
        ("path", pa.large_binary()),
        ("stamp", pa.binary(16)),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)


def scan(data: Data, folder: Path, progress: Progress | None = None, need_pairs: bool = True) -> Manifest:
    """The manifest of a recipe's data. What an earlier scan knows of unchanged files is used again.

    Args:
        data: the recipe's section; `workers` processes read the images.
        folder: of the cache; made if it does not exist.
        progress: is told how far it is.
        need_pairs: parse captions for entity pairs where the data gives none.

    Raises:
        LLM4GENError: a source does not exist, or holds no usable pair.
    """
    progress = progress or (lambda what, done, total: None)
    readers = [open_source(source) for source in data.sources]
    folder.mkdir(parents=True, exist_ok=True)
    # Sources that are read otherwise have another table: recipes can share a folder. Sizes and repeats do not matter.
    settings = [source.model_dump_json(exclude={"repeats"}) for source in data.sources]
    absolute = [os.path.abspath(source.path) for source in data.sources]
    rows = folder / f"pairs-{stamp(FORMAT, *settings, *absolute).hex()[:16]}.arrow"

    units = _list_units(readers, progress)
    listing = _listing_fingerprint(units)
    known = _open_known(rows)
    if known is None or _listing_of(known) != listing or _transient(known).any():
        with _aside(rows) as partial:
            _write_rows(partial, readers, units, known, data.workers, progress)
            with _aside(rows) as final:
                _write_final(partial, final, listing)
                os.replace(final, rows)
    manifest = Manifest(rows, data)
    if not need_pairs:
        return manifest
    return Manifest(rows, data, find_entities(manifest, folder, listing, progress))


def _list_units(readers: list[SourceReader], progress: Progress) -> pa.Table:
    """Everything that the sources hold, without reading any image."""
    batches, total = [], 0
    for source, reader in enumerate(readers):
        own = []
        for units in _groups(reader.units(), 4096):
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
    """The rows of an earlier scan; a damaged file is as good as none."""
    try:
        table = open_table(path)
    except (OSError, pa.ArrowInvalid):
        return None
    return table if table.schema.equals(ROWS) else None


def _write_rows(
    path: Path, readers: list[SourceReader], units: pa.Table, known: pa.Table | None, workers: int, progress: Progress
) -> None:
    """One row a pair, in the order of the units: taken over where the unit is known, else looked at."""
    blocks = _Blocks(readers, units, _KnownRows(known) if known is not None else None)
    workers = min(workers, len(blocks) // 2)
    loader = DataLoader(
        blocks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # it would take a number from the run's otherwise
    )
    done = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ROWS) as writer:
        for rows, number in loader:
            writer.write_table(rows)
            done += number
            progress("checking images", done, units.num_rows)


class _Blocks(Dataset[tuple[pa.Table, int]]):
    """Work in pieces; each gives its rows, and how many units they are of."""

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
                fresh += self._look(unit)
                unit += 1
                continue
            # Neighbours mostly stay neighbours: they are taken over together.
            last = first
            while unit + 1 < end and int(self._runs[unit + 1]) == last + 1:
                unit, last = unit + 1, last + 1
            tables += [pa.Table.from_pylist(fresh, ROWS)] * bool(fresh) + [self._known.rows(first, last)]
            fresh = []
            unit += 1
        return pa.concat_tables([*tables, pa.Table.from_pylist(fresh, ROWS)]), end - start

    def _look(self, number: int) -> list[dict[str, Any]]:
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
        """The run of rows of each unit, -1 where it has to be looked at."""
        if not len(self._sorted):
            return np.full(len(stamps), -1)
        places = np.minimum(np.searchsorted(self._sorted, stamps), len(self._sorted) - 1)
        runs = self._order[places]
        return np.where((self._sorted[places] == stamps) & ~self._again[runs], runs, -1)

    def rows(self, first: int, last: int) -> pa.Table:
        """The rows of runs that lie side by side."""
        start, end = int(self._starts[first]), int(self._ends[last])
        return self._table.slice(start, end - start).replace_schema_metadata(None)


def _row(found: Found) -> dict[str, Any]:
    """What is stored of a pair, after it has been checked."""
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
    """Offsets of the data's own pairs in the caption without the white space before it; None if one is impossible."""
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
    """Half of a surrogate pair, which JSON may hold and UTF-8 may not, becomes "?": no offset changes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_final(partial: Path, final: Path, listing: str) -> None:
    """Number the pairs that share a key, and leave out those whose caption is the same as well."""
    table = open_table(partial)
    # Rows that were taken over may be marked as twins of a pair that is gone.
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
                twin, "The same image stands there before, with the same caption.", columns["problem"]
            )
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
            start += len(batch)
    with final.open("rb") as done:
        os.fsync(done.fileno())


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each different text."""
    return pc.dictionary_encode(column.combine_chunks()).indices.to_numpy().astype(np.int64)


def _ordinals(codes: np.ndarray) -> np.ndarray:
    """How many equal codes come before each."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(codes) else np.zeros(0, bool)
    places = np.arange(len(codes))
    ordinals = np.empty(len(codes), np.int64)
    ordinals[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return ordinals


class _aside:
    """A name beside a file to write it under; what is left there at the end is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)


def _groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
