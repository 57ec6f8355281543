"""VQAScore: answers of each kind of model, in batches and alone, against generation with transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    InstructBlipForConditionalGeneration,
    LlavaForConditionalGeneration,
)

from evaluation.image_set import Prompt
from evaluation.metrics.base import Context
from evaluation.metrics.questions import QUESTION, VQAJudge, VQAScore
from llm4gen_core import LLM4GENError

FOLDERS = ("llava_folder", "qwen_folder", "instructblip_folder")
TEXTS = ("a red book", "a green bench and a blue bowl", "cat")
QUESTIONS = [QUESTION.format(text=text) for text in TEXTS]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_batches_answer_as_single_questions(folder: Path, pictures: list[Image.Image]) -> None:
    judge = VQAJudge(folder)
    together = judge.ask(pictures, QUESTIONS)
    for picture, question, answer in zip(pictures, QUESTIONS, together, strict=True):
        [alone] = judge.ask([picture], [question])
        assert alone is not None and answer is not None
        assert answer.yes == pytest.approx(alone.yes, rel=1e-4)
        assert answer.no == pytest.approx(alone.no, rel=1e-4)
    assert len({round(answer.yes, 6) for answer in together if answer}) == 3


def test_image_and_text_both_count(folder: Path, pictures: list[Image.Image]) -> None:
    judge = VQAJudge(folder)
    one, other_image, other_text = judge.ask(
        [pictures[0], pictures[1], pictures[0]], [QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]]
    )
    assert one and other_image and other_text
    assert one.yes != pytest.approx(other_image.yes, rel=1e-3)
    assert one.yes != pytest.approx(other_text.yes, rel=1e-3)


def test_llava_answers_with_the_token_after_its_template(llava_folder: Path, pictures: list[Image.Image]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llava_folder)
    processor = AutoProcessor.from_pretrained(llava_folder, backend="pil")
    text = f"<image> {QUESTIONS[0]} <answer>"
    inputs = processor(images=pictures[0], text=text, return_tensors="pt")
    said = LlavaForConditionalGeneration.from_pretrained(llava_folder).generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    shares = said.logits[0][0].softmax(-1)
    [answer] = VQAJudge(llava_folder).ask(pictures[:1], QUESTIONS[:1])
    assert answer is not None
    spellings = tokenizer.convert_tokens_to_ids(["Yes", "yes"])
    assert answer.yes == pytest.approx(float(shares[spellings].sum()), rel=1e-4)
    spellings = tokenizer.convert_tokens_to_ids(["No", "no"])
    assert answer.no == pytest.approx(float(shares[spellings].sum()), rel=1e-4)


def test_instructblip_answers_with_the_first_token_of_its_decoder(
    instructblip_folder: Path, pictures: list[Image.Image]
) -> None:
    processor = AutoProcessor.from_pretrained(instructblip_folder, backend="pil")
    inputs = processor(images=pictures[0], text=QUESTIONS[0], return_tensors="pt")
    said = InstructBlipForConditionalGeneration.from_pretrained(instructblip_folder).generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    shares = said.logits[0][0].softmax(-1)
    spellings = processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁yes"])
    [answer] = VQAJudge(instructblip_folder).ask(pictures[:1], QUESTIONS[:1])
    assert answer is not None and answer.yes == pytest.approx(float(shares[spellings].sum()), rel=1e-4)


def test_score_is_the_probability_of_yes(qwen_folder: Path, pictures: list[Image.Image]) -> None:
    metric = VQAScore.load(Context(judges=qwen_folder.parent))
    scores = metric.score(pictures, [Prompt(id=str(n), text=text) for n, text in enumerate(TEXTS)])
    answers = VQAJudge(qwen_folder).ask(pictures, QUESTIONS)
    for score, answer in zip(scores, answers, strict=True):
        assert answer is not None and score["truncated"] is False
        assert score["score"] == pytest.approx(answer.yes, rel=1e-5) and 0 < score["score"] < 1
    assert metric.describe()["question"] == QUESTION
    assert metric.describe()["dtype"] == "float32"


@pytest.mark.parametrize("name", ["llava_folder", "instructblip_folder"])
def test_a_text_that_does_not_fit_has_no_score(
    name: str, request: pytest.FixtureRequest, pictures: list[Image.Image]
) -> None:
    folder = request.getfixturevalue(name)
    metric = VQAScore.load(Context(judges=folder.parent))
    prompts = [Prompt(id="1", text="a red book"), Prompt(id="2", text="cat " * 150), Prompt(id="3", text="cat")]
    first, long, last = metric.score(pictures, prompts)
    assert long["score"] is None and long["truncated"] is True and long["reason"]
    alone = metric.score(pictures[2:], prompts[2:])[0]
    assert first["score"] is not None and last["score"] == pytest.approx(alone["score"], rel=1e-4)


def test_more_than_a_batch(llava_folder: Path, pictures: list[Image.Image]) -> None:
    judge = VQAJudge(llava_folder)
    many = judge.ask(pictures * 5, QUESTIONS * 5)
    assert len(many) == 15
    assert [one.yes for one in many[:3] if one] == pytest.approx([one.yes for one in many[12:] if one], rel=1e-4)


def test_a_model_that_cannot_be_asked_is_refused(llava_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llava_folder, tmp_path / "vqa")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(LLM4GENError, match="without a chat template"):
        VQAJudge(folder)


def test_a_model_without_all_weights_is_refused(llava_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vqa"
    model = LlavaForConditionalGeneration.from_pretrained(llava_folder)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(folder, state_dict=state)
    AutoProcessor.from_pretrained(llava_folder, backend="pil").save_pretrained(folder)
    with pytest.raises(LLM4GENError, match="lacks 7 of its weights"):
        VQAJudge(folder)


def test_half_precision_is_not_for_the_cpu(llava_folder: Path) -> None:
    with pytest.raises(LLM4GENError, match="dtype is 'float16'"):
        VQAScore.load(Context(judges=llava_folder.parent, options={"dtype": "float16"}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_in_half_precision(llava_folder: Path, pictures: list[Image.Image]) -> None:
    metric = VQAScore.load(Context(judges=llava_folder.parent, device="cuda"))
    assert metric.describe()["dtype"] == "bfloat16"
    [score] = metric.score(pictures[:1], [Prompt(id="1", text="cat")])
    assert 0 < score["score"] < 1
