"""The table of docs/results.md has the numbers of the reproduction's report."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_has_the_numbers_of_the_report() -> None:
    """Accuracy on colour; accuracy, words and binding on dense prompts."""
    report = (ROOT / "docs" / "reproduction" / "report.md").read_text(encoding="utf-8")
    core = report.partition("## The core")[2]
    rows = {
        name.strip(): cells.split("|") for name, cells in re.findall(r"^\| ([^|]+) \|(.+)\|$", core, re.MULTILINE)[:6]
    }
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| ([^|]+) \((?:one|two|three)\) \|(.+)\|$", page, re.MULTILINE))
    assert {"base", "base, fine-tuned", "LLM4GEN"} <= {*lines}
    for here, line in lines.items():
        there = here[0].upper() + here[1:]
        ours = [re.findall(r"\.\d{3}", cell)[0] for cell in line.split("|")]
        assert ours == [re.findall(r"\.\d{3}", rows[there][column])[0] for column in (0, 1, 3, 5)], here
