"""Blocks that `Page` lacks: numbers with their counts, quoted numbers, notices, pictures, facts."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .columns import Column
from .html_page import Page
from .numbers import Absent, Cell, Compared, Measured
from .quoted import QuotedTable
from .shown import digits_of, header, write
from .tables import Row

INTERVALS = "Brackets and bars: 95 % intervals ({}); the bars of a column share one scale."
HOLM = "p values: two-sided, paired by prompt and seed, after Holm's correction for all comparisons of this table."
INCOMPLETE = "⚠ fewer images than were asked for."

_STYLE = """
main{max-width:72rem}
h2+.notices,.notices{border:1px solid var(--series-1);border-left-width:.4rem;border-radius:4px;padding:.7rem 1rem;
margin:0 0 1.5rem}
.notices p{margin:0 0 .3rem;font-weight:600}
.notices ul{margin:0;padding-left:1.2rem;font-size:.93rem;max-width:none}
.numbers tbody th{position:sticky;left:0;background:var(--ground);z-index:1;max-width:13rem}
.numbers tr.ours th{background:var(--raised)}
.numbers td,.numbers thead th{min-width:6.6rem;padding-left:.5rem;padding-right:.6rem}
.numbers .range{display:block;line-height:1.3}
.numbers .bar{min-width:5rem}
.count{display:block;white-space:pre-line;font-size:.74rem;color:var(--soft);line-height:1.35;margin-top:.1rem}
.count.short{color:var(--series-1);font-weight:600}
.why{color:var(--soft);font-size:.85rem;font-style:italic}
.p{display:block;font-size:.82rem;white-space:nowrap}
.p.clear{font-weight:600}
.quoted{border-left:.35rem double var(--soft);padding:.1rem 0 .1rem 1rem;color:var(--soft)}
.quoted table{border-style:dashed;border-width:1px 0;font:italic .86rem/1.5 Georgia,"Times New Roman",serif}
.quoted thead th{border-bottom-style:dashed;font-weight:400}
.quoted th,.quoted td{padding:.15rem .6rem}
.quoted td:last-child,.quoted thead th:last-child{text-align:left;min-width:11rem}
.badge{font-size:.72rem;letter-spacing:.06em;text-transform:uppercase;border:1px dashed var(--soft);border-radius:3px;
padding:.05rem .4rem;margin-right:.5rem;white-space:nowrap;font-style:normal}
.quoted ul{font-size:.85rem;margin:.5rem 0 0;padding-left:1.2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17.5rem,100%),1fr));gap:1rem;
margin:.8rem 0 1.6rem}
.card{border:1px solid var(--rule);border-radius:6px;padding:.7rem;margin:0;min-width:0}
.card p{font-size:.86rem;line-height:1.4;margin:0 0 .4rem}
.card .prompt{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:6;overflow:hidden}
.card .score{color:var(--soft);font-variant-numeric:tabular-nums}
.side{display:grid;gap:.5rem;grid-template-columns:repeat(auto-fit,minmax(7rem,1fr))}
.side figure{margin:0;min-width:0}
.side img{display:block;width:100%;height:auto;border-radius:3px}
.side img.pixels{image-rendering:pixelated}
.side figcaption{font-size:.75rem;line-height:1.35;margin:.2rem 0 0;color:var(--soft)}
.no-image{aspect-ratio:1;display:grid;place-items:center;border:1px dashed var(--series-1);border-radius:3px;
font-size:.78rem;color:var(--series-1);padding:.4rem;text-align:center}
.cards.samples{grid-template-columns:repeat(auto-fill,minmax(min(30rem,100%),1fr))}
.cards.samples .side{grid-template-columns:repeat(auto-fill,minmax(min(8.5rem,45%),1fr))}
.facts{margin:.4rem 0 0}
.facts table{font-size:.84rem;border-width:1px}
.facts th,.facts td{text-align:left!important;white-space:normal!important;overflow-wrap:anywhere;min-width:8rem}
.facts tr.differs td{font-weight:600}
.better{font-weight:400;font-size:.8em;color:var(--soft)}
"""


class ReportPage(Page):
    """A page of measured and of quoted numbers, which never share a table.

    `numbers` takes cells that carry their interval and count; scores of single images stand under their pictures.
    """

    def html(self) -> str:
        """The whole page."""
        return super().html().replace("</style>", f"{_STYLE}</style>", 1)

    def notices(self, title: str, texts: Sequence[str]) -> None:
        """A box that nobody overlooks.

        Args:
            title, texts: plain text.
        """
        points = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
        self._body.append(f'<aside class="notices"><p>{html.escape(title)}</p><ul>{points}</ul></aside>')

    def numbers(
        self,
        columns: Sequence[Column],
        rows: Sequence[Row],
        caption: str,
        *,
        first: str = "Model",
        highlight: Collection[int] = (),
    ) -> None:
        """A table of measured numbers, each with its interval, its count and a bar.

        Args:
            columns: one for each cell of a row.
            rows: cells that are no `Cell` are refused (TypeError).
            caption: stands above it; the markup of `Page.text`.
            first: header of the rows.
            highlight: rows to set off, counted from 0.
        """
        by_column = [[row.cells[number] for row in rows] for number in range(len(columns))]
        head = "".join(f'<th scope="col">{html.escape(header(column))}</th>' for column in columns)
        body = []
        for number, row in enumerate(rows):
            cells = "".join(
                f"<td>{_cell(cell, column, others)}</td>"
                for cell, column, others in zip(row.cells, columns, by_column, strict=True)
            )
            ours = " class=ours" if number in highlight else ""
            body.append(f'<tr{ours}><th scope="row">{html.escape(row.label)}</th>{cells}</tr>')
        shown = [cell for row in rows for cell in row.cells]
        how = dict.fromkeys(cell.how for cell in shown if isinstance(cell, (Measured, Compared)))
        notes = [INTERVALS.format("; ".join(how))] * bool(how)
        notes += [HOLM] * any(isinstance(cell, Compared) for cell in shown)
        notes += [INCOMPLETE] * any(isinstance(cell, Measured) and cell.n < cell.asked for cell in shown)
        table = (
            f'<div class="wide numbers"><table><thead><tr><th scope="col">{html.escape(first)}</th>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
        self._figure(table, caption, notes, above=True)

    def quoted(self, table: QuotedTable) -> None:
        """A table of published numbers, which looks like nothing that was measured."""
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("Model", *table.columns, "Source"))
        body = "".join(
            f'<tr><th scope="row">{html.escape(row.model)}</th>'
            + "".join(f"<td>{html.escape(value)}</td>" for value in (*row.values, row.source))
            + "</tr>"
            for row in table.rows
        )
        warnings = "".join(f"<li>{html.escape(text)}</li>" for text in table.warnings)
        self._body.append(
            '<figure class="quoted"><figcaption><span class="badge">quoted, not measured here</span>'
            f"{html.escape(table.title)} ({html.escape(table.unit)})</figcaption>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            f"{f'<ul>{warnings}</ul>' if warnings else ''}</figure>"
        )

    def cards(self, cards: Sequence[str], kind: str = "") -> None:
        """Cards side by side, from `card`."""
        self._body.append(f'<div class="cards {kind}">{"".join(cards)}</div>')

    def facts(self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> None:
        """JSON values to unfold; rows whose values differ are set off.

        Args:
            title: plain text.
            columns: names of the values of a row.
            rows: by name.
        """
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("", *columns))
        body = ""
        for name, values in rows.items():
            differs = len({json.dumps(value, sort_keys=True) for value in values}) > 1
            cells = "".join(f"<td>{html.escape(_fact(value))}</td>" for value in values)
            body += f'<tr{" class=differs" if differs else ""}><th scope="row">{html.escape(name)}</th>{cells}</tr>'
        self._body.append(
            f'<details class="facts"><summary>{html.escape(title)}</summary><div class="wide"><table><thead><tr>{head}'
            f"</tr></thead><tbody>{body}</tbody></table></div></details>"
        )


def card(prompt: str, score: str, pictures: Sequence[tuple[str, str]]) -> str:
    """HTML of a prompt with its pictures.

    Args:
        prompt, score: plain text; "" leaves the score out.
        pictures: HTML of an image, and plain text beneath it.
    """
    shown = "".join(f"<figure>{image}<figcaption>{html.escape(text)}</figcaption></figure>" for image, text in pictures)
    told = f'<p class="score">{html.escape(score)}</p>' if score else ""
    return (
        f'<div class="card"><p class="prompt" title="{html.escape(prompt)}">{html.escape(prompt)}</p>{told}'
        f'<div class="side">{shown}</div></div>'
    )


def _cell(cell: Cell, column: Column, others: Sequence[Cell]) -> str:
    written = write(cell, column.percent, digits_of(others, column.percent))
    if isinstance(cell, Absent):
        return f'<span class="why">{html.escape(written.main)}</span>'
    interval = f' <span class="range">{written.interval}</span>' if written.interval else ""
    text = f'<span class="number"><b>{html.escape(written.main)}</b>{interval}</span>'
    if isinstance(cell, (Measured, Compared)):
        text += _bar(cell, others)
    if isinstance(cell, Compared):
        text += f'<span class="p{" clear" if cell.p_holm <= 0.05 else ""}">{html.escape(written.p)}</span>'
    mark = "⚠ " * written.incomplete
    text += f'<span class="count{" short" * written.incomplete}">{mark}{html.escape(written.n)}</span>'
    return text + (f'<span class="count short">{html.escape(written.note)}</span>' if written.note else "")


def _bar(cell: Measured | Compared, others: Sequence[Cell]) -> str:
    shown = [one for one in others if isinstance(one, (Measured, Compared))]
    zero = isinstance(cell, Compared)
    ends = [end for one in shown for end in (one.low, one.value, one.high)] + [0.0] * zero
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.5
    span = high - low + 2 * margin

    def at(value: float) -> str:
        return f"{100 * (value - low + margin) / span:.1f}"

    zero_line = f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="10"/>' if zero else ""
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="track" x1="0" x2="100" y1="5" y2="5"/>{zero_line}'
        f'<line class="interval" x1="{at(cell.low)}" x2="{at(cell.high)}" y1="5" y2="5"/>'
        f'<line class="mean" x1="{at(cell.value)}" x2="{at(cell.value)}" y1="0.5" y2="9.5"/></svg>'
    )


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
