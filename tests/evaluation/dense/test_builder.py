"""The builder: from images to a prompt set, with a failing server and killed processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, question_of
from filelock import FileLock
from PIL import Image

from evaluation.dense.builder import Build, BuildSettings
from evaluation.dense.chat_models import Request
from evaluation.dense.filters import read_unsafe_words
from evaluation.dense.image_folder import source_images
from evaluation.image_set import read_prompts
from llm4gen_core import LLM4GENError

ROOT = Path(__file__).resolve().parents[3]
COLORS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
THINGS = "boat barn clock horse tower piano bridge garden lamp train window kettle".split()


def description(color: str) -> str:
    return (
        f"A large {color} field fills the picture from edge to edge, and its color is even and bright. It is painted "
        f"in a flat style without any shadow, and the surface is smooth like {color} paper in soft light from the left."
    )


def prompts_of(request: str, count: int) -> list[str]:
    """Prompts that depend on the request."""
    seed = sum(map(ord, request))
    chosen = [[THINGS[(seed + 5 * number + step * (number + 1)) % 12] for step in range(4)] for number in range(count)]
    return [
        f"In the {seed % 97 + number} year of the {a}, an old {b} with a {number} painted {c} stands beside the {d} "
        f"that nobody of the {a} and {c} people has seen in {seed % 89} days, and a {b} of {d} {c} rises behind it in "
        f"the {a} light."
        for number, (a, b, c, d) in enumerate(chosen)
    ]


def answer(body: dict[str, Any], number: int) -> Answer:
    """Answers of a good pair of models."""
    text, image = question_of(body)
    if image is not None:
        pixel = image.convert("RGB").getpixel((5, 5))
        return description(
            next(name for name, color in COLORS.items() if max(map(abs, map(int.__sub__, color, pixel))) < 40)
        )
    match = re.search(r"Write (\d+) different", text)
    assert match is not None
    lines = [f"{number}. {prompt}" for number, prompt in enumerate(prompts_of(text, int(match.group(1))), 1)]
    return "\n".join(["Here are your prompts:", *lines])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (64, 48), color).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def command(photos: Path, output: Path, url: str, *others: str) -> list[str]:
    models = [part for name in ("vision", "writer") for part in (f"--{name}-url", url, f"--{name}-model", "tiny")]
    return ["dense", "build", str(photos), "--output", str(output), *models, "--prompts-per-image", "12",
            "--prompts-per-answer", "4", "--similar", "0.9", *others]  # fmt: skip


def run(*arguments: str) -> int:
    from evaluation.__main__ import main

    return main(arguments)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_from_images_to_a_set(
    server: ChatServer,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    server.answers = answer
    licences = tmp_path / "licences.jsonl"
    licences.write_text('{"image": "red.png", "licence": "CC0", "source": "https://example.org/1"}\n', encoding="utf-8")
    assert run(*command(photos, tmp_path / "out", server.url, "--licences", str(licences))) == 0
    prompts = read_prompts(tmp_path / "out" / "prompts.jsonl")
    assert len(prompts) == 36 and {prompt.category for prompt in prompts} == {"color", "texture", "count"}
    provenance: Any = [prompt.about["provenance"] for prompt in prompts]
    red = [one for one in provenance if one["image"] == "red.png"]
    assert len(red) == 12 and all(one["licence"] == "CC0" and len(one["sha256"]) == 64 for one in red)
    assert red[0]["described_by"] == red[0]["written_by"] == {"model": "tiny", "endpoint": server.url}
    assert {one["seed"] for one in red} == {1, 2, 3} and len({one["templates"] for one in provenance}) == 1
    rejected = rows(tmp_path / "out" / "rejected.jsonl")
    assert Counter(row["reason"] for row in rejected) == {"remark": 9}
    shown = capsys.readouterr().out
    assert "36 prompts from 3 of 3 images" in shown and "no licence is known of blue.png, green.png" in shown
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "sk-hidden" not in written + shown


def test_nothing_is_requested_twice_and_a_build_can_be_extended(
    server: ChatServer, photos: Path, tmp_path: Path
) -> None:
    server.answers = answer
    assert run(*command(photos, tmp_path / "out", server.url)) == 0
    first = (tmp_path / "out" / "prompts.jsonl").read_bytes()
    asked = len(server.requests)
    assert asked == 3 + 3 * 3
    assert run(*command(photos, tmp_path / "out", server.url)) == 0
    assert len(server.requests) == asked and (tmp_path / "out" / "prompts.jsonl").read_bytes() == first
    Image.new("RGB", (64, 48), COLORS["red"]).save(photos / "copy.png")
    assert run(*command(photos, tmp_path / "out", server.url, "--prompts-per-image", "16")) == 0
    assert len(server.requests) == asked + 3  # one more answer for each; a copy of an image is none


@pytest.mark.parametrize("failing", [2, 7])
def test_continues_where_the_server_failed(server: ChatServer, photos: Path, tmp_path: Path, failing: int) -> None:
    server.answers = lambda body, number: (400, "no") if number == failing else answer(body, number)
    assert run(*command(photos, tmp_path / "out", server.url, "--parallel", "1")) == 2
    assert not (tmp_path / "out" / "prompts.jsonl").exists()
    server.answers = answer
    assert run(*command(photos, tmp_path / "out", server.url)) == 0
    assert len(server.requests) == 12 + 1
    assert len(read_prompts(tmp_path / "out" / "prompts.jsonl")) == 36


def test_answers_that_arrive_after_a_failure_are_kept(server: ChatServer, photos: Path, tmp_path: Path) -> None:
    def slow(body: dict[str, Any], number: int) -> Answer:
        if number == 0:
            return 400, "no"
        time.sleep(0.4)
        return answer(body, number)

    server.answers = slow
    assert run(*command(photos, tmp_path / "out", server.url, "--parallel", "3")) == 2
    assert len(rows(tmp_path / "out" / "descriptions.jsonl")) == 2


def test_bad_answers_are_rejected_with_reasons(server: ChatServer, photos: Path, tmp_path: Path) -> None:
    def garbage(body: dict[str, Any], number: int) -> Answer:
        text, image = question_of(body)
        if image is not None and image.convert("RGB").getpixel((5, 5))[2] > 200:
            return "I'm sorry, but I can't assist with that."
        good = answer(body, number)
        if image is None and "textures" in text:
            return "asdf ### \u0000 {]"
        if image is None and "numbers" in text:
            return str(good).splitlines()[1][: -len(" light.")] + "\n2. As an AI language model, I refuse."
        return good

    server.answers = garbage
    assert run(*command(photos, tmp_path / "out", server.url)) == 0
    prompts = read_prompts(tmp_path / "out" / "prompts.jsonl")
    assert {prompt.category for prompt in prompts} == {"color"} and len(prompts) == 8
    reasons = Counter(row["reason"] for row in rows(tmp_path / "out" / "rejected.jsonl"))
    assert reasons == {"useless description": 1, "remark": 2, "too short": 2, "cut off": 2, "refusal": 2}


def test_near_duplicates_are_left_out(server: ChatServer, photos: Path, tmp_path: Path) -> None:
    same = prompts_of("x", 1)[0]
    server.answers = lambda body, number: answer(body, number) if question_of(body)[1] is not None else f"1. {same}"
    assert run(*command(photos, tmp_path / "out", server.url)) == 0
    (prompt,) = read_prompts(tmp_path / "out" / "prompts.jsonl")
    reasons = {row["reason"] for row in rows(tmp_path / "out" / "rejected.jsonl")}
    assert prompt.text == same and reasons == {f"near-duplicate of {prompt.id}"}


def test_another_build_is_refused_in_the_folder(
    server: ChatServer, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = answer
    assert run(*command(photos, tmp_path / "out", server.url)) == 0
    assert run(*command(photos, tmp_path / "out", server.url, "--seed", "2")) == 2
    assert "holds a build with a different seed" in capsys.readouterr().err
    with FileLock(tmp_path / "out" / "build.lock"):
        assert run(*command(photos, tmp_path / "out", server.url)) == 2
    assert "Another process builds" in capsys.readouterr().err


def test_killed_at_any_moment(server: ChatServer, photos: Path, tmp_path: Path) -> None:
    """Killed after every few answers: the set equals that of an undisturbed build, and nothing is stored twice."""

    def slow(body: dict[str, Any], number: int) -> Answer:
        time.sleep(0.15)
        return answer(body, number)

    server.answers = slow
    arguments = command(photos, tmp_path / "out", server.url, "--parallel", "2")
    for _ in range(2):
        before = len(server.requests)
        process = subprocess.Popen([sys.executable, "-m", "evaluation", *arguments], cwd=ROOT, env={**os.environ})
        while process.poll() is None and len(server.requests) < before + 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open(tmp_path / "out" / "answers.jsonl", "ab") as file:  # what a kill can leave behind
        file.write(b'{"key": "half')
    with pytest.warns(UserWarning, match="is torn"):
        assert run(*arguments) == 0
    stored = [row["key"] for name in ("descriptions", "answers") for row in rows(tmp_path / "out" / f"{name}.jsonl")]
    assert len(stored) == len(set(stored)) == 12
    assert len(server.requests) <= 12 + 2 * 2  # those under way at a kill
    server.answers = answer
    assert run(*command(photos, tmp_path / "calm", server.url)) == 0
    assert read_prompts(tmp_path / "out" / "prompts.jsonl") == read_prompts(tmp_path / "calm" / "prompts.jsonl")


def test_with_models_from_folders(
    photos: Path, tmp_path: Path, vision_folder: Path, writer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random words are not prompts, but they are requested, stored and judged."""
    import torch

    from evaluation.dense.builder import DESCRIBE
    from evaluation.dense.chat_models import LocalModel

    for name in ("red", "green"):
        (photos / f"{name}.png").unlink()
    folders = ["--vision-folder", str(vision_folder), "--writer-folder", str(writer_folder), "--device", "cpu"]
    arguments = ["dense", "build", str(photos), "--output", str(tmp_path / "out"), *folders]
    assert run(*arguments, "--prompts-per-image", "2", "--prompts-per-answer", "1") == 2
    assert "no prompt is left" in capsys.readouterr().err
    stored = rows(tmp_path / "out" / "descriptions.jsonl")
    assert [row["image"] for row in stored] == ["blue.png"]
    model = LocalModel(vision_folder, True, torch.device("cpu"), torch.float32)
    seen = model.write(Request(DESCRIBE, 1, 500, 0.0, Image.open(photos / "blue.png")))
    assert stored[0]["text"] == seen != ""
    assert rows(tmp_path / "out" / "rejected.jsonl")


def test_a_model_from_a_folder_writes(photos: Path, tmp_path: Path, writer_folder: Path) -> None:
    import torch

    from evaluation.dense.chat_models import LocalModel

    class Eyes:
        describe = {"model": "eyes"}

        def write(self, request: Request) -> str:
            return description("red")

    writer = LocalModel(writer_folder, False, torch.device("cpu"), torch.float32)
    settings = BuildSettings(prompts_per_image=2, prompts_per_answer=1)
    build = Build(tmp_path / "out", source_images(photos), Eyes(), writer, settings, read_unsafe_words())
    with pytest.raises(LLM4GENError, match="no prompt is left"):
        build.run()
    answers = rows(tmp_path / "out" / "answers.jsonl")
    assert len(answers) == 2 and answers[0]["text"] != answers[1]["text"]  # the same description thrice is asked once


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 1, is not valid .image: Field required"),
        ('{"image": "other.png"}', "names 'other.png', which is not in"),
        ("no", "line 1"),
    ],
)
def test_a_damaged_list_of_licences(photos: Path, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "licences.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(LLM4GENError, match=message):
        source_images(photos, path)


def test_missing_and_broken_images(tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LLM4GENError, match="does not exist"):
        source_images(tmp_path / "none")
    with pytest.raises(LLM4GENError, match="has no images"):
        source_images(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no png")
    assert run(*command(folder, tmp_path / "out", server.url)) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
