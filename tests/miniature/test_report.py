"""The report says what the numbers say, whichever way they came out, and what has not been run."""

from __future__ import annotations

import dataclasses
import json
import random
import zlib
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scored_sets import Scored, write_sets

from miniature.captions import CATEGORIES
from miniature.dataset import SETS
from miniature.report import Report, write_report
from miniature.results import MEASURES, Results, attention_files
from miniature.variants import BASE_PAPER, STRENGTHS, VARIANTS

STEPS = 2000
ATTRIBUTES = ("color", "shape", "texture")
CLAIMED = ("score", "words", "binding")
CORE = {"base": 0.4, "finetune": 0.5, "no_regularisation": 0.6, "llm4gen": 0.8}
_SCORES = {"base": sum(BASE_PAPER)} | {one.name: sum(one.paper) for one in VARIANTS.values() if one.paper}
PAPER = {name: 0.1 + 0.075 * sorted({*_SCORES.values()}).index(score) for name, score in _SCORES.items()}
"""Levels in the order of the paper's tables."""


def scored(
    variant: str, level: float, name: str = "color", *, seed: int = 0, count: int = 120, **others: Any
) -> Scored:
    """Images of which a share is right, of any 40 the same; what a worse variant gets right a better one does too."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    ease = np.concatenate([rng.permutation(40) for _ in range(3)])[:count]
    right = [float(value) for value in ease < 40 * level]
    binding = [None if number % 20 == 7 else value for number, value in enumerate(right)]
    scores = {"score": right, "words": right, "binding": binding, "exact": right}
    return Scored(variant, seed, name, **({"scores": scores} | others))


def finals(
    levels: Mapping[str, float], sets: Iterable[str] = SETS, seeds: Iterable[int] = (0, 1), count: int = 120
) -> list[Scored]:
    """Scores of every variant; the base has one seed."""
    return [
        scored(variant, level, name, seed=seed, count=count)
        for variant, level in levels.items()
        for name in sets
        for seed in ([0] if variant == "base" else [*seeds])
    ]


def curve(levels: Mapping[int, float], count: int = 120) -> list[Scored]:
    """Scores of LLM4GEN by step; the last step is final, with 120 images."""
    return [
        dataclasses.replace(
            scored("llm4gen", level, name, seed=seed, count=120 if step == STEPS else count),
            name="final" if step == STEPS else f"step-{step}",
        )
        for step, level in levels.items()
        for name in ("color", "dense")
        for seed in (0, 1)
    ]


def mixed(sets: Iterable[Scored], others: Iterable[Scored], measure: str) -> list[Scored]:
    """Scores with one measure of others."""
    return [
        dataclasses.replace(one, scores={**one.scores, measure: other.scores[measure]})
        for one, other in zip(sets, others, strict=True)
    ]


def in_memory(sets: Iterable[Scored]) -> Results:
    found: dict[tuple[str, int, str], dict[tuple[str, str], dict[str, float | None]]] = {}
    for one in sets:
        place = found.setdefault(one.place, {})
        for number in range(len(next(iter(one.scores.values())))):
            values = {measure: column[number] for measure, column in one.scores.items()}
            place[f"{one.set}-{number:04}", one.prompts] = values
    return Results(found)


def report(folder: Path, sets: Iterable[Scored], *sections: str, **scale: float) -> str:
    """The Markdown of sections; by default, of those with comparisons."""
    _write(folder / "reproduction.json", {"scale": {"variant_steps": STEPS, "pairs": 30000, **scale}})
    made = Report(folder, in_memory(sets))
    for name in sections or ("summary", "core", "paper_tables", "disagreements"):
        getattr(made, name)()
    return made.page.markdown()


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def row(text: str, name: str) -> list[str]:
    """Cells of the first row with this name."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def differences(text: str, measure: str, name: str) -> list[str]:
    """Cells of a row of the table of differences in a measure."""
    table = text.partition(f"Differences in {MEASURES[measure]}, ")[2].partition("\nDifferences in ")[0]
    return row(table.partition("\nRequested content present, by category.")[0], name)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("measure", CLAIMED)
@pytest.mark.parametrize(
    ("ours", "sign", "words"),
    [
        (0.8, "+", "significant, in the paper's direction"),
        (0.2, "−", "significant, against the paper's direction"),
        (0.51, "+", "not significant"),
    ],
    ids=["better", "worse", "alike"],
)
def test_the_summary_gives_the_verdict_on_each_claim(
    tmp_path: Path, ours: float, sign: str, words: str, measure: str
) -> None:
    """Each measure decides alone."""
    text = report(tmp_path, mixed(finals(CORE), finals(CORE | {"llm4gen": ours}), measure))
    start = "- **LLM4GEN against the fine-tuned base**, "
    claims = [line for line in text.splitlines() if line.startswith(f"{start}{MEASURES[measure]} on ")]
    found = differences(text, measure, "LLM4GEN − Base, fine-tuned")[:2]
    assert text.count(start) == 2 * len(CLAIMED)
    for claim, prompts, difference in zip(claims, ("short prompts", "dense prompts"), found, strict=True):
        assert prompts in claim and difference in claim and difference.startswith(sign) and claim.endswith(f"{words}.")


@pytest.mark.parametrize("measure", CLAIMED)
def test_a_difference_is_in_the_table_of_its_measure_and_the_column_of_its_set(tmp_path: Path, measure: str) -> None:
    others = [one for one in finals(CORE) if (one.variant, one.set) != ("llm4gen", "texture")]
    better, worse = ([*others, *finals({"llm4gen": level}, ["texture"])] for level in (0.8, 0.1))
    text = report(tmp_path, mixed(better, worse, measure))
    signs = {
        name: [cell[0] for cell in differences(text, name, "LLM4GEN − LLM4GEN without the regulariser")]
        for name in CLAIMED
    }
    assert text.count("| Difference | Colour | Dense | Texture | Shape |") == len(CLAIMED)
    assert signs == {name: ["+", "+", "−" if name == measure else "+", "+"] for name in CLAIMED}


@pytest.mark.parametrize("measure", CLAIMED)
def test_differences_are_adjusted_for_being_many(tmp_path: Path, measure: str) -> None:
    levels, name = {"llm4gen": 0.55, "finetune": 0.5}, "LLM4GEN − Base, fine-tuned"
    alone = differences(report(tmp_path / "one", finals(levels, ["color"], count=40)), measure, name)[0]
    among = differences(report(tmp_path / "all", finals(CORE | levels, count=40)), measure, name)[0]
    assert alone.partition(", p")[0] == among.partition(", p")[0]
    assert float(alone.split()[-1]) < float(among.split()[-1])


def test_the_base_is_one_model_beside_every_seed(tmp_path: Path) -> None:
    text = report(tmp_path, finals({"base": 0.4, "finetune": 0.5}, seeds=(3, 4)))
    assert all("†" not in differences(text, measure, "Base, fine-tuned − Base")[0] for measure in CLAIMED)
    assert all("†" in cell for cell in row(section(text, "The core"), "Base"))


def test_the_core_is_shown_by_all_measures(tmp_path: Path) -> None:
    levels = {"score": 0.1, "words": 0.2, "binding": 0.3, "exact": 0.4}
    scores = {measure: [float(number % 10 < 10 * level) for number in range(40)] for measure, level in levels.items()}
    found = [scored("llm4gen", 0, name, scores=scores) for name in SETS]
    text = section(report(tmp_path, found), "The core")
    headers = [f"{title}, {what}" for title in MEASURES.values() for what in ("colour", "dense")]
    assert row(text, "Variant") == [header[0].upper() + header[1:] for header in headers]
    assert [cell[:4] for cell in row(text, "LLM4GEN")] == [f".{10 * n}0" for n in (1, 1, 2, 2, 3, 3, 4, 4)]


@pytest.mark.parametrize("title", ["The Cross-Adapter's parts (Table 4)", "Encoder against decoder (Table 3)"])
def test_binding_on_dense_prompts_is_in_the_papers_tables(tmp_path: Path, title: str) -> None:
    other = [one for one in finals({"llm4gen": 0.8}) if one.set != "dense"]
    dense = mixed(finals({"llm4gen": 0.8}, ["dense"]), finals({"llm4gen": 0.2}, ["dense"]), "binding")
    text = section(report(tmp_path, [*other, *dense]), title)
    assert (
        row(text, "Module" if "Table 4" in title else "LLM")[-1]
        == "Binding among objects whose words are all present, dense"
    )
    assert [cell[:2] for cell in row(text, "LLM4GEN") if cell.startswith(".")] == [".8"] * 4 + [".2"]


@pytest.mark.parametrize("title", ["The Cross-Adapter's parts (Table 4)", "What differs from the paper"])
def test_rows_in_another_order_than_the_papers_are_listed(tmp_path: Path, title: str) -> None:
    swapped = PAPER | {"mlp_concat": PAPER["clip_query"], "clip_query": PAPER["mlp_concat"]}
    names = "*CLIP as query, LLM as key and value* − *MLP, concatenated*"
    line = f"{names} on colour, shape, texture: −"
    assert line in section(report(tmp_path / "swapped", finals(swapped)), title)
    assert names not in report(tmp_path / "same", finals(PAPER))


def test_nothing_differs_if_the_order_is_the_papers(tmp_path: Path) -> None:
    text = report(tmp_path, finals(PAPER | {"finetune": 0.3}))
    assert section(text, "What differs from the paper").strip().startswith("None of")
    assert "Kendall's τ between the means here and the paper's is 1.00" in text


def test_whether_a_reversed_order_is_significant(tmp_path: Path) -> None:
    levels = PAPER | {"base": PAPER["finetuned_clip"] + 0.025, "clip_query": 0.025}
    lines = section(report(tmp_path, finals(levels, count=40)), "What differs from the paper").splitlines()
    chance = {line.split("*")[1]: line for line in lines if "− *Base* on" in line}
    assert ", not significant; in the paper +1.07 points" in chance["Base with its CLIP fine-tuned"]
    assert ", significant" in chance["CLIP as query, LLM as key and value"]


def test_rows_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    """Over all of its seeds, the MLP is behind."""
    results = finals({"mlp": 0.6, "finetuned_clip": 0.5}, ATTRIBUTES, [0])
    results += finals({"mlp": 0.9, "finetuned_clip": 0.95}, ATTRIBUTES, [1])
    text = report(tmp_path, [*results, *finals({"mlp": 0.0}, ATTRIBUTES, [2, 3])])
    assert "*MLP in place of CLIP* − *Base with its CLIP fine-tuned*" not in text
    assert "Of 1 pairs of rows, paired by prompt and the seeds that both have, all are in" in text


@pytest.mark.parametrize("measure", CLAIMED)
def test_a_regulariser_that_harms_differs_from_the_paper(tmp_path: Path, measure: str) -> None:
    results = mixed(finals(CORE), finals(CORE | {"no_regularisation": 0.9}), measure)
    text = section(report(tmp_path, results), "What differs from the paper")
    lines = [line for line in text.splitlines() if line.startswith("- The regulariser, ")]
    for line, name in zip(lines, ("colour", "dense"), strict=True):
        names = "*LLM4GEN* − *LLM4GEN without the regulariser*"
        assert line.startswith(f"- The regulariser, {MEASURES[measure]}: {names} on {name}: −")


def test_more_data_that_harms_differs_from_the_paper(tmp_path: Path) -> None:
    levels = {"pairs_300": 0.3, "pairs_1000": 0.5, "pairs_3000": 0.4, "pairs_10000": 0.6, "llm4gen": 0.7}
    lines = [line for line in report(tmp_path, finals(levels)).splitlines() if line.startswith("- More data: ")]
    assert len(lines) == 1 and "*3,000 pairs* − *1,000 pairs* on colour, shape, texture: −" in lines[0]


def test_a_variant_with_more_pairs_than_there_are_is_no_size_of_its_own(tmp_path: Path) -> None:
    levels = {"pairs_300": 0.3, "pairs_1000": 0.5, "llm4gen": 0.7}
    text = section(report(tmp_path, finals(levels), "data_size", pairs=500), "How much data it needs (Fig. 8a)")
    assert "*LLM4GEN* − *300 pairs*" in text and "1,000" not in text


@pytest.mark.parametrize("measure", CLAIMED)
@pytest.mark.parametrize("count", [120, 80], ids=["same prompts", "fewer prompts"])
@pytest.mark.parametrize(
    ("before", "words"), [(0.2, "still rising"), (0.7, "flat"), (0.95, "falling")], ids=["rising", "flat", "falling"]
)
def test_whether_a_curve_still_rises(tmp_path: Path, before: float, words: str, count: int, measure: str) -> None:
    """Rising by each measure; flat by the other one."""
    results = mixed(curve({1500: 0.7, STEPS: 0.7}, count), curve({1500: before, STEPS: 0.7}, count), measure)
    _, *intervals = section(report(tmp_path, results, "curves"), "Training curves").split("The last interval of ")
    for text, (by, name) in zip(intervals, product(CLAIMED, ("colour", "dense")), strict=True):
        [line] = [line for line in text.splitlines() if "from step 1,500 to 2,000" in line]
        assert text.startswith(f"{MEASURES[by]}, {name}:") and (words if by == measure else "flat") in line


def test_a_measure_without_a_curve_is_named(tmp_path: Path) -> None:
    found = curve({1500: 0.2, STEPS: 0.7})
    nothing = [dataclasses.replace(one, scores={"binding": [None] * 120}) for one in found]
    text = section(report(tmp_path, mixed(found, nothing, "binding"), "curves"), "Training curves")
    missing = [line for line in text.splitlines() if line.startswith("No training curve")]
    assert missing == [missing_curve("binding", name) for name in ("colour", "dense")]


def missing_curve(measure: str, name: str) -> str:
    return f"No training curve has been measured yet: {MEASURES[measure]}, {name}."


def test_an_unfinished_curve_is_named(tmp_path: Path) -> None:
    text = report(tmp_path, curve({500: 0.1, 1500: 0.2}), "curves")
    assert "to 2,000" not in text and "not finished, measured up to step 1,500" in text


def test_a_variant_in_training_has_no_final_score(tmp_path: Path) -> None:
    text = report(tmp_path, curve({500: 0.2, 1000: 0.4}))
    assert "Not run yet: Base; Base, fine-tuned; LLM4GEN without the regulariser; LLM4GEN." in section(text, "The core")


def test_scores_on_other_prompts_are_not_compared(tmp_path: Path) -> None:
    others = [dataclasses.replace(one, prompts="other ") for one in finals({"finetune": 0.5})]
    assert "LLM4GEN − Base, fine-tuned" not in report(tmp_path, finals({"llm4gen": 0.8}) + others)


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    for sentence in (
        "The world has not been made yet.",
        "The judge has not been tested yet.",
        "The base has not been trained yet.",
        "Not run yet: Base; Base, fine-tuned; LLM4GEN without the regulariser; LLM4GEN.",
        *(missing_curve(measure, name) for measure, name in product(CLAIMED, ("colour", "dense"))),
        "Fewer than two sizes of the training data have been run yet.",
        *(f"No other λ than 1 has been measured yet: {name}." for name in ("colour", "dense")),
        "No images have been generated yet.",
        "No attention maps have been made yet.",
        "Nothing can be compared with the paper yet.",
    ):
        assert sentence in page, sentence
    assert page.count("not run yet") == 4 * len(CLAIMED)


def test_the_base_alone_has_its_numbers(tmp_path: Path) -> None:
    text = report(tmp_path, finals({"base": 0.4}))
    assert row(section(text, "The core"), "Base")[0].startswith(".")
    assert "Not run yet: Base, fine-tuned; LLM4GEN without the regulariser; LLM4GEN." in text


def test_variants_without_a_common_seed_are_shown_and_not_compared(tmp_path: Path) -> None:
    results = finals({"llm4gen": 0.8}, seeds=(0, 1)) + finals({"finetune": 0.5}, seeds=(2,))
    text = report(tmp_path, results + finals({"no_regularisation": 0.6}, ["color"], seeds=(1,)))
    assert "LLM4GEN − Base, fine-tuned" not in text
    for measure in CLAIMED:
        cells = differences(text, measure, "LLM4GEN − LLM4GEN without the regulariser")
        assert cells[0] != "–" and cells[1:] == ["–", "–", "–"]


@pytest.mark.parametrize("held", [None, 1.0], ids=["nowhere", "once"])
def test_a_measure_that_hardly_applies_is_left_out(tmp_path: Path, held: float | None) -> None:
    """No interval can be had from one prompt."""
    scores = dict.fromkeys(("score", "words", "exact"), [1.0, 0.0, 1.0]) | {"binding": [held, None, None]}
    results = [scored(variant, 0.5, name, scores=scores) for variant in CORE for name in SETS]
    text = section(report(tmp_path, results), "The core")
    left_out = [cell == "–" for cell in row(text, "LLM4GEN")]
    assert (
        left_out == [False] * 4 + [True] * 2 + [False] * 2
        and "Requested content present, paragraphs about four objects" in text
    )
    assert "Differences in requested content" in text and "Differences in binding" not in text


@pytest.mark.parametrize(("share", "words"), [(0.95, "enough"), (0.85, "**too few**")])
def test_whether_the_base_is_good_enough(tmp_path: Path, share: float, words: str) -> None:
    sets = [scored("base", 0.975, "single"), scored("base", share)]
    assert words in section(report(tmp_path, sets, "base"), "The base")


@pytest.mark.parametrize(("llm", "words"), [(0.9, "holds here"), (0.3, "does not hold for: T5-like encoder, dense")])
def test_whether_the_llm_knows_what_clip_does_not(tmp_path: Path, llm: float, words: str) -> None:
    probe = {"clip": {"dense": 0.4}, "t5": {"dense": llm}, "chance": {"dense": 0.125}}
    _write(tmp_path / "world" / "world.json", {"clip": {"retrieval": 0.5}, "t5": {"color": 0.9}, "probe": probe})
    text = section(report(tmp_path, [], "world"), "The world and its encoders")
    assert words in text and row(text, "CLIP") == [".400"]


def test_images_and_maps_are_on_the_page(tmp_path: Path) -> None:
    write_sets(tmp_path, [*finals({"base": 0.5, "llm4gen": 0.5}, ["color", "dense"], [2], count=8)])
    for file in (*attention_files(tmp_path, "base", 0), *attention_files(tmp_path, "llm4gen", 2)[:1]):
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file)
    page = write_report(tmp_path).read_text()
    # Six prompts of two sets in two rows; the maps of four prompts, of one also LLM4GEN's.
    assert page.count("<img ") == 2 * 2 * 6 + 5
    assert "color-0005" in page and SETS["color"].prompts(3)[2].text in page and "Images were generated on: cpu" in page


def with_strengths(levels: Mapping[str, tuple[float, float]]) -> list[Scored]:
    """Scores by λ, of variants with a level at 1 and what it loses away from it."""
    return [
        dataclasses.replace(
            scored(variant, level - lost * abs(at - 1), name), name="final" if at == 1 else f"strength-{at:g}"
        )
        for variant, (level, lost) in levels.items()
        for at in STRENGTHS
        for name in ("color", "dense")
    ]


def test_lambda_is_plotted(tmp_path: Path) -> None:
    made = Report(tmp_path, in_memory(with_strengths({"llm4gen": (0.8, 0.3)})))
    made.strengths()
    assert made.page.html().count('<tr><th scope="row">') >= 2 * len(STRENGTHS)


def test_readings_of_lambda_are_compared_away_from_1(tmp_path: Path) -> None:
    found = with_strengths({"llm4gen": (0.8, 0.6), "decoupled": (0.7, 0.2)})
    text = section(report(tmp_path, found, "strengths"), "λ when generating")
    embedding, decoupled = row(text, "Embedding"), row(text, "Decoupled")
    assert embedding[0].startswith(".800") and decoupled[0].startswith(".700")
    assert embedding[1].startswith("−.300") and decoupled[1].startswith("−.100")
    assert "Not run yet: Value" in text


def test_the_same_scores_in_any_order_give_the_same_page(tmp_path: Path) -> None:
    found = finals(dict.fromkeys(("base", *VARIANTS), 0.5), CATEGORIES, count=6) + curve({500: 0.1, 1500: 0.2}, 6)
    shuffled = random.Random(0).sample(found, len(found))
    assert len({report(tmp_path, sets, "core", "curves", "disagreements") for sets in (found, shuffled)}) == 1


def test_the_report_makes_no_statement_about_sd15(tmp_path: Path) -> None:
    assert "say nothing about SD1.5" in section(report(tmp_path, finals(CORE)), "Summary")
