"""Images inside a page: scaled down, as data addresses, and all together within a limit."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image

from .examples import Picture

BUDGET = 3_600_000
"""Bytes that all images of a page may take, base64 and all; the page stays below five million with its text."""

EDGES = (288, 256, 224, 192, 160, 128, 96, 64)
"""Longest sides in pixels, the first that fits is taken."""

SMALL = 64
"""Images up to this side are kept as they are (PNG), and shown larger with square pixels."""

QUALITY = 82

LEAST = 0.1
"""Bytes a pixel that a painted image takes at least, more or less: sizes that cannot fit are not even tried."""

_Key: TypeAlias = tuple[str, str]
"""Folder of the set, and id of the image."""


class Pictures:
    """Images as HTML.

    Args:
        shown: all that the page will show, each as often as it does; when even the smallest size is too much for
            `budget`, the last ones are left out.
        budget: bytes.
    """

    def __init__(self, shown: Sequence[Picture], budget: int = BUDGET) -> None:
        keys = [_key(one) for one in shown if one.row is not None]
        files = {_key(one): one for one in shown if one.row is not None}
        tried = [edge for edge in EDGES if len(keys) * edge**2 * LEAST * 4 / 3 <= budget] or EDGES[-1:]
        small = {key: _scaled(picture, tried[0]) for key, picture in files.items()}
        for edge in tried:
            self._data = {key: _encode(image, edge) for key, image in small.items()}
            if sum(len(self._data[key]) for key in keys) <= budget:
                break
        used = 0
        self._left: list[_Key] = []
        for key in keys:
            used += len(self._data[key])
            if used <= budget:
                self._left.append(key)

    def html(self, picture: Picture, alt: str) -> str:
        """An img element, or a box that says that there is no image.

        Pictures come in the order that was announced.
        """
        if picture.row is None:
            return '<div class="no-image">image missing</div>'
        key = _key(picture)
        if key not in self._left:
            return '<div class="no-image">left out: the page would be too large</div>'
        self._left.remove(key)
        kind = ' class="pixels"' if max(picture.row.width, picture.row.height) <= SMALL else ""
        return (
            f'<img{kind} src="{self._data[key]}" alt="{html.escape(alt)}" width="{picture.row.width}" '
            f'height="{picture.row.height}" loading="lazy">'
        )


def _key(picture: Picture) -> _Key:
    assert picture.row is not None
    return str(picture.images.images.path), picture.row.id


def _scaled(picture: Picture, edge: int) -> Image.Image:
    assert picture.row is not None
    image = picture.images.images.open(picture.row)
    if max(image.size) > SMALL:
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image


def _encode(image: Image.Image, edge: int) -> str:
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        image = image.copy()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
