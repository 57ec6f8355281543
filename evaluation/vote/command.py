"""`python -m evaluation vote`: create a user study, serve its page, and evaluate the votes."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """\
a whole study:
  python -m evaluation vote create study --images sets/llm4gen-sdxl sets/sdxl
  python -m evaluation vote serve study      then open http://127.0.0.1:8090/
  python -m evaluation vote results study
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the four commands of `vote`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser(
        "create",
        help="choose the pairs of images",
        description="Choose pairs of images of the same prompt and seed from the image sets of two or more models, and "
        "write them to STUDY/study.json. The same command chooses the same pairs.",
    )
    _add_study(create)
    create.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="[NAME=]SET",
        help="folders of `generate`; every two of them are compared, and preferences are for the one that is named "
        "first. NAME= renames the model",
    )
    create.add_argument(
        "--pairs",
        type=int,
        default=50,
        metavar="N",
        help="for every two models, each category by its share (default: %(default)s, or as many as there are)",
    )
    create.add_argument("--seed", type=int, default=0, help="for pairs, order and sides (default: %(default)s)")
    create.add_argument(
        "--repeat",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the pairs that each rater sees twice, with sides swapped, to measure consistency; 0 to 0.5 "
        "(default: %(default)s)",
    )
    create.add_argument(
        "--questions",
        nargs="+",
        choices=("quality", "alignment"),
        default=["quality", "alignment"],
        help="about every pair, in this order (default: both)",
    )
    create.set_defaults(run=_create)
    serve = commands.add_parser(
        "serve",
        help="serve the page to vote on",
        description="Serve the page to vote on, until Ctrl-C. Each vote is written to STUDY/votes.jsonl at once; a "
        "rater who returns under the same name continues. The page never reveals the models of the images.",
    )
    _add_study(serve)
    serve.add_argument(
        "--port", type=int, default=8090, help="port to listen on (default: %(default)s; 0 takes a free one)"
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 admits other machines and phones, without passwords or encryption "
        "(default: %(default)s, only this machine)",
    )
    serve.set_defaults(run=_serve)
    results = commands.add_parser(
        "results",
        help="evaluate the votes",
        description="Print preferences with intervals, agreement between raters and their consistency, and write them "
        "to STUDY/results.json and STUDY/results.html. Works while people vote, but decide beforehand when to stop: "
        "stopping at a pleasing number finds differences that do not exist.",
    )
    _add_study(results)
    _add_names(results)
    results.set_defaults(run=_results)
    export = commands.add_parser(
        "export",
        help="write pairs and votes as JSONL",
        description="Write a row for each pair: prompt, image files with their models and hashes, and every vote with "
        "sides, seconds and time.",
    )
    _add_study(export)
    export.add_argument("output", metavar="FILE", help=".jsonl to write; replaced if it exists")
    _add_names(export)
    export.set_defaults(run=_export)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="folder of the study")


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", action="store_true", help='name the raters, instead of "rater 1" and so on')


def _create(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError

    from ..image_set import ImageSet
    from .study import StudyFolder, make_study

    sets: dict[str, ImageSet] = {}
    for given in args.images:
        name, found, path = given.rpartition("=")
        named = bool(found) and not Path(given).exists()
        images = ImageSet(path if named else given)
        name = name if named else images.settings.name
        if name in sets:
            raise LLM4GENError(
                f"Two image sets have the model name {name!r} ({sets[name].path}, {images.path}); rename one: "
                "--images NAME=SET OTHER=SET."
            )
        sets[name] = images
    study = make_study(
        Path(args.study),
        sets,
        pairs=args.pairs,
        seed=args.seed,
        repeat=args.repeat,
        questions=args.questions,
    )
    new = StudyFolder(args.study).create(study)
    categories = len({pair.category for pair in study.pairs})
    each = len(study.pairs) // len(study.comparisons)
    print(
        f"{'Created' if new else 'Exists already'}: {len(study.pairs)} pairs ({each} of every two of "
        f"{', '.join(sets)}; {len({pair.prompt for pair in study.pairs})} prompts in {categories} categories)."
    )
    if each < args.pairs:
        print(f"{args.pairs} were requested; the sets have no more prompts and seeds in common.")
    print(f"Next: python -m evaluation vote serve {args.study}")


def _serve(args: argparse.Namespace) -> None:
    from .server import serve
    from .study import StudyFolder

    serve(StudyFolder(args.study), args.host, args.port)


def _results(args: argparse.Namespace) -> None:
    from llm4gen_core import LLM4GENError
    from llm4gen_core.files import write_json

    from .results import page, results
    from .study import StudyFolder
    from .votes import read_votes

    folder = StudyFolder(args.study)
    study = folder.study
    votes = list(read_votes(study, folder.votes))
    if not votes:
        raise LLM4GENError(
            f"{folder.votes.path} has no votes yet; serve the page with `python -m evaluation vote serve {args.study}`."
        )
    found = results(study, votes, names=args.names)
    shown = page(found)
    print(shown.markdown())
    write_json(folder.path / "results.json", found.as_json())
    shown.write(folder.path / "results.html")
    print(f"wrote {folder.path / 'results.json'} and {folder.path / 'results.html'}")


def _export(args: argparse.Namespace) -> None:
    from .study import StudyFolder
    from .votes import export

    votes = export(StudyFolder(args.study), Path(args.output), names=args.names)
    print(f"wrote {args.output} with {votes} votes")
