"""What a reader expects to find of each benchmark: its official columns, whatever else was scored beside them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """A column of the official table.

    Attributes:
        metric: key of `METRICS_CALLED`.
        title: of the column.
        category: of the prompts; "" for all of them.
        group: of the questions that the metric asks; "" for the score.
        percent: shown in percent, as the paper prints it, though it may fall below 0.
        macro: mean of the categories' means.
    """

    metric: str
    title: str
    category: str = ""
    group: str = ""
    percent: bool = False
    macro: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        key: stable name.
        title: for people.
        called: names that sets of images may give it, as `plain_name` makes them.
        columns: of the official table.
        whole: metrics of whole sets that belong to it, keys of `METRICS_CALLED`.
        categories: how many an official set has; 0 where it does not matter.
        note: what a reader should know about the official protocol.
    """

    key: str
    title: str
    called: tuple[str, ...]
    columns: tuple[Wanted, ...] = ()
    whole: tuple[str, ...] = ()
    categories: int = 0
    note: str = ""


METRICS_CALLED: dict[str, tuple[str, ...]] = {
    "blip_vqa": ("blipvqa",),
    "spatial": ("spatial",),
    "non_spatial": ("nonspatial",),
    "clip_score": ("clipscore",),
    "three_in_one": ("threeinone",),
    "aesthetic": ("aesthetic",),
    "long_clip": ("longclipscore", "longclip"),
    "vqa_score": ("vqascore",),
    "dpg": ("dpg",),
    "geneval": ("geneval",),
    "fid": ("fid",),
    "inception_score": ("inceptionscore",),
}
"""Names that metrics have in files, as `plain_name` makes them."""

METRIC_TITLES = {
    "blip_vqa": "BLIP-VQA",
    "spatial": "spatial detector",
    "non_spatial": "CLIP for non-spatial relations",
    "clip_score": "CLIP score",
    "three_in_one": "3-in-1",
    "aesthetic": "aesthetic score",
    "long_clip": "long-text CLIP score",
    "vqa_score": "VQAScore",
    "dpg": "DPG-Bench judge",
    "geneval": "GenEval judge",
    "fid": "FID",
    "inception_score": "Inception score",
}

_DENSE = (
    Wanted("clip_score", "CLIP score"),
    Wanted("aesthetic", "Aesthetic score"),
    Wanted("long_clip", "Long-text CLIP score"),
    Wanted("vqa_score", "VQAScore"),
)

BENCHMARKS = (
    Benchmark(
        "t2i_compbench",
        "T2I-CompBench",
        ("t2icompbench", "t2icompbenchval", "compbench"),
        (
            Wanted("blip_vqa", "Colour", "color"),
            Wanted("blip_vqa", "Shape", "shape"),
            Wanted("blip_vqa", "Texture", "texture"),
            Wanted("spatial", "Spatial", "spatial"),
            Wanted("non_spatial", "Non-spatial", "nonspatial", percent=True),
            Wanted("three_in_one", "Complex", "complex", percent=True),
        ),
        note="Each category has its own judge: BLIP-VQA for colour, shape and texture, an object detector for spatial, "
        "a cosine of CLIP for non-spatial, the mean of the three for complex. Numbers of two columns are on different "
        "scales.",
    ),
    Benchmark(
        "dense_prompts",
        "DensePrompts",
        ("denseprompts", "dense"),
        _DENSE,
        note="CLIP reads 77 tokens; the share of prompts that it cuts off stands in the table. Judges of the whole "
        "text stand beside it.",
    ),
    Benchmark(
        "coco",
        "MS-COCO",
        ("coco", "mscoco", "coco2014"),
        (Wanted("clip_score", "CLIP score"),),
        ("fid", "inception_score"),
    ),
    Benchmark(
        "dpg",
        "DPG-Bench",
        ("dpg", "dpgbench"),
        (
            Wanted("dpg", "Overall"),
            *(
                Wanted("dpg", name, group=name.lower())
                for name in ("Global", "Entity", "Attribute", "Relation", "Other")
            ),
        ),
        note="Overall is the mean over images of the share of their questions that count. A category pools the judge's "
        "answers to its questions, before what they depend on; the official script does so with one of four images.",
    ),
    Benchmark(
        "geneval",
        "GenEval",
        ("geneval",),
        (
            Wanted("geneval", "Overall", macro=True),
            Wanted("geneval", "Single object", "singleobject"),
            Wanted("geneval", "Two objects", "twoobject"),
            Wanted("geneval", "Counting", "counting"),
            Wanted("geneval", "Colours", "colors"),
            Wanted("geneval", "Position", "position"),
            Wanted("geneval", "Colour attribution", "colorattr"),
        ),
        categories=6,
        note="Overall is the mean of the task means, as the official script has it, not the mean over images.",
    ),
    Benchmark(
        "miniature",
        "Miniature world",
        ("miniature",),
        note="Small models on a synthetic world of small pictures, judged exactly: no statement about SD1.5 or SDXL.",
    ),
)


def find_benchmark(name: str) -> Benchmark:
    """By the name that a set of images gives; another name, or none, makes a benchmark without official columns."""
    plain = plain_name(name)
    for benchmark in BENCHMARKS:
        if plain in benchmark.called:
            return benchmark
    return Benchmark(f"other_{plain}" if plain else "own_prompts", name or "Prompts of one's own", (plain,))


def find_metric(kind: str, names: Collection[str]) -> str | None:
    """The metric of a set that is of this kind, by its name."""
    return next((name for name in sorted(names) if plain_name(name) in METRICS_CALLED[kind]), None)


def plain_name(name: str) -> str:
    """Lower case letters and digits alone, and "color" however it is spelled."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).replace("colour", "color")
