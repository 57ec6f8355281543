"""A page of results: one HTML file that needs nothing else, the same bytes for the same content."""

from __future__ import annotations

import base64
import html
import io
import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llm4gen_core import LLM4GENError

from ..statistics import Difference, Estimate
from .plot import Line, draw_lines
from .style import STYLE

Cell: TypeAlias = "str | int | float | Estimate | None"
"""Text with the markup of `Page.text`, a number, a mean with its interval, or nothing."""

ONE_SEED = "† One training seed: the interval is over prompts alone."
BARS = "Brackets and bars: 95 % intervals; the bars of a column share one scale."
MAPS = "The maps of a word share one scale over all rows: brightest is the highest value that any of them has."


class Page:
    """Builds a page from top to bottom.

    Args:
        title: plain text.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._body: list[str] = []
        self._contents: list[tuple[str, str]] = []
        self._anchors: set[str] = set()
        self._figures = 0

    def heading(self, text: str, level: int = 2) -> None:
        """A heading that can be linked to; those of level 2 make up the table of contents.

        Args:
            text: plain text.
            level: 2 to 4.
        """
        slug = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        names = (slug if n == 1 else f"{slug}-{n}" for n in itertools.count(1))
        anchor = next(name for name in names if name not in self._anchors)
        self._anchors.add(anchor)
        if level == 2:
            self._contents.append((anchor, text))
        self._body.append(f'<h{level} id="{anchor}">{html.escape(text)}</h{level}>')

    def text(self, text: str) -> None:
        """Paragraphs, with empty lines between them; lines that begin with "- " are the points of a list.

        Args:
            text: anything in it is shown as it stands, but for `*emphasis*`, `**strong**`, code between backticks, and
                `[words](https://…)` or `[words](#anchor)`.
        """
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            lines = [line.strip() for line in paragraph.splitlines()]
            if all(line.startswith("- ") for line in lines):
                points = "".join(f"<li>{_inline(line[2:])}</li>" for line in lines)
                self._body.append(f"<ul>{points}</ul>")
            else:
                self._body.append(f"<p>{_inline(' '.join(lines))}</p>")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        caption: str,
        highlight: Collection[int] = (),
    ) -> None:
        """A table; a mean is shown with its interval, as numbers and as a bar.

        Args:
            columns: headers.
            rows: one cell for each column; the first names the row.
            caption: stands above it.
            highlight: rows to set off, counted from 0.

        Raises:
            LLM4GENError: a row has not as many cells as there are columns.
        """
        _check_rows(columns, rows)
        head = "".join(f'<th scope="col">{_inline(name)}</th>' for name in columns)
        scales = [_Scale.of([row[number] for row in rows]) for number in range(len(columns))]
        body = []
        for number, row in enumerate(rows):
            cells = [f'<th scope="row">{_shown(row[0], scales[0])}</th>']
            cells += [f"<td>{_shown(cell, scale)}</td>" for cell, scale in zip(row[1:], scales[1:], strict=True)]
            body.append(f"<tr{' class=ours' if number in highlight else ''}>{''.join(cells)}</tr>")
        estimates = [cell for row in rows for cell in row if isinstance(cell, Estimate)]
        notes = [BARS] * bool(estimates) + [ONE_SEED] * any(not cell.over_seeds for cell in estimates)
        self._figure(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>',
            caption,
            notes,
            above=True,
        )

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
        """A plot of lines with shaded 95 % intervals, and its numbers to unfold beneath.

        Args:
            series: points by name.
            x_label: with its unit.
            y_label: with its unit.
            caption: stands beneath it.
            log_x: the x axis is logarithmic.
            references: levels to compare with, by name ("chance": .5).

        Raises:
            LLM4GENError: there are no points, or with `log_x` some are not above 0.
        """
        if not series or not all(series.values()):
            raise LLM4GENError(f"Plot {caption!r} has a line without points; leave it out.")
        if log_x and any(x <= 0 for points in series.values() for x, _ in points):
            raise LLM4GENError(f"Plot {caption!r} has points at 0 or below; they have no place on a logarithmic axis.")
        described = [
            f"{name}: {plain(points[0][1])} at {_number(points[0][0])}"
            + (f" to {plain(points[-1][1])} at {_number(points[-1][0])}" if len(points) > 1 else "")
            for name, points in series.items()
        ]
        described += [f"{name}: {_number(level)}" for name, level in (references or {}).items()]
        alt = f"Plot of {y_label} over {x_label}. {'; '.join(described)}."
        svg = draw_lines(series, x_label, y_label, log_x, references or {}, f"figure-{self._figures + 1}-")
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
        at = sorted({x for points in series.values() for x, _ in points})
        values = {name: dict(points) for name, points in series.items()}
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in (x_label, *series))
        rows = "".join(
            f'<tr><th scope="row">{_number(x)}</th>'
            + "".join(f"<td>{plain(values[name].get(x))}</td>" for name in series)
            + "</tr>"
            for x in at
        )
        numbers = (
            f'<details><summary>Numbers</summary><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div></details>"
        )
        one_seed = any(not point.over_seeds for points in series.values() for _, point in points)
        notes = ["Shaded: 95 % intervals."] + [ONE_SEED] * one_seed
        self._figure(f'<div class="wide plot">{svg}</div>', caption, notes, after=numbers)

    def images(
        self,
        rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
        titles: Sequence[str],
        caption: str,
        *,
        scale: int = 6,
    ) -> None:
        """A grid of images, every pixel a square.

        Args:
            rows: what painted them, and one image [H, W, 3] for each title.
            titles: stand beneath the columns, such as prompts; plain text.
            caption: stands beneath the grid.
            scale: width of a pixel in CSS pixels.

        Raises:
            LLM4GENError: a row has not as many images as there are titles, or one is no uint8 [H, W, 3].
        """
        _check_rows(titles, [images for _, images in rows])
        self._grid(rows, titles, caption, scale, [])

    def maps(
        self,
        rows: Sequence[tuple[str, NDArray[np.uint8], Sequence[NDArray[np.floating]]]],
        words: Sequence[str],
        caption: str,
        *,
        scale: int = 6,
    ) -> None:
        """Images, and beside each of them heat maps over it, such as where words were attended to.

        Args:
            rows: what painted it, the image [H, W, 3], and a map [h, w] for each word, at least 0. A map of another
                size is resized to the image's.
            words: stand beneath the columns of maps.
            caption: stands beneath the grid.
            scale: width of a pixel in CSS pixels.

        Raises:
            LLM4GENError: a row has not as many maps as there are words, or a map is not [h, w] or has negative values.
        """
        _check_rows(words, [maps for _, _, maps in rows])
        for label, _, maps in rows:
            for word, values in zip(words, maps, strict=True):
                if values.ndim != 2 or not np.isfinite(values).all() or values.min() < 0:
                    raise LLM4GENError(
                        f"The map of {word!r} in the row {label!r} has shape {list(values.shape)} and a least value of "
                        f"{values.min():g}; expected [h, w] of finite values of 0 or more."
                    )
        highest = [max(float(maps[n].max()) for _, _, maps in rows) for n in range(len(words))]
        grid = [
            (label, [image, *(_heat(image, values / (top or 1)) for values, top in zip(maps, highest, strict=True))])
            for label, image, maps in rows
        ]
        self._grid(grid, ["image", *words], caption, scale, [MAPS])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page; the file is there whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(self.html(), encoding="utf-8", newline="\n")
        os.replace(partial, path)

    def html(self) -> str:
        """The whole page."""
        links = "".join(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for anchor, text in self._contents)
        contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if links else ""
        title = html.escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title>\n<style>{STYLE}</style></head>\n"
            f"<body><main><h1>{title}</h1>{contents}\n" + "\n".join(self._body) + "\n</main></body></html>\n"
        )

    def _grid(
        self,
        rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
        titles: Sequence[str],
        caption: str,
        scale: int,
        notes: list[str],
    ) -> None:
        body = []
        for label, images in rows:
            pairs = zip(images, titles, strict=True)
            cells = "".join(f"<td>{_png(image, f'{label}: {title}', scale)}</td>" for image, title in pairs)
            body.append(f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>')
        widths = [image.shape[1] * scale for image in rows[0][1]] if rows else [0] * len(titles)
        foot = "".join(
            f'<td><div style="width:{width}px">{html.escape(title)}</div></td>'
            for title, width in zip(titles, widths, strict=True)
        )
        self._figure(
            f'<div class="wide"><table class="images"><tbody>{"".join(body)}</tbody>'
            f"<tfoot><tr><td></td>{foot}</tr></tfoot></table></div>",
            caption,
            notes,
        )

    def _figure(
        self, content: str, caption: str, notes: Sequence[str], *, above: bool = False, after: str = ""
    ) -> None:
        self._figures += 1
        shown = f"<figcaption>{_inline(caption)}</figcaption>"
        note = f'<p class="note">{html.escape(" ".join(notes))}</p>' if notes else ""
        parts = (shown, content, note) if above else (content, shown, note)
        self._body.append(f"<figure>{''.join(parts)}{after}</figure>")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The same table as `Page.table`, as text for a README; ends with a line break.

    Raises:
        LLM4GENError: a row has not as many cells as there are columns.
    """
    _check_rows(columns, rows)
    lines = [list(columns), ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[plain(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _check_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise LLM4GENError(f"Row {number} has {len(row)} cells; expected {len(columns)}: {', '.join(columns)}.")


_LINK = re.compile(r"\[([^\[\]]+)\]\(((?:https?://|#)[^\s()]+)\)")


def _inline(text: str) -> str:
    """Escaped, with the markup of `Page.text`; nothing within code is markup."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(f"<code>{html.escape(part)}</code>" if n % 2 else _emphasis(part) for n, part in enumerate(parts))


def _emphasis(text: str) -> str:
    text = _LINK.sub(r'<a href="\2">\1</a>', html.escape(text))
    text = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"(?<![\w*])\*(\S(?:.*?\S)?)\*(?![\w*])", r"<em>\1</em>", text)


def _number(value: float) -> str:
    """Without the zero before the point, as shares are printed; a real minus sign."""
    if isinstance(value, int) or float(value).is_integer() and abs(value) >= 10:
        return f"{value:,.0f}".replace("-", "−")
    return _decimals(value, 3)


def _decimals(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return re.sub(r"^(-?)0\.", r"\1.", text).replace("-", "−")


def plain(cell: Cell) -> str:
    """A cell as text, such as ".734 [.71, .76]"."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, Estimate):
        return _number(cell)
    digits = 2 if cell.high - cell.low >= 0.04 else 3
    sign = "+" if isinstance(cell, Difference) and cell.mean > 0 else ""
    mark = "" if cell.over_seeds else "†"
    text = f"{sign}{_decimals(cell.mean, 3)}{mark} [{_decimals(cell.low, digits)}, {_decimals(cell.high, digits)}]"
    return f"{text}, {_p_value(cell.p)}" if isinstance(cell, Difference) else text


def _p_value(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {_decimals(p, 3 if p < 0.1 else 2)}"


class _Scale:
    """Where the values of a column lie in the width of its bars, 100 units."""

    def __init__(self, low: float, high: float) -> None:
        margin = 0.06 * (high - low) or 0.5
        self.low, self.high = low - margin, high + margin

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> _Scale:
        """Of the estimates among the cells; differences are shown beside 0."""
        estimates = [cell for cell in cells if isinstance(cell, Estimate)]
        ends = [end for cell in estimates for end in (cell.low, cell.high)]
        ends += [0.0] * any(isinstance(cell, Difference) for cell in estimates)
        return cls(min(ends, default=0.0), max(ends, default=1.0))

    def at(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.1f}"


def _shown(cell: Cell, scale: _Scale) -> str:
    if isinstance(cell, str):
        return _inline(cell)
    if not isinstance(cell, Estimate):
        return f'<span class="number">{plain(cell)}</span>'
    mean, rest = plain(cell).split(" ", 1)
    zero = f'<line class="zero" x1="{scale.at(0)}" x2="{scale.at(0)}" y1="0" y2="10"/>'
    return (
        f'<span class="number"><b>{mean}</b> <span class="range">{rest}</span></span>'
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="track" x1="0" x2="100" y1="5" y2="5"/>{zero if isinstance(cell, Difference) else ""}'
        f'<line class="interval" x1="{scale.at(cell.low)}" x2="{scale.at(cell.high)}" y1="5" y2="5"/>'
        f'<line class="mean" x1="{scale.at(cell.mean)}" x2="{scale.at(cell.mean)}" y1="0.5" y2="9.5"/></svg>'
    )


def _png(image: NDArray[np.uint8], alt: str, scale: int) -> str:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise LLM4GENError(f"The image of {alt!r} is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3].")
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    height, width = image.shape[:2]
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" width="{width * scale}" '
        f'height="{height * scale}">'
    )


def _heat(image: NDArray[np.uint8], values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A map from 0 to 1 [h, w] as colours over the image [H, W, 3], of which brightness alone is kept."""
    import matplotlib

    size = (image.shape[1], image.shape[0])
    resized = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    level = np.asarray(resized).clip(0, 1)
    colors = matplotlib.colormaps["inferno"](level)[..., :3]
    gray = image.mean(2, keepdims=True) / 255
    return np.rint(255 * (0.75 * colors + 0.25 * gray)).astype(np.uint8)
