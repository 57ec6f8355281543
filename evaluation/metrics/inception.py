"""Outputs of the FID's Inception network for images: 2048 features and 1008 class logits each.

The network is that of Heusel et al. 2017 (arXiv 1706.08500), the TensorFlow graph of 2015-12-05, in torch-fidelity's
conversion. The way an image is resized to the network's 299 pixels changes the FID by more than models differ (Parmar
et al. 2022, arXiv 2104.11222). It is therefore a setting, `Preparation`, and is recorded with every number.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics
from tqdm import tqdm

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line
from llm4gen_core.files import load_pickle, whole_file
from llm4gen_diffusers.machine import fingerprint

from .base import Context, Judge, NoOptions

FEATURES = 2048
CLASSES = 1008
_SIDE = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
_OFFICIAL = "6726825d"
"""First digits of the official file's SHA-256; both of its names carry them."""
_NAMES = "pt_inception-2015-12-05-6726825d.pth|weights-inception-2015-12-05-6726825d.pth"

INCEPTION = Judge(
    folder="inception",
    repository="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    files=(_NAMES,),
    licence="Apache-2.0",
    size="96 MB",
)

# Reference files hold these descriptions: with other words, the features of a folder would be computed again.
CROPS = {
    "square": "the square in the middle",
    "none": "nothing is cut; an image that is no square is distorted",
}
RESIZES = {
    "clean": f"Pillow's antialiased bicubic to {_SIDE} x {_SIDE} in float32, not rounded, as in Parmar et al. 2022",
    "tensorflow": f"TensorFlow 1's bilinear without antialiasing to {_SIDE} x {_SIDE}, as torch-fidelity does",
}

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_BATCH = 32
_ADVICE = (
    "set the option reference=FOLDER to a folder of real images, such as MS-COCO's val2014, or to a file of their "
    "features that this program has made"
)


class Preparation(NoOptions):
    """Crop and resize of an image for the network; the same for real and generated images.

    Attributes:
        crop: a key of `CROPS`.
        side: side in pixels of a square to which images are resized first, by antialiased bicubic and rounded to 8
            bits, as if they were stored at this size; 0 skips this. MS-COCO is usually evaluated at 256.
        resize: a key of `RESIZES`.
    """

    crop: Literal["square", "none"] = "square"
    side: int = Field(default=0, ge=0)
    resize: Literal["clean", "tensorflow"] = "clean"

    @field_validator("side")
    @classmethod
    def _side_is_possible(cls, side: int, info: ValidationInfo) -> int:
        if 0 < side < 16 or (side and info.data.get("crop") == "none"):
            raise ValueError("expected a number of pixels from 16, with crop=square; or 0 for no resize")
        return side

    def describe(self) -> dict[str, Any]:
        """Settings and their meaning, as JSON values."""
        return {
            **self.model_dump(include={*Preparation.model_fields}),
            "crop_is": CROPS[self.crop],
            "resize_is": RESIZES[self.resize],
        }

    def __call__(self, image: Image.Image) -> Tensor:
        """Input of the network, [3, 299, 299], RGB from 0 to 255 in float32."""
        image = image.convert("RGB")
        if self.crop == "square":
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if self.side and image.size != (self.side, self.side):
            image = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        if self.resize == "tensorflow":
            values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
            resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(
                values, size=(_SIDE, _SIDE), align_corners=False
            )
            return resized[0]
        # One channel at a time: Pillow rounds images with several channels to 8 bits.
        channels = [
            np.asarray(
                Image.fromarray(np.asarray(channel, np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            )
            for channel in image.split()
        ]
        return torch.from_numpy(np.stack(channels).clip(0, 255))


class InceptionNetwork:
    """torch-fidelity's Inception with weights from a local file.

    Args:
        weights: file of the weights.
        preparation: crop and resize of every image.
        device: torch device name.

    Raises:
        LLM4GENError: the file does not hold weights of this network. Unofficial weights are accepted with a warning and
            recorded by `describe`; numbers computed with them cannot be compared with any others.
    """

    def __init__(self, weights: Path, preparation: Preparation, device: str = "cpu") -> None:
        self.preparation = preparation
        self.device = device
        self.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.official = self.sha256.startswith(_OFFICIAL)
        if not self.official:
            warnings.warn(
                f"{weights} are not the official weights (their SHA-256 begins with {self.sha256[:8]}, expected "
                f"{_OFFICIAL}): FID and Inception score cannot be compared with published ones.",
                stacklevel=2,
            )
        # torch-fidelity unpickles a file without asking what is in it; this refuses one that would run code.
        load_pickle(weights, "Inception weights")
        try:
            extractor = FeatureExtractorInceptionV3("inception-v3", ["2048"], str(weights))
        except (RuntimeError, KeyError, TypeError) as error:
            raise LLM4GENError(
                f"Inception weights {weights} cannot be loaded ({first_line(error)}); expected the weights of the "
                f"FID's Inception. Download {INCEPTION.repository}."
            ) from error
        # The extractor's forward takes uint8 alone, and a clean resize gives fractions. These are its layers in order;
        # `fc` is applied without its bias ("logits_unbiased"), as in the original Inception score.
        self._body = nn.Sequential(*(part for name, part in extractor.named_children() if name != "fc")).to(device)
        self._classes: Tensor = extractor.fc.weight

    @classmethod
    def load(cls, context: Context, preparation: Preparation) -> InceptionNetwork:
        """Load the network from the folder of judges.

        Raises:
            LLM4GENError: the weights are missing or belong to another network.
        """
        folder = context.folder(INCEPTION)
        weights = next(path for path in (folder / name for name in _NAMES.split("|")) if path.is_file())
        return cls(weights, preparation, context.device)

    def describe(self) -> dict[str, Any]:
        """Everything that changes the outputs, as JSON values."""
        return {
            "network": "FID Inception, 2015-12-05",
            "sha256": self.sha256,
            "official_weights": self.official,
            "preparation": self.preparation.describe(),
            "precision": "float32",
            "versions": {name: metadata.version(name) for name in ("torch-fidelity", "pillow")},
        }

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Features [B, 2048] after the last pooling, and logits [B, 1008] without bias; float32, on the CPU.

        Args:
            images: B images of any sizes.
        """
        # Pillow and torch release Python's lock while they resize.
        with ThreadPoolExecutor(min(len(images), os.cpu_count() or 1)) as pool:
            values = torch.stack(list(pool.map(self.preparation, images)))
        # TF32 would change the third digit of features, and the FID would differ between GPUs.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            features = self._body((values.to(self.device) - 128) / 128).flatten(1).cpu()
        return features, features @ self._classes.T


@dataclass(frozen=True)
class Reference:
    """Inception features of the real images that generated ones are compared with.

    Attributes:
        features: [N, 2048], float32.
        about: "network" and "preparation" that they were computed with, "images" (a hash of the files' names and
            sizes), "n", "formats" and "sizes" with the number of images of each. JSON values.
    """

    features: Tensor
    about: Mapping[str, Any]

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Mean "mu" [2048] and covariance "sigma" [2048, 2048], float64."""
        found: dict[str, Any] = fid_features_to_statistics(self.features.double())
        return found


def reference_path(reference: str) -> Path:
    """Folder or file of the option `reference`.

    Raises:
        LLM4GENError: the option is not set, or there is no such folder or file.
    """
    if not reference:
        raise LLM4GENError(f"FID and KID compare with real images; {_ADVICE}.")
    path = Path(reference)
    if not path.exists():
        raise LLM4GENError(f"Reference {path} does not exist; {_ADVICE}.")
    return path


def open_reference(path: Path, network: InceptionNetwork) -> Reference:
    """Reference from a folder of real images (at any depth), or from a file of their features.

    The features of a folder are kept next to it in FOLDER.inception-HASH.npz and used again for the same images,
    network and preparation. The file holds "features" [N, 2048] float32, "mu" [2048] and "sigma" [2048, 2048] float64,
    "n", and "about" as JSON text.

    Raises:
        LLM4GENError: the folder holds fewer than two images, an image cannot be read, or the file is not such a file or
            was made with another network or preparation.
    """
    settings = {"network": network.sha256, "preparation": network.preparation.describe()}
    if path.is_file():
        return _read_reference(path, settings)
    path = path.resolve()
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if len(files) < 2:
        raise LLM4GENError(f"Reference {path} holds {len(files)} images; expected two or more; {_ADVICE}.")
    listing = [[file.relative_to(path).as_posix(), file.stat().st_size] for file in files]
    kept = path.with_name(f"{path.name}.inception-{fingerprint([settings, listing])}.npz")
    if kept.is_file():
        return _read_reference(kept, settings)
    features: list[Tensor] = []
    formats: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for first in tqdm(range(0, len(files), _BATCH), desc=f"reference {path.name}", disable=None):
        images = [_open(file, formats) for file in files[first : first + _BATCH]]
        sizes.update(f"{image.width}x{image.height}" for image in images)
        features.append(network(images)[0])
    about = {
        **settings,
        "name": path.name,
        "images": fingerprint(listing),
        "n": len(files),
        "formats": dict(formats.most_common()),
        "sizes": dict(sizes.most_common(10)),
    }
    reference = Reference(torch.cat(features), about)
    content: dict[str, Any] = {"features": reference.features.numpy(), "n": len(files), "about": json.dumps(about)}
    try:
        with whole_file(kept, "Reference") as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **content, **reference.statistics)
    except (OSError, LLM4GENError) as error:
        warnings.warn(f"Reference {kept} cannot be kept and will be computed again ({error}).", stacklevel=2)
    return reference


def _read_reference(path: Path, settings: Mapping[str, Any]) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as content:
            about, features = json.loads(str(content["about"])), torch.from_numpy(content["features"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise LLM4GENError(
            f"Reference {path} was not made by this program ({first_line(error)}); {_ADVICE}. Files of other programs "
            "do not say how many images they come from and how those were resized."
        ) from error
    if differing := [name for name in settings if about.get(name) != settings[name]]:
        raise LLM4GENError(
            f"Reference {path} was made with another {' and '.join(differing)} "
            f"({', '.join(str(about.get(name)) for name in differing)}); expected "
            f"{', '.join(str(settings[name]) for name in differing)}, as for the generated images. Make it again from "
            "its folder of images, or set the options crop, side and resize to its values."
        )
    return Reference(features, about)


def _open(file: Path, formats: Counter[str]) -> Image.Image:
    """Reference image in RGB; its format is counted."""
    try:
        with Image.open(file) as image:
            loaded = image.convert("RGB")
            formats[image.format or "unknown"] += 1
            return loaded
    except OSError as error:
        raise LLM4GENError(
            f"Reference image {file} cannot be read ({error}); repair it or remove it from the folder."
        ) from error
