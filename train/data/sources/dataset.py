"""A data set that Hugging Face's `save_to_disk` wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from llm4gen_core import LLM4GENError

from ...recipe import Source
from .base import (
    CAPTION_FIELDS,
    IMAGE_FIELDS,
    NO_CAPTION,
    PAIRS_FIELD,
    Found,
    Trouble,
    Unit,
    file_stamp,
    reason,
    stamp,
    unreadable,
)

MARKS = ("state.json", "dataset_dict.json")
"""Files by which a folder is known as such a data set, or as several splits of one."""


class DatasetOnDisk:
    """Columns of images (their bytes, or paths of files) and captions; a row's key is its number.

    A data set of several splits gives its "train".
    """

    units_per_block = 1
    unordered = False
    rows_per_unit = 256

    def __init__(self, source: Source) -> None:
        self._folder = Path(source.path)
        self._given = source
        if (self._folder / "dataset_dict.json").is_file():
            if not (self._folder / "train" / "state.json").is_file():
                splits = sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir())
                raise LLM4GENError(
                    f"Data set {self._folder} has no split train, but {', '.join(splits)}; add the name of one to its "
                    "path."
                )
            self._folder /= "train"

    @cached_property
    def _rows(self) -> Any:
        import datasets

        try:
            rows = datasets.load_from_disk(str(self._folder))
        except Exception as error:  # the library raises many types for one situation: the folder is broken
            raise LLM4GENError(
                f"Data set {self._folder} cannot be opened ({reason(error)}); expected a folder written by "
                "save_to_disk. Save it again."
            ) from error
        image, caption = self._column(rows, "image"), self._column(rows, "caption")
        if isinstance(rows.features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        return rows.select_columns([image, caption] + [PAIRS_FIELD] * (PAIRS_FIELD in rows.column_names))

    @cached_property
    def _columns(self) -> tuple[str, str]:
        return self._column(self._rows, "image"), self._column(self._rows, "caption")

    def _column(self, rows: Any, which: str) -> str:
        given = getattr(self._given, which)
        for name in (given,) if given else (IMAGE_FIELDS if which == "image" else CAPTION_FIELDS):
            if name in rows.column_names:
                return name
        raise LLM4GENError(
            f"Data set {self._folder} has the columns {', '.join(rows.column_names)}; none of them is known as the "
            f"{which}. Name it in the recipe: {which}: COLUMN under the source."
        )

    def units(self) -> Iterator[Unit]:
        files = sorted(entry.name for entry in self._folder.iterdir() if entry.suffix in (".arrow", ".json"))
        state = stamp(*(part for name in files for part in (name, file_stamp(self._folder / name))))
        for start in range(0, len(self._rows), self.rows_per_unit):
            length = min(self.rows_per_unit, len(self._rows) - start)
            yield Unit("", stamp(state.hex(), start, length), start, length)

    def pairs(self, unit: Unit) -> Iterator[Found]:
        image, caption = self._columns
        for number in range(unit.start, unit.start + unit.length):
            found = Found(f"{number:09}", "", number)
            try:
                row = self._rows[number]
                found = found._replace(caption=row[caption], pairs=row.get(PAIRS_FIELD), data=self._bytes(row[image]))
            except LookupError:
                found = found._replace(trouble=Trouble("missing file", "The row holds no image."))
            except OSError as error:
                found = found._replace(trouble=unreadable(error))
            except Exception as error:  # a damaged Arrow file raises its own types
                found = found._replace(trouble=Trouble("bad row", f"The row cannot be read ({reason(error)})."))
            if found.caption is not None and not isinstance(found.caption, str):
                found = found._replace(caption=None, trouble=NO_CAPTION)
            yield found

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self._bytes(self._rows[offset][self._columns[0]])

    def _bytes(self, value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value:
            return Path(os.path.join(self._folder, value)).read_bytes()
        raise LookupError("no image")
