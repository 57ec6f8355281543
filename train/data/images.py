"""Image files to the pixels of a sample: sizes of the buckets, checking and decoding a file, resizing and cutting.

Every image becomes upright RGB of 8 bits: alpha is composited over white; CMYK, palette, gray and 16-bit images are
converted; colour profiles are ignored, as image-text data sets and the other trainers ignore them.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llm4gen_core import LLM4GENError
from llm4gen_core.errors import first_line

from ..recipe import Data
from .order import generator, uniform

PIXELS_VERSION = 1
"""Version in the fingerprint of the latent cache; raise it when the same file and cut give other pixels."""

# The formats are named because PIL knows others too, one of which (EPS) starts a program to open a file.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")

Image.init()
_AVAILABLE = tuple(name for name in FORMATS if name in Image.OPEN)
"""Formats that this PIL can read; it may be built without some."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that undoes each orientation of EXIF."""


Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(data: Data) -> list[Size]:
    """Sizes that samples of a recipe can have, from the tallest to the widest; one square without buckets.

    For each width that is a multiple of the step, the height is the largest multiple with which the area stays
    within resolution² (the idea of aspect-ratio bucketing is NovelAI's).
    """
    if not data.buckets.enabled:
        return [(data.resolution, data.resolution)]
    step, area = data.buckets.step, data.resolution**2
    sizes = {(data.resolution, data.resolution)}
    for short in range(step, data.resolution, step):
        long = area // short // step * step
        if long <= short * data.buckets.max_ratio:
            sizes |= {(long, short), (short, long)}
    return sorted(sizes, key=lambda size: (size[1] / size[0], size))


def assign(widths: np.ndarray, heights: np.ndarray, sizes: list[Size]) -> np.ndarray:
    """Bucket of each image: the one whose aspect ratio is nearest, as a factor.

    Args:
        widths, heights: [N] pixels.
        sizes: from `bucket_sizes`.

    Returns:
        [N] int32, indices of `sizes`.
    """
    ratios = np.log([width / height for height, width in sizes])
    between = (ratios[1:] + ratios[:-1]) / 2
    return np.searchsorted(between, np.log(widths / heights)).astype(np.int32)


class BadImage(LLM4GENError):
    """An image that cannot be used; reports count by `kind`."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image that need no decoding.

    Attributes:
        width, height: pixels, after EXIF's rotation.
        note: conversions that `decode` makes ("CMYK", "alpha", ...), empty for none.
    """

    width: int
    height: int
    note: str


def inspect(data: bytes) -> ImageFacts:
    """Check the header of an image and whether the file is complete, which costs little.

    JPEG, PNG and WebP are decoded only if their last bytes look wrong; the other formats always are.

    Raises:
        BadImage: empty, truncated, not an image, or with more pixels than PIL accepts.
    """
    image = _open(data)
    try:
        # PIL looks for a PNG's EXIF by decoding all of it; most have none.
        if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
            size, note = image.size, _note(image, 1)
            image.verify()
            return ImageFacts(*size, note)
        if not _looks_whole(image.format, data):
            note = _note(image, _orientation(image))
            return ImageFacts(*decode(data).size, note)
        orientation = _orientation(image)
        width, height = reversed(image.size) if orientation >= 5 else image.size
        return ImageFacts(width, height, _note(image, orientation))
    except BadImage:
        raise
    except Exception as error:  # PIL's decoders raise many types for one situation: the file is damaged
        raise _damaged(error) from error


def decode(data: bytes) -> Image.Image:
    """Decode an image to upright RGB.

    Raises:
        BadImage: as for `inspect`, and for damage that only decoding finds.
    """
    image = _open(data)
    try:
        image.load()
        rgb = _rgb(image)
        # Read after loading: PIL turns some formats by itself and then removes the orientation.
        turn = _UPRIGHT.get(_orientation(image))
        return rgb if turn is None else rgb.transpose(turn)
    except BadImage:
        raise
    except Exception as error:  # as above
        raise _damaged(error) from error


@dataclass(frozen=True)
class Cut:
    """Geometry of a sample: the image is resized to cover the target, possibly mirrored, then cut.

    Attributes:
        original: height and width of the upright image.
        resized: height and width; one of them equals the target's.
        top, left: corner of the cut in the resized (and mirrored) image; SDXL's crop condition.
        target: height and width of the sample.
        flip: whether the image is mirrored.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    target: tuple[int, int]
    flip: bool

    def sizes(self) -> list[int]:
        """Original height and width, crop top and left, target height and width: SDXL's conditions, in its order."""
        return [*self.original, self.top, self.left, *self.target]


def plan_cut(
    width: int,
    height: int,
    target: tuple[int, int],
    *,
    crop: str = "center",
    flip: float = 0.0,
    seed: int = 0,
    key: str = "",
    epoch: int = 0,
) -> Cut:
    """Cut of a sample in an epoch, a function of the arguments alone.

    Args:
        width, height: of the upright image.
        target: height and width of the sample.
        crop: "center", or "random" for a position drawn from (seed, key, epoch).
        flip: share of samples that are mirrored, drawn in the same way.
    """
    target_height, target_width = target
    # In integers: a float could round to one pixel less than the target.
    if width * target_height >= height * target_width:
        resized = (target_height, max(target_width, (2 * width * target_height + height) // (2 * height)))
    else:
        resized = (max(target_height, (2 * height * target_width + width) // (2 * width)), target_width)
    room = (resized[0] - target_height, resized[1] - target_width)
    if crop == "random" and any(room):
        draws = generator(seed, key, epoch, "crop")
        top, left = (int(torch.randint(space + 1, (), generator=draws)) for space in room)
    else:
        top, left = room[0] // 2, room[1] // 2
    mirrored = flip > 0 and uniform(seed, key, epoch, "flip") < flip
    return Cut((height, width), resized, top, left, (target_height, target_width), mirrored)


def cut_pixels(image: Image.Image, cut: Cut) -> Tensor:
    """Resize, mirror and cut an image.

    Args:
        image: upright RGB of the size that the cut was planned for.

    Returns:
        [3, H, W] uint8, resized with an antialiased Lanczos filter.
    """
    height, width = cut.resized
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if cut.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.crop((cut.left, cut.top, cut.left + cut.target[1], cut.top + cut.target[0]))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_model(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to the VAE's input: float32 from -1 to 1."""
    return pixels.float() / 127.5 - 1.0


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("empty file", "The file is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=_AVAILABLE)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(
            "too many pixels", f"It has more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down to use it."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("not an image", f"Its format is not one of {', '.join(_AVAILABLE)}.") from error
    except Exception as error:  # as above
        raise _damaged(error) from error


def _damaged(error: Exception) -> BadImage:
    text = first_line(error)
    return BadImage("truncated" if "truncated" in text else "damaged", f"It cannot be decoded ({text}).")


def _looks_whole(kind: str | None, data: bytes) -> bool:
    if kind in ("JPEG", "MPO"):
        return data.endswith(b"\xff\xd9")
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return False


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is not a reason to leave an image out
        return 1
    return value if value in _UPRIGHT else 1


def _note(image: Image.Image, orientation: int) -> str:
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("first frame of several")
    if orientation in _UPRIGHT:
        notes.append("turned")
    if image.has_transparency_data:
        notes.append("alpha")
    if image.mode.startswith(("I", "F")):
        notes.append("16 bits")
    elif image.mode in ("P", "PA"):
        notes.append("palette")
    elif image.mode in ("1", "L", "LA", "La"):
        notes.append("gray")
    elif image.mode not in ("RGB", "RGBA", "RGBa"):
        notes.append(image.mode)
    return ", ".join(notes)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16 bits of gray, which PIL's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("unknown range", "Its pixels are 32-bit integers of an unknown range.")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("unknown range", "Its pixels are floating-point numbers of an unknown range.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def variations(data: Data) -> int:
    """Number of different cuts of an image that are cached; epochs use them in turn."""
    return data.cache.crops if data.crop == "random" or data.flip > 0 else 1
