"""`python -m evaluation score`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .benchmarks import METRICS

if TYPE_CHECKING:
    from .metrics.base import Context


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`."""
    parser.add_argument("sets", nargs="+", metavar="SET", help="folders that `generate` has made")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"by default those of the set's benchmark. Known are {', '.join(METRICS)}",
    )
    add_judges(parser)
    parser.set_defaults(run=_score)


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Add what `score` and `run` have in common; `context` reads it."""
    parser.add_argument(
        "--judges", default="judges", metavar="DIR", help="folder with a folder for each judge (default: %(default)s)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of metrics, repeatable: reference=FOLDER of real images for FID, dtype=float32, or JUDGE=FOLDER for "
        "another model in a judge's place",
    )
    parser.add_argument("--score-batch", type=int, default=8, metavar="N", help="images judged at once (default: 8)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")


def context(args: argparse.Namespace) -> Context:
    """`Context` of the arguments that `add_judges` added.

    Raises:
        LLM4GENError: an option is not NAME=VALUE, or the device is not there.
    """
    from llm4gen_core import LLM4GENError
    from llm4gen_diffusers.devices import choose_device

    from .metrics.base import Context
    from .processes import process_state

    options: dict[str, str] = {}
    for text in args.option:
        name, is_there, value = text.partition("=")
        if not is_there or not name:
            raise LLM4GENError(f"Option {text!r} is not NAME=VALUE; expected such as reference=coco/val2014.")
        options[name] = value
    state = process_state()
    device = args.device or (str(state.device) if state.num_processes > 1 else None)
    return Context(Path(args.judges), str(choose_device(device)), options)


def _score(args: argparse.Namespace) -> None:
    from llm4gen_diffusers.command_line import quiet_libraries

    from .benchmarks import benchmark_of
    from .image_set import ImageSet
    from .score import check_metrics, score

    quiet_libraries()
    sets = [ImageSet(path) for path in args.sets]
    wanted = [args.metrics or benchmark_of(images.settings.benchmark).metrics for images in sets]
    about = context(args)
    check_metrics({name for names in wanted for name in names}, about)
    for images, names in zip(sets, wanted, strict=True):
        score(images, names, about, args.score_batch)
