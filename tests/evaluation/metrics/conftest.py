"""Tiny judge models with random weights, in folders like the real ones, and images to score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import write_clip_tokenizer, write_t5_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
)

ENGLISH = tuple(
    word
    for line in (
        "a an the and or of on is there does this figure show please answer yes no",
        "bench bowl cat vase book green blue red yellow",
    )
    for word in line.split()
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def enlarge(model: torch.nn.Module, factor: float = 8) -> Any:
    """Scale the weights up, so that the output of a tiny model depends on its input."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


def show_more(vision: torch.nn.Module) -> None:
    """Make a BLIP image encoder tell images apart; its initial weights are almost 0."""
    with seeded(9):
        for parameter in vision.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three noise images of different shapes and colours."""
    random = np.random.default_rng(0)
    shapes = {(40, 40, 3): (255, 60, 20), (32, 64, 3): (20, 40, 255), (57, 31, 3): (90, 255, 90)}
    return [Image.fromarray((random.random(shape) * color).astype(np.uint8)) for shape, color in shapes.items()]


def write_clip_judge(path: Path, length: int = 77, eos_in_config: int | None = None) -> Path:
    """Write a CLIP with text and image encoder.

    Args:
        length: number of tokens that it reads.
        eos_in_config: `eos_token_id` of the configuration; None for the tokenizer's.
    """
    size = write_clip_tokenizer(path, words=ENGLISH, length=length)
    blocks: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = CLIPTextConfig(
        vocab_size=size,
        max_position_embeddings=length,
        bos_token_id=size - 2,
        eos_token_id=size - 1 if eos_in_config is None else eos_in_config,
        pad_token_id=size - 1,
        **blocks,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **blocks)
    with seeded(0):
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))
    enlarge(model).save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clip_writer() -> Callable[..., Path]:
    """`write_clip_judge`."""
    return write_clip_judge


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP in a folder of judges, under the names of all CLIP judges."""
    judges = tmp_path_factory.mktemp("judges")
    for name in ("clip", "clip-b32"):
        write_clip_judge(judges / name)
    write_clip_judge(judges / "long-clip", length=248)
    return judges / "clip"


def word_tokenizer(words: Sequence[str], special: Sequence[str], template: str, **names: str) -> Any:
    """Tokenizer of whole words."""
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special if token in template]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bert_tokenizer() -> Any:
    """Tokenizer like BERT's: lower case, letters for unknown words, [CLS] before and [SEP] after."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz?\"'.,"
    pieces = [*special, *dict.fromkeys([*ENGLISH, *letters, *(f"##{letter}" for letter in letters)])]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP for questions with a position table for another image size, like the released one."""
    path = tmp_path_factory.mktemp("judges") / "blip-vqa"
    tokenizer = bert_tokenizer()
    size = len(tokenizer)
    text = BlipTextConfig(
        vocab_size=size + 2,
        hidden_size=32,
        encoder_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=size,
        pad_token_id=0,
        sep_token_id=tokenizer.sep_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    vision = BlipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=96, patch_size=48
    )
    with seeded(1):
        model = BlipForQuestionAnswering(
            BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
        )
    show_more(model.vision_model)
    enlarge(model, 3).save_pretrained(path)
    tokenizer.save_pretrained(path)
    BlipImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(path)
    return path


CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
"""Chat template of the models below; IMAGE is the model's placeholder for an image."""

CHAT_WORDS = [*ENGLISH, "Yes", "No", "Does", "Please", "Is", "?", '"', "."]


def chat_tokenizer(*others: str) -> Any:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<answer>", *others]
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = word_tokenizer(CHAT_WORDS, special, "<s> $A", **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", *others]})
    return tokenizer


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoder-only model with images of one size and 128 positions."""
    path = tmp_path_factory.mktemp("judges") / "vqa"
    tokenizer = chat_tokenizer("<image>")
    blocks: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **blocks),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, **blocks
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    with seeded(2):
        model = LlavaForConditionalGeneration(config)
    enlarge(model).save_pretrained(path)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL, in which the number of image tokens depends on the image size."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

    path = tmp_path_factory.mktemp("judges") / "vqa"
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = chat_tokenizer(*names)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with seeded(3):
        model = Qwen2_5_VLForConditionalGeneration(config)
    enlarge(model).save_pretrained(path)
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 4096}}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def instructblip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model with a Q-Former and T5, which encodes the question and answers with its decoder."""
    path = tmp_path_factory.mktemp("judges") / "vqa"
    write_t5_tokenizer(path / "t5", words=[*ENGLISH, "Yes", "No"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path / "t5")
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer, bert_tokenizer(), num_query_tokens=4
    )
    blocks: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = InstructBlipConfig(
        vision_config={**blocks, "image_size": 32, "patch_size": 8},
        qformer_config={
            **blocks,
            "vocab_size": len(processor.qformer_tokenizer),
            "encoder_hidden_size": 32,
            "max_position_embeddings": 96,
        },
        text_config=T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with seeded(4):
        model = InstructBlipForConditionalGeneration(config)
        torch.nn.init.normal_(model.query_tokens)
    show_more(model.vision_model)
    enlarge(model, 3).save_pretrained(path)
    processor.save_pretrained(path)
    return path
