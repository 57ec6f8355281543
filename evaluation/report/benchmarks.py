"""What a reader expects to find of each benchmark: its official columns, whatever else was scored beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """A column of the official table.

    Attributes:
        metric: key of `METRICS`.
        title: of the column.
        category: of the prompts; "" for all of them.
        part: which number of the metric.
        group: of the questions that the metric asks; "" for the score.
        percent: shown in percent, as the paper prints it, though it may fall below 0.
        macro: mean of the categories' means.
    """

    metric: str
    title: str
    category: str = ""
    part: str = "score"
    group: str = ""
    percent: bool = False
    macro: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        key: its name in sets of images, a key of `evaluation.benchmarks.BENCHMARKS`.
        title: for people.
        columns: of the official table.
        whole: metrics of whole sets that belong to it, keys of `METRICS`.
        categories: how many an official set has; 0 where it does not matter.
        note: what a reader should know about the official protocol.
    """

    key: str
    title: str
    columns: tuple[Wanted, ...] = ()
    whole: tuple[str, ...] = ()
    categories: int = 0
    note: str = ""


METRIC_TITLES = {
    "blip_vqa": "BLIP-VQA",
    "spatial": "spatial detector",
    "non_spatial": "CLIP for non-spatial relations",
    "clip_score": "CLIP score",
    "three_in_one": "3-in-1",
    "aesthetic": "aesthetic score",
    "long_clip_score": "long-text CLIP score",
    "vqa_score": "VQAScore",
    "dpg": "DPG-Bench judge",
    "geneval": "GenEval judge",
    "fid": "FID",
    "inception_score": "Inception score",
    "miniature": "the exact judge",
}

_DENSE = (
    Wanted("clip_score", "CLIP score"),
    Wanted("aesthetic", "Aesthetic score"),
    Wanted("long_clip_score", "Long-text CLIP score"),
    Wanted("vqa_score", "VQAScore"),
)

BENCHMARKS = (
    Benchmark(
        "t2i-compbench",
        "T2I-CompBench",
        (
            Wanted("blip_vqa", "Colour", "color"),
            Wanted("blip_vqa", "Shape", "shape"),
            Wanted("blip_vqa", "Texture", "texture"),
            Wanted("spatial", "Spatial", "spatial"),
            Wanted("non_spatial", "Non-spatial", "non-spatial", percent=True),
            Wanted("three_in_one", "Complex", "complex", percent=True),
        ),
        note="Each category has its own judge: BLIP-VQA for colour, shape and texture, an object detector for spatial, "
        "a cosine of CLIP for non-spatial, the mean of the three for complex. Numbers of two columns are on different "
        "scales.",
    ),
    Benchmark(
        "dense-prompts",
        "DensePrompts",
        _DENSE,
        note="CLIP reads 77 tokens; the share of prompts that it cuts off stands in the table. Judges of the whole "
        "text stand beside it.",
    ),
    Benchmark(
        "coco",
        "MS-COCO",
        (Wanted("clip_score", "CLIP score"),),
        ("fid", "inception_score"),
    ),
    Benchmark(
        "dpg-bench",
        "DPG-Bench",
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
        (
            Wanted("geneval", "Overall", macro=True),
            Wanted("geneval", "Single object", "single_object"),
            Wanted("geneval", "Two objects", "two_object"),
            Wanted("geneval", "Counting", "counting"),
            Wanted("geneval", "Colours", "colors"),
            Wanted("geneval", "Position", "position"),
            Wanted("geneval", "Colour attribution", "color_attr"),
        ),
        categories=6,
        note="Overall is the mean of the task means, as the official script has it, not the mean over images.",
    ),
    Benchmark(
        "miniature",
        "Miniature world",
        (
            Wanted("miniature", "Two objects: what is asked for", "color"),
            Wanted("miniature", "Complex: what is asked for", "complex"),
            Wanted("miniature", "Dense: what is asked for", "dense"),
            Wanted("miniature", "Dense: words", "dense", part="words"),
            Wanted("miniature", "Dense: binding", "dense", part="binding"),
        ),
        note="Small models on a synthetic world of small pictures, judged exactly: no statement about SD1.5 or SDXL.",
    ),
)


def find_benchmark(name: str) -> Benchmark:
    """By the name that a set of images gives; another name, or none, makes a benchmark without official columns."""
    known = {benchmark.key: benchmark for benchmark in BENCHMARKS}
    return known.get(name) or Benchmark(name or "own-prompts", name or "Prompts of one's own")
