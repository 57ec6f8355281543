"""Scan and manifest: bad data is listed, known files are not read again, and the fingerprint covers the content."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from image_text import encoded, make_data, make_pairs, noise, open_manifest, write_folder, write_jsonl
from PIL import Image

import train.data.scan as scanning
from llm4gen_core import LLM4GENError
from llm4gen_core.entities import EntityPair, parse_entities
from train.data.images import ImageFacts, inspect
from train.data.manifest import Manifest
from train.data.scan import scan


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the images that are checked."""
    sizes: list[int] = []

    def count(data: bytes) -> ImageFacts:
        sizes.append(len(data))
        return inspect(data)

    monkeypatch.setattr(scanning, "inspect", count)
    return sizes


def test_bad_data_is_left_out_or_converted_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    image = noise(0)
    jpeg = encoded(image, "JPEG")
    files = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "zero.jpg": b"",
        "html.jpg": b"<html></html>",
        "long.png": encoded(Image.new("RGB", (10000, 3))),
        "small.png": encoded(noise(1, 20, 40)),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "palette.png": encoded(image.quantize(8)),
        "alpha.png": encoded(image.convert("RGBA")),
        "wide16.png": encoded(image.convert("L").convert("I;16")),
        "no_caption.png": encoded(image),
        "blank_caption.png": encoded(image),
        "latin1.png": encoded(image),
        "script.png": encoded(image),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a caption", encoding="utf-8")
    (folder / "no_caption.txt").unlink()
    (folder / "blank_caption.txt").write_text(" \n")
    (folder / "latin1.txt").write_bytes(b"caf\xe9")
    (folder / "script.txt").write_text("一只红色的猫", encoding="utf-8")
    manifest = open_manifest(tmp_path, folder)
    kept = [manifest.key(i) for i in range(len(manifest))]
    assert kept == ["alpha.png", "cmyk.jpg", "palette.png", "script.png", "wide16.png"]
    assert manifest.notes() == {"alpha": 1, "CMYK": 1, "palette": 1, "16 bits": 1}
    assert {problem.key: problem.kind for problem in manifest.problems()} == {
        "truncated.jpg": "truncated",
        "zero.jpg": "empty file",
        "html.jpg": "not an image",
        "long.png": "too long",
        "small.png": "too small",
        "no_caption.png": "no caption",
        "blank_caption.png": "no caption",
        "latin1.png": "caption not UTF-8",
    }


def test_the_smallest_size_depends_on_the_recipe_alone(tmp_path: Path, looked_at: list[int]) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(4, [(64, 64), (40, 200)]))
    assert [
        len(open_manifest(tmp_path, folder, **settings)) for settings in ({}, {"min_size": 41}, {"max_ratio": 4})
    ] == [
        4,
        2,
        2,
    ]
    assert len(looked_at) == 4


def test_no_usable_pair_is_an_error_with_reasons(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [(b"", "x"), (b"", "y")])
    with pytest.raises(LLM4GENError, match="none of the 2 pairs can be used .2 empty file."):
        open_manifest(tmp_path, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLM4GENError, match="nothing found"):
        open_manifest(tmp_path, tmp_path / "empty")


def test_duplicates_have_the_same_image_and_caption(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pairs(1))
    rows = [{"image": "0000.png", "caption": caption} for caption in ("one", "two", "one", "three")]
    listed = tmp_path / "l.jsonl"
    listed.write_text("\n".join(json.dumps(row) for row in rows))
    for _ in range(3):  # and scanning again multiplies nothing
        manifest = open_manifest(tmp_path, listed)
        assert [(manifest.key(i), manifest.caption(i)) for i in range(len(manifest))] == [
            ("0000.png", "one"),
            ("0000.png#2", "two"),
            ("0000.png#4", "three"),
        ]
        assert manifest.left_out() == {"duplicate": 1}
        with listed.open("a") as file:
            file.write(" \n")


def test_a_duplicate_is_used_when_the_other_is_gone(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pairs(1))
    lines = ['{"image": "0000.png", "caption": "one"}', '{"caption": "one", "image": "0000.png"}']
    listed = tmp_path / "l.jsonl"
    listed.write_text("\n".join(lines))
    assert open_manifest(tmp_path, listed).left_out() == {"duplicate": 1}
    listed.write_text(lines[1])
    manifest = open_manifest(tmp_path, listed)
    assert (len(manifest), manifest.key(0)) == (1, "0000.png") and not manifest.left_out()


def test_unchanged_files_are_not_checked_again(tmp_path: Path, looked_at: list[int]) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(6))
    first = open_manifest(tmp_path, folder)
    assert open_manifest(tmp_path, folder).fingerprint == first.fingerprint
    assert len(looked_at) == 6
    (folder / "0002.png").write_bytes(encoded(noise(77)))
    (folder / "0004.txt").write_text("another caption")
    write_folder(folder / "new", make_pairs(1))
    (folder / "0005.png").unlink()
    manifest = open_manifest(tmp_path, folder)
    assert len(looked_at) == 6 + 3
    fresh = scan(manifest.data, tmp_path / "elsewhere", need_pairs=False)
    assert manifest.fingerprint == fresh.fingerprint
    assert [manifest.key(i) for i in range(6)] == [fresh.key(i) for i in range(6)]


def test_an_unreadable_file_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.data.sources import Folder

    folder = write_folder(tmp_path / "data", make_pairs(2))
    read = Folder.read

    def failing(self: Folder, path: str, offset: int, size: int) -> bytes:
        if path == "0001.png":
            raise OSError(5, "Input/output error")
        return read(self, path, offset, size)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", failing)
        assert open_manifest(tmp_path, folder).left_out() == {"unreadable": 1}
    assert not open_manifest(tmp_path, folder).left_out()


def test_worker_processes_find_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(600, [(33, 33)]))
    alone = scan(make_data(folder), tmp_path / "a", need_pairs=False)
    together = scan(make_data(folder, workers=2), tmp_path / "b", need_pairs=False)
    assert alone.fingerprint == together.fingerprint
    assert len(together) == 600


def test_a_damaged_table_is_made_again(tmp_path: Path, looked_at: list[int]) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(2))
    table = open_manifest(tmp_path, folder).rows_file
    table.write_bytes(table.read_bytes()[:-50])
    assert len(open_manifest(tmp_path, folder)) == 2
    assert not list(table.parent.glob(".*.partial"))


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "caption": lambda folder: (folder / "0001.txt").write_text("other"),
    "image": lambda folder: (folder / "0001.png").write_bytes(encoded(noise(9))),
    "name": lambda folder: [(folder / f"0001.{end}").rename(folder / f"9.{end}") for end in ("png", "txt")],
    "one less": lambda folder: (folder / "0001.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_the_data(tmp_path: Path, change: str) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(3))
    before = open_manifest(tmp_path, folder).fingerprint
    CHANGES[change](folder)
    assert open_manifest(tmp_path, folder).fingerprint != before


def test_the_fingerprint_does_not_depend_on_place_or_time(tmp_path: Path) -> None:
    one, other = (open_manifest(tmp_path, write_folder(tmp_path / name, make_pairs(3))) for name in ("a", "b"))
    os.utime(tmp_path / "a" / "0000.png", ns=(5, 5))
    assert one.fingerprint == other.fingerprint == open_manifest(tmp_path, tmp_path / "a").fingerprint


def test_several_sources_have_keys_of_their_own(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / name / "data", make_pairs(2)) for name in ("a", "b")]
    manifest = open_manifest(tmp_path, sources[0], {"path": str(sources[1]), "repeats": 3})
    assert [manifest.key(i) for i in range(4)] == [
        "data/0000.png",
        "data/0001.png",
        "data~2/0000.png",
        "data~2/0001.png",
    ]
    assert manifest.repeats().tolist() == [1, 1, 3, 3]


def test_an_image_that_changed_after_the_scan_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(2))
    manifest = open_manifest(tmp_path, folder)
    (folder / "0000.png").write_bytes(encoded(noise(5)))
    with pytest.raises(LLM4GENError, match="has changed since"):
        manifest.read(0)
    (folder / "0001.png").unlink()
    with pytest.raises(LLM4GENError, match="cannot be read"):
        manifest.read(1)


def test_a_manifest_is_pickled_as_its_file_names(tmp_path: Path) -> None:
    manifest = open_manifest(tmp_path, write_folder(tmp_path / "data", make_pairs(2)))
    assert len(pickle.dumps(manifest)) < 5000
    assert pickle.loads(pickle.dumps(manifest)).caption(1) == manifest.caption(1)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Captions that are parsed."""
    seen: list[str] = []

    def parse(captions: Iterable[str], backend: str, workers: int = 0, batch: int = 1000) -> Iterator[list[EntityPair]]:
        for caption in captions:
            seen.append(caption)
            yield parse_entities(caption, backend)

    monkeypatch.setattr("train.data.scan.parse_captions", parse)
    return seen


def words(manifest: Manifest) -> list[list[tuple[str, str]]]:
    return [[(pair.attribute.text, pair.entity.text) for pair in manifest.pairs(i)] for i in range(len(manifest))]


def test_each_caption_is_parsed_once_and_given_pairs_are_kept(tmp_path: Path, parsed: list[str]) -> None:
    listed = write_jsonl(tmp_path / "data", [(encoded(noise(n)), "a red cat") for n in range(3)])
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    rows[2]["pairs"] = []
    listed.write_text("\n".join(json.dumps(row) for row in rows))
    data = make_data(listed)
    for _ in range(2):
        assert words(scan(data, tmp_path / "cache")) == [[("red", "cat")], [("red", "cat")], []]
    assert parsed == ["a red cat"]
    rows.append({"image": "images/0000.png", "caption": "a blue dog"})
    listed.write_text("\n".join(json.dumps(row) for row in rows))
    assert words(scan(data, tmp_path / "cache"))[3] == [("blue", "dog")]
    assert parsed == ["a red cat", "a blue dog"]


def test_interrupted_parsing_continues(tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.scan.PART", 2)
    data = make_data(write_folder(tmp_path / "data", make_pairs(5)))

    def stop(what: str, done: int, total: int) -> None:
        if what == "finding entities" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(data, tmp_path / "cache", stop)
    assert len(words(scan(data, tmp_path / "cache"))) == 5
    assert sorted(parsed) == [f"a red cat number {n}" for n in range(5)]


def test_pairs_are_part_of_the_fingerprint(tmp_path: Path, parsed: list[str]) -> None:
    data = make_data(write_folder(tmp_path / "data", [(encoded(noise(0)), "a red cat")]))
    without = scan(data, tmp_path / "cache", need_pairs=False)
    assert scan(data, tmp_path / "cache").fingerprint != without.fingerprint
