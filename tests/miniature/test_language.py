"""What the language models of the world read, what they are asked, and that what is saved is what was trained."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, T5EncoderModel

import miniature.language as language
from llm4gen_core import LLMEncoder
from miniature.scenes import COLORS, SHAPES

TRAIN = {"t5": language.train_encoder, "llama": language.train_decoder}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    language.write_t5_tokenizer(folder, language.WORDS, sentinels=1)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_every_word_is_one_token(tokenizer: Any) -> None:
    assert {len(tokenizer(word)["input_ids"]) for word in language.WORDS} == {2}


@pytest.mark.parametrize("primer", [False, True])
def test_answers_stand_in_their_documents(primer: bool) -> None:
    kinds = {"color": {*COLORS}, "relation": {*SHAPES}}
    asked = 0
    for document in islice(language.read(0, primer), 200):
        for start, end, kind in document.answers:
            asked += 1
            assert document.text[end] == "." and document.text[start - 1] == " "
            if kind in kinds:
                assert document.text[start:end] in kinds[kind]
    assert asked > 150


def test_the_primer_repeats_one_colour() -> None:
    for document in islice(language.read(0, primer=True), 100):
        [(start, end, _)] = document.answers
        caption, _, sentence = document.text.partition(". ")
        shape = sentence.split()[1]
        color = document.text[start:end]
        before, after = f"{color} {shape}", f"{shape} that is {color}"
        assert before in caption or after in caption


def test_batches_hold_what_is_read_and_no_more_than_they_may() -> None:
    found = list(islice(language.batches(0), 5))
    for documents in found:
        longest = max(len(document.text) for document in documents)
        assert len(documents) == 1 or len(documents) * longest <= language.CHARACTERS
    read = {document.text for document in islice(language.read(0), 512)}
    assert {document.text for documents in found for document in documents} <= read


def test_the_encoder_does_not_see_what_it_is_asked(tokenizer: Any) -> None:
    documents = list(islice(language.read(0), 20))
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    tokens = language._masked(tokenizer, documents, sentinel, random.Random(0), 0)
    asked = tokens.labels != language._IGNORED
    assert (tokens.ids[asked] == sentinel).all() and (tokens.ids[~asked] != sentinel).all()
    for row, document in enumerate(documents):
        answers = " ".join(document.text[start:end] for start, end, _ in document.answers)
        assert tokenizer.decode(tokens.labels[row][asked[row]]) == answers


def test_the_decoder_is_asked_for_the_next_word(tokenizer: Any) -> None:
    documents = list(islice(language.read(0), 20))
    everything = language._next_words(tokenizer, documents, everywhere=True)
    assert (
        everything.labels[:, 1:][everything.mask[:, 1:].bool()] == everything.ids[:, 1:][everything.mask[:, 1:].bool()]
    ).all()
    assert (everything.labels[:, 0] == language._IGNORED).all()
    answers = language._next_words(tokenizer, documents, everywhere=False).labels != language._IGNORED
    assert torch.equal(answers, everything.weights == language.ANSWER)


@pytest.mark.parametrize("name", TRAIN)
def test_training_teaches_and_what_is_saved_is_what_was_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    models: list[Any] = []
    loss_of, known = language._loss, language._known

    def loss(*arguments: Any) -> torch.Tensor:
        value = loss_of(*arguments)
        losses.append(value.item())
        return value

    def remember(answers: Any, tokenize: Any, seed: int) -> dict[str, float]:
        cells = {n: c.cell_contents for n, c in zip(answers.__code__.co_freevars, answers.__closure__, strict=True)}
        models.append(cells["model"])
        return known(answers, tokenize, seed)

    small = {
        "CHARACTERS": 1500,
        "WIDTH": 32,
        "LAYERS": 2,
        "RATE": 0.03,
        "PRIMER": 0,
    }  # a learning rate that still rises
    for target, value in {"_loss": loss, "_known": remember, **small}.items():
        monkeypatch.setattr(language, target, value)
    shares = TRAIN[name](tmp_path, 40)
    assert sum(losses[:5]) > 1.2 * sum(losses[-5:])
    assert {"color", "shape"} <= set(shares) and all(0 <= share <= 1 for share in shares.values())
    kind: Any = T5EncoderModel if name == "t5" else AutoModelForCausalLM
    saved = kind.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in models[0].state_dict().items())
    features = LLMEncoder.from_folder(tmp_path).encode(["a red circle"]).hidden
    assert features.shape[2] == 32 and features.isfinite().all()
