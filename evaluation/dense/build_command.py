"""`python -m evaluation dense build`: arguments, and what is done with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writing import Writer

_SHOWN = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `build`."""
    parser.add_argument("images", metavar="DIR", help="folder with images that may be used so; folders below count too")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the build; go on by the same command")
    parser.add_argument("--licences", metavar="FILE", help='JSONL of {"image": NAME, "licence": TEXT, "source": TEXT}')
    for name, what in (("vision", "vision-language model that describes"), ("writer", "LLM that writes the prompts")):
        group = parser.add_argument_group(f"{name} model", f"the {what}: an endpoint, or a folder")
        place = group.add_mutually_exclusive_group(required=True)
        place.add_argument(f"--{name}-url", metavar="URL", help="OpenAI-compatible endpoint, up to and with /v1")
        place.add_argument(f"--{name}-folder", metavar="DIR", help="model of transformers with a chat template")
        group.add_argument(f"--{name}-model", metavar="NAME", help="its name at the endpoint")
        group.add_argument(
            f"--{name}-key-variable",
            default="OPENAI_API_KEY",
            metavar="NAME",
            help="environment variable with the endpoint's key, if it needs one (default: %(default)s)",
        )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--prompts-per-image", type=int, default=80, metavar="N", help="before filters (default: %(default)s)"
    )
    prompts.add_argument(
        "--prompts-per-answer", type=int, default=8, metavar="N", help="written at once (default: %(default)s)"
    )
    prompts.add_argument("--seed", type=int, default=1, help="of the sampling (default: %(default)s)")
    prompts.add_argument(
        "--temperature", type=float, default=0.9, help="of the writer; descriptions have none (default: %(default)s)"
    )
    prompts.add_argument(
        "--similar",
        type=float,
        default=0.5,
        help="Jaccard similarity of word shingles from which a prompt is a near-duplicate (default: %(default)s)",
    )
    prompts.add_argument("--unsafe-words", metavar="FILE", help="words that no prompt may hold (default: a short list)")
    run = parser.add_argument_group("run")
    run.add_argument("--parallel", type=int, default=4, help="questions at a time (default: %(default)s)")
    run.add_argument("--timeout", type=float, default=300.0, help="seconds for an answer (default: %(default)s)")
    run.add_argument("--device", help="of models from folders: cpu, cuda, ... (default: a GPU if there is one)")
    run.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: bfloat16 on a GPU, float32 on the CPU"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError

    from .builder import Build, BuildSettings
    from .filters import UNSAFE, read_unsafe_words
    from .image_folder import source_images

    if args.parallel < 1 or args.timeout <= 0:
        raise LLM4GENError(f"--parallel {args.parallel}, --timeout {args.timeout}; expected at least 1, and above 0.")
    settings = BuildSettings(args.prompts_per_image, args.prompts_per_answer, args.seed, args.temperature, args.similar)
    unsafe = read_unsafe_words(Path(args.unsafe_words) if args.unsafe_words else UNSAFE)
    images = source_images(Path(args.images), Path(args.licences) if args.licences else None)
    vision, writer = _model(args, "vision"), _model(args, "writer")
    # A folder's model computes one answer at a time.
    parallel = args.parallel if args.vision_url and args.writer_url else 1
    build = Build(Path(args.output), images, vision, writer, settings, unsafe)
    report = build.run(parallel, _progress())
    print(
        f"{build.folder / 'prompts.jsonl'}: {report.prompts:,} prompts from {report.described:,} of {report.images:,} "
        f"images and {report.answers:,} answers"
    )
    for reason, count in report.rejected.most_common():
        print(f"  left out, {reason}: {count:,}")
    if report.without_licence:
        names = ", ".join(report.without_licence[:_SHOWN])
        more = len(report.without_licence) - _SHOWN
        print(
            f"  no licence is known of {names}{f' and {more:,} more' if more > 0 else ''}; a set that is "
            "given on should say it (--licences)"
        )
    print(f"statistics: python -m evaluation dense statistics {build.folder / 'prompts.jsonl'}")


def _model(args: argparse.Namespace, name: str) -> Writer:
    from llm4gen_core import LLM4GENError

    url, folder, model = (getattr(args, f"{name}_{part}") for part in ("url", "folder", "model"))
    if url:
        from .endpoint import Endpoint

        if not model:
            raise LLM4GENError(f"--{name}-url needs --{name}-model: the model's name at the endpoint.")
        return Endpoint(url, model, getattr(args, f"{name}_key_variable"), args.timeout)
    from llm4gen_diffusers.devices import DTYPES, choose_device

    from .local_model import LocalModel

    device = choose_device(args.device)
    on_cpu = device.type == "cpu"
    dtype = DTYPES[args.dtype or ("float32" if on_cpu else "bfloat16")]
    return LocalModel(Path(folder), name == "vision", device, dtype)


def _progress() -> Callable[[str, int, int], None]:
    from tqdm import tqdm

    bars: dict[str, tqdm[None]] = {}

    def told(what: str, done: int, total: int) -> None:
        bar = bars.setdefault(what, tqdm(total=total, unit=" answers", desc=what, mininterval=0.5))
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return told
