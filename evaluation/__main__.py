"""`python -m evaluation`. Torch and the rest load inside the command that needs them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm4gen_diffusers.command_line import Parser, quiet_libraries, run_command

if TYPE_CHECKING:
    from .benchmarks import Benchmark
    from .metrics.base import Context


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m evaluation",
        description="The paper's benchmarks for LLM4GEN, its base models, any other diffusers pipeline and any ComfyUI "
        "workflow. Everything is read from this machine; nothing is ever downloaded.",
        epilog="Try it on a CPU: python -m evaluation run miniature results",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "run",
        help="a whole benchmark: generate, score, report",
        description="Generate the images of a benchmark with one or several models, score them by its metrics, and "
        "write the report. Existing images and scores are kept, so the same command continues after Ctrl-C, a crash or "
        "a kill. With several GPUs: accelerate launch -m evaluation run ...",
        epilog="example: python -m evaluation run t2i-compbench results --prompts T2I-CompBench/examples/dataset "
        "--models models.yaml --judges judges",
        configured_by=_run_arguments,
    )
    commands.add_parser(
        "generate",
        help="generate the images of a prompt set with one model",
        description="Generate an image of every prompt with every seed, as PNG files with a manifest of their "
        "settings. Existing images are not generated again. With several GPUs: accelerate launch -m evaluation "
        "generate ...",
        epilog="example: python -m evaluation generate sets/sd15 --benchmark dense-prompts --base models/sd15",
        configured_by=_generate_arguments,
    )
    commands.add_parser(
        "score",
        help="score image sets",
        description="Score the images of one or several sets. Judges are models in folders of this machine; a missing "
        "one is named with its source. Images that the same judge has scored are not scored again.",
        epilog="example: python -m evaluation score sets/sd15 sets/llm4gen --metrics clip_score aesthetic "
        "--judges judges",
        configured_by=_score_arguments,
    )
    commands.add_parser(
        "report",
        help="tables, intervals, paired tests and samples of scored sets",
        description="Write one page and one JSON file about scored image sets; the first is the baseline.",
        epilog="example: python -m evaluation report sets/sd15 sets/llm4gen --output report",
        configured_by="evaluation.report.write",
    )
    commands.add_parser(
        "judges",
        help="judge models of the metrics, and which of them are there",
        description="List the judge models: which metric needs which, whether it is there, and where to download it, "
        "with its size and licence.",
        epilog="example: python -m evaluation judges t2i-compbench --judges judges",
        configured_by=_judges_arguments,
    )
    commands.add_parser(
        "dense",
        help="DensePrompts: build another set, statistics of any set",
        description="Dense prompts: the paper's way to build a prompt set from images, and statistics of any prompt "
        "set. The shipped set needs no command: it is the benchmark dense-prompts.",
        configured_by="evaluation.dense.command",
    )
    commands.add_parser(
        "vote",
        help="a user study: blind votes on pairs of images, in the browser",
        description="Let people vote blindly which of two images looks better and which shows its text better.",
        configured_by="evaluation.vote.command",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `run_command`."""
    return run_command(build_parser, "evaluation", arguments)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    from .benchmarks import BENCHMARKS

    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("output", metavar="DIR", help="folder for an image set of each model, and the report")
    parser.add_argument(
        "--models",
        metavar="FILE",
        help="YAML file, NAME: {base: ..., adapter: ..., llm: ...} for each model; the first is the baseline. Fields "
        "are those of ModelFiles, PipelineFiles and WorkflowFiles in evaluation/models.py (default: the models that "
        "come with the benchmark; only the miniature has some)",
    )
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="metrics in place of the benchmark's")
    _add_prompts(parser)
    _add_judges(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError

    from .benchmarks import find_benchmark
    from .generate import generate
    from .image_set import process_device, process_state
    from .models import open_model, read_models
    from .report.write import write_report
    from .score import check_metrics, score

    benchmark = find_benchmark(args.benchmark)
    if args.models is not None:
        models = read_models(Path(args.models))
    elif benchmark.models is not None:
        models = benchmark.models()
    else:
        raise LLM4GENError(
            f"{benchmark.title} needs models to measure; pass a YAML file of them (--models): SD1.5: {{base: "
            "models/sd15}."
        )
    folders = {
        name: Path(args.output) / (re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model") for name in models
    }
    if len({*folders.values()}) < len(folders):
        raise LLM4GENError(f"Models {', '.join(folders)} would share a folder; give them names that differ in letters.")
    metrics = _metrics(benchmark, args)
    context = _context(args)
    check_metrics(metrics, context)
    settings, images_of = _settings(benchmark, args)
    quiet_libraries()
    sets = [
        generate(
            folders[name],
            name,
            open_model(files, settings, process_device(args.device)),
            benchmark=benchmark.name,
            **images_of,
        )
        for name, files in models.items()
    ]
    for images in sets:
        score(images, metrics, context, args.score_batch)
    if process_state().is_main_process:
        write_report([images.path for images in sets], Path(args.output) / "report")


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    from llm4gen_diffusers.options import add_arguments

    from .benchmarks import BENCHMARKS
    from .models import ModelFiles, PipelineFiles, WorkflowFiles

    parser.add_argument("output", metavar="DIR", help="folder of the image set; existing images are kept")
    parser.add_argument("--name", help="name of the model in tables (default: that of the folder)")
    parser.add_argument(
        "--benchmark", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: own prompts, see --prompts)"
    )
    _add_prompts(parser)
    add_arguments(parser.add_argument_group("base model, alone or with LLM4GEN"), ModelFiles, require=False)
    shared = ("dtype", "batch")
    add_arguments(parser.add_argument_group("or diffusers pipeline"), PipelineFiles, shared, require=False)
    add_arguments(parser.add_argument_group("or ComfyUI workflow"), WorkflowFiles, require=False)
    _add_device(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError

    from .benchmarks import find_benchmark
    from .generate import generate
    from .image_set import process_device
    from .models import ModelFiles, PipelineFiles, WorkflowFiles, model_files, open_model

    if args.benchmark is None and args.prompts is None:
        raise LLM4GENError("There are no prompts; pass a benchmark (--benchmark) or a file of your own (--prompts).")
    fields = {*ModelFiles.model_fields, *PipelineFiles.model_fields, *WorkflowFiles.model_fields}
    files = model_files("Model", {key: value for key in fields if (value := getattr(args, key)) is not None})
    own = "jsonl" if (args.prompts or "").endswith(".jsonl") else "text"
    settings, images_of = _settings(find_benchmark(args.benchmark or own), args)
    quiet_libraries()
    model = open_model(files, settings, process_device(args.device))
    name = args.name or Path(args.output).resolve().name
    images = generate(args.output, name, model, benchmark=args.benchmark or "", **images_of)
    print(f"{images.path}: {len(images.rows())} images")


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    from .benchmarks import METRICS

    parser.add_argument("sets", nargs="+", metavar="SET", help="folders of `generate`")
    parser.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help=f"{', '.join(METRICS)} (default: those of the set's benchmark)"
    )
    _add_judges(parser)
    parser.set_defaults(run=_score)


def _score(args: argparse.Namespace) -> None:
    from .benchmarks import benchmark_of
    from .image_set import ImageSet
    from .score import check_metrics, score

    quiet_libraries()
    sets = [ImageSet(path) for path in args.sets]
    metrics = [_metrics(benchmark_of(images.settings.benchmark), args) for images in sets]
    context = _context(args)
    check_metrics({name for names in metrics for name in names}, context)
    for images, names in zip(sets, metrics, strict=True):
        score(images, names, context, args.score_batch)


def _metrics(benchmark: Benchmark, args: argparse.Namespace) -> Sequence[str]:
    from llm4gen_core import LLM4GENError

    metrics: Sequence[str] = args.metrics or benchmark.metrics
    if not metrics:
        raise LLM4GENError(f"{benchmark.title} has no metrics of its own; choose some (--metrics).")
    return metrics


def _judges_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="only judges of these (default: all)")
    parser.add_argument("--judges", default="judges", metavar="DIR", help="folder of the judges (default: %(default)s)")
    parser.set_defaults(run=_judges)


def _judges(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError

    from .benchmarks import BENCHMARKS, find_benchmark, find_metric
    from .metrics.base import Context, Judge

    needed: dict[Judge, list[str]] = {}
    metrics = [name for key in args.benchmarks or BENCHMARKS for name in find_benchmark(key).metrics]
    for name in dict.fromkeys(metrics):
        for judge in find_metric(name).load_class().judges_needed:
            needed.setdefault(judge, []).append(name)
    if not needed:
        print("No judge is needed.")
    for judge, users in needed.items():
        try:
            state = f"there: {Context(Path(args.judges)).folder(judge)}"
        except LLM4GENError as error:
            state = str(error)
        print(f"{', '.join(users)}\n    {state}")


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `_settings`: which prompts, and how their images are generated."""
    from llm4gen_diffusers.options import GenerationOptions, add_arguments

    from .benchmarks import PRESETS

    parser.add_argument(
        "--prompts",
        metavar="PATH",
        help="downloaded files of the benchmark; without one, a JSONL file of prompts, or a text file with one prompt "
        "per line",
    )
    parser.add_argument("--categories", nargs="+", default=[], metavar="NAME", help="only these categories")
    parser.add_argument(
        "--count", type=int, metavar="N", help="only the first N prompts of each category; not comparable to the whole"
    )
    group = parser.add_argument_group("generation (default: the preset's values)")
    group.add_argument(
        "--preset",
        choices=PRESETS,
        default=PRESETS[0],
        help="paper: DDIM, 50 steps, guidance 7.5; bench-official: settings of the benchmark's own scripts (default: "
        "paper)",
    )
    group.add_argument("--seeds", type=_seeds, metavar="LIST", help="an image each, such as 42-51 or 0,7")
    add_arguments(group, GenerationOptions, defaults=False)


def _settings(benchmark: Benchmark, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Options for `open_model`, and prompts, seeds and notes for `generate`, from the arguments of `_add_prompts`.

    Raises:
        LLM4GENError: a value is impossible, or prompts are missing.
    """
    from llm4gen_diffusers.options import GenerationOptions, options_from

    from .models import PresetOptions

    preset = benchmark.preset(args.preset)
    given = {name: value for name in GenerationOptions.model_fields if (value := getattr(args, name)) is not None}
    changed = [f"{name} {value}" for name, value in {**given, "seeds": args.seeds}.items() if value is not None]
    notes = [f"Settings: {preset.title}.", *preset.differs]
    if changed:
        notes.append(f"Changed: {', '.join(changed)}.")
    values = {"steps": preset.steps, "guidance": preset.guidance, "sampler": preset.sampler, "notes": notes, **given}
    return options_from(PresetOptions, values), {
        "prompts": benchmark.prompts(args.prompts, args.categories, args.count),
        "seeds": args.seeds or preset.seeds,
        "notes": [] if args.count is None else [f"Only the first {args.count} prompts of each category."],
    }


def _seeds(text: str) -> list[int]:
    """ "42-44,7" is 42, 43, 44 and 7."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise argparse.ArgumentTypeError(f"{part!r} is neither a seed nor a range such as 42-51")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len({*seeds}) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} has no seed, or one twice")
    return seeds


def _add_judges(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `_context`, and the batch of `score`."""
    parser.add_argument(
        "--judges", default="judges", metavar="DIR", help="folder with a folder for each judge (default: %(default)s)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of metrics, repeatable: reference=FOLDER of real images for FID, dtype=float32, or JUDGE=FOLDER "
        "for another model in place of a judge",
    )
    parser.add_argument("--score-batch", type=int, default=8, metavar="N", help="images scored at once (default: 8)")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")


def _context(args: argparse.Namespace) -> Context:
    """`Context` from the arguments of `_add_judges`.

    Raises:
        LLM4GENError: an option is not NAME=VALUE, or the device does not exist.
    """
    from llm4gen_core import LLM4GENError

    from .image_set import process_device
    from .metrics.base import Context

    options: dict[str, str] = {}
    for text in args.option:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise LLM4GENError(f"Option {text!r} is not NAME=VALUE; expected for example reference=coco/val2014.")
        options[name] = value
    return Context(Path(args.judges), process_device(args.device), options)


if __name__ == "__main__":
    sys.exit(main())
