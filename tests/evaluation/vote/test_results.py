"""Results: counts, intervals, consistency, the page and the export."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
from vote_study import make_prompts, make_set

from evaluation.statistics import estimate, paired
from evaluation.vote.results import page, results
from evaluation.vote.study import StudyFolder, make_study, schedule
from evaluation.vote.votes import Vote, export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    prompts = make_prompts(12)
    sets = {name: make_set(root / name, name, prompts, (1, 2)) for name in ("alpha", "beta", "gamma")}
    folder = StudyFolder(root / "study")
    folder.create(make_study(folder.path, {name: sets[name] for name in ("alpha", "beta")}, pairs=24, repeat=0.25))
    return folder


def cast(study, rater, choose, question="quality"):
    """Votes of a rater; `choose(task)` names a model or "tie"."""
    found = []
    for number, task in enumerate(schedule(study, rater)):
        model = choose(task)
        choice = "tie" if model == "tie" else "left" if model == task.left.model else "right"
        found.append(
            Vote(
                id=f"{rater}{number}{question}".encode().hex(),
                rater=rater,
                pair=task.pair.id,
                repeat=task.repeat,
                question=question,
                choice=choice,
                left=task.left.model,
                right=task.right.model,
                seconds=number / 10,
                time="2025-01-01T00:00:00+00:00",
            )
        )
    return found


def random_votes(study, raters=4, share=0.7):
    chance = random.Random(1)
    votes = []
    for rater, question in itertools.product(range(raters), ("quality", "alignment")):
        votes += cast(
            study,
            f"r{rater}",
            lambda task: "tie" if chance.random() < 0.1 else "alpha" if chance.random() < share else "beta",
            question,
        )
    return votes


def test_counts_and_preference_by_hand(folder):
    """Wins of alpha on prompts of even numbers, ties on multiples of three among the others, else losses."""
    study = folder.study

    def choose(task):
        number = int(task.pair.prompt[1:])
        return "alpha" if number % 2 == 0 else "tie" if number % 3 == 0 else "beta"

    corrected = [vote.model_copy(update={"choice": "tie", "id": "ff"}) for vote in cast(study, "ada", choose)[:9]]
    votes = corrected + [vote for rater in ("ada", "bob") for vote in cast(study, rater, choose)]
    found = results(study, votes)
    quality, alignment = found.comparisons
    assert (quality.first, quality.second, quality.question) == ("alpha", "beta", "quality")
    # 12 prompts of two seeds, two raters: 6 even, 2 ties (3, 9), 4 losses (1, 5, 7, 11), each four times.
    assert (quality.wins, quality.ties, quality.losses) == (24, 8, 16)
    assert (quality.votes, quality.pairs, quality.prompts, quality.raters) == (48, 24, 12, 2)
    assert quality.preference.mean == pytest.approx((24 + 4) / 48)
    assert quality.alpha.value == 1 and (quality.alpha.units, quality.alpha.values) == (24, 48)
    assert [rater.votes for rater in found.raters] == [30, 30]
    assert alignment.votes == 0 and alignment.preference is None and alignment.p is None
    by_category = {one.category: one for one in found.categories if one.question == "quality"}
    # Categories change with the number: "color" are the even ones.
    assert (by_category["color"].wins, by_category["color"].votes) == (24, 24)
    assert (by_category["shape"].ties, by_category["shape"].losses) == (8, 16)


def test_interval_and_p_value_of_crossed_raters_and_prompts(folder):
    """Against an independently built array of raters, prompts and seeds."""
    study = folder.study
    votes = random_votes(study)
    found = results(study, votes)
    cells = np.full((4, 12, 2), np.nan)
    for vote in votes:
        if vote.question == "quality" and not vote.repeat:
            pair = next(pair for pair in study.pairs if pair.id == vote.pair)
            value = {"alpha": 1.0, "beta": 0.0, None: 0.5}[vote.winner]
            cells[int(vote.rater[1]), int(pair.prompt[1:]), pair.seed - 1] = value
    assert not np.isnan(cells).any()
    expected = estimate(cells)
    quality, alignment = found.comparisons
    assert quality.preference.mean == pytest.approx(expected.mean)
    assert (quality.preference.low, quality.preference.high) == pytest.approx((expected.low, expected.high))
    assert (quality.preference.seeds, quality.preference.prompts) == (4, 12)
    assert quality.p == pytest.approx(paired(cells, 1 - cells).p)
    assert quality.p_holm == pytest.approx(min(1, max(2 * min(quality.p, alignment.p), quality.p)))


def test_preference_does_not_depend_on_sides(folder):
    study = folder.study
    always_alpha = results(study, cast(study, "ada", lambda task: "alpha")).comparisons[0]
    assert (always_alpha.wins, always_alpha.losses) == (24, 0)
    always_left = results(study, cast(study, "ada", lambda task: task.left.model))
    assert 0 < always_left.comparisons[0].wins < 24
    (rater,) = always_left.raters
    assert (rater.left.of, rater.left.n) == (30, 30)


def test_consistency_by_hand(folder):
    """Six of the 24 pairs are shown twice with sides swapped: a rater who follows the side contradicts each vote."""
    study = folder.study
    votes = cast(study, "looks", lambda task: "alpha") + cast(study, "left", lambda task: task.left.model)
    found = results(study, votes, names=True)
    looks, left = found.raters
    assert (looks.name, left.name) == ("looks", "left")
    assert (looks.consistent.of, looks.consistent.n) == (6, 6) and (left.consistent.of, left.consistent.n) == (0, 6)
    # Wilson's interval of 0 of 6: the upper end is z^2 / (6 + z^2).
    assert left.consistent.interval == pytest.approx((0, 1.96**2 / (6 + 1.96**2)), abs=1e-3)
    quality, alignment = found.consistency
    assert quality.n == 12 and quality.share.mean == 0.5 and (alignment.n, alignment.share) == (0, None)
    assert (looks.votes, looks.pairs) == (30, 24) and looks.median_seconds == pytest.approx(1.45)


def test_one_prompt_gives_no_preference(folder):
    study = folder.study
    prompt = study.pairs[0].prompt
    of_one = [
        vote
        for vote in cast(study, "ada", lambda task: "alpha")
        if any(pair.id == vote.pair and pair.prompt == prompt for pair in study.pairs)
    ]
    found = results(study, of_one)
    assert found.comparisons[0].wins == 2 and found.comparisons[0].preference is None
    assert "too few prompts" in page(found).markdown() and "too few prompts" in page(found).html()


def test_raters_are_anonymous_unless_names_are_requested(folder):
    votes = cast(folder.study, "ada", lambda task: "alpha")
    assert results(folder.study, votes).raters[0].name == "rater 1"
    text = json.dumps(results(folder.study, votes).as_json()) + page(results(folder.study, votes)).html()
    assert "ada" not in text
    assert "ada" in page(results(folder.study, votes, names=True)).markdown()


def test_every_preference_has_n_and_interval(folder):
    found = results(folder.study, random_votes(folder.study))
    for one in [*found.as_json()["comparisons"], *found.as_json()["categories"]]:
        assert one["preference"]["low"] < one["preference"]["mean"] < one["preference"]["high"]
        assert one["votes"] == one["wins"] + one["ties"] + one["losses"] > 0
        assert one["pairs"] and one["prompts"] and one["raters"] == 4
    assert page(found).markdown().count("| 96 | 24 | 12 | 4 |") == 2
    shown = page(found).html()
    cells = "".join(f'<td><span class="number">{number}</span></td>' for number in (96, 24, 12, 4))
    assert shown.count(cells) == 2
    quoted = shown[shown.index("What the paper says") :]
    assert (
        "quoted, not measured here" in quoted.lower()
        and ".603" in quoted
        and ".665" in quoted
        and "not stated" in quoted
    )
    assert "One training seed" not in shown


def test_one_rater_is_noted(folder):
    found = results(folder.study, random_votes(folder.study, raters=1))
    for text in (page(found).markdown(), page(found).html()):
        assert "One rater: the interval is over prompts alone" in text and "training seed" not in text


def test_export_has_every_pair_and_every_vote(folder, tmp_path):
    votes = cast(folder.study, "ada", lambda task: "alpha")[:5] + cast(folder.study, "bob", lambda task: "tie")[:3]
    folder.votes.append(*(vote.model_dump() for vote in votes))
    corrected = {**votes[0].model_dump(), "id": "ff", "choice": "tie"}
    folder.votes.append(corrected)
    output = tmp_path / "deep" / "pairs.jsonl"
    assert export(folder, output) == 8
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [pair.id for pair in folder.study.pairs]
    given = [vote for row in rows for vote in row["votes"]]
    assert len(given) == 8 and {vote["rater"] for vote in given} == {"rater 1", "rater 2"}
    (row,) = (row for row in rows if row["id"] == votes[0].pair)
    assert [vote["preferred"] for vote in row["votes"] if vote["rater"] == "rater 1"] == ["tie"]
    for row in rows:
        for image in row["images"]:
            assert (output.parent / image["file"]).resolve().is_file() and len(image["sha256"]) == 64
            assert {vote["left"] for vote in row["votes"]} <= {"alpha", "beta"}
    export(folder, output, names=True)
    assert '"rater": "ada"' in output.read_text()
