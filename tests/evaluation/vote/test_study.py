"""The choice of pairs, and the schedule of each rater."""

from __future__ import annotations

from collections import Counter

import pytest
from vote_study import flat, make_prompts, make_set

from evaluation.image_set import ImageSet, Prompt
from evaluation.vote.study import GAP, StudyFolder, make_study, schedule
from llm4gen_core import LLM4GENError


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three models; 24 prompts of one category and 8 of another, two seeds, of which the third has prompts 0 to 29."""
    folder = tmp_path_factory.mktemp("sets")
    prompts = make_prompts(32, ("color", "color", "color", "shape"))
    return {
        "alpha": make_set(folder / "alpha", "alpha", prompts, (1, 2)),
        "beta": make_set(folder / "beta", "beta", prompts, (1, 2)),
        "gamma": make_set(folder / "gamma", "gamma", prompts[:30], (1, 2)),
    }


@pytest.fixture
def two(sets):
    return {name: sets[name] for name in ("alpha", "beta")}


def test_pairs_have_one_prompt_and_seed_and_every_comparison_the_same(sets, tmp_path):
    study = make_study(tmp_path, sets, pairs=12)
    assert study.comparisons == [("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma")]
    chosen = {models: {(p.prompt, p.seed) for p in study.pairs if p.models == models} for models in study.comparisons}
    assert all(keys == chosen["alpha", "beta"] and len(keys) == 12 for keys in chosen.values())
    folder = StudyFolder(tmp_path)
    for pair in study.pairs:
        for image in (pair.first, pair.second):
            assert image.file == f"images/{pair.prompt}.{pair.seed}.png"
            assert folder.read(study, image) == (sets[image.model].path / image.file).read_bytes()
    assert len({pair.id for pair in study.pairs}) == 36


def test_categories_by_share_and_prompts_before_second_seeds(two, tmp_path):
    study = make_study(tmp_path, two, pairs=32)
    assert Counter(pair.category for pair in study.pairs) == {"color": 24, "shape": 8}
    assert len({pair.prompt for pair in study.pairs}) == 32
    # 9 of 64: color 6.75, shape 2.25; the larger remainder is rounded up.
    assert Counter(pair.category for pair in make_study(tmp_path, two, pairs=9).pairs) == {"color": 7, "shape": 2}
    assert len(make_study(tmp_path, two, pairs=1000).pairs) == 64


def test_choice_depends_on_the_seed(two, tmp_path):
    study = make_study(tmp_path, two, pairs=10, seed=3)
    assert make_study(tmp_path, two, pairs=10, seed=3) == study
    other = make_study(tmp_path, two, pairs=10, seed=4)
    assert {pair.prompt for pair in other.pairs} != {pair.prompt for pair in study.pairs}


def test_a_study_is_stored_and_not_replaced_by_another(two, tmp_path):
    folder = StudyFolder(tmp_path / "study")
    study = make_study(folder.path, two, pairs=10)
    assert folder.create(study) and folder.study == study
    assert not folder.create(study)
    with pytest.raises(LLM4GENError, match="holds another study"):
        folder.create(make_study(folder.path, two, pairs=11))
    assert folder.study == study


def test_sets_that_do_not_fit_together(two, sets, tmp_path):
    with pytest.raises(LLM4GENError, match="expected two or more"):
        make_study(tmp_path, {"alpha": two["alpha"]})
    apart = make_set(tmp_path / "apart", "apart", make_prompts(4), (9,))
    with pytest.raises(LLM4GENError, match=r"no prompt and seed in common .*alpha has 32 prompts with the seeds 1, 2"):
        make_study(tmp_path, {"alpha": two["alpha"], "apart": apart})
    renamed = make_set(tmp_path / "renamed", "renamed", [Prompt(id="p000", text="something else")], (1,))
    with pytest.raises(LLM4GENError, match="'p000' has another text in renamed than in alpha"):
        make_study(tmp_path, {"alpha": two["alpha"], "renamed": renamed})
    with pytest.raises(LLM4GENError, match="is not an image set"):
        make_study(tmp_path, {"alpha": two["alpha"], "none": ImageSet(tmp_path / "nothing")})


def test_a_changed_image_is_refused(tmp_path):
    prompts = make_prompts(2)
    sets = {name: make_set(tmp_path / name, name, prompts) for name in ("alpha", "beta")}
    folder = StudyFolder(tmp_path / "study")
    folder.create(make_study(folder.path, sets))
    image = folder.study.pairs[0].first
    flat("other", prompts[0], 0).save(sets["alpha"].path / image.file)
    with pytest.raises(LLM4GENError, match="is not the one that the study was created with"):
        folder.read(folder.study, image)
    (sets["alpha"].path / image.file).unlink()
    with pytest.raises(LLM4GENError, match="cannot be read"):
        folder.read(folder.study, image)


def test_study_and_sets_can_be_moved_together(tmp_path):
    sets = {name: make_set(tmp_path / "old" / name, name, make_prompts(2)) for name in ("alpha", "beta")}
    folder = StudyFolder(tmp_path / "old" / "study")
    folder.create(make_study(folder.path, sets))
    (tmp_path / "old").rename(tmp_path / "new")
    moved = StudyFolder(tmp_path / "new" / "study")
    assert moved.read(moved.study, moved.study.pairs[0].first)


def test_order_and_sides_depend_on_the_rater(sets, tmp_path):
    study = make_study(tmp_path, sets, pairs=40, repeat=0)
    ada, bob = schedule(study, "ada"), schedule(study, "bob")
    assert schedule(study, "ada") == ada
    assert sorted(task.id for task in ada) == sorted(task.id for task in bob) == sorted(p.id for p in study.pairs)
    assert [task.id for task in ada] != [task.id for task in bob]
    sides = {task.id: task.left.model for task in ada}
    assert 0 < sum(sides[task.id] == task.left.model for task in bob) < 120
    # 120 draws of a half: less than 40 or more than 80 have a probability below .001.
    assert 40 <= sum(task.left == task.pair.first for task in ada) <= 80
    for task in ada:
        assert {task.left, task.right} == {task.pair.first, task.pair.second}


@pytest.mark.parametrize("rater", ["ada", "bob", "cleo"])
def test_repeated_pairs_have_swapped_sides_and_others_between(sets, tmp_path, rater):
    study = make_study(tmp_path, sets, pairs=20, repeat=0.2)
    tasks = schedule(study, rater)
    again = [task for task in tasks if task.repeat]
    assert len(again) == 12 and len(tasks) == 72 and len({task.id for task in tasks}) == 72
    place = {task.id: number for number, task in enumerate(tasks)}
    for task in again:
        first = tasks[place[task.pair.id]]
        assert (first.left, first.right) == (task.right, task.left)
        assert place[task.id] - place[first.id] > GAP


def test_repetition_in_a_small_study(two, tmp_path):
    tasks = schedule(make_study(tmp_path, two, pairs=2, repeat=0.5), "ada")
    assert [task.repeat for task in tasks] == [False, False, True]
    assert tasks[2].pair == tasks[0].pair
