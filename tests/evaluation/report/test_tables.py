"""Tables of each benchmark: scores with intervals and counts, paired differences, notices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from evaluation.image_set import ImageSet, Prompt, image_id
from evaluation.report.build import build_report
from evaluation.report.read import read_sets
from evaluation.report.tables import (
    OTHER_JUDGE,
    WHOLE_SETS,
    Absent,
    Cell,
    Compared,
    Count,
    Group,
    Measured,
    Table,
    build_tables,
    corrected,
    difference,
    group_sets,
    mean,
)
from evaluation.report.write import shown_cell
from llm4gen_diffusers.machine import fingerprint

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
    return table.rows[place].cells[key]


def compared(table: Table, place: int, key: str) -> Cell:
    return table.comparisons[place].cells[key]


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


def test_t2i_compbench_has_a_column_for_each_category(make_set: SetMaker) -> None:
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
    assert [row.set for row in table.comparisons] == ["LLM4GEN", "third"]
    everything = sorted(
        (c.p, c.p_holm) for row in table.comparisons for c in row.cells.values() if isinstance(c, Compared)
    )
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
    change = compared(table, 0, "geneval:macro")
    assert isinstance(change, Compared) and change.value == pytest.approx(macro[1] - macro[0])


def test_a_notice_says_that_geneval_tasks_are_missing(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(8, TASKS[:4]), benchmark="geneval")
    make_set.scores(images, "geneval", make_set.drawn("x"))
    (notice,) = build_report([images.path]).benchmarks[0].notices
    assert "over 4 categories here; the official score is over 6" in notice.text


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
    assert kept.p_holm == kept.p  # a comparison that is not made does not count for the correction
    marked, unmarked = cell(table, 1, "aesthetic"), cell(table, 2, "aesthetic")
    assert isinstance(marked, Measured) and isinstance(unmarked, Measured)
    assert (marked.note, unmarked.note) == (OTHER_JUDGE, "")
    (refusal,) = [notice for notice in notices(*sets) if notice.kind == "other_judge"]
    for needed in (
        "LLM4GEN and SD1.5 are not compared",
        "they differ in hash",
        fingerprint({"judge": "x", "hash": "aa"}),
    ):
        assert needed in refusal.text
    assert [found["set"] for found in build_report([one.path for one in sets]).benchmarks[0].wins_and_losses] == [
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


def test_missing_images_and_scores_are_counted_and_reported(make_set: SetMaker) -> None:
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
    texts = {notice.kind: notice.text for notice in notices(images)}
    assert "2 of 72 images are missing" in texts["missing_images"] and gone.id in texts["missing_images"]
    assert "has not scored 1 of 36 images" in texts["missing_scores"]
    assert "could not judge 1 of 36 images" in texts["not_judged"]
    assert not build_report([images.path]).complete


def test_a_category_that_was_never_scored_is_named_as_missing(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(12, T2I), benchmark="t2i-compbench")
    make_set.scores(images, "spatial", lambda p, s: {"score": 0.5} if p.category == "spatial" else None)
    (notice,) = notices(images)
    assert notice.kind == "missing_metrics"
    assert "not scored by BLIP-VQA, Non-spatial, 3-in-1." in notice.text


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


def test_a_number_of_a_whole_set_may_have_no_interval(make_set: SetMaker) -> None:
    images = make_set("SD1.5", make_set.prompts(4), seeds=(1,), benchmark="coco")
    fid = {"value": 26.1, "low": None, "high": None, "n": 4, "how": "no interval: one value, from one seed"}
    make_set.set_score(images, "fid", {"fid": fid})
    found = cell(tables_of(images)[WHOLE_SETS], 0, "fid:fid")
    assert found == Measured(26.1, None, None, 4, None, 4, "no interval: one value, from one seed")
    assert shown_cell(found, False, 2).line == "26.10; n = 4 images"


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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def mean_of(share: bool = True, **parts: np.ndarray) -> Measured | Absent:
    """Mean of scores [P, K] by category."""
    cells = {name: values[..., None] for name, values in parts.items()}
    return mean(cells, share, sum(values.size for values in parts.values()))


def by_prompt(values: np.ndarray) -> tuple[float, float, int]:
    """Mean over all images, its standard error from the prompts' means, and their number; for complete values."""
    means = values.mean(1)
    return float(values.mean()), float(stats.sem(means)), len(means)


def test_interval_is_that_of_the_prompts_means(rng: np.random.Generator) -> None:
    values = rng.normal(5, 1, (40, 3)) + rng.normal(0, 1, (40, 1))
    found = mean_of(share=False, all=values)
    assert isinstance(found, Measured)
    value, error, prompts = by_prompt(values)
    low, high = stats.t.interval(0.95, prompts - 1, value, error)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high))
    assert (found.n, found.prompts, found.asked) == (120, 40, 120)
    as_if_independent = stats.t.interval(0.95, 119, value, stats.sem(values.ravel()))
    assert found.high - found.low > 1.3 * (as_if_independent[1] - as_if_independent[0])


def test_a_missing_score_is_counted_and_left_out_of_the_mean(rng: np.random.Generator) -> None:
    values = rng.uniform(size=(20, 4))
    values[3, 1] = math.nan
    found = mean_of(all=values)
    assert isinstance(found, Measured)
    assert (found.n, found.asked, found.value) == (79, 80, pytest.approx(np.nanmean(values)))
    assert 0 <= found.low < found.value < found.high <= 1


def test_macro_mean_adds_the_variances_of_the_categories(rng: np.random.Generator) -> None:
    parts = {
        name: rng.uniform(0, top, (count, 4)) for name, top, count in (("a", 1, 30), ("b", 0.6, 12), ("c", 0.2, 50))
    }
    found = mean_of(**parts)
    assert isinstance(found, Measured)
    known = [by_prompt(values) for values in parts.values()]
    value = sum(one[0] for one in known) / 3
    variances = [one[1] ** 2 for one in known]
    freedom = sum(variances) ** 2 / sum(v**2 / (one[2] - 1) for v, one in zip(variances, known, strict=True))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)) / 3
    assert (found.value, found.low, found.high) == pytest.approx((value, value - half, value + half))
    assert found.value != pytest.approx(np.concatenate([one.ravel() for one in parts.values()]).mean(), abs=0.01)
    assert (found.n, found.prompts) == (4 * 92, 92)
    assert "delta method" in found.how


def test_macro_interval_agrees_with_a_bootstrap_over_prompts() -> None:
    rng = np.random.default_rng(8)
    parts = {
        str(n): (rng.uniform(size=(80, 4)) < rng.beta(1, 2, (80, 1)) * (0.5 + n / 10)).astype(float) for n in range(6)
    }
    found = mean_of(**parts)
    assert isinstance(found, Measured)
    draws = [np.mean([values[rng.integers(0, 80, 80)].mean() for values in parts.values()]) for _ in range(3000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_a_constant_category_still_contributes_variance(rng: np.random.Generator) -> None:
    varied = rng.integers(0, 2, (40, 4)).astype(float)
    certain = mean_of(constant=np.ones((40, 4)), varied=varied)
    alone = by_prompt(varied)[1] / 2
    assert isinstance(certain, Measured)
    assert certain.high - certain.low > 2 * stats.t.ppf(0.975, 39) * alone


def test_difference_is_a_paired_t_test_over_prompts(rng: np.random.Generator) -> None:
    a, b = rng.uniform(size=(25, 2)), rng.uniform(size=(25, 2))
    found = difference({"": (a[..., None], b[..., None])}, share=False)
    assert isinstance(found, Compared)
    expected = stats.ttest_rel(a.mean(1), b.mean(1))
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert (found.pairs, found.prompts) == (50, 25)


def test_only_images_with_both_scores_are_compared(rng: np.random.Generator) -> None:
    a, b = rng.uniform(size=(10, 2)), rng.uniform(size=(10, 2))
    a[0, 0] = b[5, 1] = math.nan
    found = difference({"": (a[..., None], b[..., None])}, share=True)
    assert isinstance(found, Compared)
    assert found.pairs == 18
    assert found.value == pytest.approx(np.nanmean(a - b))
    assert found.value != pytest.approx(np.nanmean(a) - np.nanmean(b))


def test_macro_difference_has_the_difference_of_the_macro_means(rng: np.random.Generator) -> None:
    ours = {name: rng.uniform(size=(15, 2)) for name in "ab"}
    baseline = {name: rng.uniform(size=(15, 2)) for name in "ab"}
    found = difference({name: (ours[name][..., None], baseline[name][..., None]) for name in "ab"}, share=False)
    assert isinstance(found, Compared)
    known = [by_prompt(ours[name] - baseline[name]) for name in "ab"]
    error = math.hypot(known[0][1], known[1][1]) / 2
    freedom = (known[0][1] ** 2 + known[1][1] ** 2) ** 2 / sum(one[1] ** 4 / 14 for one in known)
    value = (known[0][0] + known[1][0]) / 2
    assert found.value == pytest.approx(value)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(value) / error, freedom))


def test_p_values_are_corrected_for_all_comparisons() -> None:
    raw = [0.01, 0.04, 0.03, 0.5]
    rows = corrected([{"x": Compared(0.1, 0, 0.2, p, p, 10, 5, "how"), "y": Absent("not scored")} for p in raw])
    found = [row["x"] for row in rows]
    assert all(isinstance(one, Compared) for one in found)
    assert [one.p_holm for one in found] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert [one.p for one in found] == raw
    assert rows[0]["y"] == Absent("not scored")


def test_one_prompt_or_no_score_gives_no_number() -> None:
    assert mean_of(all=np.array([[0.5, 0.7]])) == Absent("one prompt has no interval")
    assert mean_of(all=np.full((3, 2), math.nan)) == Absent("no scores")
    assert mean_of(a=np.ones((4, 2)), b=np.ones((1, 2))) == Absent("b: one prompt has no interval")
    assert difference({"": (np.ones((0, 2, 1)), np.ones((0, 2, 1)))}, share=True) == Absent("no scores")
