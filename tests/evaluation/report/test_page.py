"""A page shows its content literally, in one file, and the same content gives the same bytes."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.report.page import Page, Shown, Table, p_value
from evaluation.statistics import Difference, Estimate
from llm4gen_core import LLM4GENError

HALF = Estimate(0.5, 0.4, 0.6, 3, 150)
HIGH = Estimate(0.734, 0.7117, 0.7613, 3, 150)
NARROW = Estimate(0.9821, 0.9714, 0.9893, 1, 150)
GAIN = Difference(0.0521, 0.0113, 0.0911, 3, 150, 0.0042, 450)
LOSS = Difference(-0.0521, -0.1113, 0.0061, 3, 150, 0.00001, 450)


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the body; fails if tags are not closed in order."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page.html())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page() -> Page:
    return Page("Results")


def image(color: tuple[int, int, int] = (200, 30, 30)) -> NDArray[np.uint8]:
    """[6, 8, 3]"""
    pixels = np.full((6, 8, 3), 20, np.uint8)
    pixels[1:3, 2:5] = color
    return pixels


def full(page: Page) -> Page:
    """A page with every kind of block, and two plots."""
    page.heading("Core")
    page.text("One *word*.\n\n- a\n- b")
    page.table(
        ["Variant", "Binding", "Gain"], [["base", HALF, None], ["LLM4GEN", NARROW, GAIN]], "Table 1.", highlight=[1]
    )
    for log_x in (False, True):
        series = {"base": [(500, HALF), (1000, HIGH)], "LLM4GEN": [(500, NARROW)]}
        page.lines(series, "steps", "binding", "Figure 1.", log_x=log_x, references={"chance": 0.5})
    page.images([("base", [image()])], ["a red circle"], "Figure 2.")
    return page


def decoded(attributes: dict[str, str | None]) -> NDArray[np.uint8]:
    source = attributes["src"] or ""
    assert source.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_html_is_valid_and_loads_nothing(page: Page) -> None:
    reader = Reader(full(page))
    assert not reader.all("script") and not reader.all("link")
    links = [value for _, attributes in reader.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all((link or "").startswith(("data:", "#")) for link in links)
    assert "@import" not in page.html() and "url(http" not in page.html()


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    reader = Reader(full(page))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', page.html())
    assert {*referred} <= {*ids} and any("plot-" in name for name in referred)


def test_bytes_do_not_depend_on_matplotlib_settings() -> None:
    first = full(Page("Results")).html()
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.grid": True}):
        assert full(Page("Results")).html() == first


def test_text_is_shown_literally(page: Page) -> None:
    page.heading("<b>a</b> & b")
    page.text("if a < b & <script>alert(1)</script>, 2 * 3 * 4, a_b and [this](javascript:alert)")
    reader = Reader(page)
    assert "if a < b & <script>alert(1)</script>, 2 * 3 * 4, a_b and [this](javascript:alert)" in reader.text
    assert not reader.all("script") and not reader.all("em")
    assert not [link for link in reader.all("a") if "javascript" in (link["href"] or "")]


def test_markup(page: Page) -> None:
    page.text("*one* **two** `*three* <`\nmore [four](https://example.org/?a=1&b=2)\n\n- five\n- six")
    html = page.html()
    assert "<p><em>one</em> <strong>two</strong> <code>*three* &lt;</code> more <a " in html
    assert '<a href="https://example.org/?a=1&amp;b=2">four</a></p>' in html
    assert "<ul><li>five</li><li>six</li></ul>" in html


def test_headings_are_linked_from_the_contents(page: Page) -> None:
    for text, level in (("Same name", 2), ("Same name", 2), ("Deeper", 3)):
        page.heading(text, level)
    assert re.findall(r'<a href="#([^"]+)">Same name</a>', page.html()) == ["same-name", "same-name-2"]
    assert '<h3 id="deeper">' in page.html() and 'href="#deeper"' not in page.html()


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (HIGH, ".734 [.71, .76]"),
        (NARROW, ".982† [.971, .989]"),
        (GAIN, "+.052 [.01, .09], p = .004"),
        (LOSS, "−.052 [−.11, .01], p < .001"),
        (Estimate(1.0, 0.95, 1.0, 3, 9), "1.000 [.95, 1.00]"),
        (Estimate(-0.0001, -0.1, 0.1, 3, 9), ".000 [−.10, .10]"),
        (12000, "12,000"),
        (-3, "−3"),
        (0.25, ".250"),
        (None, "–"),
        ("a < b", "a < b"),
    ],
    ids=str,
)
def test_cells(page: Page, cell: object, shown: str) -> None:
    page.table(["Variant", "x"], [["base", cell]], "")
    assert shown.replace(", p", " p") in Reader(page).text
    assert (
        Table(["Variant", "x"], [["base", cell]]).markdown() == f"| Variant | x |\n| --- | ---: |\n| base | {shown} |\n"
    )


def test_bars_of_a_column_share_one_scale(page: Page) -> None:
    page.table(["Variant", "x"], [["a", Estimate(0.3, 0.2, 0.4, 3, 9)], ["b", Estimate(0.5, 0.3, 0.6, 3, 9)]], "")
    bars = [line for line in Reader(page).all("line") if line["class"] == "interval"]
    (a_low, a_high), (b_low, b_high) = [(float(bar["x1"] or ""), float(bar["x2"] or "")) for bar in bars]
    assert 0 < a_low < b_low < a_high < b_high < 100
    assert (b_high - b_low) / (a_high - a_low) == pytest.approx(1.5, rel=0.02)


def test_differences_are_drawn_beside_zero(page: Page) -> None:
    page.table(["Variant", "x"], [["a", GAIN]], "")
    (zero,) = [line for line in Reader(page).all("line") if line["class"] == "zero"]
    (interval,) = [line for line in Reader(page).all("line") if line["class"] == "interval"]
    assert 0 < float(zero["x1"] or "") < float(interval["x1"] or "")


def test_notes_explain_only_the_marks_of_a_table(page: Page) -> None:
    page.table(["Variant", "x"], [["a", HALF]], "")
    assert "95 % intervals" in Reader(page).text and "One training seed" not in Reader(page).text
    page.table(["Variant", "x"], [["a", NARROW]], "")
    assert "One training seed" in Reader(page).text
    plain = Page("")
    plain.table(["Variant", "x"], [["a", 3]], "")
    assert "interval" not in Reader(plain).text


def test_rows_are_highlighted(page: Page) -> None:
    page.table(["Variant", "x"], [["a", 1], ["b", 2], ["c", 3]], "", highlight=[2])
    assert [row.get("class") for row in Reader(page).all("tr")] == [None, None, None, "ours"]


def test_a_row_with_too_many_or_too_few_cells_is_an_error(page: Page) -> None:
    with pytest.raises(LLM4GENError, match="Row 2 has 3 cells; expected 2: Variant, x"):
        page.table(["Variant", "x"], [["a", 1], ["b", 2, 3]], "")
    with pytest.raises(LLM4GENError, match="Row 1 has 1 cells; expected 2"):
        Table(["Variant", "x"], [["a"]])


def test_markdown_cells_cannot_break_the_table() -> None:
    assert Table(["x"], [["a|b\nc"]]).markdown() == "| x |\n| --- |\n| a\\|b c |\n"


def test_a_plot_has_a_text_alternative_and_a_table_of_its_numbers(page: Page) -> None:
    page.lines(
        {"base": [(0, HALF), (500, HIGH)], "ours": [(500, NARROW)]}, "steps", "binding", "F", references={"c": 0.5}
    )
    reader = Reader(page)
    (alt,) = [box["aria-label"] for box in reader.all("div") if box.get("role") == "img"]
    assert alt == "Plot of binding over steps: base, ours, c; the numbers are listed below"
    assert "500 .734 [.71, .76] .982† [.971, .989]" in reader.text and "0 .500 [.40, .60] –" in reader.text


def drawn(page: Page) -> list[tuple[float, float]]:
    """Coordinates of the first line's markers, in the plot's units."""
    uses = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--series-0\); stroke: var', page.html())
    return [(float(x), float(y)) for x, y in uses]


@pytest.mark.parametrize("log_x", [False, True])
def test_points_are_drawn_where_they_belong(page: Page, log_x: bool) -> None:
    page.lines({"a": [(1, HALF), (10, HIGH), (100, HALF)]}, "x", "y", "", log_x=log_x)
    (x0, y0), (x1, y1), (x2, y2) = drawn(page)[:3]
    assert y0 == y2 > y1
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5 if log_x else 9 / 99, abs=0.01)


def test_a_plot_has_the_colors_and_fonts_of_the_page(page: Page) -> None:
    series = {f"variant {n}": [(1, HALF), (2, HIGH)] for n in range(9)}
    page.lines(series, "x [$]", "y_1", "", references={"chance": 0.5})
    html = page.html()
    body = html[html.index("<body>") :]
    assert not re.search(r"#0[14]0|#0a0b|DejaVu", body)
    assert all(f"var(--series-{n})" in body and f"--series-{n}:" in html for n in range(7))
    assert "x [$]" in body and "y_1" in body and "<!--" not in body


@pytest.mark.parametrize(
    ("series", "message"), [({}, "without points"), ({"a": []}, "without points"), ({"a": [(0, HALF)]}, "logarithmic")]
)
def test_plots_that_cannot_be_drawn(page: Page, series: dict[str, list[tuple[float, Estimate]]], message: str) -> None:
    with pytest.raises(LLM4GENError, match=message):
        page.lines(series, "x", "y", "", log_x=True)


def test_images_are_exact_and_named(page: Page) -> None:
    red, blue = image(), image((0, 0, 255))
    page.images([("base", [red, blue])], ["a <red> thing", "a blue thing"], "", scale=5)
    first, second = Reader(page).all("img")
    np.testing.assert_array_equal(decoded(first), red)
    np.testing.assert_array_equal(decoded(second), blue)
    assert (first["alt"], first["width"], first["height"]) == ("base: a <red> thing", "40", "30")
    assert "a <red> thing" in Reader(page).text and "image-rendering:pixelated" in page.html()


def test_invalid_images(page: Page) -> None:
    with pytest.raises(LLM4GENError, match="Row 1 has 1 cells; expected 2: a, b"):
        page.images([("base", [image()])], ["a", "b"], "")
    with pytest.raises(LLM4GENError, match=r"The image of 'base: a' is float64 \[6, 8, 3\]"):
        page.images([("base", [image() / 255])], ["a"], "")


def test_write_replaces_the_file_and_leaves_nothing_else(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "report" / "index.html"
    path.parent.mkdir()
    path.write_text("old")
    page.text("new")
    page.write(path)
    assert path.read_text(encoding="utf-8") == page.html()
    assert [entry.name for entry in path.parent.iterdir()] == ["index.html"]


def test_markdown_has_text_and_tables_and_no_empty_sections() -> None:
    page = Page("Results", one_seed="† One rater.")
    page.heading("Images alone")
    page.images([("base", [image()])], ["a red circle"], "Figure 1.")
    page.heading("Core")
    page.heading("Binding", 3)
    page.text("One *word*: .5†", ["a", "b"])
    page.table(["Variant", "x"], [["base", NARROW], ["own", Shown("3 s", "[2, 4]", counts=("n = 5",))]], "Table 1.")
    assert page.markdown() == (
        "# Results\n\n## Core\n\n### Binding\n\nOne *word*: .5†\n\n- a\n- b\n\n† One rater.\n\n"
        "Table 1. † One rater.\n\n"
        "| Variant | x |\n| --- | ---: |\n| base | .982† [.971, .989] |\n| own | 3 s [2, 4]; n = 5 |\n"
    )


def test_quoted_tables_are_marked(page: Page) -> None:
    page.table(["Model", "x"], [["theirs", "60.3 %"]], "Votes.", quoted=True)
    assert "quoted, not measured here Votes." in Reader(page).text


@pytest.mark.parametrize(
    ("p", "with_name", "alone"),
    [(0.0004, "p < .001", "< .001"), (0.0042, "p = .004", ".004"), (0.25, "p = .25", ".25"), (1, "p = 1.00", "1.00")],
)
def test_p_values(p: float, with_name: str, alone: str) -> None:
    assert (p_value(p), p_value(p, "")) == (with_name, alone)
