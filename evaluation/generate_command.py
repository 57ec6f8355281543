"""`python -m evaluation generate`."""

from __future__ import annotations

import argparse
from typing import Any

from llm4gen_core import LLM4GENError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `generate`."""
    parser.add_argument("output", metavar="DIR", help="folder of the set; what is there is kept, and gone on with")
    parser.add_argument("--name", help="of the model in tables (default: that of the folder)")
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help="whose prompts: miniature, t2i-compbench, dense-prompts, coco, "
        "dpg-bench, geneval or parti (default: prompts of your own)",
    )
    add_prompts(parser)
    model = parser.add_argument_group("model", "one of --base, --pipeline and --workflow")
    model.add_argument("--base", help="diffusers folder or checkpoint of SD1.5, SDXL or the miniature")
    model.add_argument("--unet", help="in place of the base's")
    model.add_argument("--adapter", help="LLM4GEN's")
    model.add_argument("--llm", help="Hugging Face folder of the adapter's LLM")
    model.add_argument("--clip", help="text encoder in place of the base's")
    model.add_argument("--tokenizer", help="folder of CLIP's, for checkpoints")
    model.add_argument("--family", help="of the base, where it does not say it")
    model.add_argument("--strength", type=float, help="λ (default: the adapter's)")
    model.add_argument("--lambda-mode", help="reading of λ (default: the adapter's)")
    model.add_argument(
        "--chunks",
        type=int,
        default=1,
        help="of 77 CLIP tokens that a prompt may have: 1, as in the paper, cuts longer ones; 0 takes as many as a "
        "prompt needs, as ComfyUI does (default: 1)",
    )
    model.add_argument("--pipeline", help="folder of any text-to-image pipeline of diffusers")
    model.add_argument(
        "--sampler", choices=("ddim", "own"), help="of a pipeline (default: the preset's, where it can be)"
    )
    model.add_argument("--workflow", help="of ComfyUI, as Workflow > Export (API) or Save write it")
    model.add_argument("--server", help="ComfyUI's address (default: http://127.0.0.1:8188)")
    model.add_argument(
        "--prompt-input", action="append", metavar="NODE.INPUT", help="of the workflow, such as 6.text; repeatable"
    )
    model.add_argument(
        "--negative-input", action="append", metavar="NODE.INPUT", help="where --negative goes; repeatable"
    )
    model.add_argument("--seed-input", action="append", metavar="NODE.INPUT", help="such as 3.seed; repeatable")
    model.add_argument("--output-node", metavar="NODE", help="whose image counts, if there are several")
    model.add_argument(
        "--weights", action="store_true", help="parentheses in prompts are weights for the workflow, not letters"
    )
    model.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on a GPU")
    model.add_argument("--batch", type=int, default=1, metavar="N", help="images painted at once (default: 1)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.set_defaults(run=_generate)


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add what `generate` and `run` have in common: which prompts, and how they are painted."""
    parser.add_argument(
        "--prompts",
        metavar="PATH",
        help="what you downloaded of the benchmark; for `generate` without one, a JSONL file of prompts, or text with "
        "one a line",
    )
    parser.add_argument("--categories", nargs="+", default=[], metavar="NAME", help="only these of the benchmark")
    parser.add_argument(
        "--count", type=int, metavar="N", help="only the first N prompts of each category; not comparable to the whole"
    )
    painting = parser.add_argument_group("painting")
    painting.add_argument(
        "--preset",
        choices=("paper", "bench-official"),
        default="paper",
        help="paper: DDIM, 50 steps, guidance 7.5; bench-official: as the benchmark's own scripts (default: paper)",
    )
    painting.add_argument(
        "--seeds",
        type=_seeds,
        metavar="LIST",
        help="an image each of every prompt, such as 42-51 or 0,7 (default: the preset's)",
    )
    painting.add_argument("--steps", type=int, help="of the sampler, in place of the preset's")
    painting.add_argument("--guidance", type=float, help="scale of classifier-free guidance; 1 is off")
    painting.add_argument("--negative", help="prompt of what not to paint (default: none)")
    painting.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the model's own)")
    painting.add_argument("--height", type=int, help="the same")


def prompts_and_options(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """`prompts`, `painting`, `seeds` and `notes` for `generate`, for the arguments that `add_prompts` added.

    Raises:
        LLM4GENError: a value is impossible, or prompts are missing (what to download and where from).
    """
    from .benchmarks import find_benchmark
    from .model_files import preset_options

    benchmark = find_benchmark(name)
    preset = benchmark.preset(args.preset)
    changes = {key: getattr(args, key) for key in ("steps", "guidance", "negative", "width", "height")}
    changed = [f"{key} {value}" for key, value in {**changes, "seeds": args.seeds}.items() if value is not None]
    notes = [f"Painted as {preset.title}.", *preset.differs]
    if changed:
        notes.append(f"Changed from that: {', '.join(changed)}.")
    return {
        "painting": preset_options(preset, notes=tuple(notes), **changes),
        "prompts": benchmark.prompts(args.prompts, args.categories, args.count),
        "seeds": args.seeds or list(preset.seeds),
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


def _generate(args: argparse.Namespace) -> None:
    from pathlib import Path

    from llm4gen_diffusers.command_line import quiet_libraries

    from .generate import generate
    from .model_files import ModelFiles, model_files

    if args.benchmark is None and args.prompts is None:
        raise LLM4GENError("There are no prompts; give a benchmark (--benchmark) or a file of your own (--prompts).")
    source = args.benchmark or ("jsonl" if args.prompts.endswith(".jsonl") else "text")
    named = {f"{name}_input": f"{name}_inputs" for name in ("prompt", "negative", "seed")}
    fields = {
        name: value
        for name in ModelFiles.model_fields
        if (value := getattr(args, next((old for old, new in named.items() if new == name), name))) is not None
    }
    fields["chunks"] = args.chunks or None
    files = model_files("Model", fields)
    quiet_libraries()
    images = generate(
        args.output,
        args.name or Path(args.output).resolve().name,
        files,
        benchmark=args.benchmark or "",
        device=args.device,
        **prompts_and_options(source, args),
    )
    print(f"{images.path}: {len(images.rows())} images")
