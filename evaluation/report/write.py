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
        wins_and_losses [{set, baseline, metric, title, share, better, worse, equal (CELLs), wins, losses:
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
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from llm4gen_core.files import write_json, write_text

from ..image_set import image_id
from . import page
from .build import INCOMPLETE, BenchmarkReport, Example, QuotedTable, Report, Sample, WinsAndLosses, build_report
from .page import Shown, literal, number
from .read import EvaluatedSet, number_of
from .tables import WHOLE_SETS, Absent, Cell, Column, Compared, Count, Measured, Row, Table, Total

INTERVALS = "Brackets and bars: 95 % intervals ({}); the bars of a column share one scale."
HOLM = "p-values: two-sided, paired by prompt and seed, after Holm's correction for all comparisons of this table."
LESS = "⚠ fewer images than were asked for."

COST_COLUMNS = (
    Column("images_per_second", "Images per second", ""),
    Column("seconds_per_image", "Seconds per image", "", lower_is_better=True),
    Column("hours", "Total", "", counted=True),
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
    write_json(output / "report.json", report_json(report))
    write_text(output / "report.html", html)
    if markdown:
        print(report_markdown(report))
    for line in (*(notice.text for notice in report.notices), output / "report.html"):
        print(line, file=sys.stderr if markdown else sys.stdout)
    return output / "report.html"


def report_json(report: Report) -> dict[str, Any]:
    """Return the content of report.json."""
    return {
        "schema": 1,
        "kind": "llm4gen evaluation report",
        "complete": report.complete,
        "notices": list(map(asdict, report.notices)),
        "benchmarks": list(map(_benchmark_json, report.benchmarks)),
        "quoted_costs": list(map(asdict, report.quoted_costs)),
        "program": report.program,
    }


def _benchmark_json(one: BenchmarkReport) -> dict[str, Any]:
    group = one.group
    return {
        "key": group.benchmark.name,
        "title": group.benchmark.title,
        "baseline": group.baseline.label,
        "sets": [
            {
                "label": images.label,
                "folder": images.images.path.resolve().name,
                "benchmark": images.settings.benchmark,
                "settings": images.settings.generation,
                "settings_hash": images.settings.fingerprint,
                "notes": images.settings.notes,
                "seeds": images.settings.seeds,
                "prompts": len(images.prompts),
                "images_asked": images.asked,
                "images_there": images.asked - len(images.missing),
                "images_missing": list(images.missing),
                "images_hash": images.images_hash,
                "painted_by": images.made_by,
            }
            for images in group.sets
        ],
        "judges": list(map(asdict, one.judges)),
        "tables": list(map(asdict, one.tables)),
        "set_metrics": [
            {
                "set": images.label,
                "metric": metric,
                "judge": whole.judge,
                "numbers": {name: found.model_dump() for name, found in sorted(whole.scores.items())},
            }
            for images in group.sets
            for metric, whole in images.set_metrics.items()
        ],
        **{key: list(map(asdict, getattr(one, key))) for key in ("wins_and_losses", "samples", "cost", "quoted")},
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
    parts = list(map(_part, report.benchmarks))
    _encode([picture for part in parts for card in part["cards"] for picture in card["pictures"]], budget)
    costs = [
        Row(f"{cost.set}, {one.group.benchmark.title}, on {cost.device}", vars(cost))
        for one in report.benchmarks
        for cost in one.cost
    ]
    return page.render(
        "report.html.j2",
        page={"title": f"Evaluation: {', '.join(one.group.benchmark.title for one in report.benchmarks)}"},
        incomplete=[notice.text for notice in report.notices if notice.kind in INCOMPLETE],
        notices=[notice.text for notice in report.notices if notice.kind not in INCOMPLETE],
        parts=parts,
        costs=_numbers(COST_COLUMNS, costs, "Measured here: the cost of generation.", "Model, prompts, device"),
        quoted_costs=list(map(_quoted, report.quoted_costs)),
        versions=_facts("Versions of the software that made it", (), [report.program]),
    )


def shown_tables(table: Table) -> list[page.Table]:
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


def _numbers(columns: Sequence[Column], rows: Sequence[Row], caption: str, first: str = "Model") -> page.Table:
    by_column = []
    for column in columns:
        cells = [row.cells[column.key] for row in rows]
        by_column.append([shown_cell(cell, column.percent, _digits(cells, column.percent)) for cell in cells])
    body = [[Shown(row.set), *(cells[place] for cells in by_column)] for place, row in enumerate(rows)]
    shown = [cell for row in rows for cell in row.cells.values() if isinstance(cell, (Measured, Compared))]
    how = dict.fromkeys(cell.how for cell in shown)
    notes = [INTERVALS.format("; ".join(how))] * bool(how)
    notes += [HOLM] * any(isinstance(cell, Compared) for cell in shown)
    notes += [LESS] * any(isinstance(cell, Measured) and cell.n < cell.asked for cell in shown)
    return page.Table([first, *(literal(column.header) for column in columns)], body, caption, notes=notes)


def _digits(cells: Sequence[Cell], percent: bool) -> int:
    """Decimals of a column: half of its narrowest interval has two significant digits."""
    found = [cell for cell in cells if isinstance(cell, (Measured, Compared))]
    halves = [(cell.high - cell.low) / 2 for cell in found if cell.low is not None and cell.high is not None]
    halves = [100 * half if percent else half for half in halves if half > 0]
    return min(max(1 - math.floor(math.log10(min(halves))), int(percent)), 4) if halves else 2


def _quoted(table: QuotedTable) -> page.Table:
    rows = [[Shown(text) for text in (row.model, *row.values, row.source)] for row in table.rows]
    return page.Table(
        ["Model", *table.columns, "Source"], rows, f"{table.title} ({table.unit})", notes=table.warnings, quoted=True
    )


def _facts(title: str, sets: Sequence[EvaluatedSet], facts: Sequence[Mapping[str, Any]]) -> page.Table:
    """Table of JSON values by name, with a column for each set (or one); rows whose values differ are highlighted."""
    rows: list[list[Shown]] = []
    differing: list[int] = []
    for key in dict.fromkeys(key for found in facts for key in found):
        values = [found.get(key, "not recorded") for found in facts]
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, sort_keys=True) for one in values]
        differing += [len(rows)] * (len({*texts}) > 1)
        rows.append([Shown(key), *map(Shown, texts)])
    return page.Table(["", *([literal(one.label) for one in sets] or ["value"])], rows, title, differing)


def _part(one: BenchmarkReport) -> dict[str, Any]:
    """What the page shows of a benchmark."""
    group = one.group
    sets = {images.label: images for images in group.sets}
    notes: dict[str, list[str]] = {}
    for images in group.sets:
        for note in images.settings.notes:
            notes.setdefault(note, []).append(images.label)

    def sample(found: Sample) -> dict[str, Any]:
        prompt = group.baseline.known[found.prompt]
        same = [images for images in group.sets if images.known.get(found.prompt) == prompt]
        return _card(found, "", [_Picture(images, found, found.seed) for images in same])

    def example(compared: WinsAndLosses, found: Example) -> dict[str, Any]:
        pictures = []
        for images in (sets[compared.baseline], sets[compared.set]):
            scores = images.metrics[compared.metric].values.get(image_id(found.prompt, found.shown_seed))
            score = _score(number_of(scores, "score"), compared.share)
            pictures.append(_Picture(images, found, found.shown_seed, f": {score}"))
        before, after = _score(found.baseline_score, compared.share), _score(found.score, compared.share)
        seeds = f"mean of {found.seeds} seeds" if found.seeds > 1 else "one seed"
        change = _score(found.difference, compared.share, sign=True)
        return _card(found, f"{before} → {after} ({change}; {seeds})", pictures)

    samples = list(map(sample, one.samples))
    comparisons = [
        (found, [example(found, win) for win in found.wins], [example(found, loss) for loss in found.losses])
        for found in one.wins_and_losses
    ]
    return {
        "title": group.benchmark.title,
        "note": group.benchmark.note,
        "sets": group.sets,
        "notes": [
            f"{', '.join(labels)}: {note}" if len(labels) < len(sets) else note for note, labels in notes.items()
        ],
        "tables": [(table, shown_tables(table), _details(group.sets, table)) for table in one.tables],
        "quoted": list(map(_quoted, one.quoted)),
        "samples": samples,
        "comparisons": comparisons,
        "cards": [*samples, *(card for _, wins, losses in comparisons for card in (*wins, *losses))],
        "facts": list(_provenance(one)),
    }


class _Picture:
    """An image of the page.

    Args:
        images: its set.
        shown: its prompt.
        seed: its seed.
        about: follows the label and the seed beneath it.
    """

    def __init__(self, images: EvaluatedSet, shown: Sample | Example, seed: int, about: str = "") -> None:
        self.images = images
        name = image_id(shown.prompt, seed)
        self.row = None if name in images.gone else images.rows.get(name)
        self.caption = f"{images.label}, seed {seed}{about}"
        self.alt = f"{images.label}: {shown.text}"
        self.source = ""
        """Data URI; "" if the image is missing, or the page would be too large with it."""

    @property
    def small(self) -> bool:
        return self.row is not None and max(self.row.width, self.row.height) <= SMALL


def _card(shown: Sample | Example, score: str, pictures: Sequence[_Picture]) -> dict[str, Any]:
    prompt = f"{shown.category}: {shown.text}" if shown.category else shown.text
    return {"prompt": prompt, "score": score, "pictures": pictures}


def _score(value: float | None, share: bool, sign: bool = False) -> str:
    if value is None:
        return "no score"
    return f"{number(100 * value, 1, sign=sign, zero=True)} %" if share else number(value, 3, sign=sign, zero=True)


def _images(n: int) -> str:
    return f"{n:,} image{'s' * (n != 1)}"


def _encode(pictures: Sequence[_Picture], budget: int) -> None:
    """Set the sources of pictures, scaled down so that all fit; the last ones are left out if even that is too much."""
    here = [(str(one.images.images.path), one.row, one) for one in pictures if one.row is not None]
    # A JPEG takes some 0.1 bytes a pixel or more: sizes that cannot fit are not tried.
    edges = [edge for edge in EDGES if len(here) * edge**2 * 0.1 * 4 / 3 <= budget] or EDGES[-1:]
    files = {(path, row.id): _scaled(one.images.images.open(row), edges[0]) for path, row, one in here}
    sources: dict[tuple[str, str], str] = {}
    for edge in edges:
        sources = {key: _source(_scaled(image, edge)) for key, image in files.items()}
        if sum(len(sources[path, row.id]) for path, row, _ in here) <= budget:
            break
    used = 0
    for path, row, one in here:
        used += len(sources[path, row.id])
        if used <= budget:
            one.source = sources[path, row.id]


def _scaled(image: Image.Image, edge: int) -> Image.Image:
    if max(image.size) <= SMALL:
        return image
    image = image.copy()
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image


def _source(image: Image.Image) -> str:
    return page.image_source(image) if max(image.size) <= SMALL else page.image_source(image, "jpeg", quality=82)


def _details(sets: Sequence[EvaluatedSet], table: Table) -> list[page.Table]:
    """Sample counts, sizes, formats and whatever else each number of a whole set depends on."""
    if table.key != WHOLE_SETS:
        return []
    found = []
    for column in table.columns:
        whole = [images.set_metrics.get(column.metric) for images in sets]
        details = [one.scores[column.part].details if one and column.part in one.scores else {} for one in whole]
        if any(details):
            found.append(_facts(f"{column.title}: what it was computed from", sets, details))
    return found


def _provenance(one: BenchmarkReport) -> Iterator[page.Table]:
    """Tables of the image sets, their settings, what generated them, and the judges."""
    sets = one.group.sets
    about = [
        {
            "folder": images.images.path.resolve().name,
            "prompts": len(images.prompts),
            "seeds": images.settings.seeds,
            "images asked for": images.asked,
            "images there": images.asked - len(images.missing),
            "hash of the images": images.images_hash,
            "hash of the settings": images.settings.fingerprint,
        }
        for images in sets
    ]
    yield _facts("Image sets", sets, about)
    yield _facts(
        "Settings of the generation; rows that differ are bold", sets, [one.settings.generation for one in sets]
    )
    made = [{key: found[0] if len(found) == 1 else found for key, found in one.made_by.items()} for one in sets]
    yield _facts("What the images were generated with", sets, made)
    for judge in one.judges:
        scored = "; ".join(f"{label}: {n:,}" for label, n in judge.sets.items())
        facts = {"fingerprint": judge.judge, "images scored": scored, **judge.describe}
        yield _facts(f"Judge: {judge.title} ({judge.metric}, {judge.judge})", (), [facts])
