"""The file of votes: nothing is lost or written twice, the later vote counts."""

from __future__ import annotations

import pytest
from vote_study import make_prompts, make_set

from evaluation.vote.study import StudyFolder, make_study
from evaluation.vote.votes import Ballot, VoteFile, counted, rater_name, read_votes
from llm4gen_core import LLM4GENError


@pytest.fixture
def folder(tmp_path):
    sets = {name: make_set(tmp_path / name, name, make_prompts(4)) for name in ("alpha", "beta")}
    folder = StudyFolder(tmp_path / "study")
    folder.create(make_study(folder.path, sets, repeat=0.5))
    return folder


def ballot(folder, number, choice="left", **others):
    task = list(VoteFile(folder.study, folder.votes).tasks("ada").values())[0]
    given = {"rater": "Ada", "task": task.id, "question": "quality", "seconds": 1.234, **others}
    return Ballot(id=f"{number:016x}", study=folder.study.id, choice=choice, **given)


def test_a_vote_stores_the_models_on_both_sides(folder):
    votes = VoteFile(folder.study, folder.votes)
    for number, task in enumerate(votes.tasks("ada").values()):
        votes.write(votes.check(ballot(folder, number, task=task.id)))
    rows = list(read_votes(folder.study, folder.votes))
    tasks = list(votes.tasks("ada").values())
    assert [(row.left, row.right) for row in rows] == [(task.left.model, task.right.model) for task in tasks]
    assert all(row.winner == row.left and row.rater == "ada" and row.seconds == 1.23 for row in rows)
    assert sum(row.repeat for row in rows) == 2 and len({row.key for row in rows}) == 6


def test_the_later_vote_counts_and_a_resent_one_is_written_once(folder):
    votes = VoteFile(folder.study, folder.votes)
    first = votes.check(ballot(folder, 1, "left"))
    votes.write(first)
    votes.write(first)
    votes.write(votes.check(ballot(folder, 2, "tie")))
    again = VoteFile(folder.study, folder.votes)  # as after a restart
    again.write(first)
    assert len(folder.votes.path.read_bytes().splitlines()) == 2
    assert [vote.choice for vote in counted(read_votes(folder.study, folder.votes))] == ["tie"]
    assert again.choices("ada") == {ballot(folder, 1).task: {"quality": "tie"}}
    assert len(again) == 1 and again.raters == {"ada"} and again.choices("bob") == {}


def test_a_torn_line_loses_only_itself(folder):
    votes = VoteFile(folder.study, folder.votes)
    votes.write(votes.check(ballot(folder, 1)))
    with folder.votes.path.open("ab") as file:
        file.write(b'{"id": "00')
    with pytest.warns(UserWarning, match="torn"):
        again = VoteFile(folder.study, folder.votes)
    with pytest.warns(UserWarning, match="torn"):
        again.write(again.check(ballot(folder, 2, question="alignment")))
    assert [vote.question for vote in read_votes(folder.study, folder.votes)] == ["quality", "alignment"]


def test_votes_outside_of_the_schedule_are_refused(folder):
    votes = VoteFile(folder.study, folder.votes)
    with pytest.raises(LLM4GENError, match="Pair 'nothing' is not in the schedule of 'ada'"):
        votes.check(ballot(folder, 1, task="nothing"))
    with pytest.raises(LLM4GENError, match="Question 'taste' .* expected one of quality, alignment"):
        votes.check(ballot(folder, 1, question="taste"))
    # That pairs are repeated is drawn for each rater.
    once = [task.id for task in votes.tasks("ada").values() if task.id + "-2" not in votes.tasks("ada")]
    with pytest.raises(LLM4GENError, match="not in the schedule"):
        votes.check(ballot(folder, 1, task=once[0] + "-2"))


def test_damaged_lines_and_lines_of_another_study_are_named(folder, tmp_path):
    folder.votes.append({"id": "1"})
    with pytest.raises(LLM4GENError, match=r"votes\.jsonl, line 1, is not a vote"):
        VoteFile(folder.study, folder.votes)
    folder.votes.path.unlink()
    votes = VoteFile(folder.study, folder.votes)
    folder.votes.append({**votes.check(ballot(folder, 1)).model_dump(), "pair": "of another study"})
    with pytest.raises(LLM4GENError, match="line 1, belongs to another study"):
        list(read_votes(folder.study, folder.votes))


def test_rater_names(folder):
    assert rater_name("  Ada \t LOVELACE ") == "ada lovelace"
    assert rater_name("Zoe\u0308") == rater_name("ZOË") == "zoë"
    for bad in ("", "  ", "a" * 61, "a\x00b", "\ud800"):
        with pytest.raises(LLM4GENError, match="expected 1 to 60 printable"):
            rater_name(bad)
