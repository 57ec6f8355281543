"""`python -m miniature reproduce`: the paper's claims on the miniature world, from nothing to the report."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .variants import CORE, EXPERIMENTS, VARIANTS, find_variant

if TYPE_CHECKING:
    from .experiment import Reproduction

QUICK_VARIANTS = ("no_regularisation", "llm4gen")
Task = tuple[str, int]
"""Name of a variant, and a training seed."""


def tasks(experiments: Sequence[str], seeds: int, everywhere: bool) -> list[Task]:
    """List variants and seeds, the most important first.

    Args:
        experiments: keys of `EXPERIMENTS`.
        seeds: number of training seeds.
        everywhere: all variants have so many seeds; otherwise those outside of `CORE` have one.

    Returns:
        The core with all of its seeds, then the first seed of the others, then their further ones.
    """
    names = [one.name for one in VARIANTS.values() if one.experiment in experiments]
    found = [(name, seed) for seed in range(seeds) for name in names if name in CORE]
    return found + [(name, s) for s in range(seeds if everywhere else 1) for name in names if name not in CORE]


def run_tasks(reproduction: Reproduction, wanted: Sequence[Task], jobs: int) -> None:
    """Run each task in a process of its own, several at once; one that fails does not stop the others.

    Raises:
        LLM4GENError: some failed; names the files with the reasons.
        SystemExit: SIGINT or SIGTERM was received, and all training runs have ended.
    """
    from llm4gen_core import LLM4GENError
    from train.loop import Interrupt

    logs = reproduction.folder / "logs"
    logs.mkdir(exist_ok=True)
    waiting = [task for task in wanted if not reproduction.is_done(find_variant(task[0]), task[1])]
    if len(waiting) < len(wanted):
        print(f"{len(wanted) - len(waiting)} of {len(wanted)} variants are done already.", flush=True)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: list[str] = []
    with Interrupt("Stopping: training runs write their checkpoints; the same command continues them.") as interrupt:
        while running or (waiting and not interrupt.requested):
            while waiting and len(running) < jobs and not interrupt.requested:
                name, seed = waiting.pop(0)
                log = logs / f"{name}-{seed}.log"
                running[log.stem] = (_start(log, reproduction.folder, (name, seed), jobs), time.monotonic())
            time.sleep(0.2)
            for name, (process, started) in list(running.items()):
                if interrupt.signal == "SIGTERM":  # Ctrl-C reaches the processes by itself
                    process.terminate()
                if process.poll() is not None:
                    del running[name]
                    ended = "done" if process.returncode == 0 else "STOPPED" if interrupt.requested else "FAILED"
                    left = f"{len(waiting) + len(running)} left"
                    print(f"{name}: {ended} after {time.monotonic() - started:.0f} s, {left}", flush=True)
                    failed += [str(logs / f"{name}.log")] * bool(process.returncode)
    if interrupt.signal:
        raise SystemExit(128 + signal.Signals[interrupt.signal])
    if failed:
        raise LLM4GENError(
            f"{len(failed)} of {len(wanted)} variants failed; the reasons are at the ends of {', '.join(failed)}. The "
            "same command continues them."
        )


def _start(log: Path, folder: Path, task: Task, jobs: int) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "miniature", "reproduce", str(folder), "--task", f"{task[0]}:{task[1]}"]
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, cwd=Path(__file__).parents[1], env=variables)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command and the function that runs it."""
    parser.add_argument("folder", metavar="DIR", help="folder for everything; the same command continues it")
    parser.add_argument(
        "--experiment",
        action="append",
        choices=(*EXPERIMENTS, "all"),
        help=f"what to compare; may be repeated: {', '.join(f'{n} ({t})' for n, t in EXPERIMENTS.items())}; or all "
        "(default: core)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of the core (default: %(default)s)")
    parser.add_argument(
        "--seeds-everywhere", action="store_true", help="as many for all variants; without a GPU the others have one"
    )
    parser.add_argument("--jobs", type=int, help="training runs at once (default: 8, or the number of cores if less)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes and two variants, to see in minutes that everything runs"
    )
    parser.add_argument("--ship", metavar="TARGET", help="copy the models that the demo uses, and train nothing")
    parser.add_argument("--report", action="store_true", help="write the report of what is there, and train nothing")
    parser.add_argument("--task", metavar="VARIANT:SEED", help="one variant and seed alone, in a folder already begun")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    import torch

    from llm4gen_core import LLM4GENError
    from llm4gen_diffusers.command_line import quiet_libraries

    from .experiment import QUICK, Reproduction, Scale, ship
    from .report import write_report

    quiet_libraries()
    folder = Path(args.folder).absolute()
    if (folder / "results.jsonl").is_file():
        print("results.jsonl of a former version is not read any more; missing images are generated again.", flush=True)
    if args.report:
        if not folder.is_dir():
            raise LLM4GENError(f"{folder} does not exist; expected the folder of a reproduction.")
        print(write_report(folder))
        return
    if args.ship is not None:
        print(ship(Reproduction(folder), Path(args.ship).absolute()))
        return
    if args.task is not None:
        name, _, seed = args.task.partition(":")
        if not seed.isdigit():
            raise LLM4GENError(f"Task {args.task!r} is not VARIANT:SEED, such as llm4gen:0.")
        Reproduction(folder).run_variant(find_variant(name), int(seed))
        return
    jobs = min(8, os.cpu_count() or 1) if args.jobs is None else args.jobs
    for option, value in (("--seeds", args.seeds), ("--jobs", jobs)):
        if value < 1:
            raise LLM4GENError(f"{option} is {value}; expected a whole number of at least 1.")
    reproduction = Reproduction(folder, QUICK if args.quick else Scale())
    for make in (reproduction.measure_judge, reproduction.make_world, reproduction.train_base):
        make()
    if args.quick:
        wanted = [(name, 0) for name in QUICK_VARIANTS]
    else:
        experiments = args.experiment or ["core"]
        everywhere = args.seeds_everywhere or torch.cuda.is_available()
        wanted = tasks(list(EXPERIMENTS) if "all" in experiments else experiments, args.seeds, everywhere)
    for name, _ in wanted:
        variant = find_variant(name)
        if variant.llm and not reproduction.is_done(variant, 0):
            reproduction.fill_caches(variant)
    try:
        run_tasks(reproduction, wanted, jobs)
    finally:
        print(write_report(folder), flush=True)
