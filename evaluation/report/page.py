"""Pages of results: text, tables of numbers with their intervals, plots and images, as HTML and as Markdown.

`page.html.j2` lays a page out. The HTML is one file that needs nothing else, and the same content gives the same bytes.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from llm4gen_core import LLM4GENError
from llm4gen_core.files import write_text

from ..statistics import Difference, Estimate

ONE_SEED = "† One training seed: the interval is over prompts alone."
BARS = "Brackets and bars: 95 % intervals; the bars of a column share one scale."


@dataclass(frozen=True)
class Shown:
    """A table cell as text.

    Attributes:
        text: the number, or words.
        interval: in brackets; "" if there is none.
        p: p-value; None if there is none.
        counts: lines that say how many images the number is from.
        note: a warning that belongs to the number.
        incomplete: whether fewer images than were asked for have a value.
        ends: lower end, mean and upper end of the bar; None for no bar.
        difference: whether the bar is drawn beside a line at 0.
        markup: whether `text` has the markup of `Page.text`.
    """

    text: str
    interval: str = ""
    p: float | None = None
    counts: tuple[str, ...] = ()
    note: str = ""
    incomplete: bool = False
    ends: tuple[float, float, float] | None = None
    difference: bool = False
    markup: bool = False

    @property
    def line(self) -> str:
        """The cell in one line, such as ".734 [.71, .76]"."""
        number = f"{self.text} {self.interval}".strip() + " ⚠" * self.incomplete
        number += "" if self.p is None else f", {p_value(self.p)}"
        return "; ".join(filter(None, [number, ", ".join(self.counts), self.note]))


Cell: TypeAlias = "str | int | float | Estimate | Shown | None"
"""Text with the markup of `Page.text`, a number, a mean with its interval, or nothing."""
Line: TypeAlias = "Sequence[tuple[float, Estimate]]"
"""Points (x, y) of a plot, in the order of x."""


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        columns: headers.
        rows: one cell for each column; the first names the row.
        caption: stands above the table.
        highlight: rows to emphasize, counted from 0.
        notes: stand beneath the table.
        quoted: whether the numbers were published by others; such a table looks different from a measured one.

    Raises:
        LLM4GENError: a row has another number of cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    highlight: Collection[int] = ()
    notes: Sequence[str] = ()
    quoted: bool = False

    def __post_init__(self) -> None:
        _check_rows(self.columns, self.rows)

    @property
    def cells(self) -> list[list[tuple[Shown, dict[str, str] | None]]]:
        """Every cell with the coordinates of its bar, in percent of the bar's width."""
        columns = []
        for number in range(len(self.columns)):
            column = [shown(row[number]) for row in self.rows]
            scale = [end for cell in column for end in (cell.ends or ())]
            scale += [0.0] * any(cell.difference for cell in column)
            columns.append([(cell, _bar(cell, scale)) for cell in column])
        return [list(row) for row in zip(*columns, strict=True)]

    def markdown(self) -> str:
        """The table as Markdown; ends with a line break."""
        lines = [list(self.columns), ["---"] + ["---:"] * (len(self.columns) - 1)]
        lines += [[plain(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class Page:
    """A page that is built from top to bottom.

    Args:
        title: plain text.
        one_seed: note on the mark † of an estimate with one training seed (or one rater).
    """

    def __init__(self, title: str, one_seed: str = ONE_SEED) -> None:
        self.title = title
        self.one_seed = one_seed
        self.blocks: list[dict[str, Any]] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading that can be linked to; those of level 2 make up the table of contents.

        Args:
            text: plain text.
            level: 2 to 4.
        """
        slug = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        taken = [block["anchor"] for block in self.blocks if block["kind"] == "heading"]
        anchor = next(name for n in itertools.count(1) if (name := f"{slug}-{n}" if n > 1 else slug) not in taken)
        self.blocks.append({"kind": "heading", "text": text, "level": level, "anchor": anchor})

    def text(self, text: str, points: Sequence[str] = ()) -> None:
        """Add paragraphs, separated by empty lines, and a list of points after them.

        A paragraph whose lines all begin with "- " is a list. A note explains the mark † where it occurs.

        Args:
            text: shown literally, except `*emphasis*`, `**strong**`, code between backticks, and
                `[words](https://…)` or `[words](#anchor)`.
            points: with the same markup.
        """
        parts = [text, "\n".join(f"- {point}" for point in points)]
        parts += [self.one_seed] * any("†" in part for part in parts)
        self.blocks.append({"kind": "text", "text": "\n\n".join(parts).strip()})

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        caption: str,
        highlight: Collection[int] = (),
        *,
        notes: Sequence[str] = (),
        quoted: bool = False,
    ) -> None:
        """Add a table; see `Table`. Notes on bars and on the mark † are added where they occur."""
        estimates = [cell for row in rows for cell in row if isinstance(cell, Estimate)]
        notes = [*notes, *[BARS] * bool(estimates), *self._seed_note(estimates)]
        table = Table(columns, rows, caption, highlight, notes, quoted)
        self.blocks.append({"kind": "table", "table": table})

    def lines(
        self,
        series: Mapping[str, Line],
        x_label: str,
        y_label: str,
        caption: str,
        *,
        log_x: bool = False,
        references: Mapping[str, float] | None = None,
    ) -> None:
        """Add a plot of lines with shaded 95 % intervals, and a table of its numbers that unfolds.

        Args:
            series: points by name.
            x_label: with its unit.
            y_label: with its unit.
            caption: stands beneath the plot.
            log_x: whether the x axis is logarithmic.
            references: horizontal lines by name ("chance": .5).

        Raises:
            LLM4GENError: there are no points, or with `log_x` some are not above 0.
        """
        if not series or not all(series.values()):
            raise LLM4GENError(f"Plot {caption!r} has a line without points; leave it out.")
        if log_x and any(x <= 0 for points in series.values() for x, _ in points):
            raise LLM4GENError(
                f"Plot {caption!r} has points at x = 0 or below; expected x above 0 on a logarithmic axis."
            )
        values = {name: dict(points) for name, points in series.items()}
        steps = sorted({x for points in series.values() for x, _ in points})
        rows = [[plain(x), *(plain(values[name].get(x)) for name in series)] for x in steps]
        notes = ["Shaded: 95 % intervals.", *self._seed_note([y for points in series.values() for _, y in points])]
        plot = {
            "svg": Markup(_draw(series, x_label, y_label, log_x, references or {}, f"plot-{len(self.blocks)}-")),
            "alt": f"Plot of {y_label} over {x_label}: {', '.join([*series, *(references or {})])}",
            "caption": caption,
            "notes": notes,
            "numbers": Table([x_label, *series], rows),
        }
        self.blocks.append({"kind": "plot", **plot})

    def images(
        self,
        rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
        titles: Sequence[str],
        caption: str,
        *,
        scale: int = 6,
    ) -> None:
        """Add a grid of small images, in which every pixel is drawn as a square.

        Args:
            rows: name of the row, such as the model, and one uint8 image [H, W, 3] for each title.
            titles: stand beneath the columns, such as prompts; plain text.
            caption: stands beneath the grid.
            scale: width of a pixel in CSS pixels.

        Raises:
            LLM4GENError: a row has another number of images than there are titles, or one is not uint8 [H, W, 3].
        """
        _check_rows(titles, [images for _, images in rows])
        grid = [
            (label, [_png(image, f"{label}: {title}", scale) for image, title in zip(images, titles, strict=True)])
            for label, images in rows
        ]
        self.blocks.append({"kind": "grid", "rows": grid, "titles": titles, "caption": caption})

    def html(self) -> str:
        """Return the page as one HTML file."""
        return render("page.html.j2", page=self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the HTML file, at once."""
        write_text(Path(path), self.html())

    def markdown(self) -> str:
        """Return the text and the tables as Markdown; plots and images are left out, and headings of nothing else."""
        parts = [f"# {self.title}\n"]
        empty = 0  # level of a heading that nothing has followed yet
        for block in (*self.blocks, {"kind": "heading", "text": "", "level": 2}):
            if block["kind"] == "heading":
                if empty >= block["level"]:
                    parts.pop()
                parts.append(f"{'#' * block['level']} {block['text']}\n")
                empty = block["level"]
            elif block["kind"] == "text":
                parts.append(f"{block['text']}\n")
                empty = 0
            elif block["kind"] == "table":
                table = block["table"]
                notes = [note for note in table.notes if note != BARS]
                parts += [" ".join([table.caption, *notes]).strip() + "\n", table.markdown()]
                empty = 0
        return "\n".join(parts[:-1])

    def _seed_note(self, estimates: Sequence[Estimate]) -> list[str]:
        return [self.one_seed] * any(not one.over_seeds for one in estimates)


def render(template: str, **content: Any) -> str:
    """Return a Jinja2 template of this folder filled with its content."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(inline=_inline, paragraphs=_paragraphs, p_value=p_value)
    return environment.get_template(template).render(**content).lstrip()


def shown(cell: Cell) -> Shown:
    """Return a cell as text. Means have three decimals, and their intervals two unless they are narrow."""
    if isinstance(cell, Shown):
        return cell
    if cell is None:
        return Shown("–")
    if isinstance(cell, str):
        return Shown(cell, markup=True)
    if not isinstance(cell, Estimate):
        whole = isinstance(cell, int) or float(cell).is_integer() and abs(cell) >= 10
        return Shown(number(cell, 0 if whole else 3))
    digits = 2 if cell.high - cell.low >= 0.04 else 3
    difference = isinstance(cell, Difference)
    return Shown(
        number(cell.mean, 3, sign=difference) + "†" * (not cell.over_seeds),
        f"[{number(cell.low, digits)}, {number(cell.high, digits)}]",
        cell.p if isinstance(cell, Difference) else None,
        ends=(cell.low, cell.mean, cell.high),
        difference=difference,
    )


def plain(cell: Cell) -> str:
    """Return a cell as one line of text, such as ".734 [.71, .76]"."""
    return shown(cell).line


def number(value: float, digits: int, *, sign: bool = False, zero: bool = False) -> str:
    """Return a number with a real minus sign, and none before 0.

    Args:
        value: the number.
        digits: decimals.
        sign: whether positive numbers have a plus sign.
        zero: whether there is a 0 before the decimal point.
    """
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return (text if zero else re.sub(r"^([+-]?)0\.", r"\1.", text)).replace("-", "−")


def p_value(p: float, name: str = "p") -> str:
    """Return a p-value as papers print it, "p = .004" or "p < .001"; without a name ".004" or "< .001"."""
    if p < 0.001:
        return f"{name} < .001".strip()
    return f"{f'{name} = ' if name else ''}{number(p, 3 if p < 0.1 else 2)}"


def literal(text: str) -> str:
    """Return text without what `Page.text` reads as markup."""
    return text.replace("*", "∗").replace("`", "'").replace("[", "(").replace("]", ")")


def _check_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for n, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise LLM4GENError(f"Row {n} has {len(row)} cells; expected {len(columns)}: {', '.join(columns)}.")


def _paragraphs(text: str) -> Markup:
    """HTML of `Page.text`."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.splitlines()]
        if all(line.startswith("- ") for line in lines):
            parts.append(f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>")
        else:
            parts.append(f"<p>{_inline(' '.join(lines))}</p>")
    return Markup("".join(parts))


def _inline(text: str) -> Markup:
    """HTML of one paragraph of `Page.text`; nothing within code is markup."""
    parts = [html.escape(part) for part in re.split(r"`([^`]+)`", text)]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    for n, part in enumerate(parts[::2]):
        part = re.sub(r"\[([^\[\]]+)\]\(((?:https?://|#)[^\s()]+)\)", r'<a href="\2">\1</a>', part)
        part = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", part)
        parts[2 * n] = re.sub(r"(?<![\w*])\*(\S(?:.*?\S)?)\*(?![\w*])", r"<em>\1</em>", part)
    return Markup("".join(parts))


def _bar(cell: Shown, scale: Sequence[float]) -> dict[str, str] | None:
    """Positions of a cell's interval, mean and 0 between the extremes of its column."""
    if cell.ends is None:
        return None
    margin = 0.06 * (max(scale) - min(scale)) or 0.5
    low, span = min(scale) - margin, max(scale) - min(scale) + 2 * margin
    ends = dict(zip(("low", "mean", "high", "zero"), (*cell.ends, 0.0), strict=True))
    return {name: f"{100 * (value - low) / span:.1f}" for name, value in ends.items()}


def image_source(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """Return an image as a data URI, in the format PNG or JPEG."""
    file = io.BytesIO()
    image.save(file, format=kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _png(image: NDArray[np.uint8], alt: str, scale: int) -> dict[str, Any]:
    """Attributes of an img element."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise LLM4GENError(f"The image of {alt!r} is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3].")
    height, width = image.shape[:2]
    source = image_source(Image.fromarray(image))
    return {"src": source, "alt": alt, "width": width * scale, "height": height * scale}


_INK, _FAINT = "#010203", "#040506"
_SERIES = [f"#0a0b{number:02x}" for number in range(7)]
_STYLE: dict[str, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _FAINT,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "legend.fontsize": 9,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "llm4gen",
}


def _draw(
    series: Mapping[str, Line], x_label: str, y_label: str, log_x: bool, references: Mapping[str, float], prefix: str
) -> str:
    """SVG element of a plot, drawn by matplotlib, in the colors and the font of the page. Ids begin with `prefix`."""
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE))
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_prop_cycle(
            cycler(linestyle=["-", "--", "-.", ":"]) * (cycler(color=_SERIES) + cycler(marker="osD^vPX"))
        )
        for name, points in series.items():
            x, means = [x for x, _ in points], [y.mean for _, y in points]
            ends = [y.low for _, y in points], [y.high for _, y in points]
            (line,) = axes.plot(x, means, label=name + " †" * any(not y.over_seeds for _, y in points))
            if len(points) > 1:
                axes.fill_between(x, *ends, color=line.get_color(), alpha=0.16, linewidth=0)
            else:
                axes.vlines(x, *ends, color=line.get_color())
        for name, level in references.items():
            axes.axhline(level, color=_INK, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.text(1, level, name, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({x for points in series.values() for x, _ in points})
            if len(ticks) <= 8:
                axes.set_xticks(ticks, [f"{x:,g}" for x in ticks])
                axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel=y_label)
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=min(len(series), 3))
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{prefix}", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_FAINT, "var(--rule)").replace("'DejaVu Sans'", "var(--font)")
    return re.sub("#0a0b0([0-6])", r"var(--series-\1)", svg)
