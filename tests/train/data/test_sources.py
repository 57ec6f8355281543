"""Each kind of source gives the same pairs, and its errors stop nothing."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from image_text import Pair, encoded, make_pairs, noise, open_manifest, write_folder, write_jsonl, write_shards

from llm4gen_core import LLM4GENError
from train.data.manifest import Manifest
from train.data.sources import expand, open_source
from train.recipe import Source


def content(manifest: Manifest) -> list[tuple[str, bytes, tuple[int, int], bytes]]:
    return [(manifest.caption(i), manifest.digest(i), manifest.size(i), manifest.read(i)) for i in range(len(manifest))]


def write_dataset(path: Path, pairs: list[Pair], **columns: Any) -> Path:
    import datasets

    images = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {
        "image": [{"bytes": data, "path": None} for data, _ in pairs],
        "text": [caption for _, caption in pairs],
    }
    datasets.Dataset.from_dict(rows, features=images).save_to_disk(str(path))
    return path


def rows_of(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_all_kinds_give_the_same_pairs(tmp_path: Path) -> None:
    pairs = make_pairs(10, [(64, 64), (80, 48)])
    folder = open_manifest(tmp_path, write_folder(tmp_path / "folder", pairs))
    expected = [(caption, data) for data, caption in pairs]
    assert [(caption, data) for caption, _, _, data in content(folder)] == expected
    others = [write_jsonl(tmp_path / "jsonl", pairs), write_shards(tmp_path / "shards", pairs)]
    for source in [*others, write_dataset(tmp_path / "dataset", pairs)]:
        assert content(open_manifest(tmp_path, source)) == content(folder)


def test_shards_are_found_by_braces_stars_and_name(tmp_path: Path) -> None:
    braces = write_shards(tmp_path, make_pairs(10))
    files = [str(tmp_path / f"{n:04}.tar") for n in range(3)]
    assert expand(braces) == expand(f"{tmp_path}/*.tar") == files
    assert expand(files[1]) == files[1:2]
    with pytest.raises(LLM4GENError, match="0003.tar does not exist"):
        expand(f"{tmp_path}/{{0000..0003}}.tar")


def test_a_truncated_shard_keeps_its_complete_samples(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, make_pairs(6), per_shard=6)
    shard = tmp_path / "0000.tar"
    with tarfile.open(shard) as tar:
        cut = next(member.offset_data for member in tar if member.name == "0004.png") + 100
    shard.write_bytes(shard.read_bytes()[:cut])
    manifest = open_manifest(tmp_path, pattern)
    assert len(manifest) == 4
    assert "bad shard" in manifest.left_out()


def test_shards_read_captions_and_pairs_from_json(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    row = json.dumps({"text": "a red cat", "pairs": [[2, 5, 6, 9]]}).encode()
    with tarfile.open(shard, "w") as tar:
        for name, data in (("x/1.PNG", encoded(noise(0))), ("x/1.json", row), ("x/2.json", row), ("x/3.png", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    manifest = open_manifest(tmp_path, shard)
    assert manifest.key(0) == "a.tar/x/1.png"
    assert [pair.offsets for pair in manifest.pairs(0)] == [[2, 5, 6, 9]]
    assert manifest.left_out() == {"no image": 1, "not an image": 1}


def test_compressed_and_remote_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(LLM4GENError, match="Unpack"):
        expand(str(tmp_path / "a.tar.gz"))
    with pytest.raises(LLM4GENError, match="not on this machine"):
        expand("https://example.org/{0..3}.tar")


def test_subfolders_belong_to_a_folder_and_hidden_files_do_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", make_pairs(1))
    write_folder(tmp_path / "data" / "more", make_pairs(2))
    write_folder(tmp_path / "data" / ".trash", make_pairs(1))
    (tmp_path / "data" / "._0000.png").write_bytes(b"resource fork")
    (tmp_path / "data" / "more" / "up").symlink_to(tmp_path / "data", target_is_directory=True)
    manifest = open_manifest(tmp_path, tmp_path / "data")
    assert [manifest.key(i) for i in range(len(manifest))] == ["0000.png", "more/0000.png", "more/0001.png"]
    assert not manifest.left_out()


def test_a_folder_can_list_its_images_as_hugging_face_does(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pairs(2))
    rows_of(tmp_path / "metadata.jsonl", {"file_name": "0001.png", "text": "from the list"})
    manifest = open_manifest(tmp_path, tmp_path)
    assert [(manifest.key(0), manifest.caption(0))] == [("0001.png", "from the list")]


def test_named_fields_and_extensions_are_used(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", make_pairs(2))
    (tmp_path / "data" / "0001.long").write_text("a long one")
    manifest = open_manifest(tmp_path, {"path": str(tmp_path / "data"), "caption": "long"})
    assert [manifest.caption(i) for i in range(len(manifest))] == ["a long one"]
    listed = rows_of(tmp_path / "l.jsonl", {"file": "data/0000.png", "caption": "no", "dense": "yes"})
    manifest = open_manifest(tmp_path, {"path": str(listed), "image": "file", "caption": "dense"})
    assert manifest.caption(0) == "yes"


def test_bad_lines_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pairs(1))
    good = {"image": "0000.png", "caption": "good"}
    lines = [
        "{",
        "[1]",
        {"caption": "no image"},
        {"image": "gone.png", "caption": "x"},
        {"image": "a\0b", "caption": "x"},
    ]
    more = [{"image": "0000.png"}, {"image": "0000.png", "caption": 5}, {"image": "0000.png", "caption": "  "}]
    manifest = open_manifest(tmp_path, rows_of(tmp_path / "l.jsonl", *lines, good, *more, "", '"' * 3))
    assert manifest.caption(0) == "good" and len(manifest) == 1
    assert manifest.left_out() == {"bad line": 4, "missing file": 1, "unreadable": 1, "no caption": 3}


def test_given_pairs_follow_their_caption_and_impossible_ones_are_noted(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pairs(3))
    listed = rows_of(
        tmp_path / "l.jsonl",
        {"image": "0000.png", "caption": "  a red cat\n", "pairs": [[4, 7, 8, 11]]},
        {"image": "0001.png", "caption": "a red cat", "pairs": [[2, 5, 6, 99]]},
        {"image": "0002.png", "caption": "a red cat", "pairs": "none"},
    )
    manifest = open_manifest(tmp_path, listed)
    assert [(pair.attribute.text, pair.entity.text) for pair in manifest.pairs(0)] == [("red", "cat")]
    assert manifest.pairs(1) == manifest.pairs(2) == []
    assert manifest.notes() == {"impossible entity pairs": 2}


def test_half_a_surrogate_pair_in_a_caption(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pairs(1))
    listed = rows_of(tmp_path / "l.jsonl", '{"image": "0000.png", "caption": "a \\ud83d cat"}')
    assert open_manifest(tmp_path, listed).caption(0) == "a ? cat"


def test_a_data_set_with_splits_gives_train(tmp_path: Path) -> None:
    import datasets

    pairs = make_pairs(2)
    one = datasets.load_from_disk(str(write_dataset(tmp_path / "one", pairs)))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    datasets.DatasetDict({"test": one}).save_to_disk(str(tmp_path / "other"))
    assert len(open_manifest(tmp_path, tmp_path / "both")) == 2
    assert len(open_manifest(tmp_path, tmp_path / "other" / "test")) == 2
    with pytest.raises(LLM4GENError, match="the splits test, but no split train"):
        open_manifest(tmp_path, tmp_path / "other")
    one.rename_column("text", "words").save_to_disk(str(tmp_path / "words"))
    with pytest.raises(LLM4GENError, match="columns image, words; none of them is known as the caption"):
        open_manifest(tmp_path, tmp_path / "words")
    assert open_manifest(tmp_path, {"path": str(tmp_path / "words"), "caption": "words"}).caption(0) == pairs[0][1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere"}, "does not exist"),
        ({"path": "a.jsonl"}, "does not exist"),
        ({"path": "a.parquet"}, "of an unknown kind"),
        ({"path": ".", "type": "dataset"}, "save_to_disk"),
        ({"path": ".", "type": "jsonl"}, "is a folder"),
        ({"path": "a.parquet", "type": "folder"}, "is a file"),
    ],
)
def test_a_wrong_path_is_an_error(
    source: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").write_bytes(b"x")
    with pytest.raises(LLM4GENError, match=message):
        open_source(Source.model_validate(source))


def test_file_names_need_not_be_text(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", make_pairs(1))
    try:
        (folder / "0000.png").rename(folder / "\udcff\udcfe.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "0000.txt").rename(folder / "\udcff\udcfe.txt")
    manifest = open_manifest(tmp_path, folder)
    assert manifest.key(0) == "\\xff\\xfe.png"
    assert manifest.read(0) == make_pairs(1)[0][0]
