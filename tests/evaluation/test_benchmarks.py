"""The benchmarks hold together: sources, presets, metrics, and the report's columns know the same names."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from evaluation.benchmarks import BENCHMARKS, benchmark_preset, benchmark_prompts, metrics_of, preset_options
from evaluation.generate_command import add_prompts, prompts_and_options
from evaluation.metrics import METRICS
from evaluation.report.benchmarks import BENCHMARKS as REPORTED
from evaluation.report.benchmarks import METRIC_TITLES
from evaluation.score import metric_class
from evaluation.sources import SOURCES
from llm4gen_core import LLM4GENError


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_prompts(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_report_shows_every_metric_of_a_benchmark_and_waits_for_no_other(name: str) -> None:
    reported = {one.key: one for one in REPORTED}[name]
    shown = {column.metric for column in reported.columns} | {*reported.whole}
    assert shown == {*BENCHMARKS[name].metrics} and shown <= {*METRICS} and shown <= {*METRIC_TITLES}


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name in SOURCES])
def test_the_reports_categories_are_those_of_the_prompts(name: str) -> None:
    columns = {one.key: one for one in REPORTED}[name].columns
    assert {column.category for column in columns if column.category} <= {*SOURCES[name].categories}


def test_each_metric_of_the_miniature_applies_to_its_prompts() -> None:
    prompts = benchmark_prompts("miniature", count=2)
    assert len(prompts) == 22 and all(metric_class("miniature").applies(prompt) for prompt in prompts)


def test_the_shipped_dense_prompts_are_a_benchmark_without_a_download() -> None:
    prompts = benchmark_prompts("dense-prompts", count=3)
    categories = [prompt.category for prompt in prompts]
    assert all(categories.count(name) == 3 for name in categories)


def test_what_has_to_be_downloaded_is_named() -> None:
    with pytest.raises(LLM4GENError, match=r"GenEval needs its prompts \(--prompts\): .*evaluation_metadata.jsonl"):
        benchmark_prompts("geneval")


def test_own_prompts_have_no_metrics_by_themselves() -> None:
    with pytest.raises(LLM4GENError, match=r"your own, which have no metrics"):
        metrics_of("")


def test_a_preset_can_be_changed_and_the_set_says_so() -> None:
    found = prompts_and_options("miniature", options("--steps", "5", "--seeds", "1-3,9", "--count", "2"))
    assert found["painting"].steps == 5 and found["painting"].guidance == 3.0 and found["seeds"] == [1, 2, 3, 9]
    assert any("Changed from that: steps 5, seeds [1, 2, 3, 9]" in note for note in found["painting"].notes)
    assert found["notes"] == ["Only the first 2 prompts of each category."]
    assert "notes" not in found["painting"].model_dump(), "notes change no pixel"


@pytest.mark.parametrize("text", ["", "a", "3-", "5-2", "1,1", "-1"])
def test_seeds_that_are_none_are_refused(text: str, capsys) -> None:
    with pytest.raises(SystemExit):
        options(f"--seeds={text}")


def test_impossible_settings_are_named() -> None:
    preset = benchmark_preset("geneval", "bench-official")
    assert preset_options(preset).guidance == 9.0
    with pytest.raises(LLM4GENError, match="Width: .*multiple of 8"):
        preset_options(preset, width=100)


def test_own_prompts_may_be_a_text_with_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    prompts = benchmark_prompts("text", str(tmp_path / "prompts.txt"))
    assert [prompt.text for prompt in prompts] == ["a cat", "a dog"]
