"""Scores of image sets: only complete ones count, and only like is compared with like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_sets import Scored, write_sets

from miniature.results import Contrast, Results, Values, difference_of, mean_of


def scored(variant: str = "llm4gen", seed: int = 0, values: Any = (1.0, 0.0, 1.0), **others: Any) -> Scored:
    return Scored(variant, seed, "color", {"score": list(values), "binding": [1.0, None, 0.0][: len(values)]}, **others)


def results(folder: Path, *sets: Scored) -> Results:
    write_sets(folder, sets)
    return Results.read(folder)


def test_values_by_seed_and_prompt(tmp_path: Path) -> None:
    found = results(tmp_path, scored(), scored(seed=3, values=(0.0, 0.5, 1.0)))
    values = found.values("llm4gen", "score", ("color",))
    assert found.seeds("llm4gen") == [0, 3] and list(values[3].values()) == [0, 0.5, 1]
    binding = list(found.values("llm4gen", "binding", ("color",))[0].values())
    np.testing.assert_array_equal(binding, [1, np.nan, 0])
    mean = found.mean("score", ("color",), "llm4gen")
    assert mean is not None and mean.seeds == 2 and mean.mean == pytest.approx(3.5 / 6)


def test_an_incomplete_image_set_does_not_count(tmp_path: Path) -> None:
    results(tmp_path, scored())
    file = tmp_path / "images" / "llm4gen" / "0" / "final" / "scores" / "miniature.jsonl"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert Results.read(tmp_path).seeds("llm4gen") == []
    file.write_text(whole)
    assert Results.read(tmp_path).seeds("llm4gen") == [0]


def test_nothing_is_averaged_over_a_prompt_set_that_was_not_measured(tmp_path: Path) -> None:
    found = results(tmp_path, scored())
    assert found.mean("score", ("color", "dense"), "llm4gen") is None and found.mean("score", ("color",), "mlp") is None


def test_training_curves_have_the_prompts_that_all_steps_have(tmp_path: Path) -> None:
    sets = (scored(values=(0.0, 1.0), name="step-5"), scored(values=(1.0, 1.0), name="step-10"), scored())
    curve = results(tmp_path, *sets).curve("llm4gen", "score", "color", 20)
    assert {step: list(values[0].values()) for step, values in curve.items()} == {5: [0, 1], 10: [1, 1], 20: [1, 0]}
    assert results(tmp_path / "other", scored()).curve("llm4gen", "score", "color", 20) == {}


def test_other_prompts_under_the_same_ids_are_not_paired(tmp_path: Path) -> None:
    found = results(tmp_path, scored("mlp"), scored("llm4gen", prompts="other "))
    assert found.differences([Contrast("llm4gen", "mlp", "score", ("color",))]) == {}


def values(seeds: range, prompts: str = "xyz") -> Values:
    return {seed: {(prompt, ""): seed / 10 for prompt in prompts} for seed in seeds}


def test_differences_are_over_the_seeds_and_prompts_that_both_have() -> None:
    difference = difference_of(values(range(0, 3)), values(range(1, 4), "yzu"))
    assert difference is not None and (difference.seeds, difference.prompts, difference.mean) == (2, 2, 0)
    assert difference_of(values(range(0, 2)), values(range(2, 4))) is None


def test_a_fixed_model_is_compared_with_every_seed() -> None:
    ours = values(range(4))
    difference = difference_of(ours, {7: dict.fromkeys(ours[0], 0.1)}, b_is_fixed=True)
    assert difference is not None and difference.seeds == 4 and difference.mean == pytest.approx(0.05)
    assert difference_of(ours, {}, b_is_fixed=True) is None


def test_one_value_has_no_interval() -> None:
    assert mean_of(values(range(1), "x")) is None and mean_of({}) is None
