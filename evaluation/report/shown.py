"""How cells are written, in HTML and in Markdown alike.

Shares are written in percent. All cells of a column have as many decimals as its narrowest interval can bear: the
half of it has two digits that count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .columns import Column
from .numbers import Absent, Cell, Compared, Count, Measured, Total

MOST_DIGITS = 4


@dataclass(frozen=True)
class Written:
    """A cell as text.

    Attributes:
        main: the number; or why there is none.
        interval: in brackets; "".
        p: p value, as "p = .03"; "".
        n: of how many images, and on a second line of how many prompts.
        incomplete: fewer than were asked for.
        note: that belongs to the number.
    """

    main: str
    interval: str = ""
    p: str = ""
    n: str = ""
    incomplete: bool = False
    note: str = ""

    @property
    def line(self) -> str:
        """All of it in one line."""
        first = f"{self.main} {self.interval}".strip()
        return "; ".join(filter(None, [first + " ⚠" * self.incomplete, self.p, self.n.replace("\n", ", "), self.note]))


def header(column: Column) -> str:
    """Title of a column, with its unit."""
    if column.counted:
        return column.title
    unit = ", %" if column.percent else ""
    return f"{column.title}{unit}{', lower is better' * column.lower_is_better}"


def digits_of(cells: Sequence[Cell], percent: bool) -> int:
    """Decimals of a column's numbers."""
    halves = [(cell.high - cell.low) / 2 for cell in cells if isinstance(cell, (Measured, Compared))]
    halves = [100 * half if percent else half for half in halves if half > 0]
    least = 1 if percent else 0
    return min(max(1 - math.floor(math.log10(min(halves))), least), MOST_DIGITS) if halves else 2


def write(cell: Cell, percent: bool, digits: int) -> Written:
    """A cell as text.

    Raises:
        TypeError: it is no `Cell`; a bare number is never shown.
    """
    if isinstance(cell, Absent):
        return Written(cell.why)
    if isinstance(cell, Count):
        return Written(f"{100 * cell.part / cell.whole:.0f} %", n=f"{cell.part:,} of {cell.whole:,} prompts")
    if isinstance(cell, Total):
        return Written(f"{cell.value:.3g} {cell.unit}", n=f"of {images(cell.n)}")
    if isinstance(cell, Measured):
        of = f"{cell.n:,} of {images(cell.asked)}" if cell.n < cell.asked else images(cell.n)
        prompts = f"\n{cell.prompts:,} prompts" if cell.prompts is not None else ""
        return Written(
            number(cell.value, percent, digits),
            _interval(cell, percent, digits),
            "",
            f"n = {of}{prompts}",
            cell.n < cell.asked,
            cell.note,
        )
    if isinstance(cell, Compared):
        return Written(
            number(cell.value, percent, digits, sign=True),
            _interval(cell, percent, digits, sign=True),
            p_value(cell.p_holm),
            f"n = {cell.pairs:,} pairs\n{cell.prompts:,} prompts",
        )
    raise TypeError(f"{cell!r} has no interval and no count, and is not shown; expected a Cell of evaluation.report")


def number(value: float, percent: bool, digits: int, sign: bool = False) -> str:
    """A share in percent, anything else as it is; with a real minus sign, and none before 0."""
    text = f"{100 * value if percent else value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    elif sign and value > 0:
        text = f"+{text}"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """As papers print it."""
    if p < 0.001:
        return "p < .001"
    text = f"{p:.{3 if p < 0.1 else 2}f}"
    return f"p = {text.removeprefix('0') if p < 1 else '1'}"


def images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"


def _interval(cell: Measured | Compared, percent: bool, digits: int, sign: bool = False) -> str:
    return f"[{number(cell.low, percent, digits, sign)}, {number(cell.high, percent, digits, sign)}]"
