"""Identification of T5 encoders and other files by the names and shapes of their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm4gen_core import LLM4GENError, LLMSpec
from llm4gen_core.t5_file import Shapes, describe_t5, encoder_tensors, t5_without_tokenizer

PATH = Path("models/text_encoders/file.safetensors")
SIZES = {"vocab_size": 32128, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 2}


def model_shapes(prefix: str = "", full: bool = False, **changes: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a T5 as transformers names them; nothing is allocated."""
    import transformers

    config = transformers.T5Config(**{**SIZES, "feed_forward_proj": "gated-gelu", **changes})
    model_class = transformers.T5ForConditionalGeneration if full else transformers.T5EncoderModel
    with torch.device("meta"):
        state = model_class(config).state_dict()
    return {prefix + name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("activation", ["gated-gelu", "relu"])
@pytest.mark.parametrize("prefix", ["", "t5_encoder.", "text_encoders.t5xxl.transformer."])
def test_the_sizes_rebuild_the_same_model(prefix: str, activation: str) -> None:
    import transformers

    shapes = model_shapes(prefix, feed_forward_proj=activation)
    found = describe_t5(shapes, PATH)
    with torch.device("meta"):
        config = transformers.T5Config(**found.config, feed_forward_proj=activation)
        rebuilt = transformers.T5EncoderModel(config).state_dict()
    assert {prefix + name: tuple(tensor.shape) for name, tensor in rebuilt.items()} == shapes
    assert (found.key_prefix, found.spec.layers, found.spec.width) == (prefix, 3, 16)


def test_rankgens_keys_imply_its_prompt_prefix() -> None:
    assert describe_t5(model_shapes("t5_encoder."), PATH).spec == LLMSpec("", "t5", 3, 16, prefix="pre ")
    assert describe_t5(model_shapes(), PATH).spec == LLMSpec("", "t5", 3, 16, prefix="")


def test_only_the_full_size_is_the_released_llm() -> None:
    sizes = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}
    assert describe_t5(model_shapes("t5_encoder.", **sizes), PATH).spec.model == "kalpeshk2011/rankgen-t5-xl-all"
    assert describe_t5(model_shapes(**sizes), PATH).spec.model == ""


def test_the_decoder_of_a_full_t5_is_dropped() -> None:
    shapes = model_shapes(full=True)
    found = describe_t5(shapes, PATH)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    kept = encoder_tensors(found, tensors)
    assert set(kept) == set(model_shapes()) - {"encoder.embed_tokens.weight"}


def test_the_prefix_and_the_projection_are_dropped() -> None:
    shapes = {**model_shapes("t5_encoder."), "projection.weight": (16, 16)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    kept = encoder_tensors(describe_t5(shapes, PATH), tensors)
    assert set(kept) == set(model_shapes()) - {"encoder.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP text encoder"),
        ("model.layers.0.self_attn.q_proj.weight", "a decoder-only language model"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
        ("CrossFusionModule.0.q_proj.weight", "an LLM4GEN adapter"),
        ("cam.q_proj.weight", "an LLM4GEN adapter"),
        ("lora_te_text_model.lora_down.weight", "a LoRA"),
        ("something.weight", "an unknown model (tensors: something.weight"),
    ],
)
def test_other_files_are_identified(key: str, kind: str) -> None:
    with pytest.raises(LLM4GENError) as caught:
        describe_t5({key: (4, 4)}, PATH)
    assert f"LLM {PATH} is {kind}" in str(caught.value)
    assert "expected a T5 text encoder" in str(caught.value)


def incomplete(name: str) -> Shapes:
    return {key: shape for key, shape in model_shapes().items() if key not in (name, "encoder.embed_tokens.weight")}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (lambda: incomplete("shared.weight"), "lacks shared.weight; it is incomplete"),
        (lambda: incomplete("encoder.final_layer_norm.weight"), "final_layer_norm.weight; it is incomplete"),
        (lambda: incomplete("encoder.block.0.layer.1.DenseReluDense.wi_0.weight"), "it is incomplete"),
        (
            lambda: incomplete("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            "relative_attention_bias.weight; it is incomplete",
        ),
        (lambda: model_shapes(vocab_size=250112), "with 250,112 word pieces"),
        (lambda: model_shapes(relative_attention_num_buckets=64), "has 64 relative position buckets"),
        (
            lambda: {
                **model_shapes(),
                "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
            },
            "is a umT5 or Pile-T5 encoder",
        ),
    ],
)
def test_encoders_that_cannot_be_used(shapes: Any, words: str) -> None:
    with pytest.raises(LLM4GENError) as caught:
        describe_t5(shapes(), PATH)
    assert words in str(caught.value)


def test_folder_of_a_t5_without_tokenizer(rankgen_folder: Any) -> None:
    folder = rankgen_folder("pytorch_model.bin")[0]
    assert t5_without_tokenizer(folder) is None
    (folder / "tokenizer.json").unlink()
    assert t5_without_tokenizer(folder) == folder / "pytorch_model.bin"


def test_folder_of_another_model_without_tokenizer(build_folder: Any) -> None:
    folder = build_folder("llama")[0]
    (folder / "tokenizer.json").unlink()
    assert t5_without_tokenizer(folder) is None
