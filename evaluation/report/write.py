"""`python -m evaluation report`: a report as HTML, JSON and Markdown, all from the same tables.

report.json has the numbers for programs. Keys are stable; `schema` grows when one changes its meaning. Shares lie from
0 to 1 in it (the page shows percent).

    schema            1
    kind              "llm4gen evaluation report"
    complete          no image and no score of a metric that was begun is missing
    notices           [{kind, benchmark, set, text}], kinds as in `build.Notice`
    benchmarks        [{
        key, title
        baseline      label of the set that the others are compared with
        sets          [{label, folder, benchmark, settings (everything that changes pixels), settings_hash, notes,
                       seeds, prompts, images_asked, images_there, images_missing (ids), images_hash, painted_by (what
                       generated the images)}]
        judges        [{metric, title, judge (fingerprint), describe, sets: {label: number of scores}}]
        tables        [{key, title, notes,
                       columns: [{key, title, metric, category, part, macro, group, share, percent, counted,
                                 lower_is_better}],
                       rows: [{set, cells: {column key: CELL}}],
                       comparisons: [{set, baseline, cells: {column key: CELL}}]}]
        set_metrics   [{set, metric, judge, numbers: {name: {value, low, high, n, how, details}}}]
        wins_and_losses [{set, baseline, metric, better, worse, equal (CELLs), wins, losses:
                       [{prompt, text, category, score, baseline_score, difference, seeds, shown_seed}]}]
        samples       [{prompt, text, category, seed}]
        cost          [{set, device, seconds_per_image, images_per_second, hours (CELLs)}]
        quoted        [QUOTED]
    }]
    quoted_costs      [QUOTED]
    program           versions of the software that made the report

CELL is one of
    {"kind": "measured", value, low, high, confidence, n, prompts, asked, how, note}       no interval: low, high null
    {"kind": "difference", value, low, high, confidence, p, p_holm, pairs, prompts, how}   set minus baseline
    {"kind": "count", part, whole}        prompts; counted, not a sample
    {"kind": "total", value, unit, n}     a sum, not a sample
    {"kind": "absent", why}

QUOTED is {"quoted": true, key, benchmark, title, unit, columns, rows: [{model, values, source}], warnings}. Its values
are text: others have published them, and nothing is computed with them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from llm4gen_core.files import write_text

from ..image_set import image_id
from .build import INCOMPLETE, BenchmarkReport, Record, Report, build_report
from .page import Shown, image_source, literal, number, render
from .page import Table as ShownTable
from .read import EvaluatedSet, number_of
from .tables import Absent, Cell, Column, Compared, Count, Measured, Row, Table, Total

INTERVALS = "Brackets and bars: 95 % intervals ({}); the bars of a column share one scale."
HOLM = "p-values: two-sided, paired by prompt and seed, after Holm's correction for all comparisons of this table."
LESS = "⚠ fewer images than were asked for."

COST_COLUMNS = (
    Column("", "Images per second", key="images_per_second"),
    Column("", "Seconds per image", key="seconds_per_image", lower_is_better=True),
    Column("", "Total", key="hours", counted=True),
)

IMAGE_BYTES = 3_600_000
"""Bytes of all images of a page in base64; with its text the page stays below five million."""

EDGES = (288, 256, 224, 192, 160, 128, 96, 64)
"""Longest sides of images in pixels; the first with which all images fit is used."""

SMALL = 64
"""Images up to this side are kept as they are (PNG), and shown larger with square pixels."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="SET",
        help="folder of images and their scores, of one model; the first of each benchmark is the baseline that the "
        "others are compared with",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for report.html and report.json")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables as Markdown, and nothing else, to stdout"
    )
    parser.set_defaults(run=lambda args: write_report(args.sets, Path(args.output), args.markdown))


def write_report(sets: Sequence[str | os.PathLike[str]], output: Path, markdown: bool = False) -> Path:
    """Write report.html, whose path is returned, and report.json, and print the notices.

    Args:
        sets: folders of image sets; see `build_report`.
        output: folder; is made if it does not exist.
        markdown: whether to print the tables to stdout, and everything else to stderr.

    Raises:
        LLM4GENError: see `build_report`; nothing is written then.
    """
    report = build_report(sets)
    html = report_html(report)
    write_text(output / "report.json", report_json(report))
    write_text(output / "report.html", html)
    if markdown:
        print(report_markdown(report))
    for line in (*(notice.text for notice in report.notices), output / "report.html"):
        print(line, file=sys.stderr if markdown else sys.stdout)
    return output / "report.html"


def report_json(report: Report) -> str:
    """Return report.json."""
    content = {
        "schema": 1,
        "kind": "llm4gen evaluation report",
        "complete": report.complete,
        "notices": report.notices,
        "benchmarks": [
            {
                "key": one.group.benchmark.name,
                "title": one.group.benchmark.title,
                "baseline": one.group.baseline.label,
                "sets": list(map(_set_record, one.group.sets)),
                "judges": one.judges,
                "tables": one.tables,
                "set_metrics": [
                    {
                        "set": images.label,
                        "metric": metric,
                        "judge": whole.judge,
                        "numbers": {name: found.model_dump() for name, found in sorted(whole.scores.items())},
                    }
                    for images in one.group.sets
                    for metric, whole in images.set_metrics.items()
                ],
                "wins_and_losses": one.wins_and_losses,
                "samples": one.samples,
                "cost": one.cost,
                "quoted": one.quoted,
            }
            for one in report.benchmarks
        ],
        "quoted_costs": report.quoted_costs,
        "program": report.program,
    }
    return json.dumps(content, default=asdict, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _set_record(one: EvaluatedSet) -> Record:
    return {
        "label": one.label,
        "folder": one.images.path.resolve().name,
        "benchmark": one.settings.benchmark,
        "settings": one.settings.generation,
        "settings_hash": one.settings.fingerprint,
        "notes": one.settings.notes,
        "seeds": one.settings.seeds,
        "prompts": len(one.prompts),
        "images_asked": one.asked,
        "images_there": one.asked - len(one.missing),
        "images_missing": one.missing,
        "images_hash": one.images_hash,
        "painted_by": one.made_by,
    }


def report_markdown(report: Report) -> str:
    """Return all measured tables as Markdown, with intervals and counts; quoted numbers are not in it."""
    parts = []
    for one in report.benchmarks:
        parts.append(f"### {one.group.benchmark.title}\n")
        parts += [f"> {notice.text}\n" for notice in one.notices]
        for table in (shown for found in one.tables for shown in shown_tables(found)):
            parts += [f"{table.caption}\n", table.markdown()]
        if not one.tables:
            parts.append("Nothing has been scored yet.\n")
    parts.append("Brackets: 95 % intervals over prompts; p after Holm's correction.\n")
    return "\n".join(parts)


def report_html(report: Report, budget: int = IMAGE_BYTES) -> str:
    """Return the page; the same for the same report and images.

    Args:
        report: what to show.
        budget: bytes of all images of the page.
    """
    titles = [one.group.benchmark.title for one in report.benchmarks]
    shown = [image for one in report.benchmarks for image in _shown_images(one)]
    costs = [
        Row(f"{cost['set']}, {title}, on {cost['device']}", cost)
        for title, one in zip(titles, report.benchmarks, strict=True)
        for cost in one.cost
    ]
    return render(
        "report.html.j2",
        page={"title": f"Evaluation: {', '.join(titles)}"},
        report=report,
        incomplete=INCOMPLETE,
        sources=_sources(shown, budget),
        costs=_numbers(COST_COLUMNS, costs, "Measured here: the cost of generation.", "Model, prompts, device"),
        small=SMALL,
        facts_of=_facts,
        image_id=image_id,
        number_of=number_of,
        quoted=_quoted,
        score=_score,
        set_record=_set_record,
        shown_tables=shown_tables,
    )


def shown_tables(table: Table) -> list[ShownTable]:
    """Return the numbers of a table as text, and the differences from the baseline if there are any."""
    shown = [_numbers(table.columns, table.rows, f"Measured here: {literal(table.title)}.")]
    if table.comparisons:
        baseline = literal(table.comparisons[0].baseline)
        caption = f"Difference to {baseline}: {literal(table.title)}, over images of the same prompt and seed."
        shown.append(_numbers(table.compared_columns, table.comparisons, caption))
    return shown


def shown_cell(cell: Cell, percent: bool, digits: int) -> Shown:
    """Return a cell as text, with the number of images behind it."""
    if isinstance(cell, Absent):
        return Shown(cell.why)
    if isinstance(cell, Count):
        return Shown(f"{100 * cell.part / cell.whole:.0f} %", counts=(f"{cell.part:,} of {cell.whole:,} prompts",))
    if isinstance(cell, Total):
        return Shown(f"{cell.value:.3g} {cell.unit}", counts=(f"of {_images(cell.n)}",))

    def text(value: float) -> str:
        return number(100 * value if percent else value, digits, sign=isinstance(cell, Compared), zero=True)

    ends = None if cell.low is None or cell.high is None else (cell.low, cell.value, cell.high)
    interval = f"[{text(ends[0])}, {text(ends[2])}]" if ends else ""
    prompts = (f"{cell.prompts:,} prompts",) if cell.prompts is not None else ()
    if isinstance(cell, Compared):
        counts = (f"n = {cell.pairs:,} pairs", *prompts)
        return Shown(text(cell.value), interval, cell.p_holm, counts, ends=ends, difference=True)
    of = f"{cell.n:,} of {_images(cell.asked)}" if cell.n < cell.asked else _images(cell.n)
    return Shown(text(cell.value), interval, None, (f"n = {of}", *prompts), cell.note, cell.n < cell.asked, ends)


def _numbers(columns: Sequence[Column], rows: Sequence[Row], caption: str, first: str = "Model") -> ShownTable:
    by_column = []
    for column in columns:
        cells = [row.cells[column.key] for row in rows]
        by_column.append([shown_cell(cell, column.percent, _digits(cells, column.percent)) for cell in cells])
    body = [[Shown(row.set), *(cells[place] for cells in by_column)] for place, row in enumerate(rows)]
    shown = [cell for row in rows for cell in row.cells.values() if isinstance(cell, (Measured, Compared))]
    how = dict.fromkeys(cell.how for cell in shown if cell.low is not None)
    notes = [INTERVALS.format("; ".join(how))] * bool(how)
    notes += dict.fromkeys(f"{cell.how[:1].upper()}{cell.how[1:]}." for cell in shown if cell.low is None)
    notes += [HOLM] * any(isinstance(cell, Compared) for cell in shown)
    notes += [LESS] * any(isinstance(cell, Measured) and cell.n < cell.asked for cell in shown)
    return ShownTable([first, *(literal(column.header) for column in columns)], body, caption, notes=notes)


def _digits(cells: Sequence[Cell], percent: bool) -> int:
    """Decimals of a column: half of its narrowest interval has two significant digits."""
    found = [cell for cell in cells if isinstance(cell, (Measured, Compared))]
    halves = [(cell.high - cell.low) / 2 for cell in found if cell.low is not None and cell.high is not None]
    halves = [100 * half if percent else half for half in halves if half > 0]
    return min(max(1 - math.floor(math.log10(min(halves))), int(percent)), 4) if halves else 2


def _quoted(table: Record) -> ShownTable:
    rows = [[Shown(text) for text in (row["model"], *row["values"], row["source"])] for row in table["rows"]]
    columns, caption = ["Model", *table["columns"], "Source"], f"{table['title']} ({table['unit']})"
    return ShownTable(columns, rows, caption, notes=table["warnings"], quoted=True)


def _facts(names: Sequence[str], records: Sequence[Mapping[str, Any]], keys: Sequence[str] = ()) -> ShownTable:
    """Table of JSON values, with a column for each record; rows whose values differ are highlighted."""
    rows: list[list[Shown]] = []
    differing: list[int] = []
    for key in keys or dict.fromkeys(itertools.chain(*records)):
        values = [record.get(key, "not recorded") for record in records]
        values = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in values]
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, sort_keys=True) for one in values]
        differing += [len(rows)] * (len({*texts}) > 1)
        rows.append([Shown(key), *map(Shown, texts)])
    return ShownTable(["", *map(literal, names)], rows, highlight=differing)


def _images(n: int) -> str:
    return f"{n:,} image{'s' * (n != 1)}"


def _score(value: float | None, share: bool, sign: bool = False) -> str:
    if value is None:
        return "no score"
    return f"{number(100 * value, 1, sign=sign, zero=True)} %" if share else number(value, 3, sign=sign, zero=True)


def _shown_images(one: BenchmarkReport) -> Iterator[tuple[EvaluatedSet, str]]:
    """Sets and image ids of the samples and examples, in the order of the page."""
    for sample in one.samples:
        for images in one.group.sets:
            yield images, image_id(sample["prompt"], sample["seed"])
    for found in one.wins_and_losses:
        for example in (*found["wins"], *found["losses"]):
            for images in one.group.sets:
                if images.label in (found["baseline"], found["set"]):
                    yield images, image_id(example["prompt"], example["shown_seed"])


def _sources(shown: Sequence[tuple[EvaluatedSet, str]], budget: int) -> dict[tuple[Path, str], str]:
    """Data URIs by path of the set and image id, scaled down so that all fit within a budget of bytes.

    If even the smallest size is too much, the last images have none. Missing images have none either.
    """
    here = [(one, name) for one, name in shown if name in one.rows and name not in one.gone]
    # A JPEG takes some 0.1 bytes a pixel or more: sizes that cannot fit are not tried.
    edges = [edge for edge in EDGES if len(here) * edge**2 * 0.1 * 4 / 3 <= budget] or EDGES[-1:]
    counts = Counter((one.images.path, name) for one, name in here)
    images = {(one.images.path, name): (one, name) for one, name in here}
    scaled = {key: _scaled(one.images.open(one.rows[name]), edges[0]) for key, (one, name) in images.items()}
    for edge in edges:
        sources = {key: _source(_scaled(image, edge)) for key, image in scaled.items()}
        sizes = list(itertools.accumulate(len(sources[key]) * count for key, count in counts.items()))
        if not sizes or sizes[-1] <= budget:
            break
    return {key: source for (key, source), size in zip(sources.items(), sizes, strict=True) if size <= budget}


def _scaled(image: Image.Image, edge: int) -> Image.Image:
    if max(image.size) > SMALL:
        image = image.copy()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image


def _source(image: Image.Image) -> str:
    return image_source(image) if max(image.size) <= SMALL else image_source(image, "jpeg", quality=82)
