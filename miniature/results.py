"""What was measured: one file to which several sittings, and several processes at once, add."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from llm4gen_core import LLM4GENError
from llm4gen_core.files import JSONLines

Key: TypeAlias = tuple[str, int, str, int, float, str]
"""arm, seed, set, step, strength, prompts."""


class Result(BaseModel):
    """One painting of a set of prompts by one trained model, judged.

    Attributes:
        arm: what was trained.
        seed: of the training.
        set: name of the prompt set.
        step: optimizer steps of the weights that painted.
        strength: lambda.
        scores: by measure, one value for each image in the set's order; None where a measure does not apply.
        prompts: `fingerprint` of prompts, noise seeds and painting settings. Only results with the same one can be
            paired.
        made: where it comes from: recipe, device, seconds, versions, date. JSON values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    arm: str = Field(min_length=1)
    seed: int
    set: str = Field(min_length=1)
    step: int = Field(ge=0)
    strength: float
    scores: dict[str, list[float | None]] = Field(min_length=1)
    prompts: str = Field(min_length=1)
    made: dict[str, JsonValue]

    @field_validator("scores")
    @classmethod
    def _of_one_length(cls, scores: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
        lengths = {measure: len(values) for measure, values in scores.items()}
        if len({*lengths.values()}) > 1 or 0 in lengths.values():
            raise ValueError(f"have {lengths} values; expected one for each image, and one image or more")
        return scores

    @property
    def key(self) -> Key:
        """A later result with the same one replaces an earlier."""
        return (self.arm, self.seed, self.set, self.step, self.strength, self.prompts)


class Results:
    """A JSONL file of results; need not exist yet.

    Args:
        path: the file. A lock file stands beside it, NAME.lock.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = JSONLines(path, "Results")
        self._seen: tuple[int, int] | None = None
        self._results: dict[Key, Result] = {}

    def append(self, result: Result) -> None:
        """Add a line, and have it on the disk."""
        self._file.append(result.model_dump())

    def load(self) -> list[Result]:
        """All results in the order of their first lines; of those with the same key the last.

        Needs no lock, so that a file can be read where nothing can be written. A line that another process is just
        writing looks torn, and is left out.

        Raises:
            LLM4GENError: a line is no result; names file and line.
        """
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return []
        if self._seen != (state.st_size, state.st_mtime_ns):
            results: dict[Key, Result] = {}
            for number, line in self._file.lines():
                result = self._parse(line, number)
                results[result.key] = result
            self._results, self._seen = results, (state.st_size, state.st_mtime_ns)
        return list(self._results.values())

    def find(
        self,
        *,
        arm: str | None = None,
        seed: int | None = None,
        set: str | None = None,
        step: int | Literal["last"] | None = None,
        strength: float | None = None,
        prompts: str | None = None,
    ) -> list[Result]:
        """Results with these values, by arm, set, prompts, strength, step and seed; None is any value.

        Args:
            arm: as in `Result`, like the others.
            step: "last" is the last step that any seed has reached; by arm, set, strength and prompts. A seed that
                is still behind is left out then, for it is not to be compared with the others.
        """
        wanted = {"arm": arm, "seed": seed, "set": set, "strength": strength, "prompts": prompts}
        if step != "last":
            wanted["step"] = step
        found = [
            result
            for result in self.load()
            if all(value is None or getattr(result, name) == value for name, value in wanted.items())
        ]
        if step == "last":
            last: dict[tuple[str, str, str, float], int] = {}
            for result in found:
                last[_place(result)] = max(result.step, last.get(_place(result), 0))
            found = [result for result in found if result.step == last[_place(result)]]
        return sorted(found, key=lambda result: (*_place(result), result.step, result.seed))

    def has(self, arm: str, seed: int, set: str, step: int, strength: float, prompts: str) -> bool:
        """Whether this has been measured already."""
        self.load()
        return (arm, seed, set, step, strength, prompts) in self._results

    def _parse(self, line: bytes, number: int) -> Result:
        try:
            return Result.model_validate_json(line)
        except ValidationError as error:
            problems = "; ".join(
                ".".join(map(str, problem["loc"])) + (": " if problem["loc"] else "") + problem["msg"]
                for problem in error.errors(include_url=False)[:3]
            )
            raise LLM4GENError(
                f"Results {self.path}, line {number}, is no result: {problems}. Expected a JSON object with "
                f"{', '.join(Result.model_fields)}. Delete the line, or give another file."
            ) from error


def stack(results: Sequence[Result], measure: str) -> tuple[list[int], NDArray[np.float64]]:
    """The values of one arm for `statistics.estimate`.

    Args:
        results: of one arm on one set at one step and strength, one for each training seed.
        measure: a key of their scores.

    Returns:
        Training seeds, ascending, and their values [seeds, images], NaN where a measure does not apply.

    Raises:
        LLM4GENError: there are none, they differ in more than the seed, or lack the measure.
    """
    if not results:
        raise LLM4GENError(f"There are no results to take {measure} from; run the experiment first.")
    for name in ("arm", "set", "step", "strength", "prompts"):
        if len(found := {getattr(result, name) for result in results}) > 1:
            raise LLM4GENError(
                f"Results of {results[0].arm} to be taken together have {name} {', '.join(map(str, sorted(found)))}; "
                "expected one, with nothing but the training seed to tell them apart."
            )
    by_seed = {result.seed: result.scores for result in results}
    if lacking := [seed for seed, scores in by_seed.items() if measure not in scores]:
        raise LLM4GENError(
            f"Results of {results[0].arm} on {results[0].set}, seed {lacking[0]}, lack the measure {measure}; they "
            f"have {', '.join(by_seed[lacking[0]])}."
        )
    seeds = sorted(by_seed)
    return seeds, np.array([by_seed[seed][measure] for seed in seeds], np.float64)


def matched(
    a: Sequence[Result], b: Sequence[Result], measure: str, *, b_is_fixed: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values of two arms for `statistics.paired`: the same prompts in the same order, the same training seeds.

    Args:
        a: results of an arm, as for `stack`.
        b: of another. Training seeds that only one of them has are left out.
        measure: a key of their scores.
        b_is_fixed: b is one given model, such as the base that every seed of a started from, and stands against each
            of a's seeds. The comparison is then with this model, not with others of its kind.

    Raises:
        LLM4GENError: their prompts, noise seeds or painting settings differ, or they share no training seed; else as
            `stack`.
    """
    (a_seeds, a_values), (b_seeds, b_values) = stack(a, measure), stack(b, measure)
    if a[0].prompts != b[0].prompts:
        raise LLM4GENError(
            f"Results of {a[0].arm} and {b[0].arm} on {a[0].set} and {b[0].set} have the fingerprints {a[0].prompts} "
            f"and {b[0].prompts}: they were not painted from the same prompts and noise. Paint one of them again."
        )
    if b_is_fixed:
        if len(b_seeds) > 1:
            raise LLM4GENError(f"{b[0].arm} is to be one fixed model, but has results of seeds {b_seeds}; give one.")
        return a_values, np.repeat(b_values, len(a_values), axis=0)
    shared = sorted({*a_seeds} & {*b_seeds})
    if not shared:
        raise LLM4GENError(
            f"{a[0].arm} has the training seeds {a_seeds} and {b[0].arm} has {b_seeds}; expected some that both have."
        )
    return a_values[[a_seeds.index(s) for s in shared]], b_values[[b_seeds.index(s) for s in shared]]


def _place(result: Result) -> tuple[str, str, str, float]:
    return (result.arm, result.set, result.prompts, result.strength)
