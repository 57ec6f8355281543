"""Files of a report: HTML, JSON, Markdown, and the command that writes them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.image_set import ImageSet, Prompt
from evaluation.report.build import build_report, costs
from evaluation.report.read import read_sets
from evaluation.report.tables import Measured, Total
from evaluation.report.write import report_html, report_json, report_markdown

if TYPE_CHECKING:
    from .conftest import SetMaker

VOID = {"meta", "img", "line", "br"}
PICTURE = re.compile(r'<img[^>]* src="data:image/(\w+);base64,([^"]+)"')


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def sets(make_set: SetMaker) -> list[ImageSet]:
    """Two models; the second lacks an image that would be a sample."""
    prompts = [
        Prompt(id=f"p{n}", text=f"<b>thing</b> & *{n}* [x](https://example.com)", category="ab"[n % 2])
        for n in range(10)
    ]
    found = []
    for name in ("SD1.5", "LLM4GEN"):
        images = make_set(name, prompts, without=["p0.1"] if name == "LLM4GEN" else [], side=80)
        make_set.scores(images, "aesthetic", make_set.drawn(name, 4, 7), share=False, title="Aesthetic score")
        found.append(images)
    return found


def page_of(sets: list[ImageSet]) -> str:
    return report_html(build_report([images.path for images in sets]))


def test_html_is_balanced_and_shows_text_literally(sets: list[ImageSet]) -> None:
    page = page_of(sets)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == [] and len(set(parser.ids)) == len(parser.ids)
    assert "<b>thing" not in page and "&lt;b&gt;thing&lt;/b&gt; &amp; *0*" in page
    assert "http" not in page.replace("https://example.com", "")  # nothing is loaded from elsewhere


def test_same_sets_give_the_same_bytes_in_any_folder(sets: list[ImageSet], tmp_path: Path) -> None:
    copies = [ImageSet(shutil.copytree(images.path, tmp_path / "moved" / images.path.name)) for images in sets]
    first, second = (build_report([images.path for images in group]) for group in (sets, copies))
    assert report_html(first) == report_html(second)
    assert report_json(first) == report_json(second)
    assert report_markdown(first) == report_markdown(second)


def test_order_of_the_score_rows_changes_nothing(sets: list[ImageSet]) -> None:
    before = page_of(sets)
    path = sets[1].scores / "aesthetic.jsonl"
    path.write_text("".join(reversed(path.read_text("utf-8").splitlines(keepends=True))), "utf-8")
    assert page_of(sets) == before


def test_a_missing_image_is_reported_at_the_top_in_the_table_and_in_its_place(sets: list[ImageSet]) -> None:
    page = page_of(sets)
    top = page[: page.index("<h2")]
    assert "This report is incomplete" in top and "1 of 20 images are missing: p0.1." in top
    assert "n = 19 of 20 images" in page
    assert page.count("image missing") == 1
    content = json.loads(report_json(build_report([images.path for images in sets])))
    assert content["complete"] is False
    assert [one["images_missing"] for one in content["benchmarks"][0]["sets"]] == [[], ["p0.1"]]
    row = content["benchmarks"][0]["tables"][0]["rows"][1]["cells"]["aesthetic"]
    assert (row["n"], row["asked"]) == (19, 20)


def test_complete_sets_have_no_notice(sets: list[ImageSet]) -> None:
    assert "incomplete" not in page_of(sets[:1])


def test_wins_and_losses_are_the_largest_differences(sets: list[ImageSet], make_set: SetMaker) -> None:
    (found,) = build_report([images.path for images in sets]).benchmarks[0].wins_and_losses
    base, ours = (make_set.read(images, "aesthetic") for images in sets)
    means = {
        f"p{n}": np.mean([ours[f"p{n}.{s}"] - base[f"p{n}.{s}"] for s in (1, 2) if f"p{n}.{s}" in ours])
        for n in range(10)
    }
    order = sorted(means, key=lambda name: -means[name])
    assert [one["prompt"] for one in found["wins"]] == [name for name in order if means[name] > 0][:3]
    assert [one["prompt"] for one in found["losses"]] == [name for name in order[::-1] if means[name] < 0][:3]
    assert found["better"].part == sum(one > 0 for one in means.values())
    assert sum(found[kind].part for kind in ("better", "worse", "equal")) == found["better"].whole == 10
    page = " ".join(page_of(sets).split())
    for example in (*found["wins"], *found["losses"]):
        assert example["difference"] == pytest.approx(means[example["prompt"]])
        name = f"{example['prompt']}.{example['shown_seed']}"
        for label, scores in (("SD1.5", base), ("LLM4GEN", ours)):
            assert f"{label}, seed {example['shown_seed']}: {scores[name]:.3f}</figcaption>" in page


def test_samples_are_chosen_without_scores(sets: list[ImageSet], make_set: SetMaker) -> None:
    def chosen() -> list[str]:
        return [one["prompt"] for one in build_report([images.path for images in sets]).benchmarks[0].samples]

    assert chosen() == [f"p{n}" for n in range(8)]
    for images in sets:
        make_set.scores(images, "aesthetic", make_set.drawn("otherwise", 4, 7), share=False)
    assert chosen() == [f"p{n}" for n in range(8)]


def test_large_images_are_scaled_down(make_set: SetMaker) -> None:
    def generate(prompt: Prompt, seed: int) -> Image.Image:
        return Image.new("RGB", (600, 300), (200, 30, 60))

    images = make_set("SD1.5", make_set.prompts(2), seeds=(1,), generate=generate)
    kinds = PICTURE.findall(page_of([images]))
    assert len(kinds) == 2
    for kind, data in kinds:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (kind, picture.size) == ("jpeg", (288, 144))
        assert np.abs(np.asarray(picture).astype(int) - (200, 30, 60)).max() < 8


def test_small_images_are_kept_as_they_are(make_set: SetMaker) -> None:
    images = make_set("miniature", make_set.prompts(2), side=16)
    page = page_of([images])
    (kind, data), *_ = PICTURE.findall(page)
    assert kind == "png" and 'class="pixels"' in page
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert (shown == np.asarray(images.open(images.rows()[0]))).all()


@pytest.mark.parametrize("budget", [400_000, 30_000])
def test_images_stay_within_their_budget(make_set: SetMaker, budget: int) -> None:
    big = [make_set(name, make_set.prompts(8), folder=f"big-{name}", side=400) for name in ("a", "b")]
    for images in big:
        make_set.scores(images, "aesthetic", make_set.drawn(images.path.name))
    page = report_html(build_report([images.path for images in big]), budget)
    assert sum(len(data) for _, data in PICTURE.findall(page)) < budget
    assert ("left out: the page would be too large" in page) == (budget == 30_000)


@pytest.mark.slow
def test_page_of_many_sets_and_metrics_stays_below_five_megabytes(make_set: SetMaker) -> None:
    sets = [
        make_set(f"model {n}", make_set.prompts(24, [f"c{k}" for k in range(6)], 60), seeds=(1,), side=200)
        for n in range(5)
    ]
    for images in sets:
        for metric in ("a", "b", "c", "d", "e"):
            make_set.scores(images, metric, make_set.drawn(f"{metric}{images.path.name}"))
    assert 1_500_000 < len(page_of(sets).encode()) < 5_000_000


def test_cost_is_computed_from_the_manifest(make_set: SetMaker) -> None:
    gpu = make_set("gpu", make_set.prompts(5), device={"device": "NVIDIA A100"}, seconds=1.5)
    cpu = make_set("cpu", make_set.prompts(5), seconds=3)
    found = [cost for one in read_sets([gpu.path, cpu.path]) for cost in costs(one)]
    seconds = [1.5 + 0.1 * (n % 5) for n in range(10)]
    assert [(cost["device"], cost["hours"].unit) for cost in found] == [
        ("NVIDIA A100", "GPU-hours"),
        ("CPU", "CPU-hours"),
    ]
    assert found[0]["hours"] == Total(pytest.approx(sum(seconds) / 3600), "GPU-hours", 10)
    time, speed = found[0]["seconds_per_image"], found[0]["images_per_second"]
    assert isinstance(time, Measured) and isinstance(speed, Measured)
    assert speed.value == pytest.approx(10 / sum(seconds))
    assert (speed.low, speed.high) == pytest.approx((1 / time.high, 1 / time.low))


def test_every_result_in_the_json_has_its_interval_and_count(sets: list[ImageSet]) -> None:
    content = json.loads(report_json(build_report([images.path for images in sets])))
    assert content["schema"] == 1
    (benchmark,) = content["benchmarks"]
    cells = [
        cell
        for table in benchmark["tables"]
        for row in (*table["rows"], *table["comparisons"])
        for cell in row["cells"].values()
    ]
    assert {cell["kind"] for cell in cells} == {"measured", "difference"}
    for cell in cells:
        assert cell["low"] <= cell["value"] <= cell["high"] and cell["confidence"] == 0.95 and cell["how"]
        assert cell["n" if cell["kind"] == "measured" else "pairs"] > 0
    for table in (*benchmark["quoted"], *content["quoted_costs"]):
        assert table["quoted"] is True
        assert all(isinstance(value, str) for row in table["rows"] for value in row["values"])
    assert benchmark["judges"][0]["sets"] == {"SD1.5": 20, "LLM4GEN": 19}


def test_command_writes_both_files_and_prints_markdown(
    sets: list[ImageSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(images.path) for images in sets]
    assert main(["report", *paths, "--output", str(tmp_path / "out"), "--markdown"]) == 0
    shown = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    rows = [line for line in shown.out.splitlines() if line.startswith("|")]
    assert re.match(r"\| SD1.5 \| 5\.\d+ \[4\.\d+, 5\.\d+\]; n = 20 images, 10 prompts \|$", rows[2])
    assert "n = 19 of 20 images" in rows[3] and "⚠" in rows[3]
    assert re.search(r"p = \.\d+; n = 19 pairs, 10 prompts", rows[6])
    assert "report.html" in shown.err and "report.html" not in shown.out


def test_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "not an image set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
