"""What tables hold of each benchmark, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from evaluation.image_set import ImageSet, image_id
from evaluation.prompts import Prompt
from evaluation.report.build import build_report
from evaluation.report.cells import OTHER_JUDGE
from evaluation.report.groups import Group, group_sets
from evaluation.report.numbers import Absent, Cell, Compared, Count, Measured
from evaluation.report.read import read_sets
from evaluation.report.tables import WHOLE_SETS, Table, build_tables
from llm4gen_diffusers.provenance import fingerprint

if TYPE_CHECKING:
    from .conftest import SetMaker

T2I = ("color", "shape", "texture", "spatial", "non-spatial", "complex")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def group_of(*images: ImageSet) -> Group:
    (group,) = group_sets(read_sets([one.path for one in images]))
    return group


def tables_of(*images: ImageSet) -> dict[str, Table]:
    return {table.key: table for table in build_tables(group_of(*images))}


def cell(table: Table, place: int, key: str) -> Cell:
    return table.rows[place].cells[[column.key for column in table.columns].index(key)]


def compared(table: Table, place: int, key: str) -> Cell:
    return table.comparisons[place].cells[[column.key for column in table.compared_columns].index(key)]


def t2i(make_set: SetMaker, name: str, **options: Any) -> ImageSet:
    """Scored by the metrics of T2I-CompBench, each in its own categories."""
    images = make_set(name, make_set.prompts(36, T2I), benchmark="t2i-compbench", **options)

    def only(*categories: str) -> Any:
        drawn = make_set.drawn(name)
        return lambda prompt, seed: drawn(prompt, seed) if prompt.category in categories else None

    make_set.scores(images, "blip_vqa", only("color", "shape", "texture"), title="BLIP-VQA")
    make_set.scores(images, "spatial", only("spatial"))
    make_set.scores(images, "non_spatial", only("non-spatial"), share=False)
    make_set.scores(images, "three_in_one", only("complex"), share=False)
    return images


def test_t2i_compbench_has_a_column_a_category(make_set: SetMaker) -> None:
    images = t2i(make_set, "SD1.5")
    table = tables_of(images)["official"]
    assert [(column.title, column.metric, column.percent) for column in table.columns] == [
        ("Colour", "blip_vqa", True),
        ("Shape", "blip_vqa", True),
        ("Texture", "blip_vqa", True),
        ("Spatial", "spatial", True),
        ("Non-spatial", "non_spatial", True),
        ("Complex", "three_in_one", True),
    ]
    scores = make_set.read(images, "blip_vqa")
    shape = [scores[image_id(f"p{number:03}", seed)] for number in range(1, 36, 6) for seed in (1, 2)]
    found = cell(table, 0, "blip_vqa:shape")
    assert isinstance(found, Measured)
    assert (found.value, found.n, found.prompts) == (pytest.approx(np.mean(shape)), 12, 6)
    assert list(tables_of(images)) == ["official"]


def test_differences_are_paired_and_corrected_over_the_table(make_set: SetMaker) -> None:
    base, ours, third = t2i(make_set, "SD1.5"), t2i(make_set, "LLM4GEN"), t2i(make_set, "third")
    table = tables_of(base, ours, third)["official"]
    a, b = make_set.read(ours, "blip_vqa"), make_set.read(base, "blip_vqa")
    prompts = [f"p{number:03}" for number in range(2, 36, 6)]
    means = [[np.mean([scores[image_id(prompt, seed)] for seed in (1, 2)]) for prompt in prompts] for scores in (a, b)]
    expected = stats.ttest_rel(*means)
    found = compared(table, 0, "blip_vqa:texture")
    assert isinstance(found, Compared)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.value == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    assert [row.label for row in table.comparisons] == ["LLM4GEN", "third"]
    everything = sorted((c.p, c.p_holm) for row in table.comparisons for c in row.cells if isinstance(c, Compared))
    assert len(everything) == 12
    assert everything[0][1] == pytest.approx(min(1, 12 * everything[0][0]))


def test_geneval_overall_is_the_mean_of_the_task_means(make_set: SetMaker) -> None:
    prompts = [
        prompt
        for number, task in enumerate(TASKS)
        for prompt in [Prompt(id=f"{task}-{n}", text=f"{task} {n}", category=task) for n in range(5 + 3 * number)]
    ]
    sets = [make_set(name, prompts, seeds=(1, 2, 3, 4), benchmark="geneval") for name in ("SD1.5", "LLM4GEN")]
    for images in sets:
        draw = make_set.drawn(images.path.name)
        make_set.scores(
            images,
            "geneval",
            lambda prompt, seed, draw=draw: {
                "score": float(draw(prompt, seed)["score"] < 0.1 + 0.8 * (len(prompt.category) > 7))
            },
        )
    table = tables_of(*sets)["official"]
    scores = [make_set.read(images, "geneval") for images in sets]
    macro = [
        np.mean([np.mean([v for k, v in one.items() if k.startswith(f"{task}-")]) for task in TASKS]) for one in scores
    ]
    assert [column.title for column in table.columns][:3] == ["Overall", "Single object", "Two objects"]
    found = cell(table, 1, "geneval:macro")
    assert isinstance(found, Measured)
    assert found.value == pytest.approx(macro[1])
    assert abs(macro[1] - np.mean(list(scores[1].values()))) > 0.01
    assert found.n == 4 * len(prompts)
    difference = compared(table, 0, "geneval:macro")
    assert isinstance(difference, Compared) and difference.value == pytest.approx(macro[1] - macro[0])


def test_geneval_says_how_many_tasks_its_overall_is_of(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(8, TASKS[:4]), benchmark="geneval")
    make_set.scores(images, "geneval", make_set.drawn("x"))
    (notice,) = build_report([images.path]).benchmarks[0].notices
    assert "over 4 categories here; officially they are 6" in notice.text


def test_dpg_categories_pool_the_answers(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(10), benchmark="dpg-bench")
    other = make_set("LLM4GEN", make_set.prompts(10), benchmark="dpg-bench")

    def answers(shift: int) -> Any:
        def score(prompt: Prompt, seed: int) -> Mapping[str, Any]:
            number = int(prompt.id[1:])
            asked = 1 + number % 4
            categories = {"entity": {"asked": asked, "yes": min((number + seed + shift) % (asked + 1), asked)}}
            if number % 2:
                categories["other"] = {"asked": 1, "yes": number % 3 == 0}
            return {"score": 0.5 + 0.01 * number, "categories": categories}

        return score

    make_set.scores(images, "dpg", answers(0))
    make_set.scores(other, "dpg", answers(1))
    table = tables_of(images, other)["official"]
    assert [column.title for column in table.columns] == ["Overall", "Entity", "Other"]

    def pooled(shift: int, group: str) -> tuple[float, list[tuple[int, int]]]:
        rows = [answers(shift)(prompt, seed)["categories"].get(group) for prompt in images.prompts for seed in (1, 2)]
        rows = [(row["asked"], int(row["yes"])) for row in rows if row]
        return sum(yes for _, yes in rows) / sum(asked for asked, _ in rows), rows

    entity, others = cell(table, 0, "dpg:entity"), cell(table, 0, "dpg:other")
    assert isinstance(entity, Measured) and isinstance(others, Measured)
    assert entity.value == pytest.approx(pooled(0, "entity")[0])
    assert (entity.n, entity.asked) == (20, 20)
    assert others.value == pytest.approx(pooled(0, "other")[0])
    assert (others.n, others.asked) == (10, 10)  # prompts without such a question are not missing
    found = compared(table, 0, "dpg:entity")
    assert isinstance(found, Compared)
    assert found.value == pytest.approx(pooled(1, "entity")[0] - pooled(0, "entity")[0])
    assert (found.pairs, found.prompts) == (20, 10)
    # The interval of a ratio of sums (Cochran 1977, 6.3), prompts as clusters.
    asked, yes = np.array(pooled(0, "entity")[1]).reshape(10, 2, 2).sum(1).T
    residuals = (yes - entity.value * asked) / asked.mean()
    error = np.sqrt((residuals**2).sum() / 9 / 10)
    inside = entity.value * (1 - entity.value)
    square = (stats.t.ppf(0.975, 9) * error) ** 2 / inside
    half = np.sqrt(square * inside + square**2 / 4) / (1 + square)
    assert entity.high - entity.low == pytest.approx(2 * half)


def test_dense_prompts_have_the_truncated_share_beside_the_clip_score(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(8), benchmark="dense-prompts")
    draw = make_set.drawn("clip", 20, 35)
    make_set.scores(images, "clip_score", lambda p, s: {**draw(p, s), "truncated": int(p.id[1:]) < 3}, share=False)
    make_set.scores(images, "aesthetic", make_set.drawn("a", 4, 7), share=False)
    make_set.scores(images, "vqa_score", make_set.drawn("v"))
    table = tables_of(images)["official"]
    assert [column.key for column in table.columns] == ["clip_score", "clip_score:truncated", "aesthetic", "vqa_score"]
    assert cell(table, 0, "clip_score:truncated") == Count(3, 8)
    assert "Long-CLIP" not in repr(table) and [notice.kind for notice in notices(images)] == ["missing_metrics"]
    assert "Long-CLIP score" in notices(images)[0].text


def notices(*images: ImageSet) -> Any:
    return build_report([one.path for one in images]).benchmarks[0].notices


def test_scores_of_different_judges_are_not_compared(make_set: SetMaker) -> None:
    sets = [make_set(name, make_set.prompts(6), benchmark="dense-prompts") for name in ("SD1.5", "LLM4GEN", "third")]
    for images, hashed in zip(sets, ("aa", "bb", "aa"), strict=True):
        make_set.scores(images, "aesthetic", make_set.drawn(images.path.name), describe={"judge": "x", "hash": hashed})
    table = tables_of(*sets)["official"]
    assert compared(table, 0, "aesthetic") == Absent(OTHER_JUDGE)
    kept = compared(table, 1, "aesthetic")
    assert isinstance(kept, Compared)
    assert kept.p_holm == kept.p  # what is refused is no comparison to correct for
    marked, unmarked = cell(table, 1, "aesthetic"), cell(table, 2, "aesthetic")
    assert isinstance(marked, Measured) and isinstance(unmarked, Measured)
    assert (marked.note, unmarked.note) == (OTHER_JUDGE, "")
    (refusal,) = [notice for notice in notices(*sets) if notice.kind == "other_judge"]
    for needed in ("LLM4GEN and SD1.5 are not compared", "differ in hash", fingerprint({"judge": "x", "hash": "aa"})):
        assert needed in refusal.text
    assert [found.label for found in build_report([one.path for one in sets]).benchmarks[0].wins_and_losses] == [
        "third"
    ]


def test_only_the_same_prompts_and_seeds_are_paired(make_set: SetMaker) -> None:
    base = make_set("SD1.5", make_set.prompts(6), seeds=(1, 2, 3))
    changed = [p if n else p.model_copy(update={"text": "other words"}) for n, p in enumerate(make_set.prompts(7))]
    ours = make_set("LLM4GEN", changed, seeds=(2, 3, 4))
    for images in (base, ours):
        make_set.scores(images, "aesthetic", make_set.drawn(images.path.name))
    found = compared(tables_of(base, ours)["all_metrics"], 0, "aesthetic")
    a, b = make_set.read(ours, "aesthetic"), make_set.read(base, "aesthetic")
    names = [image_id(f"p{number:03}", seed) for number in range(1, 6) for seed in (2, 3)]
    assert isinstance(found, Compared)
    assert (found.pairs, found.prompts) == (10, 5)
    assert found.value == pytest.approx(np.mean([a[name] - b[name] for name in names]))
    (notice,) = [notice for notice in notices(base, ours) if notice.kind == "unmatched"]
    assert "share 5 of 7 prompts" in notice.text and "2 of 3 seeds" in notice.text


def test_missing_images_and_scores_are_counted_and_told(make_set: SetMaker) -> None:
    images = t2i(make_set, "SD1.5", without=["p000.1"])
    gone = images.rows()[3]
    (images.path / gone.file).unlink()
    rows = (images.scores / "blip_vqa.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [row for row in rows if '"p006.1"' not in row]
    kept = [row.replace('"score": ', '"score": null, "was": ') if '"p012.1"' in row else row for row in kept]
    (images.scores / "blip_vqa.jsonl").write_text("".join(kept), "utf-8")
    found = cell(tables_of(images)["official"], 0, "blip_vqa:color")
    assert isinstance(found, Measured)
    assert (found.n, found.asked, found.prompts) == (9, 12, 6)
    told = {notice.kind: notice.text for notice in notices(images)}
    assert "2 of 72 images are missing" in told["missing_images"] and gone.id in told["missing_images"]
    assert "has not scored 1 of 36 images" in told["missing_scores"]
    assert "could not judge 1 of 36 images" in told["not_judged"]
    assert not build_report([images.path]).complete


def test_a_category_that_was_never_scored_is_named_as_missing(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(12, T2I), benchmark="t2i-compbench")
    make_set.scores(images, "spatial", lambda p, s: {"score": 0.5} if p.category == "spatial" else None)
    (notice,) = notices(images)
    assert notice.kind == "missing_metrics"
    assert "BLIP-VQA" in notice.text and "3-in-1" in notice.text and "spatial detector" not in notice.text


def test_numbers_of_whole_sets_keep_count_and_method(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(4), benchmark="coco")
    fid = {"value": 26.1, "low": 25.0, "high": 27.4, "n": 8, "how": "bootstrap", "details": {"resize": 299}}
    make_set.set_score(images, "fid", {"fid": fid}, title="Inception distance")
    table = tables_of(images)[WHOLE_SETS]
    assert table.columns[0].lower_is_better
    assert cell(table, 0, "fid:fid") == Measured(26.1, 25.0, 27.4, 8, None, 8, "bootstrap")
    assert table.comparisons == ()
    make_set.set_score(images, "fid", {"fid": fid}, images="another")
    assert [notice.kind for notice in notices(images)].count("stale_scores") == 1
    now = fingerprint([[row.id, row.sha256] for row in images.rows()])
    make_set.set_score(images, "fid", {"fid": fid}, images=now)
    assert [notice.kind for notice in notices(images)].count("stale_scores") == 0


def test_sets_of_several_benchmarks_are_kept_apart(make_set: SetMaker) -> None:
    names = [("SD1.5", "coco"), ("SD1.5", "dense-prompts"), ("LLM4GEN", "coco"), ("LLM4GEN", "dense-prompts")]
    sets = [make_set(name, make_set.prompts(4), benchmark=kind, folder=f"{name}-{kind}") for name, kind in names]
    for images in sets:
        make_set.scores(images, "clip_score", make_set.drawn(images.path.name))
    report = build_report([images.path for images in sets])
    assert [(one.group.benchmark.title, one.group.baseline.images.path.name) for one in report.benchmarks] == [
        ("MS-COCO", "SD1.5-coco"),
        ("DensePrompts", "SD1.5-dense-prompts"),
    ]
    assert all([images.label for images in one.group.sets] == ["SD1.5", "LLM4GEN"] for one in report.benchmarks)
