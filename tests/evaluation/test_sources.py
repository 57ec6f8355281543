"""Readers of public prompt sets. The files are made here, in the official format."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from evaluation.benchmarks import BENCHMARKS, find_benchmark
from evaluation.image_set import Prompt, noise_seed, write_prompts
from evaluation.metrics.questions import questions_of
from evaluation.metrics.three_in_one import kind_of
from llm4gen_core import LLM4GENError

COMPBENCH = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


def load_prompts(name: str, *arguments: Any, **options: Any) -> list[Prompt]:
    return find_benchmark(name).prompts(*arguments, **options)


@pytest.fixture
def compbench(tmp_path: Path) -> Path:
    """A clone; some files end their lines as Windows does, and some lack the last end, like the official ones."""
    folder = tmp_path / "T2I-CompBench" / "examples" / "dataset"
    folder.mkdir(parents=True)
    for name in COMPBENCH:
        lines = [f"The {name} prompt {number}. With a second sentence." for number in range(300)]
        (folder / f"{name}_val.txt").write_bytes("\r\n".join(lines).encode())
        more = "\n".join(f"{line} of all" for line in lines for _ in range(3))
        (folder / f"{name}.txt").write_text(more, encoding="utf-8")
    (folder / "complex_val_spatial.txt").write_bytes(b"the complex prompt 0.\r\nThe Complex prompt 5.\r\n")
    (folder / "complex_val_action.txt").write_bytes(b"The complex prompt 5.\nThe complex prompt 7.")
    return tmp_path / "T2I-CompBench"


def test_compbench_has_300_prompts_of_each_category(compbench: Path) -> None:
    prompts = load_prompts("t2i-compbench", compbench)
    assert len(prompts) == 1800
    assert [prompt.category for prompt in prompts[::300]] == list(find_benchmark("t2i-compbench").categories)
    assert prompts[1205].id == "non-spatial-005"
    assert prompts[1205].text == "The non_spatial prompt 5. With a second sentence."
    assert load_prompts("t2i-compbench", compbench / "examples" / "dataset") == prompts


def test_complex_prompts_have_the_kind_by_which_the_official_three_in_one_averages(compbench: Path) -> None:
    """The first file that lists a prompt decides; case and text after the first full stop are ignored."""
    prompts = load_prompts("t2i-compbench", compbench, ["complex"])
    kinds = {number: kind_of(prompts[number]) for number in (0, 5, 7, 8)}
    assert kinds == {0: "spatial", 5: "spatial", 7: "action", 8: "spatialaction"}


def test_compbench_refuses_the_files_with_all_prompts(compbench: Path) -> None:
    folder = compbench / "examples" / "dataset"
    (folder / "shape.txt").replace(folder / "shape_val.txt")
    with pytest.raises(LLM4GENError, match=r"shape_val\.txt has 900 prompts; expected the 300 .*pass them as a text"):
        load_prompts("t2i-compbench", compbench)
    (folder / "color_val.txt").unlink()
    with pytest.raises(LLM4GENError, match=r"color_val\.txt.*clone https://github.com/Karine-Huang/T2I-CompBench"):
        load_prompts("t2i-compbench", compbench)


def test_compbench_plus_has_two_more_categories(compbench: Path) -> None:
    with pytest.raises(LLM4GENError, match=r"3d_spatial_val\.txt is missing"):
        load_prompts("t2i-compbench++", compbench)
    for name in ("3d_spatial", "numeracy"):
        lines = [f"{name} {number}\tan extra column" for number in range(300)]
        (compbench / "examples" / "dataset" / f"{name}_val.txt").write_text("\n".join(lines), encoding="utf-8")
    prompts = load_prompts("t2i-compbench++", compbench)
    assert (len(prompts), prompts[-1].id, prompts[-1].text) == (2400, "numeracy-299", "numeracy 299")


def _dpg(folder: Path, rows: list[str], prompts: dict[str, str]) -> Path:
    (folder / "prompts").mkdir(parents=True)
    for name, text in prompts.items():
        (folder / "prompts" / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "dpg_bench.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return folder


def test_dpg_keeps_every_question_with_its_parents(tmp_path: Path) -> None:
    rows = [
        '0,"A field, with\na cat.",,1,0,entity,whole,entity - whole (cat),Is there a cat?',
        '0,"A field, with\na cat.",,2,1,attribute,color,"attribute - color (cat, red)",Is the cat red?',
        '0,"A field, with\na cat.",,3,"1, 2",relation,spatial,"relation - spatial (cat, field, in)",Is it in it?',
        "COCOval1,A dog.,,1,0,global,,global (photo),Is it a photo?",
    ]
    folder = _dpg(tmp_path / "ELLA" / "dpg_bench", rows, {"0": "A field, with a red cat.\n", "COCOval1": "A dog."})
    with pytest.warns(UserWarning, match="has 2 prompts; published scores are for 1,065"):
        first, second = load_prompts("dpg-bench", tmp_path / "ELLA")
    assert (first.id, first.text, second.id) == ("0", "A field, with a red cat.", "COCOval1")
    questions = questions_of(first)
    assert [(one.id, one.category, one.group, one.parents) for one in questions] == [
        (1, "entity - whole", "entity", []),
        (2, "attribute - color", "attribute", [1]),
        (3, "relation - spatial", "relation", [1, 2]),
    ]
    assert questions[1].text == "Is the cat red?"
    assert questions_of(second)[0].group == "global"
    (folder / "prompts" / "0.txt").unlink()
    with pytest.raises(LLM4GENError, match=r"prompts/0\.txt is missing"):
        load_prompts("dpg-bench", folder)


@pytest.mark.filterwarnings("ignore:.*published scores")
def test_dpg_warns_about_what_it_leaves_out(tmp_path: Path) -> None:
    rows = ["0,A cat.,,2,7,entity,whole,entity - whole (cat),Is there a cat?"]
    folder = _dpg(tmp_path / "dpg_bench", rows, {"0": "A cat.", "1": "A dog."})
    with (
        pytest.warns(UserWarning, match="question 2 of 0 depends on itself or on a question that does not exist"),
        pytest.warns(UserWarning, match=r"1 prompts have no question .*1\.txt"),
    ):
        [prompt] = load_prompts("dpg-bench", folder)
    assert questions_of(prompt)[0].parents == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item_id,text\n0,A cat.\n", "has no column proposition_id"),
        (f"{HEADER}\n0,A cat.,,one,0,entity,whole,entity - whole (cat),Is there?\n", "line 2, is not a question"),
        (f"{HEADER}\n0,A cat.\n", "line 2, is not a question"),
        (f"{HEADER}\n0,A cat.,,1,0,entity,whole,entity - whole (cat),\n", "line 2, has no question"),
    ],
)
def test_damaged_dpg_tables_are_refused(tmp_path: Path, content: str, message: str) -> None:
    folder = _dpg(tmp_path / "dpg_bench", [], {"0": "A cat."})
    (folder / "dpg_bench.csv").write_text(content, encoding="utf-8")
    with pytest.raises(LLM4GENError, match=message):
        load_prompts("dpg-bench", folder)


def test_geneval_keeps_the_row(tmp_path: Path) -> None:
    rows = [
        {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
        {
            "tag": "counting",
            "include": [{"class": "orange", "count": 3}],
            "exclude": [{"class": "orange", "count": 4}],
            "prompt": "a photo of three oranges",
        },
    ]
    file = tmp_path / "prompts" / "evaluation_metadata.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.warns(UserWarning, match="other prompts than published scores are for"):
        prompts = load_prompts("geneval", tmp_path)
    assert [(prompt.id, prompt.category) for prompt in prompts] == [("00000", "colors"), ("00001", "counting")]
    assert {**prompts[1].about, "prompt": prompts[1].text} == rows[1]
    file.write_text('{"tag": "colors", "prompt": "a cup"}\n', encoding="utf-8")
    with pytest.raises(LLM4GENError, match="line 1, is not a GenEval row .*include"):
        load_prompts("geneval", file)


def _coco(path: Path, order: random.Random) -> Path:
    """Fifty images with three captions each, in any order; the lowest caption id of image i is 3 i."""
    annotations = [
        {"image_id": image, "id": 3 * image + number, "caption": f" Image {image},\n caption {number}.  "}
        for image in range(50)
        for number in range(3)
    ]
    annotations[0]["caption"] = " "
    order.shuffle(annotations)
    images = [{"id": image, "file_name": f"COCO_val2014_{image:012}.jpg"} for image in range(50)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return path


def test_coco_takes_always_the_same_caption_of_each_image(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    _coco(tmp_path / "annotations" / "captions_val2014.json", random.Random(1))
    prompts = load_prompts("coco", tmp_path)
    assert sorted(prompt.about["image"] for prompt in prompts) == list(range(50))
    assert load_prompts("coco", _coco(tmp_path / "other.json", random.Random(2))) == prompts
    assert load_prompts("coco", tmp_path, count=20) == load_prompts("coco", tmp_path, count=30)[:20] == prompts[:20]
    images = [prompt.about["image"] for prompt in prompts]
    assert images != sorted(images)
    # Computed with sha256sum: the order is part of the benchmark.
    assert images[:4] == [39, 49, 9, 46]
    chosen = next(prompt for prompt in prompts if prompt.about["image"] == 7)
    assert (chosen.id, chosen.text) == ("21", "Image 7, caption 0.")
    assert chosen.about == {"seed": 21, "image": 7, "file": "COCO_val2014_000000000007.jpg"}
    assert noise_seed(chosen, find_benchmark("coco").preset("bench-official").seeds[0]) == 21
    # A blank caption is not taken.
    assert next(prompt for prompt in prompts if prompt.about["image"] == 0).text == "Image 0, caption 1."
    with pytest.raises(LLM4GENError, match="has 50 prompts, but 51 were requested"):
        load_prompts("coco", tmp_path, count=51)


def test_a_file_without_captions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "instances_val2014.json"
    file.write_text('{"images": [], "annotations": [{"image_id": 1, "id": 2}]}', encoding="utf-8")
    with pytest.raises(LLM4GENError, match=r"instances_val2014\.json does not contain .* \(KeyError: 'caption'\)"):
        load_prompts("coco", file)
    with pytest.raises(LLM4GENError, match="does not exist.*annotations_trainval2014"):
        load_prompts("coco", tmp_path / "none")


def test_parti_keeps_quotation_marks(tmp_path: Path) -> None:
    rows = [
        "Prompt\tCategory\tChallenge\tNote",
        '"GO" painted red\tArts\tWriting & Symbols\t',
        "bond\tAbstract\tBasic\tx",
    ]
    (tmp_path / "PartiPrompts.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    first, second = load_prompts("parti", tmp_path)
    assert (first.id, first.text, first.category) == ("p2-0000", '"GO" painted red', "Arts")
    assert second.about == {"challenge": "Basic", "note": "x"}
    (tmp_path / "PartiPrompts.tsv").write_text("\n".join([*rows, "a cat\tAnimals"]), encoding="utf-8")
    with pytest.raises(LLM4GENError, match="line 4, does not have 4 columns"):
        load_prompts("parti", tmp_path)


def test_own_texts_and_prompt_sets(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\ufeffa cat\n\n  a dog \n", encoding="utf-8")
    assert load_prompts("text", tmp_path / "mine.txt") == [
        Prompt(id="text-00001", text="a cat"),
        Prompt(id="text-00003", text="a dog"),
    ]
    (tmp_path / "latin.txt").write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(LLM4GENError, match="cannot be read as UTF-8 text"):
        load_prompts("text", tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(LLM4GENError, match="contains no prompts"):
        load_prompts("text", tmp_path / "empty.txt")
    prompts = [Prompt(id=f"{kind}{number}", text="x", category=kind) for number in range(3) for kind in ("a", "b")]
    write_prompts(tmp_path / "mine.jsonl", prompts)
    assert load_prompts("jsonl", tmp_path / "mine.jsonl") == prompts
    two = load_prompts("jsonl", tmp_path / "mine.jsonl", count=2)
    assert [prompt.id for prompt in two] == ["a0", "b0", "a1", "b1"]
    with pytest.raises(LLM4GENError, match="no category 'c'; expected some of a, b"):
        load_prompts("jsonl", tmp_path / "mine.jsonl", ["c"])


def test_unknown_benchmarks_and_presets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="'dpg' is not known; expected one of t2i-compbench, "):
        load_prompts("dpg", tmp_path)
    with pytest.raises(LLM4GENError, match="no official settings"):
        find_benchmark("text").preset("bench-official")
    with pytest.raises(LLM4GENError, match="'fast' is not known"):
        find_benchmark("coco").preset("fast")


_OFFICIAL = ("t2i-compbench", "t2i-compbench++", "geneval", "dpg-bench", "coco")


def test_presets_are_what_the_official_scripts_do() -> None:
    """Section 6.1 of reference/training-and-evaluation.md: seeds, steps, guidance and images per prompt."""
    official = {name: find_benchmark(name).preset("bench-official") for name in _OFFICIAL}
    assert {name: (one.steps, one.guidance, len(one.seeds)) for name, one in official.items()} == {
        "t2i-compbench": (30, 7.5, 10),
        "geneval": (50, 9.0, 4),
        "dpg-bench": (50, 7.5, 4),
        "coco": (50, 7.5, 1),
        "t2i-compbench++": (30, 7.5, 10),
    }
    assert official["t2i-compbench"].seeds == tuple(range(42, 52))
    for name in {*BENCHMARKS} - {"miniature"}:
        paper = find_benchmark(name).preset("paper")
        assert (paper.steps, paper.guidance, paper.sampler) == (50, 7.5, "ddim")
        assert paper.seeds == (official[name].seeds if name in official else (0,)) and paper.differs
