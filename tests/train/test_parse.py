"""`python -m train parse`: order, rows that are kept and rows that are left out, processes, and the summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gold_captions import gold_captions

from llm4gen_core import LLM4GENError, parse_entities
from llm4gen_core.entities import load_backend
from train import parse
from train.__main__ import main
from train.parse import ParseReport, ParseSettings, parse_captions, parse_file

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = [caption.text for caption in gold_captions(5, seed=3)]


@pytest.fixture(autouse=True)
def no_pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever this machine has installed, "auto" is the fallback here."""
    monkeypatch.setattr("llm4gen_core.entities.spacy.PIPELINES", ())
    load_backend.cache_clear()
    yield
    load_backend.cache_clear()


# parse_captions


def test_pairs_are_those_of_parse_entities() -> None:
    assert list(parse_captions(CAPTIONS, "rules")) == [parse_entities(caption, "rules") for caption in CAPTIONS]


def test_processes_give_the_same_pairs_in_the_same_order() -> None:
    assert list(parse_captions(iter(CAPTIONS), "rules", workers=2, batch=7)) == list(parse_captions(CAPTIONS, "rules"))


def test_captions_are_read_as_they_are_needed() -> None:
    """Ten million captions do not fit into memory."""
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a red cat"

    pairs = parse_captions(endless(), "rules", workers=1, batch=5)
    for _ in range(12):
        assert next(pairs)[0].entity.text == "cat"
    pairs.close()
    assert read <= 12 + 5 * (2 * 1 + 1)


@pytest.mark.parametrize(("workers", "batch"), [(-1, 10), (0, 0)])
def test_impossible_numbers_are_refused(workers: int, batch: int) -> None:
    with pytest.raises(LLM4GENError, match="expected at least 0 and at least 1"):
        parse_captions([], "rules", workers, batch)


def test_a_missing_backend_is_an_error_before_reading() -> None:
    with pytest.raises(LLM4GENError, match="no trained English pipeline"):
        parse_captions(iter(()), "spacy", workers=2)


def test_a_process_that_crashes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "_start_worker", _leave)
    with pytest.raises(LLM4GENError, match=r"One of 1 parsing processes crashed.*fewer --workers"):
        list(parse_captions(["a red cat"], "rules", workers=1))


def _leave(_: str) -> None:
    import os

    os._exit(9)


# parse_file


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], ParseReport]]:
    """(rows of the output, report) of a source with that name and content."""

    def run(name: str, content: str | bytes, **settings: Any) -> tuple[list[dict[str, Any]], ParseReport]:
        source, output = tmp_path / name, tmp_path / "out" / "pairs.jsonl"
        source.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        report = parse_file(ParseSettings(str(source), str(output), **settings))
        assert [file.name for file in output.parent.iterdir()] == ["pairs.jsonl"]
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], report

    return run


def test_lines_of_text(run: Callable[..., Any]) -> None:
    rows, report = run("captions.txt", "\ufeffa red cat\r\n\n  two dogs  \n赤い猫\n")
    assert rows == [
        {"caption": "a red cat", "pairs": [[2, 5, 6, 9]]},
        {"caption": "two dogs", "pairs": []},
        {"caption": "赤い猫", "pairs": []},
    ]
    assert (report.captions, report.described, report.pairs, report.bad) == (3, 1, 1, [(2, "no caption")])


def test_rows_keep_their_other_fields(run: Callable[..., Any]) -> None:
    source = '{"image": "1.jpg", "caption": " a red cat", "score": 1.5}\n{"text": "a blue dog", "caption": null}\n'
    rows, _ = run("captions.jsonl", source)
    assert rows == [
        {"image": "1.jpg", "caption": " a red cat", "score": 1.5, "pairs": [[3, 6, 7, 10]]},
        {"text": "a blue dog", "caption": "a blue dog", "pairs": [[2, 6, 7, 10]]},
    ]


def test_the_field_can_be_named(run: Callable[..., Any]) -> None:
    rows, _ = run("captions.jsonl", '{"long": "a red cat", "caption": "cat"}\n', field="long")
    assert rows == [{"long": "a red cat", "caption": "a red cat", "pairs": [[2, 5, 6, 9]]}]


def test_given_pairs_are_kept_and_impossible_ones_replaced(run: Callable[..., Any]) -> None:
    given = [
        {"caption": "a red cat", "pairs": [[0, 1, 6, 9]]},
        {"caption": "a red cat", "pairs": []},
        {"caption": "a red cat", "pairs": [[0, 1, 6, 90]]},
        {"caption": "a red cat", "pairs": "none"},
        {"caption": "a red cat"},
    ]
    rows, report = run("captions.jsonl", "".join(json.dumps(row) + "\n" for row in given))
    parsed = [[2, 5, 6, 9]]
    assert [row["pairs"] for row in rows] == [[[0, 1, 6, 9]], [], parsed, parsed, parsed]
    assert report.given == 2 and report.replaced == [(3, "impossible pairs"), (4, "impossible pairs")]


def test_bad_rows_are_left_out_and_listed(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        b'{"caption": "a red cat"}',
        b"not json",
        b"[1]",
        b'{"image": "1.jpg"}',
        b'{"caption": 7}',
        b'{"caption": "  "}',
        b"",
        b'{"caption": "\xff"}',
        b"[" * 100_000,
        b'{"caption": "a blue dog"}',
    ]
    rows, report = run("captions.jsonl", b"\n".join(lines))
    assert [row["caption"] for row in rows] == ["a red cat", "a blue dog"]
    no_text = "no text under 'caption' or 'text'"
    reasons = ["not JSON", "not a JSON object", no_text, no_text, "no caption", "empty", "not UTF-8", "not JSON"]
    assert report.bad == list(enumerate(reasons, start=2))
    assert "left out 8 rows: line 2 (not JSON), line 3 (not a JSON object), line 4" in capsys.readouterr().out


def test_a_long_list_of_bad_rows_is_cut(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("captions.txt", "a red cat\n" + "\n" * 30)
    assert "line 21 (no caption) and 10 more\n" in capsys.readouterr().out


def test_half_a_surrogate_pair_is_kept(run: Callable[..., Any]) -> None:
    rows, _ = run("captions.jsonl", '{"caption": "\\ud800 a red cat"}\n{"caption": "café"}\n')
    assert rows[0] == {"caption": "\ud800 a red cat", "pairs": [[4, 7, 8, 11]]}


def test_the_summary_names_the_fallback(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("captions.txt", "a red cat\ntwo dogs\na big blue dog\n")
    out, err = capsys.readouterr()
    assert "captions 3, of which 2 (66.7%) have at least one pair" in out
    assert "pairs    3, 1.00 a caption" in out
    assert "parser   rules/" in out
    assert "This is the fallback, as no trained spaCy pipeline is installed: it knows words" in out
    assert "parse: 100%" in err and "captions" in err
    run("captions.txt", "a red cat\n", backend="rules", force=True)
    assert "This is the fallback: it knows words" in capsys.readouterr().out


def test_many_captions_are_parsed_in_processes(run: Callable[..., Any]) -> None:
    rows, report = run("captions.txt", "\n".join(CAPTIONS), workers=2)
    assert [row["caption"] for row in rows] == CAPTIONS
    assert [row["pairs"] for row in rows] == [[p.offsets for p in parse_entities(c, "rules")] for c in CAPTIONS]
    assert report.captions == len(CAPTIONS)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"source": "a.csv"}, r"Source .*a.csv ends in .csv; expected .txt .* or .jsonl"),
        ({"source": "absent.txt"}, "absent.txt: No such file"),
        ({"output": "out.json"}, r"Output .*out.json ends in .json; give a name that ends in .jsonl"),
        ({"output": "there.jsonl"}, r"Output .*there.jsonl exists; .*--force"),
        ({"workers": -2}, "--workers is -2; expected 0"),
        ({"backend": "nltk"}, "'nltk' is unknown"),
        ({"source": "empty.txt"}, r"\(0 lines\) holds no caption; it is empty"),
        (
            {"source": "rows.jsonl", "field": "alt"},
            r"\(1 lines\) holds no caption; line 1 \(no text under 'alt'\).*--field",
        ),
    ],
)
def test_wrong_settings(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red cat\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"caption": "a red cat"}\n')
    (tmp_path / "there.jsonl").write_text("old")
    before = sorted(file.name for file in tmp_path.iterdir())
    given = {"source": "captions.txt", "output": "out.jsonl", **changes}
    paths = {key: str(tmp_path / given[key]) for key in ("source", "output")}
    with pytest.raises(LLM4GENError, match=problem):
        parse_file(ParseSettings(**{**given, **paths}))
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_an_interrupted_run_leaves_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    source, output = tmp_path / "captions.txt", tmp_path / "out.jsonl"
    source.write_text("a red cat\n")
    output.write_text("old")
    monkeypatch.setattr(parse, "_write_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parse_file(ParseSettings(str(source), str(output), force=True))
    assert output.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["captions.txt", "out.jsonl"]


def test_the_source_can_be_replaced(run: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"caption": "a red cat"}\n')
    parse_file(ParseSettings(str(source), str(source), force=True))
    assert json.loads(source.read_text()) == {"caption": "a red cat", "pairs": [[2, 5, 6, 9]]}


# The command


def test_the_arguments_are_the_settings(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red cat\n")
    assert main(["parse", str(tmp_path / "captions.txt"), "--output", str(tmp_path / "o.jsonl"), "--workers", "0"]) == 0
    assert json.loads((tmp_path / "o.jsonl").read_text())["pairs"] == [[2, 5, 6, 9]]
