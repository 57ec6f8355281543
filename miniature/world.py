"""World on disk: captioned images to train on, and `python -m miniature world`, the trainer's quick start."""

from __future__ import annotations

import argparse
import os
import shutil
from itertools import islice
from pathlib import Path

from PIL import Image

from llm4gen_core import LLM4GENError
from llm4gen_core.files import write_json_lines, write_text

from . import MODELS
from .dataset import Drawn, pairs
from .scenes import render


def write_pairs(folder: Path, number: int, seed: int = 0) -> Path:
    """Write images and `pairs.jsonl`: captions, and their attribute-entity pairs, known by construction.

    Args:
        folder: made if it does not exist.
        number: how many; the first of more are the same as fewer.
        seed: seed of scenes and captions.

    Returns:
        The JSONL file.
    """
    drawn = list(islice(pairs(seed), number))
    names = _write_images(folder / "images", drawn)
    rows = []
    for name, (_, caption) in zip(names, drawn, strict=True):
        spans = [[*attribute, *entity] for attribute, entity in caption.pairs]
        rows.append({"image": f"images/{name}", "caption": caption.text, "pairs": spans})
    file = folder / "pairs.jsonl"
    write_json_lines(file, rows)
    return file


def first_pairs(file: Path, number: int) -> Path:
    """Write the first lines of a JSONL file to another one beside it, and return that."""
    fewer = file.with_name(f"{file.stem}-{number}.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:number]
    write_text(fewer, "".join(lines))
    return fewer


def _write_images(folder: Path, drawn: list[Drawn]) -> list[str]:
    """Write scenes as PNG files and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:06}.png" for index in range(len(drawn))]
    for name, (scene, _) in zip(names, drawn, strict=True):
        Image.fromarray(render(scene)).save(folder / name, compress_level=1)
    return names


def make_world(folder: str | os.PathLike[str], images: int = 64, seed: int = 0) -> Path:
    """Write what the recipe `miniature` trains on, small enough for a CPU.

    Args:
        folder: made if it does not exist. It gets the shipped base in `base` (diffusers layout), the shipped T5 in
            `llm` (Hugging Face layout), and PNG files with their captions as .txt beside them in `images`.
        images: how many.
        seed: seed of scenes and captions.

    Returns:
        `folder`.

    Raises:
        LLM4GENError: `images` is not at least 1, or the folder is a file or holds a world already.
    """
    folder = Path(folder)
    if images < 1:
        raise LLM4GENError(f"Images is {images}; expected a whole number of at least 1.")
    if folder.is_file():
        raise LLM4GENError(f"Folder {folder} is a file; choose another name.")
    if (folder / "images").exists() or (folder / "base").exists():
        raise LLM4GENError(f"Folder {folder} holds a world already; choose another name, or delete it first.")
    shutil.copytree(MODELS / "base", folder / "base")
    shutil.copytree(MODELS / "t5", folder / "llm")
    drawn = list(islice(pairs(seed), images))
    for name, (_, caption) in zip(_write_images(folder / "images", drawn), drawn, strict=True):
        (folder / "images" / name).with_suffix(".txt").write_text(caption.text + "\n", encoding="utf-8")
    return folder


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command and the function that runs it."""
    parser.add_argument("folder", metavar="DIR", help="folder to make")
    parser.add_argument("--images", type=int, default=64, help="number of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes and captions (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    folder = make_world(args.folder, args.images, args.seed)
    print(f"{args.images} images with captions, a base and an LLM are in {folder}.")
