"""The main table of each benchmark as Markdown, for a README."""

from __future__ import annotations

from collections.abc import Sequence

from .build import Report
from .columns import Column
from .html_page import markdown_table
from .numbers import Cell
from .shown import digits_of, header, write
from .tables import Row


def report_markdown(report: Report) -> str:
    """What was measured, with intervals and counts; what others have published is not in it."""
    parts = []
    for one in report.benchmarks:
        parts.append(f"### {one.group.benchmark.title}\n")
        parts += [f"> {notice.text}\n" for notice in one.notices]
        for table in one.tables[:1]:
            parts.append(_table(table.columns, table.rows))
            if table.comparisons:
                parts.append(f"Difference to {one.group.baseline.label}; p after Holm's correction:\n")
                parts.append(_table(table.compared_columns, table.comparisons))
        if not one.tables:
            parts.append("Nothing has been scored yet.\n")
    parts.append("Brackets: 95 % intervals over prompts.\n")
    return "\n".join(parts)


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    def lines(number: int, column: Column) -> list[str]:
        cells: list[Cell] = [row.cells[number] for row in rows]
        return [write(cell, column.percent, digits_of(cells, column.percent)).line for cell in cells]

    by_column = [lines(number, column) for number, column in enumerate(columns)]
    body = [[row.label, *(column[place] for column in by_column)] for place, row in enumerate(rows)]
    return markdown_table(["Model", *map(header, columns)], body)
