"""The benchmarks that one command runs: where their prompts come from, how they are painted, and what scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import miniature
from llm4gen_core import LLM4GENError

from .model_files import GenerationOptions, ModelFiles
from .prompts import Prompt
from .sources import choose, find_source, load_prompts
from .sources.presets import Preset, find_preset

MINIATURE, DENSE = "miniature", "dense-prompts"
MINIATURE_PROMPTS = 32
"""Of each set of the miniature's, unless a number is asked for."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: in commands, and of its prompts' source where the user has to download them.
        title: for people.
        metrics: keys of `METRICS`, each of which applies to some of the prompts.
    """

    name: str
    title: str
    metrics: tuple[str, ...]


BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark("t2i-compbench", "T2I-CompBench", ("blip_vqa", "spatial", "non_spatial", "three_in_one")),
        Benchmark(DENSE, "DensePrompts", ("clip_score", "long_clip_score", "aesthetic", "vqa_score")),
        Benchmark("coco", "MS-COCO", ("fid", "inception_score", "clip_score")),
        Benchmark("dpg-bench", "DPG-Bench", ("dpg",)),
        Benchmark("geneval", "GenEval", ("geneval",)),
        Benchmark(MINIATURE, "Miniature world", ("miniature",)),
    )
}
"""By name."""


def find_benchmark(name: str) -> Benchmark:
    """
    Raises:
        LLM4GENError: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise LLM4GENError(f"Benchmark {name!r} is not known; expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def metrics_of(name: str) -> tuple[str, ...]:
    """The metrics of a set's benchmark.

    Raises:
        LLM4GENError: the set belongs to no benchmark.
    """
    if name not in BENCHMARKS:
        raise LLM4GENError(
            f"These are prompts of {name or 'your own'}, which have no metrics by themselves; say which (--metrics)."
        )
    return BENCHMARKS[name].metrics


def benchmark_prompts(
    name: str, path: str | None = None, categories: Sequence[str] = (), count: int | None = None
) -> list[Prompt]:
    """The prompts of a benchmark, or of a source.

    Args:
        name: a key of `BENCHMARKS` or of `SOURCES`.
        path: the file or folder that the user downloaded. The miniature's and DensePrompts come with the project; for
            the latter it may be another set, as JSONL.
        categories: only these; () is all.
        count: only the first so many of each category.

    Raises:
        LLM4GENError: see `load_prompts`; or there is no path where one is needed.
    """
    if name == MINIATURE:
        return choose(_miniature(count or MINIATURE_PROMPTS), "The miniature", categories, count)
    if name == DENSE and path is None:
        from .dense import shipped_prompts

        return choose(shipped_prompts(), "DensePrompts", categories, count)
    source = "jsonl" if name == DENSE else name
    if path is None:
        raise LLM4GENError(f"{find_source(source).title} needs its prompts (--prompts): {find_source(source).get}.")
    return load_prompts(source, path, categories, count)


def benchmark_preset(name: str, preset: str) -> Preset:
    """How a preset paints a benchmark; the miniature has one way alone, that of its report.

    Raises:
        LLM4GENError: see `find_preset`.
    """
    if name == MINIATURE:
        title = f"the miniature's report: DDIM, {miniature.STEPS} steps, guidance {miniature.GUIDANCE:g}"
        return Preset(title, (0,), miniature.STEPS, miniature.GUIDANCE, "ddim")
    return find_preset(preset, name)


def preset_options(preset: Preset, **changes: object) -> GenerationOptions:
    """`GenerationOptions` of a preset, with what is not None of the changes in its place.

    Raises:
        LLM4GENError: a value is impossible.
    """
    from pydantic import ValidationError

    wanted = {"steps": preset.steps, "guidance": preset.guidance, "sampler": preset.sampler}
    try:
        return GenerationOptions.model_validate(
            {**wanted, **{key: value for key, value in changes.items() if value is not None}}
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise LLM4GENError(f"{'.'.join(map(str, problem['loc'])).capitalize()}: {problem['msg']}.") from error


def miniature_models() -> dict[str, ModelFiles]:
    """The shipped miniature: its base alone, and with LLM4GEN."""
    models = miniature.MODELS
    base, arm = str(models / "base"), models / "llm4gen"
    return {
        "base": ModelFiles(base=base, batch=64),
        "LLM4GEN": ModelFiles(
            base=base,
            unet=str(arm / "unet"),
            adapter=str(arm / "adapter.safetensors"),
            llm=str(models / "t5"),
            batch=64,
        ),
    }


def _miniature(count: int) -> list[Prompt]:
    from miniature.dataset import SETS

    from .metrics.miniature import caption_prompt

    return [
        caption_prompt(name, number, caption)
        for name, one in SETS.items()
        for number, caption in enumerate(one.prompts(count))
    ]
