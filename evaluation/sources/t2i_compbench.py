"""T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) and T2I-CompBench++: the validation prompts of each category.

The files of the official repository, examples/dataset/CATEGORY_val.txt, have 300 prompts each. CATEGORY.txt beside them
has all of about 1,000, training prompts among them, with which scores come out some points higher (issue #7 there).
Published numbers are of the 300, so nothing else is taken.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .source import Source, find_folder, read_text

PROMPTS = 300
_FILES = {
    "color": "color_val.txt",
    "shape": "shape_val.txt",
    "texture": "texture_val.txt",
    "spatial": "spatial_val.txt",
    "non-spatial": "non_spatial_val.txt",
    "complex": "complex_val.txt",
}
_FILES_PLUS = {**_FILES, "3d-spatial": "3d_spatial_val.txt", "numeracy": "numeracy_val.txt"}
_KINDS = {"spatial": "complex_val_spatial.txt", "action": "complex_val_action.txt"}
"""Kind of complex prompts -> file that lists them, in the order in which the official 3-in-1 looks. Those of neither
are of the kind "spatialaction"."""
_WHAT = "T2I-CompBench"


def read_compbench(path: Path, files: dict[str, str] = _FILES) -> list[Prompt]:
    """The prompts in the order of the categories and of the files' lines; ids are CATEGORY-NUMBER, from 0.

    A complex prompt has about = {"kind": "spatial", "action" or "spatialaction"}: which relations it has, and so which
    scores the official 3-in-1 averages for it.

    Args:
        path: the clone of the repository, or its examples/dataset.
        files: by category.

    Raises:
        LLM4GENError: a file is missing, or has not 300 prompts.
    """
    folder = find_folder(path, ("dataset", "examples/dataset"), files["color"], _WHAT)
    kinds: dict[str, str] = {}
    for kind, name in _KINDS.items():
        for text in _lines(folder / name):
            kinds.setdefault(_key(text), kind)
    prompts = []
    for category, name in files.items():
        texts = _lines(folder / name)
        if len(texts) != PROMPTS:
            raise LLM4GENError(
                f"{_WHAT}: {folder / name} has {len(texts)} prompts; expected the {PROMPTS} of validation, which "
                "published scores are of (the files with about 1,000 hold training prompts and score higher). Download "
                "it again; to paint other prompts, give them as a text."
            )
        for number, text in enumerate(texts):
            about = {"kind": kinds.get(_key(text), "spatialaction")} if category == "complex" else {}
            prompts.append(
                Prompt.model_validate(
                    {"id": f"{category}-{number:03}", "text": text, "category": category, "about": about}
                )
            )
    return prompts


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise LLM4GENError(f"{_WHAT}: {path} is missing; download examples/dataset of the official repository again.")
    # Only what stands before a tab is painted, as in the official script.
    lines = [line.split("\t")[0].strip() for line in read_text(path, _WHAT).splitlines()]
    return [line for line in lines if line]


def _key(text: str) -> str:
    """As the official 3-in-1 compares prompts of different files."""
    return text.split(".")[0].lower()


_GET = (
    "clone https://github.com/Karine-Huang/T2I-CompBench and give the clone, or its examples/dataset with "
    "{color,shape,texture,spatial,non_spatial,complex}_val.txt and complex_val_{spatial,action}.txt"
)
T2I_COMPBENCH = Source("t2i-compbench", "T2I-CompBench", _GET, "MIT", read_compbench, tuple(_FILES))
T2I_COMPBENCH_PLUS = Source(
    "t2i-compbench++",
    "T2I-CompBench++",
    f"{_GET}, and 3d_spatial_val.txt and numeracy_val.txt beside them",
    "MIT",
    partial(read_compbench, files=_FILES_PLUS),
    tuple(_FILES_PLUS),
)
