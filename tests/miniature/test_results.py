"""One file of results: nothing measured is lost, nothing is measured twice, nothing unlike is compared."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.provenance import fingerprint
from miniature.results import Result, Results, matched, stack


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "arm": "llm4gen",
        "seed": 0,
        "set": "dense",
        "step": 1000,
        "strength": 1.0,
        "scores": {"accuracy": [1.0, 0.5, 0.0], "binding": [1.0, None, 0.0]},
        "prompts": "0123",
        "made": {"device": "cpu", "seconds": 1.5},
    }
    return Result(**{**values, **changes})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results.jsonl")


def test_what_is_added_is_there_for_the_next_sitting(results: Results) -> None:
    assert results.load() == []
    results.append(result())
    results.append(result(seed=1))
    assert Results(results.path).load() == [result(), result(seed=1)]


def test_another_process_is_seen_without_starting_anew(results: Results) -> None:
    results.append(result())
    assert results.load() == [result()]
    Results(results.path).append(result(seed=1))
    assert results.load() == [result(), result(seed=1)]


def test_a_later_line_with_the_same_key_replaces_an_earlier(results: Results) -> None:
    for value in (0.0, 1.0):
        results.append(result(scores={"accuracy": [value]}))
    results.append(result(strength=0.5))
    assert [found.scores.get("accuracy") for found in results.load()] == [[1.0], [1.0, 0.5, 0.0]]


@pytest.mark.parametrize(
    "change",
    [{"arm": "b"}, {"seed": 1}, {"set": "short"}, {"step": 2}, {"strength": 0.5}, {"prompts": "other"}],
    ids=lambda change: next(iter(change)),
)
def test_whether_something_has_been_done(results: Results, change: dict[str, Any]) -> None:
    results.append(result())
    assert results.has(*result().key) and not results.has(*result(**change).key)


@pytest.mark.parametrize("bytes_left", [1, 30, -2])
def test_a_torn_last_line_is_left_out_and_then_taken_away(results: Results, bytes_left: int) -> None:
    results.append(result())
    whole = results.path.read_bytes()
    results.append(result(seed=1))
    content = results.path.read_bytes()
    cut = len(whole) + bytes_left if bytes_left > 0 else len(content) + bytes_left
    os.truncate(results.path, cut)
    with pytest.warns(UserWarning, match="line 2, is torn"):
        assert results.load() == [result()]
    with pytest.warns(UserWarning, match="line 2, is torn"):
        results.append(result(seed=2))
    assert results.path.read_bytes().startswith(whole)
    assert results.load() == [result(), result(seed=2)]


def test_a_whole_last_line_without_its_end_stays(results: Results) -> None:
    """An editor may have saved the file so."""
    results.append(result())
    os.truncate(results.path, results.path.stat().st_size - 1)
    assert results.load() == [result()]
    results.append(result(seed=1))
    assert results.load() == [result(), result(seed=1)]


def _append(path: Path, arm: str, count: int) -> None:
    results = Results(path)
    for seed in range(count):
        results.append(result(arm=arm, seed=seed, scores={"accuracy": [0.5] * 2000}))


def test_two_processes_can_add_at_the_same_time(results: Results) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(results.path, arm, 40)) for arm in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(found.key[:2] for found in results.load()) == [(arm, seed) for arm in "ab" for seed in range(40)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda": 1}, "lambda: Extra inputs"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"step": -1}, "step: Input should be greater"),
        ({"scores": {"a": [1.0], "b": [1.0, 0.0]}}, "scores: Value error, have {'a': 1, 'b': 2} values"),
        ({"scores": {}}, "scores: Dictionary should have at least 1 item"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_line_is_named(results: Results, change: dict[str, Any], message: str) -> None:
    results.append(result())
    with open(results.path, "a") as file:
        file.write(json.dumps({**result().model_dump(), **change}) + "\n")
    with pytest.raises(LLM4GENError, match="results.jsonl, line 2, is no result") as caught:
        results.load()
    assert message in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[]", '{"arm": "a"}'])
def test_a_broken_line_in_the_middle_is_an_error_and_not_torn(results: Results, line: str) -> None:
    results.path.write_text(line + "\n" + result().model_dump_json() + "\n")
    with pytest.raises(LLM4GENError, match="line 1, is no result"):
        results.load()


def test_a_score_that_is_no_number_is_refused_before_it_is_written() -> None:
    with pytest.raises(ValidationError, match="finite"):
        result(scores={"accuracy": [float("nan")]})


def test_find_by_value(results: Results) -> None:
    for arm in ("b", "a"):
        for seed in (1, 0):
            for strength in (0.5, 1.0):
                results.append(result(arm=arm, seed=seed, strength=strength))
    found = results.find(arm="a", strength=1.0)
    assert [(r.arm, r.seed, r.strength) for r in found] == [("a", 0, 1.0), ("a", 1, 1.0)]
    assert results.find(step=999) == [] and len(results.find(seed=1)) == 4


def test_the_last_step_leaves_out_seeds_that_are_behind(results: Results) -> None:
    for seed, steps in ((0, (0, 500, 1000)), (1, (500, 1000)), (2, (500,))):
        for step in steps:
            results.append(result(seed=seed, step=step))
    results.append(result(arm="short run", step=500))
    found = results.find(step="last")
    assert [(r.arm, r.seed, r.step) for r in found] == [
        ("llm4gen", 0, 1000),
        ("llm4gen", 1, 1000),
        ("short run", 0, 500),
    ]


def test_stack_gives_seeds_in_order_and_nan_for_what_does_not_apply() -> None:
    seeds, values = stack([result(seed=4), result(seed=2, scores={"binding": [0.5, 0.0, None]})], "binding")
    assert seeds == [2, 4]
    np.testing.assert_array_equal(values, [[0.5, 0, np.nan], [1, np.nan, 0]])


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results to take binding from"),
        ([result(), result(seed=1, step=500)], "have step 1000, 500|have step 500, 1000"),
        ([result(), result(seed=1, prompts="4567")], "have prompts 0123, 4567"),
        ([result(scores={"accuracy": [1.0]})], "lack the measure binding; they have accuracy"),
    ],
)
def test_what_cannot_be_taken_together(results: list[Result], message: str) -> None:
    with pytest.raises(LLM4GENError, match=message):
        stack(results, "binding")


def arm(name: str, seeds: range, **changes: Any) -> list[Result]:
    return [result(arm=name, seed=seed, scores={"exact": [float(seed), 0.0]}, **changes) for seed in seeds]


def test_matched_arms_have_the_same_seeds() -> None:
    a, b = matched(arm("a", range(0, 3)), arm("b", range(1, 4)), "exact")
    np.testing.assert_array_equal(a, [[1, 0], [2, 0]])
    np.testing.assert_array_equal(b, a)


def test_a_fixed_model_stands_against_every_seed() -> None:
    a, b = matched(arm("a", range(3)), arm("base", range(7, 8)), "exact", b_is_fixed=True)
    np.testing.assert_array_equal(a[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(b[:, 0], [7, 7, 7])


def test_arms_that_cannot_be_matched() -> None:
    with pytest.raises(LLM4GENError, match="not painted from the same prompts"):
        matched(arm("a", range(3)), arm("b", range(3), prompts="other"), "exact")
    with pytest.raises(LLM4GENError, match="expected some that both have"):
        matched(arm("a", range(0, 2)), arm("b", range(2, 4)), "exact")
    with pytest.raises(LLM4GENError, match="one fixed model"):
        matched(arm("a", range(3)), arm("b", range(3)), "exact", b_is_fixed=True)


def test_fingerprints_depend_on_values_and_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": ["x"]}) == fingerprint({"b": ["x"], "a": 1}) == "8387fd01c31f4ba4"
    assert fingerprint({"a": 1, "b": ["y"]}) != fingerprint({"a": 1, "b": ["x"]})
