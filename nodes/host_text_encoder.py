"""Language models inside text encoders that the host, or another pack such as one for GGUF files, has loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from ..llm4gen_core import LLM4GENError, LLMSpec
from ..llm4gen_core.llm_spec import own_spec
from .host_llm_models import ForeignModel, HostTokenizer, PlainTokenizer, host_blocks


def look_inside(clip: comfy.sd.CLIP, what: str) -> tuple[comfy.sd.CLIP, LLMSpec]:
    """Return a CLIP that encodes with the language model inside another CLIP; both share its weights.

    Args:
        clip: the text encoder, which is not changed.
        what: its name in messages.

    Raises:
        LLM4GENError: it holds no language model, or several.
    """
    name, encoder = language_model(clip, what)
    own = clip.clone()
    own.cond_stage_model = ForeignModel(encoder)
    own.cond_stage_model.execution_device = own.patcher.load_device
    own.tokenizer = HostTokenizer(_tokenizer(clip, name, encoder, what))
    own.tokenizer_options, own.layer_idx = {}, None
    return own, _spec(encoder)


def language_model(clip: comfy.sd.CLIP, what: str) -> tuple[str, comfy.sd1_clip.SDClipModel]:
    """Return name and wrapper of the language model inside a CLIP.

    Raises:
        LLM4GENError: there is none, or there are several.
    """
    encoders = {
        name.rpartition(".")[2]: module
        for name, module in clip.cond_stage_model.named_modules()
        if isinstance(module, comfy.sd1_clip.SDClipModel)
    }
    found = {name: encoder for name, encoder in encoders.items() if host_blocks(encoder.transformer) is not None}
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise LLM4GENError(
            f"LLM: {what} holds {len(found)} language models ({', '.join(found)}); expected one. Load only the one "
            "that the adapter was trained with."
        )
    kinds = sorted({type(encoder.transformer).__name__ for encoder in encoders.values()})
    raise LLM4GENError(
        f"LLM: {what} holds no supported language model, but {', '.join(kinds) or 'an unknown model'}; expected a T5, "
        "Llama, Qwen, Mistral, Gemma or T5Gemma. Connect Load LLM (LLM4GEN), or a loader of such a text encoder."
    )


_ARCHITECTURES = (
    ("Qwen25_7BVLI", "qwen2_5_vl_text"),
    ("Qwen25", "qwen2"),
    ("Qwen3VL", "qwen3_vl_text"),
    ("Qwen3", "qwen3"),
    ("Ovis25", "qwen3"),
    ("Mistral", "mistral"),
    ("Ministral", "ministral3"),
    ("Gemma2", "gemma2"),
    ("Gemma3", "gemma3_text"),
    ("T5Gemma", "t5gemma"),
    ("Llama", "llama"),
)
"""Beginnings of the host's class names, with transformers' `model_type` of the same architecture."""


def _spec(encoder: comfy.sd1_clip.SDClipModel) -> LLMSpec:
    transformer: Any = encoder.transformer
    if isinstance(transformer, comfy.text_encoders.t5.T5):
        width = transformer.encoder.final_layer_norm.weight.shape[0]
        spec = own_spec(_t5_architecture(transformer), transformer.num_layers, width, is_rankgen=False)
    else:
        kind = type(transformer).__name__
        name = next((name for start, name in _ARCHITECTURES if kind.startswith(start)), kind.lower())
        config = getattr(transformer.model, "config", None) or transformer.model.encoder.config
        spec = own_spec(name, config.num_hidden_layers, config.hidden_size, is_rankgen=False)
    pad = encoder.special_tokens.get("pad")
    rows = transformer.get_input_embeddings().weight.shape[0]
    return replace(spec, pad_id=pad if isinstance(pad, int) and 0 <= pad < rows else None)


def _t5_architecture(transformer: Any) -> str:
    own_bias = [block.layer[0].SelfAttention.relative_attention_bias is not None for block in transformer.encoder.block]
    if len(own_bias) > 1 and all(own_bias):
        return "umt5"
    return "mt5" if transformer.shared.weight.shape[0] > 200_000 else "t5"


def _tokenizer(clip: comfy.sd.CLIP, name: str, encoder: comfy.sd1_clip.SDClipModel, what: str) -> Any:
    """Tokenizer of the language model called `name`: the host's tokenizer of that name, or its only one."""
    tokenizers = {
        attribute: value.tokenizer
        for attribute, value in vars(clip.tokenizer).items()
        if isinstance(value, comfy.sd1_clip.SDTokenizer) and not isinstance(value.tokenizer, CLIPTokenizer)
    }
    tokenizer = tokenizers.get(name, next(iter(tokenizers.values())) if len(tokenizers) == 1 else None)
    if tokenizer is None:
        raise LLM4GENError(
            f"LLM: {what} holds the language model {name}, but its tokenizer was not found in "
            f"{type(clip.tokenizer).__name__}. Use Load LLM (LLM4GEN) instead."
        )
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    return PlainTokenizer(tokenizer, encoder.special_tokens.get("pad", 0))
