"""What the FID's Inception sees in images: 2048 features and 1008 class logits each.

The network is that of Heusel et al. 2017 (arXiv 1706.08500), the TensorFlow graph of 2015-12-05, as torch-fidelity
carries it over. How an image gets to the network's 299 pixels moves the FID by more than models differ (Parmar et al.
2022, arXiv 2104.11222), so it is a setting, `Preparation`, and stands beside every number.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from llm4gen_core import LLM4GENError

from ..judges import Judge
from .base import Context
from .judge_model import chosen_folder

FEATURES = 2048
CLASSES = 1008
_SIDE = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
_OFFICIAL = "6726825d"
"""What the SHA-256 of the official file begins with; both of its names carry it."""
_NAMES = "pt_inception-2015-12-05-6726825d.pth|weights-inception-2015-12-05-6726825d.pth"

INCEPTION = Judge(
    folder="inception",
    repository="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    files=(_NAMES,),
    licence="Apache-2.0",
    size="96 MB",
)

CROPS = {
    "square": "the square in the middle",
    "none": "nothing is cut; an image that is no square is distorted",
}
RESIZES = {
    "clean": f"Pillow's antialiased bicubic to {_SIDE} x {_SIDE} in float32, not rounded, as in Parmar et al. 2022",
    "tensorflow": f"TensorFlow 1's bilinear without antialiasing to {_SIDE} x {_SIDE}, as torch-fidelity does",
}


@dataclass(frozen=True)
class Preparation:
    """What is done to an image before the network sees it; real and generated ones get the same.

    Attributes:
        crop: a key of `CROPS`.
        side: pixels of a square to which images are brought first, by antialiased bicubic and rounded to 8 bits, as if
            they were stored so; 0 leaves them as they are. 256 is the custom for MS-COCO.
        resize: a key of `RESIZES`.
    """

    crop: str = "square"
    side: int = 0
    resize: str = "clean"

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Preparation:
        """Of a metric's options `crop`, `side` and `resize`.

        Raises:
            LLM4GENError: one has a value that it cannot have.
        """
        crop, side, resize = options.get("crop", "square"), options.get("side", "0"), options.get("resize", "clean")
        for name, value, known in (("crop", crop, CROPS), ("resize", resize, RESIZES)):
            if value not in known:
                raise LLM4GENError(f"Option {name} is {value!r}; expected one of {', '.join(known)}.")
        if not side.isdecimal() or (0 < int(side) < 16):
            raise LLM4GENError(f"Option side is {side!r}; expected pixels, 16 or more, or 0 for images as they are.")
        if int(side) and crop == "none":
            raise LLM4GENError(f"Option side is {side} and crop is none; expected crop square with a side.")
        return cls(crop, int(side), resize)

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "crop_is": CROPS[self.crop], "resize_is": RESIZES[self.resize]}

    def __call__(self, image: Image.Image) -> Tensor:
        """The image in RGB as the network takes it, [3, 299, 299] from 0 to 255 in float32."""
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
        # One channel at a time, for Pillow rounds to 8 bits in its modes with several.
        channels = [
            np.asarray(
                Image.fromarray(np.asarray(channel, np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            )
            for channel in image.split()
        ]
        return torch.from_numpy(np.stack(channels).clip(0, 255))


class InceptionNetwork:
    """The network with its weights, and how images are prepared for it.

    Args:
        weights: file of the weights.
        preparation: of every image.
        device: torch's name of a device.

    Raises:
        LLM4GENError: the file is none of this network's. Weights that are not the official ones are taken with a
            warning, and `describe` says so: their FID compares with no other.
    """

    def __init__(self, weights: Path, preparation: Preparation, device: str = "cpu") -> None:
        self.preparation = preparation
        self.device = device
        self.sha256 = _sha256(weights)
        self.official = self.sha256.startswith(_OFFICIAL)
        if not self.official:
            warnings.warn(
                f"{weights} are not the official weights (their SHA-256 begins with {self.sha256[:8]}, expected "
                f"{_OFFICIAL}): the FID and the Inception score by them compare with no published ones.",
                stacklevel=2,
            )
        extractor = _extractor(weights)
        # Its own forward takes only whole numbers, and a clean resize gives fractions between them. What it runs is
        # these parts in turn; `fc` follows without its bias ("logits_unbiased"), as in the original Inception score.
        parts = [part for name, part in extractor.named_children() if name != "fc"]
        self._body = nn.Sequential(*parts).to(device)
        self._classes: Tensor = extractor.fc.weight

    @classmethod
    def load(cls, context: Context) -> InceptionNetwork:
        """From the folder of judges, prepared as the options say.

        Raises:
            LLM4GENError: the weights are missing or are another network's, or an option is wrong.
        """
        preparation = Preparation.from_options(context.options)
        folder = chosen_folder(context, INCEPTION)
        weights = next(path for path in (folder / name for name in _NAMES.split("|")) if path.is_file())
        return cls(weights, preparation, context.device)

    def describe(self) -> dict[str, Any]:
        return {
            "network": "FID Inception, 2015-12-05",
            "sha256": self.sha256,
            "official_weights": self.official,
            "preparation": self.preparation.describe(),
            "precision": "float32",
            "versions": {name: metadata.version(name) for name in ("torch-fidelity", "pillow")},
        }

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features and logits of a batch.

        Args:
            images: B of any sizes.

        Returns:
            features [B, 2048] after the last pooling, logits [B, 1008] without the bias.
        """
        # Pillow and torch let go of Python's lock while they resize.
        with ThreadPoolExecutor(min(len(images), os.cpu_count() or 1)) as pool:
            values = torch.stack(list(pool.map(self.preparation, images)))
        # TF32 would change features in the third digit, and with them the FID from GPU to GPU.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            features = self._body((values.to(self.device) - 128) / 128).flatten(1).cpu()
        return features.numpy(), (features @ self._classes.T).numpy()


def _extractor(weights: Path) -> FeatureExtractorInceptionV3:
    try:
        # torch-fidelity itself trusts a pickle. One that passes here holds tensors and nothing that could run.
        torch.load(weights, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=str(weights))
    except Exception as error:
        raise LLM4GENError(
            f"Judge {weights} cannot be loaded ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            f"expected the weights of the FID's Inception ({INCEPTION.repository})."
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
