"""`python -m evaluation judges`: what the metrics need, what of it is there, and where the rest comes from."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `judges`."""
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="only what these need (default: all)")
    parser.add_argument("--judges", default="judges", metavar="DIR", help="folder of the judges (default: %(default)s)")
    parser.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError

    from .benchmarks import BENCHMARKS, find_benchmark, find_metric
    from .judges import Judge, judge_folder

    needed: dict[Judge, list[str]] = {}
    for benchmark in map(find_benchmark, args.benchmarks or BENCHMARKS):
        for metric in benchmark.metrics:
            for judge in find_metric(metric).load_class().judges_needed:
                users = needed.setdefault(judge, [])
                users += [metric] * (metric not in users)
    if not needed:
        print("No judge is needed.")
    for judge, metrics in needed.items():
        try:
            state = f"there: {judge_folder(Path(args.judges), judge)}"
        except LLM4GENError as error:
            state = str(error)
        print(f"{', '.join(metrics)}\n    {state}")
