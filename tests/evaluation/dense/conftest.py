"""A chat server with prepared answers, the shipped set, and tiny chat models with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from evaluation.dense import shipped_prompts
from evaluation.image_set import Prompt


@pytest.fixture
def server() -> Iterator[ChatServer]:
    running = ChatServer()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(scope="session")
def shipped() -> list[Prompt]:
    return shipped_prompts()


WORDS = "describe this image write prompts a the red cat on blue chair".split()
CHAT = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
BLOCKS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tokenizer() -> Any:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<answer>", "<image>"]
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<answer>", "<image>"]})
    return made


@pytest.fixture(scope="session")
def writer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM with random weights."""
    path = tmp_path_factory.mktemp("models") / "writer"
    words = tokenizer()
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=1024, **BLOCKS)).save_pretrained(path)
    words.chat_template = CHAT
    words.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model with random weights."""
    path = tmp_path_factory.mktemp("models") / "vision"
    words = tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **BLOCKS),
        text_config=LlamaConfig(vocab_size=len(words), max_position_embeddings=1024, **BLOCKS),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(2)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name and weights.ndim > 1:
                weights.mul_(8)  # so that another image gives another answer
    model.save_pretrained(path)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(path)
    return path
