"""MS-COCO captions (Chen et al. 2015, arXiv 1504.00325): one caption each of images that are always the same ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError

from ..prompts import Prompt
from .source import Source, find_file, read_text

_NAMES = tuple(f"{folder}captions_val{year}.json" for year in (2014, 2017) for folder in ("", "annotations/"))
_WHAT = "MS-COCO captions"


def read_coco(path: Path) -> list[Prompt]:
    """One caption of each image. The first 30,000 of val2014 are what FIDs are usually made of, "FID-30k"; which
    30,000 others drew is nowhere said.

    The order is that of the SHA-256 of the image's id in decimal: as good as drawn, and the first N of it are the same
    on every machine, and part of the first N + 1. Of an image's captions the one with the lowest id is taken, with
    every run of white space as one space.

    The id of a prompt is the caption's, and so is about["seed"], which `image_set.noise_seed` adds to the seed of the
    set: with the set's seed 0 each image is painted with the caption's id as its seed. about["image"] and
    about["file"] say which real image it describes.

    Args:
        path: captions_val2014.json or captions_val2017.json, or the folder that it is in.

    Raises:
        LLM4GENError: it is missing, or is no such file.
    """
    file = find_file(path, _NAMES, _WHAT)
    try:
        content: Any = json.loads(read_text(file, _WHAT))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, tuple[int, str]] = {}
        for annotation in content["annotations"]:
            image, number, text = annotation["image_id"], annotation["id"], " ".join(annotation["caption"].split())
            if text and (image not in captions or number < captions[image][0]):
                captions[image] = number, text
        return [
            Prompt.model_validate(
                {"id": str(number), "text": text, "about": {"seed": number, "image": image, "file": files[image]}}
            )
            for image, (number, text) in sorted(captions.items(), key=lambda item: _place(item[0]))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise LLM4GENError(
            f"{_WHAT} {file} are none ({reason:.200}); expected the official file with images and annotations, each "
            "annotation with id, image_id and caption."
        ) from error


def _place(image: int) -> bytes:
    return hashlib.sha256(str(image).encode()).digest()


COCO = Source(
    "coco",
    "MS-COCO",
    "download http://images.cocodataset.org/annotations/annotations_trainval2014.zip, unpack it, and give "
    "annotations/captions_val2014.json (the real images for FID: http://images.cocodataset.org/zips/val2014.zip)",
    "CC-BY-4.0 (captions)",
    read_coco,
)
