"""Registry of benchmarks and metrics: one record for each, read by the commands, the scorer and the report."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm4gen_core import LLM4GENError

from . import sources
from .image_set import Prompt, check_prompts, read_prompts

if TYPE_CHECKING:
    from .metrics.base import ImageMetric, SetMetric
    from .models import AnyFiles

PRESETS = ("paper", "bench-official")


@dataclass(frozen=True)
class MetricEntry:
    """Entry of one metric in the registry.

    Attributes:
        name: key in commands and in files of scores.
        title: name that tables show.
        loads: class as "module:class", a subclass of `ImageMetric` or `SetMetric`; imported when it is used.
        lower_is_better: direction of all numbers of the metric.
        also: further numbers that the same class computes: key -> title.
    """

    name: str
    title: str
    loads: str
    lower_is_better: bool = False
    also: Mapping[str, str] = field(default_factory=dict)

    def load_class(self) -> type[ImageMetric] | type[SetMetric]:
        """Import the class."""
        found: type[ImageMetric] | type[SetMetric] = pkgutil.resolve_name(self.loads)
        return found


METRICS = {
    metric.name: metric
    for metric in (
        MetricEntry("clip_score", "CLIP score", "evaluation.metrics.clip:ClipScore"),
        MetricEntry("long_clip_score", "Long-CLIP score", "evaluation.metrics.clip:LongClipScore"),
        MetricEntry("non_spatial", "Non-spatial", "evaluation.metrics.clip:NonSpatial"),
        MetricEntry("aesthetic", "Aesthetic score", "evaluation.metrics.clip:Aesthetic"),
        MetricEntry("vqa_score", "VQAScore", "evaluation.metrics.questions:VQAScore"),
        MetricEntry("blip_vqa", "BLIP-VQA", "evaluation.metrics.questions:BlipVQA"),
        MetricEntry("spatial", "Spatial", "evaluation.metrics.spatial:Spatial"),
        MetricEntry("three_in_one", "3-in-1", "evaluation.metrics.three_in_one:ThreeInOne"),
        MetricEntry("dpg", "DPG", "evaluation.metrics.questions:DPG"),
        MetricEntry("geneval", "GenEval", "evaluation.metrics.geneval:GenEval"),
        MetricEntry("fid", "FID", "evaluation.metrics.fid:FID", lower_is_better=True, also={"kid": "KID"}),
        MetricEntry("inception_score", "Inception score", "evaluation.metrics.fid:InceptionScore"),
        MetricEntry("miniature", "Requested content present", "miniature.benchmark:MiniatureJudge"),
    )
}
"""Metrics by name."""


@dataclass(frozen=True)
class Column:
    """One column of a benchmark's official table.

    Attributes:
        metric: key of `METRICS`.
        title: title of the column.
        category: category of the prompts; "" for all of them.
        part: which number of the metric; "a.b" is key b of the object a.
        group: group of the questions that the metric asks; "" for the score.
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
class Preset:
    """Settings that the images of a benchmark are generated with.

    Attributes:
        title: where the settings come from.
        seeds: seeds of the image set, one image each for every prompt; see `image_set.noise_seed`.
        steps, guidance: number of sampling steps and scale of classifier-free guidance.
        sampler: "ddim", or "" for the model's own.
        differs: sentences for the report on what is not as in the official protocol.
    """

    title: str
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    sampler: str
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: prompts, settings of the images, metrics, and columns of the report.

    Attributes:
        name: key in commands and in image sets.
        title: name that tables show.
        metrics: keys of `METRICS`, each of which applies to some of the prompts; () where the user has to choose.
        columns: columns of the official table. Metrics of whole sets have a table of their own.
        read: reads the prompts from the file or folder that the user passes; None if there is none to pass.
        get: what to download and what to pass, the second half of a sentence.
        shipped: returns prompts that come with the project, given how many of each category are requested.
        categories: all categories of the prompts, for errors; () if they are those that the prompts have.
        official: settings of the official scripts; None if there are none.
        paper: settings of the preset "paper" if they are not those of LLM4GEN's paper.
        models: returns the models that come with the project, name -> files, the baseline first.
        official_categories: number of categories that an official overall score is over; 0 where it does not matter.
        note: what a reader of the report should know about the official protocol.
    """

    name: str
    title: str
    metrics: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    read: Callable[[Path], list[Prompt]] | None = None
    get: str = ""
    shipped: Callable[[int | None], list[Prompt]] | None = None
    categories: tuple[str, ...] = ()
    official: Preset | None = None
    paper: Preset | None = None
    models: Callable[[], dict[str, AnyFiles]] | None = None
    official_categories: int = 0
    note: str = ""

    def preset(self, name: str) -> Preset:
        """Settings of a preset.

        "paper" is LLM4GEN's: DDIM, 50 steps, guidance 7.5 ("Framework and Implementation Details"). The paper gives
        neither its seeds nor its number of images per prompt; both are those of the official scripts, and a single
        image with seed 0 where there are none.

        Args:
            name: one of `PRESETS`.

        Raises:
            LLM4GENError: there is no such preset, or the benchmark has no official settings.
        """
        if name not in PRESETS:
            raise LLM4GENError(f"Preset {name!r} is not known; expected {' or '.join(PRESETS)}.")
        if name == "bench-official":
            if self.official is None:
                having = [key for key in BENCHMARKS if find_benchmark(key).official is not None]
                raise LLM4GENError(
                    f"{self.title} has no official settings, so there is no preset bench-official for it; use the "
                    f"preset paper, or one of the benchmarks {', '.join(having)}."
                )
            return self.official
        return self.paper or Preset(
            "LLM4GEN's paper: DDIM, 50 steps, guidance 7.5",
            self.official.seeds if self.official else (0,),
            50,
            7.5,
            "ddim",
            (
                "The paper gives neither its seeds nor its number of images per prompt; here they are those of the "
                "benchmark.",
            ),
        )

    def prompts(
        self, path: str | None = None, categories: Sequence[str] = (), count: int | None = None
    ) -> list[Prompt]:
        """Load the prompts.

        Args:
            path: file or folder that the user downloaded; `get` says which. None for prompts that come with the
                project.
            categories: only these; () for all.
            count: only the first `count` prompts of each category; None for all. A part does not compare with
                published numbers, except for MS-COCO, where 30,000 are usual.

        Raises:
            LLM4GENError: something is missing (the message says what to download and where from) or damaged.
        """
        what = self.title if path is None else f"{self.title} ({path})"
        if path is None and self.shipped is not None:
            found = self.shipped(count)
        elif path is None:
            raise LLM4GENError(f"{what} needs its prompts (--prompts): {self.get}.")
        elif self.read is None:
            raise LLM4GENError(f"{what} comes with its prompts; leave --prompts out.")
        else:
            try:
                found = check_prompts(self.read(Path(path)), what)
            except LLM4GENError as error:
                raise LLM4GENError(f"{error} For {self.name}, {self.get}.") from error
        known = self.categories or tuple(dict.fromkeys(prompt.category for prompt in found))
        if unknown := [name for name in categories if name not in known]:
            raise LLM4GENError(
                f"{what} has no category {unknown[0]!r}; expected some of {', '.join(filter(None, known)) or 'none'}."
            )
        chosen: list[Prompt] = []
        seen: Counter[str] = Counter()
        for prompt in found:
            if not categories or prompt.category in categories:
                seen[prompt.category] += 1
                if count is None or seen[prompt.category] <= count:
                    chosen.append(prompt)
        for category, number in seen.items():
            if count is not None and not 1 <= count <= number:
                where = f" of category {category!r}" if category else ""
                raise LLM4GENError(
                    f"{what} has {number:,} prompts{where}, but {count:,} were requested; request 1 to {number:,}, or "
                    "all."
                )
        return chosen


def find_metric(name: str) -> MetricEntry:
    """Return the metric of that name; raise LLM4GENError if there is none."""
    if name not in METRICS:
        raise LLM4GENError(f"Metric {name!r} is not known; expected one of {', '.join(METRICS)}.")
    return METRICS[name]


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name; raise LLM4GENError if there is none."""
    if name not in BENCHMARKS:
        raise LLM4GENError(f"Benchmark {name!r} is not known; expected one of {', '.join(BENCHMARKS)}.")
    found = BENCHMARKS[name]
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def benchmark_of(name: str) -> Benchmark:
    """Return the benchmark that an image set names; one without metrics and columns for the user's own prompts."""
    return find_benchmark(name) if name in BENCHMARKS else Benchmark(name or "own-prompts", name or "Own prompts")


def _shipped_dense_prompts(count: int | None) -> list[Prompt]:
    from .dense import shipped_prompts

    return shipped_prompts()


_JSONL_GET = "pass a JSONL file with id, text and optionally category and about in each line"
_NOISE = (
    "Noise is sampled on the CPU in float32, as ComfyUI does; the official script samples it on the GPU. The same seed "
    "gives another image, so only means over many prompts compare."
)
_COMPBENCH_GET = (
    "clone https://github.com/Karine-Huang/T2I-CompBench (MIT) and pass the clone, or its examples/dataset with "
    "{color,shape,texture,spatial,non_spatial,complex}_val.txt and complex_val_{spatial,action}.txt"
)
_COMPBENCH_OFFICIAL = Preset(
    "T2I-CompBench's script",
    tuple(range(42, 52)),
    30,
    7.5,
    "ddim",
    (
        _NOISE,
        "The official script uses SD2-base; here it is the model that is measured.",
        "A base or an adapter of this project is sampled as ComfyUI's ddim_uniform, which takes 31 steps for 30; a "
        "diffusers pipeline takes 30.",
    ),
)
_GENEVAL_OFFICIAL = Preset(
    "GenEval's script",
    (42, 43, 44, 45),
    50,
    9.0,
    "",
    (
        _NOISE,
        "The official script seeds one generator with 42 for each prompt and samples the noise of its four images from "
        "it in turn; here each image has its own seed, 42 to 45, the same four for every prompt.",
        "The official script uses the sampler that the model comes with (PNDM for SD1.5); a base or an adapter of this "
        "project is sampled with DDIM.",
    ),
)
_DPG_OFFICIAL = Preset(
    "DPG-Bench: four images per prompt",
    (0, 1, 2, 3),
    50,
    7.5,
    "",
    (
        "DPG-Bench asks for four images per prompt and leaves seeds, sampler, steps and guidance open; 0 to 3, 50 and "
        "7.5 are chosen here.",
        "Its script scores the four as a 2 x 2 grid that it cuts apart; here they are four images.",
    ),
)
_COCO_OFFICIAL = Preset(
    "MS-COCO: one image per caption, seed = caption id",
    (0,),
    50,
    7.5,
    "ddim",
    (
        "There are no official settings for MS-COCO captions; papers give neither their captions nor their seeds. One "
        "image per caption with the caption's id as its seed, 50 steps and guidance 7.5 are chosen here.",
    ),
)

BENCHMARKS: dict[str, Benchmark | str] = {
    "t2i-compbench": Benchmark(
        "t2i-compbench",
        "T2I-CompBench",
        ("blip_vqa", "spatial", "non_spatial", "three_in_one"),
        (
            Column("blip_vqa", "Colour", "color"),
            Column("blip_vqa", "Shape", "shape"),
            Column("blip_vqa", "Texture", "texture"),
            Column("spatial", "Spatial", "spatial"),
            Column("non_spatial", "Non-spatial", "non-spatial", percent=True),
            Column("three_in_one", "Complex", "complex", percent=True),
        ),
        read=sources.read_compbench,
        get=_COMPBENCH_GET,
        categories=sources.COMPBENCH_CATEGORIES,
        official=_COMPBENCH_OFFICIAL,
        note="Each category has its own metric: BLIP-VQA for colour, shape and texture, a detector for spatial, "
        "CLIP cosine similarity for non-spatial, the mean of the three for complex. Columns are on different scales.",
    ),
    "t2i-compbench++": Benchmark(
        "t2i-compbench++",
        "T2I-CompBench++",
        read=partial(sources.read_compbench, categories=sources.COMPBENCH_PLUS_CATEGORIES),
        get=f"{_COMPBENCH_GET}, and 3d_spatial_val.txt and numeracy_val.txt beside them",
        categories=sources.COMPBENCH_PLUS_CATEGORIES,
        official=replace(_COMPBENCH_OFFICIAL, title="T2I-CompBench++'s script"),
    ),
    "dense-prompts": Benchmark(
        "dense-prompts",
        "DensePrompts",
        ("clip_score", "long_clip_score", "aesthetic", "vqa_score"),
        (
            Column("clip_score", "CLIP score"),
            Column("aesthetic", "Aesthetic score"),
            Column("long_clip_score", "Long-CLIP score"),
            Column("vqa_score", "VQAScore"),
        ),
        read=read_prompts,
        get=_JSONL_GET,
        shipped=_shipped_dense_prompts,
        note="CLIP reads 77 tokens; the table shows how many prompts it truncates. Metrics of the whole text stand "
        "beside it.",
    ),
    "coco": Benchmark(
        "coco",
        "MS-COCO",
        ("fid", "inception_score", "clip_score"),
        (Column("clip_score", "CLIP score"),),
        read=sources.read_coco,
        get="download http://images.cocodataset.org/annotations/annotations_trainval2014.zip (CC BY 4.0), unpack it, "
        "and pass annotations/captions_val2014.json (real images for FID: "
        "http://images.cocodataset.org/zips/val2014.zip)",
        official=_COCO_OFFICIAL,
    ),
    "dpg-bench": Benchmark(
        "dpg-bench",
        "DPG-Bench",
        ("dpg",),
        (
            Column("dpg", "Overall"),
            *(
                Column("dpg", name, group=name.lower())
                for name in ("Global", "Entity", "Attribute", "Relation", "Other")
            ),
        ),
        read=sources.read_dpg,
        get="clone https://github.com/TencentQQGYLab/ELLA (Apache-2.0) and pass its dpg_bench, with dpg_bench.csv and "
        "prompts/*.txt",
        official=_DPG_OFFICIAL,
        note="Overall is the mean over images of the share of their questions that count. A category pools the answers "
        "to its questions, before dependencies are applied; the official script does so for one of four images.",
    ),
    "geneval": Benchmark(
        "geneval",
        "GenEval",
        ("geneval",),
        (
            Column("geneval", "Overall", macro=True),
            Column("geneval", "Single object", "single_object"),
            Column("geneval", "Two objects", "two_object"),
            Column("geneval", "Counting", "counting"),
            Column("geneval", "Colours", "colors"),
            Column("geneval", "Position", "position"),
            Column("geneval", "Colour attribution", "color_attr"),
        ),
        read=sources.read_geneval,
        get="clone https://github.com/djghosh13/geneval (MIT) and pass the clone, or its "
        "prompts/evaluation_metadata.jsonl",
        categories=tuple(sources.GENEVAL_TASKS),
        official=_GENEVAL_OFFICIAL,
        official_categories=6,
        note="Overall is the mean of the task means, as in the official script, not the mean over images.",
    ),
    "parti": Benchmark(
        "parti",
        "PartiPrompts",
        read=sources.read_parti,
        get="download https://github.com/google-research/parti/blob/main/PartiPrompts.tsv (the raw file; Apache-2.0) "
        "and pass it",
    ),
    "text": Benchmark("text", "Prompts", read=sources.read_lines, get="pass a text file with one prompt per line"),
    "jsonl": Benchmark("jsonl", "Prompts", read=read_prompts, get=_JSONL_GET),
    "miniature": "miniature.benchmark:BENCHMARK",
}
"""Benchmarks by name. A string is "module:object", imported when it is used."""
