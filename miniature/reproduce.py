"""`python -m miniature reproduce`: the paper's claims on the miniature world, from nothing to the report."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .variants import CORE, EXPERIMENTS, VARIANTS, find_variant

if TYPE_CHECKING:
    from .experiment import Reproduction

QUICK_VARIANTS = (*CORE, "finetuned_clip")
Task = tuple[str, int]
"""Name of an arm, and a training seed."""


@dataclass
class _Running:
    """A task in a process of its own."""

    task: Task
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def stop(self) -> None:
        """Ask it to write a checkpoint and end, once."""
        if not self.stopped:
            self.process.terminate()
        self.stopped = True


def tasks(experiments: Sequence[str], seeds: int, everywhere: bool) -> list[Task]:
    """Arms and seeds in the order in which they are worth having.

    Args:
        experiments: keys of `EXPERIMENTS`.
        seeds: how many.
        everywhere: not for the arms of `CORE` alone; the others have one seed then.

    Returns:
        The core with all of its seeds, the others' first seed, and then their further ones.
    """
    chosen = [arm for arm in VARIANTS.values() if arm.experiment in experiments]
    core = [arm for arm in chosen if arm.name in CORE]
    others = [arm for arm in chosen if arm.name not in CORE]
    found = [(arm.name, seed) for seed in range(seeds) for arm in core]
    return found + [(arm.name, seed) for seed in range(seeds if everywhere else 1) for arm in others]


def run_tasks(reproduction: Reproduction, wanted: Sequence[Task], jobs: int) -> None:
    """Each in a process of its own, several at once; one that fails does not stop the others.

    Raises:
        LLM4GENError: some have failed; names them, and where the reason stands.
        SystemExit: SIGINT or SIGTERM has come, and all trainings have ended.
    """
    from llm4gen_core import LLM4GENError
    from train.loop import Interrupt

    folder = reproduction.folder
    waiting = [task for task in wanted if not reproduction.is_done(find_variant(task[0]), task[1])]
    if len(waiting) < len(wanted):
        print(f"{len(wanted) - len(waiting)} of {len(wanted)} trainings are there already.", flush=True)
    (folder / "logs").mkdir(exist_ok=True)
    running: list[_Running] = []
    failed: list[Path] = []
    left = len(waiting)
    with Interrupt("Stopping: trainings write their checkpoints; the same command goes on with them.") as interrupt:
        while running or (waiting and not interrupt.requested):
            while waiting and len(running) < jobs and not interrupt.requested:
                task = waiting.pop(0)
                running.append(_Running(task, _start(folder, task, jobs)))
            time.sleep(0.2)
            if interrupt.signal == "SIGTERM":  # Ctrl-C reaches trainings by itself
                for one in running:
                    one.stop()
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                left -= 1
                name = f"{one.task[0]}-{one.task[1]}"
                ended = "done" if one.process.returncode == 0 else "STOPPED" if interrupt.requested else "FAILED"
                seconds = time.monotonic() - one.started
                print(f"{name}: {ended} after {seconds:.0f} s, {left} left", flush=True)
                if one.process.returncode:
                    failed.append(folder / "logs" / f"{name}.log")
    if interrupt.signal:
        raise SystemExit(128 + signal.Signals[interrupt.signal])
    if failed:
        raise LLM4GENError(
            f"{len(failed)} of {len(wanted)} trainings failed; the reasons stand at the ends of "
            f"{', '.join(map(str, failed))}. The same command goes on with them."
        )


def _start(folder: Path, task: Task, jobs: int) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "miniature", "reproduce", str(folder), "--task", f"{task[0]}:{task[1]}"]
    with open(folder / "logs" / f"{task[0]}-{task[1]}.log", "ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, cwd=Path(__file__).parents[1], env={**os.environ, **variables}
        )


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command, and what it does."""
    parser.add_argument("folder", metavar="DIR", help="folder for everything; go on with it by the same command")
    parser.add_argument(
        "--experiment",
        action="append",
        choices=(*EXPERIMENTS, "all"),
        help=f"what to compare; may be given several times: {', '.join(f'{n} ({t})' for n, t in EXPERIMENTS.items())}; "
        "or all (default: core)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of the core arms (default: %(default)s)")
    parser.add_argument(
        "--seeds-everywhere", action="store_true", help="as many for all arms; without a GPU these have one"
    )
    parser.add_argument("--jobs", type=int, help="trainings at once (default: 8, or the number of cores if it is less)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="so little of everything that it takes minutes and shows nothing but that it runs",
    )
    parser.add_argument(
        "--ship", metavar="TARGET", help="copy what the demo paints with into a folder of its own, and train nothing"
    )
    parser.add_argument("--report", action="store_true", help="write the report of what is there, and train nothing")
    parser.add_argument("--task", metavar="ARM:SEED", help="one training alone, in a folder that has been begun")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    import diffusers
    import torch
    import transformers

    from llm4gen_core import LLM4GENError

    from .experiment import QUICK, Reproduction, Scale
    from .report import write_report
    from .ship import ship

    for library in (diffusers, transformers):  # a bar for each of hundreds of small models is no news
        library.utils.logging.disable_progress_bar()
    folder = Path(args.folder).absolute()
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
            raise LLM4GENError(f"Task {args.task!r} is no ARM:SEED, such as llm4gen:0.")
        Reproduction(folder).run_variant(find_variant(name), int(seed))
        return
    jobs = min(8, os.cpu_count() or 1) if args.jobs is None else args.jobs
    for option, value in (("--seeds", args.seeds), ("--jobs", jobs)):
        if value < 1:
            raise LLM4GENError(f"{option} is {value}; expected a whole number of at least 1.")
    reproduction = Reproduction(folder, QUICK if args.quick else Scale())
    for make in (reproduction.try_judge, reproduction.make_world, reproduction.train_base):
        make()
    if args.quick:
        wanted = [(name, 0) for name in QUICK_VARIANTS]
    else:
        experiments = args.experiment or ["core"]
        everywhere = args.seeds_everywhere or torch.cuda.is_available()
        wanted = tasks(list(EXPERIMENTS) if "all" in experiments else experiments, args.seeds, everywhere)
    for name, _ in wanted:
        arm = find_variant(name)
        if arm.llm and not reproduction.is_done(arm, 0):
            reproduction.fill_caches(arm)
    try:
        run_tasks(reproduction, wanted, jobs)
    finally:
        print(write_report(folder), flush=True)
