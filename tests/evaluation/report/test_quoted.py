from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from evaluation.report import build, quoted
from evaluation.report.quoted import QUOTED, Quotation, QuotedTable
from evaluation.report.report_json import report_json
from evaluation.report.report_page import report_page

if TYPE_CHECKING:
    from .conftest import SetMaker

TABLES = {table.key: table for table in QUOTED}


def values(table: str, model: str) -> list[str]:
    return next(list(row.values) for row in TABLES[table].rows if row.model == model)


def test_every_quoted_value_is_text_with_a_source() -> None:
    for table in QUOTED:
        for row in table.rows:
            assert row.source
            assert all(type(value) is str and value for value in row.values)
    with pytest.raises(TypeError):
        Quotation("x", (0.5,), "somewhere")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Quotation("x", ("0.5",), "")


@pytest.mark.parametrize(
    ("ours", "base", "margins"),
    [
        ("LLM4GEN SD1.5", "“SD1.5” (really SD v1.4)", [9.69, 9.59, 13.83, 2.33, 0.21, 3.17]),
        ("LLM4GEN SDXL", "SDXL (first version's table)", [12.90, 5.16, 14.49, 3.80, 1.00, 1.28]),
    ],
)
def test_rows_of_table_1_have_the_margins_that_the_paper_prints(ours: str, base: str, margins: list[float]) -> None:
    rows = zip(values("llm4gen_table_1", ours), values("llm4gen_table_1", base), strict=True)
    assert [float(a) - float(b) for a, b in rows] == pytest.approx(margins, abs=0.0051)


def test_the_papers_sd15_is_the_sd14_of_the_benchmark() -> None:
    sd14 = values("t2i_compbench_others", "SD v1.4")
    assert values("llm4gen_table_1", "“SD1.5” (really SD v1.4)") == sd14
    sd15 = next(
        list(row.values)
        for row in TABLES["t2i_compbench_others"].rows
        if row.model == "SD v1.5" and "ELLA" in row.source
    )
    assert sd15[0] == "37.50" and sd15 != sd14


def test_warnings_stand_where_they_matter() -> None:
    text = " ".join(TABLES["llm4gen_table_1"].warnings)
    for needed in ("SD v1.4", "63.69", "58.79", "73.29", "76.59", "ELLA SD1.5"):
        assert needed in text
    assert "73.29" in " ".join(TABLES["llm4gen_table_5"].warnings)


def test_quoted_numbers_never_enter_a_computation(make_set: SetMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_set.prompts(6, ("color", "shape"))
    sets = [make_set(name, prompts, benchmark="t2i-compbench") for name in ("SD1.5", "LLM4GEN")]
    for images in sets:
        make_set.scores(images, "blip_vqa", make_set.drawn(images.path.name))
    before = build.build_report([images.path for images in sets])
    poisoned = tuple(
        QuotedTable(
            table.key,
            table.benchmark,
            table.title,
            table.unit,
            table.columns,
            tuple(Quotation(row.model, ("99999",) * len(row.values), row.source) for row in table.rows),
        )
        for table in QUOTED
    )
    monkeypatch.setattr(quoted, "QUOTED", poisoned)
    after = build.build_report([images.path for images in sets])
    assert "99999" in report_json(after) and "99999" in report_page(after)
    contents = [json.loads(report_json(report)) for report in (before, after)]
    for content in contents:
        content.pop("quoted_costs")
        content["benchmarks"][0].pop("quoted")
    assert contents[0] == contents[1]


def test_measured_and_quoted_numbers_share_no_table(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(6, ("color",)), benchmark="t2i-compbench")
    make_set.scores(images, "blip_vqa", make_set.drawn("x"))
    page = report_page(build.build_report([images.path]))
    figures = [part.split("</figure>")[0] for part in page.split("<figure")[1:]]
    quoting = [figure for figure in figures if 'class="quoted"' in figure]
    assert len(quoting) == 3
    for figure in figures:
        assert ("76.59" in figure) <= (figure in quoting)
        assert ('class="bar"' in figure) <= (figure not in quoting)
    assert all("quoted, not measured here" in figure for figure in quoting)
