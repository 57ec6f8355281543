"""The real images that generated ones are compared with: their Inception features, made once and kept in a file."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.provenance import fingerprint

from .frechet import Gaussian
from .inception import FEATURES, InceptionNetwork
from .kernel import KernelSample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_BATCH = 32
_HOW = "give the option reference=FOLDER of real images, such as MS-COCO's val2014, or a file that was made of one"


@dataclass(frozen=True)
class Reference:
    """Features of real images.

    Attributes:
        features: [N, 2048], float32.
        about: what they are of: "network" and "preparation" that saw them, "images" (a hash of names and sizes of the
            files), "n", "formats" and "sizes" with how many images have them. JSON values.
    """

    features: NDArray[np.float32]
    about: Mapping[str, Any]

    @cached_property
    def gaussian(self) -> Gaussian:
        return Gaussian.of(self.features)

    @cached_property
    def sample(self) -> KernelSample:
        return KernelSample(self.features)


def check_reference(options: Mapping[str, str]) -> Path:
    """The folder or file that the option `reference` names.

    Raises:
        LLM4GENError: there is no such option, folder or file.
    """
    if not options.get("reference"):
        raise LLM4GENError(f"FID and KID compare with real images; {_HOW}.")
    path = Path(options["reference"])
    if not path.exists():
        raise LLM4GENError(f"Reference {path} does not exist; {_HOW}.")
    return path


def open_reference(options: Mapping[str, str], network: InceptionNetwork) -> Reference:
    """What the option `reference` names: a folder of images, or a file by `make_reference`.

    The features of a folder are kept beside it, in FOLDER.inception-HASH.npz, and are not made again for the same
    images, network and preparation.

    Raises:
        LLM4GENError: there is no such option, folder or file, it holds no images, or a file was made with another
            network or preparation.
    """
    path = check_reference(options)
    if path.is_file():
        return read_reference(path, network)
    path = path.resolve()
    key = fingerprint([_network(network), _listing(path, _files(path))])
    kept = path.with_name(f"{path.name}.inception-{key}.npz")
    if kept.is_file():
        return read_reference(kept, network)
    try:
        return make_reference(path, kept, network)
    except OSError as error:
        warnings.warn(f"Reference {kept} cannot be kept ({error}), and is made anew each time.", stacklevel=2)
        return _of_folder(path, network)


def make_reference(folder: Path, output: Path, network: InceptionNetwork) -> Reference:
    """Make the features of a folder's images, below it at any depth, and write them; whole or not at all.

    Args:
        folder: of images, PNG, JPEG, WebP, BMP or TIFF.
        output: an NPZ file with "features" [N, 2048] float32, "mu" [2048] and "sigma" [2048, 2048] float64, "n", and
            "about", the text of a JSON object.

    Raises:
        LLM4GENError: there are fewer than two images, or one cannot be read.
        OSError: the file cannot be written. That is tried before any image is seen.
    """
    temporary = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            reference = _of_folder(folder, network)
            np.savez(
                file,
                features=reference.features,
                mu=reference.gaussian.mean,
                sigma=reference.gaussian.covariance,
                n=np.array(len(reference.features)),
                about=np.array(json.dumps(dict(reference.about))),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return reference


def read_reference(path: Path, network: InceptionNetwork) -> Reference:
    """What `make_reference` wrote.

    Raises:
        LLM4GENError: it is another file, or was made with another network or preparation.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            about, features = json.loads(str(content["about"])), content["features"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise LLM4GENError(
            f"Reference {path} is no file of this program's ({error}); {_HOW}. Files of other programs do not say how "
            "many images they are of and how those were resized."
        ) from error
    if features.ndim != 2 or features.shape[1] != FEATURES or len(features) < 2:
        raise LLM4GENError(f"Reference {path} has features of shape {list(features.shape)}; expected [N, {FEATURES}].")
    ours = _network(network)
    if differing := [name for name in ours if about.get(name) != ours[name]]:
        raise LLM4GENError(
            f"Reference {path} was made with another {' and '.join(differing)} "
            f"({', '.join(str(about.get(name)) for name in differing)}); expected "
            f"{', '.join(str(ours[name]) for name in differing)}, that of the images. Make it anew, or give the same "
            "options crop, side and resize."
        )
    return Reference(features, about)


def _of_folder(folder: Path, network: InceptionNetwork) -> Reference:
    files = _files(folder)
    parts: list[NDArray[np.float32]] = []
    formats: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for first in tqdm(range(0, len(files), _BATCH), desc=f"reference {folder.name}", disable=None):
        images = [_open(file, formats) for file in files[first : first + _BATCH]]
        sizes.update(size_of(image) for image in images)
        parts.append(network(images)[0])
    about = {
        **_network(network),
        "name": folder.name,
        "images": fingerprint(_listing(folder, files)),
        "n": len(files),
        "formats": dict(formats.most_common()),
        "sizes": dict(sizes.most_common(10)),
    }
    return Reference(np.concatenate(parts), about)


def size_of(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _network(network: InceptionNetwork) -> dict[str, Any]:
    return {"network": network.sha256, "preparation": network.preparation.describe()}


def _files(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if len(files) < 2:
        raise LLM4GENError(f"Reference {folder} holds {len(files)} images; expected two or more; {_HOW}.")
    return files


def _listing(folder: Path, files: list[Path]) -> list[list[Any]]:
    return [[file.relative_to(folder).as_posix(), file.stat().st_size] for file in files]


def _open(file: Path, formats: Counter[str]) -> Image.Image:
    try:
        with Image.open(file) as image:
            loaded = image.convert("RGB")
            formats[image.format or "unknown"] += 1
            return loaded
    except OSError as error:
        raise LLM4GENError(f"Reference image {file} cannot be read ({error}); repair it or take it away.") from error
