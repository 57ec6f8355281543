"""The report in the documentation is the one that its results give."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from miniature.report import write_report

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "docs" / "reproduction"


def test_the_published_report_is_that_of_the_published_results(tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED, tmp_path / "again")
    (tmp_path / "again" / "report.md").unlink()
    write_report(tmp_path / "again")
    assert (tmp_path / "again" / "report.md").read_bytes() == (PUBLISHED / "report.md").read_bytes()


def test_the_readmes_table_is_the_reports() -> None:
    """Colour's accuracy, and accuracy, words and binding of dense prompts."""
    core = (PUBLISHED / "report.md").read_text(encoding="utf-8").partition("## The core")[2]
    rows = {
        name.strip(): cells.split("|") for name, cells in re.findall(r"^\| ([^|]+) \|(.+)\|$", core, re.MULTILINE)[:6]
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| ([^|]+) \((?:one|two|three)\) \|(.+)\|$", readme, re.MULTILINE))
    assert {"base", "base, fine-tuned", "LLM4GEN"} <= {*lines}
    for here, line in lines.items():
        there = here[0].upper() + here[1:]
        ours = [re.findall(r"\.\d{3}", cell)[0] for cell in line.split("|")]
        assert ours == [re.findall(r"\.\d{3}", rows[there][column])[0] for column in (0, 1, 3, 5)], here
