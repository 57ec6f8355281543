"""The registry: benchmarks, their presets and metrics use the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.__main__ import _settings, build_parser
from evaluation.benchmarks import BENCHMARKS, METRICS, benchmark_of, find_benchmark, find_metric
from evaluation.metrics.base import ImageMetric
from evaluation.models import PresetOptions
from llm4gen_core import LLM4GENError


def settings(name: str, *arguments: str) -> tuple[PresetOptions, dict[str, Any]]:
    """Options of the model and arguments of `generate` that a command line gives."""
    return _settings(find_benchmark(name), build_parser().parse_args(["run", name, "results", *arguments]))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_official_table_shows_the_metrics_of_single_images(name: str) -> None:
    benchmark = find_benchmark(name)
    assert benchmark.name == name and {*benchmark.metrics} <= {*METRICS}
    single = {metric for metric in benchmark.metrics if issubclass(find_metric(metric).load_class(), ImageMetric)}
    assert {column.metric for column in benchmark.columns} == single
    if benchmark.categories:
        assert {column.category for column in benchmark.columns if column.category} <= {*benchmark.categories}


def test_the_metric_of_the_miniature_applies_to_each_of_its_prompts() -> None:
    prompts = find_benchmark("miniature").prompts(count=2)
    judge = find_metric("miniature").load_class()
    assert len(prompts) == 22 and issubclass(judge, ImageMetric) and all(map(judge.applies, prompts))


def test_the_dense_prompts_come_with_the_project() -> None:
    prompts = find_benchmark("dense-prompts").prompts(count=3)
    categories = [prompt.category for prompt in prompts]
    assert all(categories.count(name) == 3 for name in categories)


def test_missing_prompts_are_named_with_their_source() -> None:
    with pytest.raises(LLM4GENError, match=r"GenEval needs its prompts \(--prompts\): .*evaluation_metadata.jsonl"):
        find_benchmark("geneval").prompts()


def test_own_prompts_are_a_benchmark_without_metrics() -> None:
    assert benchmark_of("").name == "own-prompts" and benchmark_of("geneval").columns
    assert not benchmark_of("").metrics and not benchmark_of("").columns


def test_a_preset_can_be_changed_and_the_notes_say_so() -> None:
    options, images = settings("miniature", "--steps", "5", "--seeds", "1-3,9", "--count", "2")
    assert options.steps == 5 and options.guidance == 3.0 and images["seeds"] == [1, 2, 3, 9]
    assert any("Changed: steps 5, seeds [1, 2, 3, 9]" in note for note in options.notes)
    assert images["notes"] == ["Only the first 2 prompts of each category."]
    assert "notes" not in options.model_dump(), "notes change no pixel"


@pytest.mark.parametrize("text", ["", "a", "3-", "5-2", "1,1", "-1"])
def test_invalid_seeds_are_refused(text: str, capsys) -> None:
    with pytest.raises(SystemExit):
        settings("miniature", f"--seeds={text}")


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(LLM4GENError, match="Width is 100; .*multiple of 8"):
        settings("miniature", "--width", "100")


def test_own_prompts_can_be_a_text_with_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    prompts = find_benchmark("text").prompts(str(tmp_path / "prompts.txt"))
    assert [prompt.text for prompt in prompts] == ["a cat", "a dog"]
