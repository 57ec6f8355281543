"""`python -m train parse`: attribute-entity pairs of captions, found once before training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from llm4gen_core import EntityPair, LLM4GENError, entity_backend
from llm4gen_core.entities import Backend, load_backend
from llm4gen_core.entities.spacy import HOW_TO_INSTALL
from llm4gen_core.files import whole_file

FALLBACK = "rules/"
"""Prefix of the name of the parser that needs no trained pipeline."""

_PARALLEL_FROM = {True: 200_000, False: 5_000}
"""Number of captions from which several processes parse, for the fallback and for spaCy."""

_SHOWN = 20
"""Number of bad rows that the summary lists."""


@dataclass(frozen=True)
class ParseSettings:
    """Settings of `parse`.

    Attributes:
        source: .txt with one caption a line, or .jsonl.
        output: .jsonl file to write.
        backend: see `llm4gen_core.parse_entities`.
        workers: number of processes; 0 parses in this one, None chooses by the number of captions.
        field: key of the caption in .jsonl; None for "caption", else "text".
        force: whether to replace an existing output.
    """

    source: str
    output: str
    backend: str = "auto"
    workers: int | None = None
    field: str | None = None
    force: bool = False


@dataclass
class ParseReport:
    """Result of `parse`.

    Attributes:
        parser: name and version, see `llm4gen_core.entity_backend`.
        captions: number of rows written; `described` of them have at least one pair, `given` had pairs before.
        pairs: number of pairs of all captions.
        bad: (line, reason) of the rows that were left out.
        replaced: (line, reason) of the rows whose own pairs were impossible, so that they were parsed.
    """

    parser: str
    captions: int = 0
    described: int = 0
    given: int = 0
    pairs: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    replaced: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _Row:
    """Line of the source; `pairs` are its own, if it has any."""

    line: int
    caption: str
    others: dict[str, Any]
    pairs: list[EntityPair] | None = None


def parse_captions(
    captions: Iterable[str], backend: str = "auto", workers: int = 0, batch: int = 1000
) -> Iterator[list[EntityPair]]:
    """Parse captions and yield the pairs of each, in order.

    Captions are read when they are needed, at most a few batches per process ahead.

    Args:
        captions: any number of captions.
        backend: see `llm4gen_core.parse_entities`.
        workers: number of processes ("spawn"); 0 parses in this one.
        batch: number of captions that a process receives at once.

    Raises:
        LLM4GENError: the backend is not installed, or a process crashed.
    """
    if workers < 0 or batch < 1:
        raise LLM4GENError(f"Parsing with {workers} workers and batch {batch}; expected at least 0 and at least 1.")
    # Loaded here too, so that a missing package is reported once and every process uses the same parser.
    parser = load_backend(backend)
    return _in_processes(captions, parser, workers, batch) if workers else parser.pipe(captions)


def _in_processes(captions: Iterable[str], parser: Backend, workers: int, batch: int) -> Iterator[list[EntityPair]]:
    source = iter(captions)
    pending: deque[tuple[list[str], Future[list[list[list[int]]]]]] = deque()
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(parser.spec,)
    )
    try:
        while True:
            while len(pending) < 2 * workers + 1 and (chunk := list(islice(source, batch))):
                pending.append((chunk, pool.submit(_parse_batch, chunk)))
            if not pending:
                return
            chunk, found = pending.popleft()
            for caption, offsets in zip(chunk, found.result(), strict=True):
                yield [EntityPair.from_offsets(caption, *four) for four in offsets]
    except BrokenProcessPool as error:
        raise LLM4GENError(
            f"One of {workers} parsing processes crashed, most often because the memory was full; give fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: list[Backend] = []
"""Parser of this process, if it belongs to the pool."""


def _start_worker(backend: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends the pool
    torch.set_num_threads(1)
    _worker[:] = [load_backend(backend)]


def _parse_batch(captions: list[str]) -> list[list[list[int]]]:
    """Offsets of the pairs, which are sent between processes five times as fast as the pairs themselves."""
    return [[pair.offsets for pair in pairs] for pairs in _worker[0].pipe(captions)]


def parse_file(settings: ParseSettings) -> ParseReport:
    """Write the captions of the source with their pairs, and print a summary.

    Every row keeps its other fields. Pairs that a row has already are kept; rows without a caption are left out and
    listed. The output appears under its name only when it is complete.

    Raises:
        LLM4GENError: the source cannot be read or holds no caption, the output exists, or the backend is not installed.
    """
    source, output = Path(settings.source), Path(settings.output)
    if source.suffix not in (".txt", ".jsonl"):
        raise LLM4GENError(
            f"Source {source} ends in {source.suffix or 'nothing'}; expected .txt (one caption a line) or .jsonl (one "
            "JSON object a line)."
        )
    if output.suffix != ".jsonl":
        raise LLM4GENError(f"Output {output} ends in {output.suffix or 'nothing'}; give a name that ends in .jsonl.")
    if output.exists() and not settings.force:
        raise LLM4GENError(f"Output {output} exists; choose another name, or give --force to replace it.")
    if settings.workers is not None and settings.workers < 0:
        raise LLM4GENError(f"--workers is {settings.workers}; expected 0 (parse in this process) or more.")
    report = ParseReport(entity_backend(settings.backend))
    try:
        with source.open("rb") as file:
            lines = sum(1 for _ in file)
            file.seek(0)
            with whole_file(output, "Output") as temporary, temporary.open("wb") as target:
                _write(file, lines, target, settings, report)
                if not report.captions:
                    raise LLM4GENError(
                        f"Source {source} ({lines:,} lines) holds no caption; {_listed(report.bad) or 'it is empty'}. "
                        "For .jsonl, give the key of the caption with --field."
                    )
    except OSError as error:
        raise LLM4GENError(f"{error.filename or output}: {error.strerror}; nothing was written.") from error
    print(_summary(report, settings, output))
    return report


def _write(file: BinaryIO, lines: int, target: BinaryIO, settings: ParseSettings, report: ParseReport) -> None:
    workers = settings.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if cores > 1 and lines >= _PARALLEL_FROM[report.parser.startswith(FALLBACK)] else 0
    waiting: deque[_Row] = deque()

    def captions() -> Iterator[str]:
        for row in _rows(file, Path(settings.source), settings.field, report):
            waiting.append(row)
            yield row.caption if row.pairs is None else ""  # a row with pairs only keeps its position

    with tqdm(total=lines, unit=" captions", desc="parse", mininterval=0.5) as progress:
        for pairs in parse_captions(captions(), settings.backend, workers):
            row = waiting.popleft()
            _write_row(target, row, pairs if row.pairs is None else row.pairs, report)
            progress.update(row.line - progress.n)
        progress.update(lines - progress.n)


def _rows(file: BinaryIO, source: Path, key: str | None, report: ParseReport) -> Iterator[_Row]:
    """Read the usable rows; problems of the others go into the report."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError:
            report.bad.append((number, "not UTF-8"))
            continue
        row = _Row(number, text.strip(), {}) if source.suffix == ".txt" else _json_row(number, text, key)
        if isinstance(row, str):
            report.bad.append((number, row))
        elif not row.caption.strip():
            report.bad.append((number, "no caption"))
        else:
            if "pairs" in row.others:
                _take_given(row, report)
            yield row


def _json_row(number: int, text: str, key: str | None) -> _Row | str:
    """Parse a row, or return what is wrong with it."""
    if not text.strip():
        return "empty"
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    for name in (key,) if key else ("caption", "text"):
        if isinstance(row.get(name), str):
            return _Row(number, row[name], row)
    return f"no text under {key!r}" if key else "no text under 'caption' or 'text'"


def _take_given(row: _Row, report: ParseReport) -> None:
    try:
        row.pairs = [EntityPair.from_offsets(row.caption, *offsets) for offsets in row.others["pairs"]]
        report.given += 1
    except (LLM4GENError, TypeError):
        report.replaced.append((row.line, "impossible pairs"))


def _write_row(target: BinaryIO, row: _Row, pairs: list[EntityPair], report: ParseReport) -> None:
    written = {**row.others, "caption": row.caption, "pairs": [pair.offsets for pair in pairs]}
    try:
        line = json.dumps(written, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair is not valid UTF-8, but has an escape
        line = json.dumps(written).encode("ascii")
    target.write(line + b"\n")
    report.captions += 1
    report.described += bool(pairs)
    report.pairs += len(pairs)


def _listed(rows: list[tuple[int, str]]) -> str:
    shown = ", ".join(f"line {number} ({why})" for number, why in rows[:_SHOWN])
    return f"{shown} and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else shown


def _summary(report: ParseReport, settings: ParseSettings, output: Path) -> str:
    lines = [
        f"captions {report.captions:,}, of which {report.described:,} ({report.described / report.captions:.1%}) have "
        "at least one pair",
        f"pairs    {report.pairs:,}, {report.pairs / report.captions:.2f} a caption",
        f"parser   {report.parser}",
    ]
    if report.parser.startswith(FALLBACK) and report.given < report.captions:
        why = "" if settings.backend == "rules" else ", as no trained spaCy pipeline is installed"
        lines.append(
            f"         This is the fallback{why}: it knows words and endings but no grammar, and misses or confuses "
            f"more pairs; {HOW_TO_INSTALL} installs a pipeline."
        )
    if report.given:
        lines.append(f"given    {report.given:,} captions had pairs of their own, which were kept")
    if report.replaced:
        lines.append(f"replaced {len(report.replaced):,} captions' own pairs: {_listed(report.replaced)}")
    if report.bad:
        lines.append(f"left out {len(report.bad):,} rows: {_listed(report.bad)}")
    return "\n".join([*lines, f"wrote    {output} ({output.stat().st_size:,} bytes)"])
