"""Report on the data, and the list of left-out pairs."""

from __future__ import annotations

import json
from pathlib import Path

from image_text import encoded, make_data, make_pairs, noise, open_manifest, write_folder

from train.data.manifest import LEFT_OUT, SUMMARY, UNREADABLE, Problem, ProblemLog, describe, summarize, write_report
from train.data.scan import scan


def test_statistics_of_the_data(tmp_path: Path) -> None:
    pairs = [
        (encoded(noise(0, 64, 64)), "a red cat"),
        (encoded(noise(1, 48, 48)), "一只红色的猫"),
        (encoded(noise(2, 128, 64)), "a red cat"),
        (b"", "nothing"),
        (encoded(noise(3, 8, 8)), "tiny"),
        (encoded(noise(4).convert("L")), "one two three four five"),
    ]
    source = {"path": str(write_folder(tmp_path / "data", pairs)), "repeats": 2}
    data = make_data(source, buckets={"enabled": True, "step": 16, "max_ratio": 2})
    summary = summarize(scan(data, tmp_path / "cache"))
    assert (summary.pairs_found, summary.usable, summary.samples) == (6, 4, 8)
    assert summary.left_out == {"empty file": 1, "too small": 1}
    assert summary.handled == {"gray": 1}
    assert (summary.different_captions, summary.other_scripts) == (3, 1)
    assert (summary.with_pairs, summary.pairs) == (2, 2)
    assert summary.words["mean"] == 3.0 and summary.sides["50%"] == 64
    assert summary.enlarged == 1
    assert [(b.height, b.width, b.images, b.samples, b.cut_off) for b in summary.buckets] == [
        (64, 64, 3, 6, 0.0),
        (48, 80, 1, 2, 0.1667),
    ]


def test_the_file_lists_all_and_the_console_some(tmp_path: Path) -> None:
    pairs = [(b"", "x")] * 30 + make_pairs(2)
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", pairs))
    later = Problem("data", "0031.png", "truncated", "It is cut off.")
    summary = write_report(manifest, tmp_path / "run", [later])
    listed = [json.loads(line) for line in (tmp_path / "run" / LEFT_OUT).read_text().splitlines()]
    assert len(listed) == 31
    assert listed[0]["key"] == "0000.png" and "empty" in listed[0]["sentence"]
    assert listed[-1] == later._asdict()
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["left_out"] == {"empty file": 30}
    lines = describe(summary, manifest.problems())
    assert lines[0] == "2 of 32 pairs can be used, 2 samples an epoch"
    assert sum("0 bytes" in line for line in lines) == 10
    assert summary.with_pairs is None and not any("entity" in line for line in lines)


def test_problems_of_a_run_are_listed_once_each_also_after_a_resume(tmp_path: Path) -> None:
    problems = [Problem("data", f"{n}.png", "damaged", "It is.") for n in range(3)]
    assert ProblemLog(tmp_path).add(problems[:2] * 2) == problems[:2]
    with (tmp_path / UNREADABLE).open("a") as file:
        file.write('{"source": "da')
    log = ProblemLog(tmp_path)
    assert log.add(problems) == problems[2:]
    assert log.add(problems) == []
