"""`python -m evaluation run`: a whole benchmark, from prompts to the report."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from llm4gen_core import LLM4GENError

from .generate_command import add_prompts, prompts_and_options
from .score_command import add_judges, context


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("benchmark", help="miniature, t2i-compbench, dense-prompts, coco, dpg-bench or geneval")
    parser.add_argument("output", metavar="DIR", help="folder for a set of images of each model, and the report")
    parser.add_argument(
        "--models",
        metavar="FILE",
        help="YAML, NAME: {base: ..., adapter: ..., llm: ...} for each model; the first is the baseline. The miniature "
        "has its own. All fields are described in evaluation/model_files.py",
    )
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="in place of the benchmark's")
    add_prompts(parser)
    add_judges(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from llm4gen_diffusers.command_line import quiet_libraries

    from .benchmarks import find_benchmark
    from .generate import generate
    from .model_files import read_models
    from .processes import process_state
    from .report.command import write_report
    from .score import check_metrics, score

    benchmark = find_benchmark(args.benchmark)
    if args.models is None and benchmark.models is None:
        raise LLM4GENError(
            f"{benchmark.title} needs models to measure; give a YAML file with them (--models): "
            "SD1.5: {base: models/sd15}."
        )
    models = read_models(Path(args.models)) if args.models or not benchmark.models else benchmark.models()
    folders = {name: Path(args.output) / _folder_name(name) for name in models}
    if len({*folders.values()}) < len(folders):
        raise LLM4GENError(f"Models {', '.join(folders)} would share a folder; give them names that differ in letters.")
    metrics = args.metrics or benchmark.metrics
    judging = context(args)
    check_metrics(metrics, judging)
    asked = prompts_and_options(benchmark.name, args)
    quiet_libraries()
    sets = [
        generate(folders[name], name, files, benchmark=benchmark.name, device=args.device, **asked)
        for name, files in models.items()
    ]
    for images in sets:
        score(images, metrics, judging, args.score_batch)
    if process_state().is_main_process:
        write_report([images.path for images in sets], Path(args.output) / "report")


def _folder_name(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"
