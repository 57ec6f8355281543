"""report.json: the numbers of a report for programs.

Keys are stable; `schema` grows when one changes its meaning. Shares lie from 0 to 1 here (the page shows percent).

    schema            1
    kind              "llm4gen evaluation report"
    complete          no image and no score of a metric that was begun is missing
    notices           [{kind, benchmark, set, text}], kinds as in `gaps.Notice`
    benchmarks        [{
        key, title
        baseline      label of the set that the others are compared with
        sets          [{label, folder, benchmark, settings (everything that changes pixels), settings_hash, notes,
                       seeds, prompts, images_asked, images_there, images_missing (ids), images_hash, painted_by}]
        judges        [{metric, title, judge (fingerprint), describe, sets: {label: scores that count}}]
        tables        [{key, title, notes,
                       columns: [{key, title, metric, category, part, macro, group, share,
                                 percent, counted, lower_is_better}],
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
    program           versions of what made the report

CELL is one of
    {"kind": "measured", value, low, high, confidence, n, prompts, asked, how, note}
    {"kind": "difference", value, low, high, confidence, p, p_holm, pairs, prompts, how}   set less baseline
    {"kind": "count", part, whole}        prompts; counted, no sample
    {"kind": "total", value, unit, n}     a sum, no sample
    {"kind": "absent", why}

QUOTED is {"quoted": true, key, benchmark, title, unit, columns, rows: [{model, values, source}], warnings}. Its values
are text: they were printed by others, and nothing is computed with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..statistics import CONFIDENCE
from .build import BenchmarkReport, JudgeRecord, Report
from .cost import Cost
from .examples import Example, WinsAndLosses
from .numbers import Absent, Cell, Compared, Count, Measured, Total
from .quoted import QuotedTable
from .read import EvaluatedSet
from .tables import Table

SCHEMA = 1


def report_json(report: Report) -> str:
    """The file's text; the same for the same report."""
    content = {
        "schema": SCHEMA,
        "kind": "llm4gen evaluation report",
        "complete": report.complete,
        "notices": [asdict(notice) for one in report.benchmarks for notice in one.notices],
        "benchmarks": [_benchmark(one) for one in report.benchmarks],
        "quoted_costs": [_quoted(table) for table in report.quoted_costs],
        "program": report.program,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def cell_json(cell: Cell) -> dict[str, Any]:
    """
    Raises:
        TypeError: it is no `Cell`.
    """
    if isinstance(cell, Measured):
        return {"kind": "measured", **asdict(cell), "confidence": CONFIDENCE}
    if isinstance(cell, Compared):
        return {"kind": "difference", **asdict(cell), "confidence": CONFIDENCE}
    for kind, name in ((Count, "count"), (Total, "total"), (Absent, "absent")):
        if isinstance(cell, kind):
            return {"kind": name, **asdict(cell)}
    raise TypeError(f"{cell!r} has no interval and no count, and is not written; expected a Cell of evaluation.report")


def _benchmark(one: BenchmarkReport) -> dict[str, Any]:
    group = one.group
    return {
        "key": group.benchmark.name,
        "title": group.benchmark.title,
        "baseline": group.baseline.label,
        "sets": [_set(images) for images in group.sets],
        "judges": [_judge(judge) for judge in one.judges],
        "tables": [_table(table, group.baseline.label) for table in one.tables],
        "set_metrics": [
            {
                "set": images.label,
                "metric": metric,
                "judge": scores.judge,
                "numbers": {name: found.model_dump() for name, found in sorted(scores.scores.items())},
            }
            for images in group.sets
            for metric, scores in images.set_metrics.items()
        ],
        "wins_and_losses": [_wins_and_losses(found) for found in one.wins_and_losses],
        "samples": [
            {"prompt": sample.prompt, "text": sample.text, "category": sample.category, "seed": sample.seed}
            for sample in one.samples
        ],
        "cost": [_cost(cost) for cost in one.costs],
        "quoted": [_quoted(table) for table in one.quoted],
    }


def _set(one: EvaluatedSet) -> dict[str, Any]:
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
        "images_missing": list(one.missing),
        "images_hash": one.images_hash,
        "painted_by": one.painted_by,
    }


def _judge(judge: JudgeRecord) -> dict[str, Any]:
    return {
        "metric": judge.metric,
        "title": judge.title,
        "judge": judge.judge,
        "describe": judge.describe,
        "sets": dict(zip(judge.sets, judge.images, strict=True)),
    }


def _table(table: Table, baseline: str) -> dict[str, Any]:
    compared = table.compared_columns
    return {
        "key": table.key,
        "title": table.title,
        "notes": list(table.notes),
        "columns": [asdict(column) for column in table.columns],
        "rows": [
            {"set": row.label, "cells": _cells([column.key for column in table.columns], row.cells)}
            for row in table.rows
        ],
        "comparisons": [
            {"set": row.label, "baseline": baseline, "cells": _cells([column.key for column in compared], row.cells)}
            for row in table.comparisons
        ],
    }


def _cells(keys: Sequence[str], cells: Sequence[Cell]) -> dict[str, Any]:
    return {key: cell_json(cell) for key, cell in zip(keys, cells, strict=True)}


def _wins_and_losses(found: WinsAndLosses) -> dict[str, Any]:
    return {
        "set": found.label,
        "baseline": found.baseline,
        "metric": found.metric,
        "better": cell_json(found.better),
        "worse": cell_json(found.worse),
        "equal": cell_json(found.equal),
        "wins": [_example(example) for example in found.wins],
        "losses": [_example(example) for example in found.losses],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "text": example.text,
        "category": example.category,
        "score": example.ours,
        "baseline_score": example.baseline,
        "difference": example.change,
        "seeds": example.seeds,
        "shown_seed": example.pictures[0].seed,
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "set": cost.label,
        "device": cost.device,
        "seconds_per_image": cell_json(cost.seconds),
        "images_per_second": cell_json(cost.per_second),
        "hours": cell_json(cost.hours),
    }


def _quoted(table: QuotedTable) -> dict[str, Any]:
    return {"quoted": True, **asdict(table)}
