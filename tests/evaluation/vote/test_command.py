"""The command line, as a person types it."""

from __future__ import annotations

import json

import pytest
from vote_study import make_prompts, make_set

from evaluation.vote.command import configure
from evaluation.vote.study import StudyFolder
from evaluation.vote.votes import VoteFile
from llm4gen_diffusers.command_line import Parser, run_command


def vote(*arguments):
    def build():
        parser = Parser(prog="vote")
        configure(parser)
        return parser

    return run_command(build, "evaluation", [str(one) for one in arguments])


@pytest.fixture
def sets(tmp_path):
    return [make_set(tmp_path / name, "the same name", make_prompts(6)).path for name in ("a", "b")]


def test_create_results_and_export(sets, tmp_path, capsys):
    study = tmp_path / "study"
    images = [f"base={sets[0]}", f"ours={sets[1]}"]
    assert vote("create", study, "--images", *images, "--pairs", 4, "--questions", "alignment") == 0
    assert "Created: 4 pairs (4 of every two of base, ours; 4 prompts in 2 categories)" in capsys.readouterr().out
    assert vote("create", study, "--images", *images, "--pairs", 4, "--questions", "alignment") == 0
    assert "Exists already" in capsys.readouterr().out
    assert vote("create", study, "--images", *images, "--pairs", 5) == 2
    assert "holds another study" in capsys.readouterr().err
    assert vote("results", study) == 2
    assert "has no votes yet" in capsys.readouterr().err
    folder = StudyFolder(study)
    votes = VoteFile(folder.study, folder.votes)
    asked = [(rater, task) for rater in ("ada", "bob") for task in votes.tasks(rater).values()]
    for number, (rater, task) in enumerate(asked):
        folder.votes.append(
            {
                "id": f"{number:016x}",
                "rater": rater,
                "pair": task.pair.id,
                "repeat": task.repeat,
                "question": "alignment",
                "choice": "left" if task.left.model == "ours" else "right",
                "left": task.left.model,
                "right": task.right.model,
                "seconds": 1.0,
                "time": "2025-01-01T00:00:00+00:00",
            }
        )
    assert vote("results", study) == 0
    assert "base : ours | 0 | 0 | 8" in capsys.readouterr().out
    assert json.loads((study / "results.json").read_text())["comparisons"][0]["losses"] == 8
    assert "What the paper says" in (study / "results.html").read_text()
    assert vote("export", study, tmp_path / "pairs.jsonl") == 0
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 4


def test_command_errors(sets, tmp_path, capsys):
    assert vote("create", tmp_path / "s", "--images", *sets) == 2
    assert "Two image sets have the model name 'the same name'" in capsys.readouterr().err
    assert vote("create", tmp_path / "s", "--images", sets[0]) == 2
    assert "expected two or more" in capsys.readouterr().err
    assert vote("create", tmp_path / "s", "--images", sets[0], tmp_path) == 2
    assert "is not an image set" in capsys.readouterr().err
    assert vote("serve", tmp_path / "s") == 2
    assert "is not a study" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
