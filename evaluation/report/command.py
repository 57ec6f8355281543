"""`python -m evaluation report`: what sets of images have scored, on one page and in one JSON file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="SET",
        help="folder of images and their scores, of one model; of each benchmark the first is the baseline that the "
        "others are compared with",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for report.html and report.json")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the first table of each benchmark as Markdown, and nothing else, to stdout",
    )
    parser.set_defaults(run=_run)


def write_report(sets: Sequence[str | os.PathLike[str]], output: Path, markdown: bool = False) -> Path:
    """Write report.html, which is returned, and report.json, and print what a reader has to know first.

    Args:
        sets: folders of images; see `build_report`.
        output: folder; need not exist yet.
        markdown: print the main tables to stdout, and everything else to stderr.

    Raises:
        LLM4GENError: see `build_report`; nothing is written then.
    """
    from llm4gen_core.files import write_text

    from .build import build_report
    from .report_json import report_json
    from .report_page import report_page
    from .text import report_markdown

    report = build_report(sets)
    page, content = report_page(report), report_json(report)
    write_text(output / "report.json", content)
    write_text(output / "report.html", page)
    if markdown:
        print(report_markdown(report))
    told = sys.stderr if markdown else sys.stdout
    for one in report.benchmarks:
        for notice in one.notices:
            print(notice.text, file=told)
    print(output / "report.html", file=told)
    return output / "report.html"


def _run(args: argparse.Namespace) -> None:
    write_report(args.sets, Path(args.output), args.markdown)
