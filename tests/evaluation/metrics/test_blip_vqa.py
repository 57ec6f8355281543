"""BLIP-VQA: P(yes) against the official steps, and the product over noun chunks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BlipForQuestionAnswering

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.noun_chunks import TemplateChunker
from evaluation.metrics.questions import BlipJudge, BlipVQA, asked_chunks, question_of
from llm4gen_core import LLM4GENError

TEXTS = ("a green bench and a blue bowl", "a red cat and the yellow vase", "a cat")


class Given:
    """Stand-in for a chunker, with given chunks."""

    name, note = "given", ""

    def __init__(self, *chunks: str) -> None:
        self._chunks = list(chunks)

    def chunks(self, text: str) -> list[str]:
        return self._chunks


def prompts_of(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(id=str(number), text=text, category="color") for number, text in enumerate(texts)]


@torch.no_grad()
def official(folder: Path, image: Image.Image, question: str) -> float:
    """P(yes) by the official steps: image transform, tokens, softmax over the whole vocabulary."""
    model: Any = BlipForQuestionAnswering.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = np.asarray(image.resize((480, 480), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    tensor = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]
    read = tokenizer(question.lower(), truncation=True, max_length=35, return_tensors="pt").input_ids
    read[:, 0] = len(tokenizer) + 1  # [DEC] and [ENC] follow BERT's vocabulary
    seen = model.vision_model(pixel_values=tensor, interpolate_pos_encoding=True).last_hidden_state
    states = model.text_encoder(input_ids=read, encoder_hidden_states=seen).last_hidden_state
    logits = model.text_decoder(
        input_ids=torch.tensor([[len(tokenizer)]]), encoder_hidden_states=states, is_decoder=True
    ).logits[0, 0]
    shares = logits.softmax(-1)
    yes, no = (float(shares[tokenizer.convert_tokens_to_ids(word)]) for word in ("yes", "no"))
    return yes / (yes + no)


def test_p_yes_is_that_of_the_official_steps(blip_folder: Path, pictures: list[Image.Image]) -> None:
    judge = BlipJudge(blip_folder)
    questions = ["a green bench?", "a blue bowl?", "cat " * 30 + "on a red book of the blue bench?"]
    found = judge.yes(pictures, [questions] * 3)
    for picture, row in zip(pictures, found, strict=True):
        assert row == pytest.approx([official(blip_folder, picture, question) for question in questions], abs=1e-4)
    assert len({round(yes, 3) for row in found for yes in row}) > 5


def test_score_is_the_product_over_chunks(blip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = BlipVQA(BlipJudge(blip_folder), TemplateChunker())
    [score] = metric.score(pictures[:1], prompts_of(TEXTS[:1]))
    first = official(blip_folder, pictures[0], "a green bench?")
    second = official(blip_folder, pictures[0], "a blue bowl?")
    assert score["chunks"] == ["a green bench", "a blue bowl"]
    assert score["probabilities"] == pytest.approx([first, second], abs=1e-4)
    assert score["score"] == pytest.approx(first * second, abs=1e-4)
    assert "en_core_web_sm" in score["note"]


def test_batches_score_as_single_images(blip_folder: Path, pictures: list[Image.Image]) -> None:
    metric = BlipVQA(BlipJudge(blip_folder), TemplateChunker())
    together = metric.score(pictures, prompts_of(TEXTS))
    for picture, text, score in zip(pictures, TEXTS, together, strict=True):
        [alone] = metric.score([picture], prompts_of([text]))
        assert score["chunks"] == alone["chunks"]
        assert score["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_eight_chunks_count_and_directions_do_not(blip_folder: Path, pictures: list[Image.Image]) -> None:
    words = [
        "a cat",
        "top",
        "a red book",
        "the left",
        "the side",
        "the right",
        *["a blue vase"] * 5,
        "a bowl",
        "a bench",
    ]
    kept = ["a cat", "a red book", *["a blue vase"] * 5, "a bowl"]
    assert asked_chunks(words) == (kept, 1)
    assert asked_chunks(["The left", "the top"]) == (
        ["The left", "the top"],
        0,
    )  # only the exact words are left out, as in the official script
    [score] = BlipVQA(BlipJudge(blip_folder), Given(*words)).score(pictures[:1], prompts_of(["x"]))
    assert score["chunks"] == kept and score["left_out"] == 1
    assert len(score["probabilities"]) == 8
    assert score["score"] == pytest.approx(math.prod(score["probabilities"]))


def test_more_questions_than_a_batch(blip_folder: Path, pictures: list[Image.Image]) -> None:
    judge = BlipJudge(blip_folder)
    questions = ["a cat?", "a bowl?", "a vase?", "a book?", "a bench?", "the cat?", "the bowl?"]
    found = judge.yes([*pictures, *pictures], [questions, [], questions, questions, questions, questions])
    assert [len(row) for row in found] == [7, 0, 7, 7, 7, 7]
    assert found[5] == pytest.approx(judge.yes(pictures[2:], [questions])[0], abs=1e-5)
    assert found[0] == pytest.approx(found[3], abs=1e-5)


@pytest.mark.parametrize(
    ("chunk", "question"),
    [
        ("A Green Bench", "a green bench?"),
        ('the "red" (old) book.', "the red old book?"),
        ("a #1: cat; * ~", "a 1 cat  ?"),
        ("word " * 60, ("word " * 50).strip()),
    ],
)
def test_questions_follow_the_official_script(chunk: str, question: str) -> None:
    assert question_of(chunk) == question
    assert not re.search(r"[A-Z.!\"()*#:;~]", question)


@pytest.mark.parametrize("chunker", [Given(), Given("top", "the left"), TemplateChunker()])
def test_without_chunks_there_is_no_score(blip_folder: Path, pictures: list[Image.Image], chunker: Any) -> None:
    metric = BlipVQA(BlipJudge(blip_folder), chunker)
    [score] = metric.score(pictures[:1], prompts_of(["she runs in the rain"]))
    assert score["score"] is None and score["reason"]


def test_categories_of_the_benchmark() -> None:
    applied = {
        category
        for category in ("color", "shape", "texture", "complex", "spatial", "non-spatial", "")
        if BlipVQA.applies(Prompt(id="1", text="x", category=category))
    }
    assert applied == {"color", "shape", "texture", "complex"}


def test_description_names_pipeline_and_judge(blip_folder: Path) -> None:
    metric = BlipVQA.load(Context(judges=blip_folder.parent, options={"pipeline": "template"}))
    said = metric.describe()
    assert said["chunks"] == "template 1" and said["judge"] == "blip-vqa" and said["size"] == 480
    assert len(said["hash"]) == 16 and said["dtype"] == "float32"


def test_a_missing_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="blip-vqa-capfilt-large"):
        BlipVQA.load(Context(judges=tmp_path, options={"pipeline": "template"}))
