"""Documents and training of the language models."""

from __future__ import annotations

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


def encoder_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any
) -> tuple[list[Any], Any, list[float], dict[str, float], Any]:
    """Train for 40 steps at a tiny size: batches, tokenizer, losses, known facts, trained model."""
    seen: list[Any] = []
    losses: list[float] = []
    models: list[Any] = []
    fit = language.fit

    def watched(name: str, model: Any, loss: Any, steps: int, **options: Any) -> None:
        models.append(model)

        def recorded(step: int) -> torch.Tensor:
            value = loss(step)
            losses.append(value.item())
            return value

        fit(name, model, recorded, steps, **options)

    to = language._Batch.to
    monkeypatch.setattr(language._Batch, "to", lambda batch, device: seen.append(batch) or to(batch, device))
    small = {"CHARACTERS": 1500, "D_LLM": 32, "LAYERS": 2, "LEARNING_RATE": 0.03, "PRIMER": 0, "fit": watched}
    for target, value in small.items():  # a learning rate that still rises
        monkeypatch.setattr(language, target, value)
    shares = train(tmp_path, 40)
    return seen, PreTrainedTokenizerFast.from_pretrained(tmp_path), losses, shares, models[0]


@pytest.mark.parametrize("name", TRAIN)
def test_training_learns_and_the_saved_model_is_the_trained_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, tokenizer, losses, shares, trained = encoder_batches(tmp_path, monkeypatch, TRAIN[name])
    assert sum(losses[:5]) > 1.2 * sum(losses[-5:])
    assert {"color", "shape"} <= set(shares) and all(0 <= share <= 1 for share in shares.values())
    kind: Any = T5EncoderModel if name == "t5" else AutoModelForCausalLM
    saved = kind.from_pretrained(tmp_path).state_dict()
    model = trained[0] if name == "t5" else trained
    assert all(torch.equal(tensor, saved[key]) for key, tensor in model.state_dict().items())
    features = LLMEncoder.from_folder(tmp_path).encode(["a red circle"]).hidden
    assert features.shape[2] == 32 and features.isfinite().all()
    first, last = batches[0], batches[-1]  # of the training, and of the facts that are asked afterwards
    (check_encoder if name == "t5" else check_decoder)(first, last, tokenizer)


def check_encoder(first: Any, last: Any, tokenizer: Any) -> None:
    """It does not see what it has to predict: in the end the answers alone, before also some other words."""
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    for batch in (first, last):
        asked = batch.labels != language._IGNORED
        assert (batch.ids[asked] == sentinel).all() and (batch.ids[~asked] != sentinel).all()
    answers = [[bool(kind) for kind in row] for row in last.kinds]
    assert torch.equal(last.labels != language._IGNORED, torch.tensor(answers))


def check_decoder(first: Any, last: Any, tokenizer: Any) -> None:
    """It predicts every token but the first, answers with more weight, and in the end the answers alone."""
    mask = first.mask[:, 1:].bool()
    assert torch.equal(first.labels[:, 1:][mask], first.ids[:, 1:][mask])
    assert (first.labels[:, 0] == language._IGNORED).all()
    for batch, weights in ((first, first.weights == language.ANSWER_WEIGHT), (last, last.labels != language._IGNORED)):
        assert torch.equal(torch.tensor([[bool(kind) for kind in row] for row in batch.kinds]), weights)
