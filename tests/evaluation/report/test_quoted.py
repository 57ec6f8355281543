from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from evaluation.benchmarks import BENCHMARKS
from evaluation.report import build
from evaluation.report.build import build_report, quoted
from evaluation.report.write import report_html, report_json

if TYPE_CHECKING:
    from .conftest import SetMaker

TABLES = {table["key"]: table for name in (*BENCHMARKS, "cost") for table in quoted(name)}


def values(table: str, model: str) -> list[str]:
    return next(row["values"] for row in TABLES[table]["rows"] if row["model"] == model)


def test_every_quoted_value_is_text_with_a_source() -> None:
    assert len(TABLES) == 7
    for table in TABLES.values():
        assert all(type(table[key]) is str for key in ("title", "unit", "benchmark"))
        for row in table["rows"]:
            assert row["source"] and len(row["values"]) == len(table["columns"])
            assert all(type(value) is str and value for value in row["values"])


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
        row["values"]
        for row in TABLES["t2i_compbench_others"]["rows"]
        if row["model"] == "SD v1.5" and "ELLA" in row["source"]
    )
    assert sd15[0] == "37.50" and sd15 != sd14


def test_warnings_stand_where_they_matter() -> None:
    text = " ".join(TABLES["llm4gen_table_1"]["warnings"])
    for needed in ("SD v1.4", "63.69", "58.79", "73.29", "76.59", "ELLA SD1.5"):
        assert needed in text
    assert "73.29" in " ".join(TABLES["llm4gen_table_5"]["warnings"])


def test_quoted_numbers_never_enter_a_computation(make_set: SetMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_set.prompts(6, ("color", "shape"))
    sets = [make_set(name, prompts, benchmark="t2i-compbench") for name in ("SD1.5", "LLM4GEN")]
    for images in sets:
        make_set.scores(images, "blip_vqa", make_set.drawn(images.path.name))
    before = build_report([images.path for images in sets])

    def poisoned(benchmark: str) -> list[build.Record]:
        tables = quoted(benchmark)
        for row in (row for table in tables for row in table["rows"]):
            row["values"] = ["99999"] * len(row["values"])
        return tables

    monkeypatch.setattr(build, "quoted", poisoned)
    after = build_report([images.path for images in sets])
    assert "99999" in report_json(after) and "99999" in report_html(after)
    contents = [json.loads(report_json(report)) for report in (before, after)]
    for content in contents:
        content.pop("quoted_costs")
        content["benchmarks"][0].pop("quoted")
    assert contents[0] == contents[1]


def test_measured_and_quoted_numbers_share_no_table(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(6, ("color",)), benchmark="t2i-compbench")
    make_set.scores(images, "blip_vqa", make_set.drawn("x"))
    page = report_html(build_report([images.path]))
    figures = [part.split("</figure>")[0] for part in page.split("<figure")[1:]]
    quoting = [figure for figure in figures if 'class="quoted"' in figure]
    assert len(quoting) == 3
    for figure in figures:
        assert ("76.59" in figure) <= (figure in quoting)
        assert ('class="bar"' in figure) <= (figure not in quoting)
    assert all("quoted, not measured here" in figure for figure in quoting)
