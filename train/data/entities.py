"""Entity pairs of every caption, parsed once.

A different caption is parsed once for each parser, in parts that stay when the run is stopped in the middle; the
table with the pairs of each row of a manifest is put together from them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4gen_core.entities import entity_backend

from .manifest import BLOCK, Manifest, as_bytes16, open_table
from .sources.base import stamp

PART = 20_000
"""Captions that are parsed between two writes."""

PARALLEL_FROM = 5_000
"""Captions from which the seconds that processes take to start are worth it."""

_PARTS = pa.schema([("caption_digest", pa.binary(16)), ("pairs", pa.large_list(pa.int32()))])


def find_entities(
    manifest: Manifest, folder: Path, listing: str, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """A file with the entity pairs of each row of a manifest: those of the data, else the parser's.

    Args:
        manifest: opened without entities.
        folder: of the cache.
        listing: what the manifest's table was made from.
        progress: is told how far it is.

    Returns:
        The file, for `Manifest(..., entities=file)`. Rows that are not used may have none.

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
    _parse_missing(manifest, parts, progress or (lambda what, done, total: None))
    _align(manifest, _read_parts(parts), aligned, {"listing": listing, "backend": backend})
    return aligned


def _complete(aligned: Path, manifest: Manifest, listing: str) -> bool:
    try:
        table = open_table(aligned)
    except (OSError, pa.ArrowInvalid):
        return False
    same = (table.schema.metadata or {}).get(b"listing", b"").decode() == listing
    known = pc.is_valid(table["pairs"]).to_numpy()
    return same and len(known) > int(manifest.kept[-1]) and bool(known[manifest.kept].all())


def _parse_missing(manifest: Manifest, parts: Path, progress: Callable[[str, int, int], None]) -> None:
    # Imported here: a run whose data brings its pairs needs no parser.
    from ..parse import parse_captions

    rows = open_table(manifest.rows_file).select(["caption", "caption_digest", "pairs"])
    digests = as_bytes16(rows["caption_digest"])[manifest.kept]
    unparsed = pc.is_null(rows["pairs"]).to_numpy()[manifest.kept]
    different, first = np.unique(digests[unparsed], return_index=True)
    known = np.sort(as_bytes16(_read_parts(parts)["caption_digest"]))
    missing = manifest.kept[unparsed][np.sort(first[~np.isin(different, known)])]
    # One call for all: with processes, each of them loads the parser once.
    workers = manifest.data.workers if len(missing) >= PARALLEL_FROM else 0
    captions = (text for start in range(0, len(missing), PART) for text in _take(rows, missing, start)["caption"])
    found = parse_captions((text.as_py() for text in captions), manifest.data.entities, workers)
    for start in range(0, len(missing), PART):
        pairs = [[number for pair in of_caption for number in pair.offsets] for of_caption in islice(found, PART)]
        digests = _take(rows, missing, start)["caption_digest"]
        part = pa.table([digests, pa.array(pairs, pa.large_list(pa.int32()))], schema=_PARTS)
        _write(part, parts / f"part-{uuid.uuid4().hex}.arrow")
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
        # The block's own pairs, then all parsed ones, as one column to pick from.
        both = pa.chunked_array([*block["pairs"].chunks, *parsed["pairs"].chunks], _PARTS.field("pairs").type)
        picked = np.where(given, np.arange(len(wanted)), places + len(wanted))
        blocks.append(both.take(pa.array(picked, mask=unknown & ~given)))
    chunks = [chunk for block in blocks for chunk in block.chunks]
    pairs = pa.chunked_array(chunks, _PARTS.field("pairs").type)
    _write(pa.table({"pairs": pairs}).replace_schema_metadata(metadata), file)


def _write(table: pa.Table, file: Path) -> None:
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as stream:
            with pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table, max_chunksize=16384)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
