"""One sample: its cut, its pixels, its latents' key; the same when it is cached and when it is trained on."""

from __future__ import annotations

import signal

from torch import Tensor

from ..recipe import Data
from .buckets import Size
from .images import BadImage, Cut, cut_pixels, decode, plan_cut
from .manifest import Manifest


def variations(data: Data) -> int:
    """How many different cuts of an image are cached; epochs take them in turn."""
    return data.cache.crops if data.crop == "random" or data.flip > 0 else 1


def cut_of(manifest: Manifest, index: int, size: Size, seed: int, epoch: int) -> Cut:
    """The cut of a sample. With cached latents, `epoch` is the number of the variation.

    Args:
        manifest: the pairs.
        index: of the sample.
        size: height and width of its bucket.
        seed: of the run.
        epoch: of the sample.
    """
    data = manifest.data
    width, height = manifest.size(index)
    key = manifest.key(index) if data.crop == "random" or data.flip > 0 else ""
    return plan_cut(width, height, size, crop=data.crop, flip=data.flip, seed=seed, key=key, epoch=epoch)


def load_pixels(manifest: Manifest, index: int, cut: Cut) -> Tensor:
    """[3, H, W] uint8.

    Raises:
        BadImage: the image cannot be read, is damaged, or is not the one that was scanned.
    """
    image = decode(manifest.read(index))
    if image.size[::-1] != cut.original:
        raise BadImage(
            "changed", f"It decodes to {image.size[0]}x{image.size[1]} pixels, but its header says otherwise."
        )
    return cut_pixels(image, cut)


def latent_key(digest: bytes, cut: Cut) -> str:
    """An image and how it is cut: all that changes its latents beside the VAE."""
    numbers = (*cut.resized, cut.top, cut.left, *cut.target, int(cut.flip))
    return f"{digest.hex()} {' '.join(map(str, numbers))}"


def ignore_signals(worker: int) -> None:
    """For worker processes: Ctrl-C and a scheduler's SIGTERM reach them too, and the run needs them until it leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
