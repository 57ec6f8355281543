"""Plots as SVG in the colours and letters of the page that they stand in."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from ..statistics import Estimate
from .style import SERIES

Line: TypeAlias = "Sequence[tuple[float, Estimate]]"
"""(x, y) in the order of x."""

# Stand-ins for what the page's style decides by theme; they occur nowhere else in matplotlib's drawing.
_INK, _FAINT = "#010203", "#040506"
_SERIES = tuple(f"#0a0b{number:02x}" for number in range(SERIES))
_MARKERS, _DASHES = "osD^vPX", ("-", "--", "-.", ":")


def draw_lines(
    series: Mapping[str, Line],
    x_label: str,
    y_label: str,
    log_x: bool,
    references: Mapping[str, float],
    prefix: str,
) -> str:
    """Lines with shaded intervals as an SVG element, in the page's colours and letters.

    Args:
        series: points by name.
        x_label: of the axis.
        y_label: of the axis.
        log_x: the x axis is logarithmic.
        references: horizontal lines by name.
        prefix: of all ids, to keep them apart from those of other plots of the page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    options: dict[str, Any] = {
        "svg.hashsalt": "llm4gen",
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,
    }
    options |= {key: _INK for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, options))
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot(facecolor="none")
        axes.grid(color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        for number, (name, points) in enumerate(series.items()):
            color = _SERIES[number % len(_SERIES)]
            x = [x for x, _ in points]
            low, mean, high = ([getattr(point, end) for _, point in points] for end in ("low", "mean", "high"))
            if len(points) == 1:
                axes.vlines(x, low, high, color=color)
            else:
                axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
            mark = "" if all(point.over_seeds for _, point in points) else " †"
            axes.plot(
                x,
                mean,
                color=color,
                label=name + mark,
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle=_DASHES[number // len(_SERIES) % len(_DASHES)],
                markersize=4,
                linewidth=1.6,
            )
        for name, level in references.items():
            axes.axhline(level, color=_INK, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.annotate(
                name,
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=9,
            )
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({x for points in series.values() for x, _ in points})
            if len(ticks) <= 8:
                axes.set_xticks(ticks, [f"{x:,g}" for x in ticks])
                axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=min(len(series), 3), frameon=False, fontsize=9)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _in_page(file.getvalue(), prefix)


def _in_page(svg: str, prefix: str) -> str:
    """The element of a whole SVG file, with the page's colours and letters, and ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{prefix}", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_FAINT, "var(--rule)").replace("'DejaVu Sans'", "var(--letters)")
    for number, color in enumerate(_SERIES):
        svg = svg.replace(color, f"var(--series-{number})")
    return svg
