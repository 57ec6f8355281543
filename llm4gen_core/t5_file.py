"""What a single-file text encoder is, told from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .encoder import RANKGEN_PREFIX, weight_names
from .errors import LLM4GENError
from .llm_spec import LLMSpec, own_spec

Shapes = Mapping[str, tuple[int, ...]]

_FIRST_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_VOCABULARY = range(32100, 32257)
"""T5's 32,100 pieces, usually padded to 32,128 rows; other sizes belong to mT5 and umT5."""

_OTHER_KINDS = (
    ("text_model.encoder.layers.", "a CLIP text encoder"),
    ("transformer.resblocks.", "a CLIP text encoder"),
    ("model.layers.0.self_attn.", "a decoder-only language model of a kind that is not known here"),
    ("model.language_model.layers.", "a decoder-only language model of a kind that is not known here"),
    ("model.diffusion_model.", "a Stable Diffusion checkpoint"),
    ("CrossFusionModule.", "an LLM4GEN adapter (it belongs into models/llm4gen)"),
    ("cam.", "an LLM4GEN adapter (it belongs into models/llm4gen)"),
    ("double_blocks.", "a diffusion model"),
    ("down_blocks.", "a diffusion UNet"),
    ("input_blocks.", "a diffusion UNet"),
    ("decoder.conv_in.", "a VAE"),
    ("lora_", "a LoRA"),
)


@dataclass(frozen=True)
class T5File:
    """A T5 encoder stored in one file.

    Attributes:
        key_prefix: stands before `encoder.block...` in the file ("t5_encoder." for RankGen).
        embedding: full name of the token embedding in the file.
        config: the encoder's sizes, in the terms of transformers' T5Config.
        spec: the `LLMSpec` that the file stands for by itself.
    """

    key_prefix: str
    embedding: str
    config: Mapping[str, Any]
    spec: LLMSpec

    @property
    def description(self) -> str:
        """For people: what was found."""
        layout = ", RankGen layout" if self.key_prefix == RANKGEN_PREFIX else ""
        kind = "T5 v1.1 / flan-T5" if self.config["is_gated_act"] else "T5"
        return f"{kind} encoder ({self.spec.layers} layers, width {self.spec.width}{layout})"


def is_t5(names: Iterable[str]) -> bool:
    """Whether tensors of these names make a T5-like encoder, of whatever size, under whatever key prefix."""
    return any(name == _FIRST_QUERY or name.endswith("." + _FIRST_QUERY) for name in names)


def describe_t5(shapes: Shapes, path: Path) -> T5File:
    """Find out which T5 encoder a file holds.

    Args:
        shapes: of its tensors, by name.
        path: for messages.

    Raises:
        LLM4GENError: the file is something else, or incomplete; the message says what it is.
    """
    first = next((name for name in shapes if name == _FIRST_QUERY or name.endswith("." + _FIRST_QUERY)), None)
    if first is None:
        raise LLM4GENError(_what_else(shapes, path))
    prefix = first.removesuffix(_FIRST_QUERY)

    def shape(name: str) -> tuple[int, ...]:
        try:
            return shapes[prefix + name]
        except KeyError:
            raise LLM4GENError(
                f"LLM {path} looks like a T5 encoder but lacks {prefix}{name}; it is incomplete."
            ) from None

    if f"{prefix}encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes:
        raise LLM4GENError(
            f"LLM {path} is a umT5 or Pile-T5 encoder (as used by AuraFlow and Wan): every block has its own position "
            "bias and its tokenizer is another one. Use its Hugging Face folder in models/llm, with its tokenizer."
        )
    stem = f"{prefix}encoder.block."
    layers = 1 + max(int(name.removeprefix(stem).split(".")[0]) for name in shapes if name.startswith(stem))
    embedding = next(
        (name for name in (f"{prefix}shared.weight", f"{prefix}encoder.embed_tokens.weight") if name in shapes), None
    )
    if embedding is None:
        raise LLM4GENError(f"LLM {path} looks like a T5 encoder but lacks {prefix}shared.weight; it is incomplete.")
    vocabulary, width = shapes[embedding]
    if vocabulary not in _T5_VOCABULARY:
        raise LLM4GENError(
            f"LLM {path} is a T5 encoder with {vocabulary:,} word pieces; T5 and flan-T5 have 32,128. It needs its own "
            "tokenizer: use its Hugging Face folder in models/llm."
        )
    buckets, heads = shape("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    if buckets != 32:
        raise LLM4GENError(
            f"LLM {path} has {buckets} relative position buckets; T5 has 32. Use its Hugging Face folder."
        )
    shape("encoder.final_layer_norm.weight")  # its precision is taken for the whole file's
    gated = f"{prefix}encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    inner = shape("encoder.block.0.layer.1.DenseReluDense." + ("wi_0" if gated else "wi") + ".weight")[0]
    config = {
        "model_type": "t5",
        "num_layers": layers,
        "d_model": width,
        "d_ff": inner,
        "d_kv": shapes[first][0] // heads,
        "num_heads": heads,
        "is_gated_act": gated,
        "dense_act_fn": "gelu_pytorch_tanh" if gated else "relu",
        "vocab_size": vocabulary,
    }
    spec = own_spec("t5", layers, width, is_rankgen=prefix == RANKGEN_PREFIX)
    return T5File(prefix, embedding, config, spec)


def t5_without_tokenizer(folder: Path) -> Path | None:
    """The weights in a Hugging Face folder that holds a T5 encoder but no tokenizer, as RankGen is published.

    Such a file can be read by itself, with T5's own tokenizer.
    """
    if any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        return None
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files or not any(name.endswith(_FIRST_QUERY) for name in weight_names(folder)):
        return None
    return files[0]


def encoder_tensors(file: T5File, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's tensors under transformers' plain names: prefix, decoder and projection dropped."""
    plain = {
        name.removeprefix(file.key_prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(file.key_prefix + "encoder.")
    }
    plain.pop("encoder.embed_tokens.weight", None)
    plain["shared.weight"] = tensors[file.embedding]
    return plain


def _what_else(shapes: Shapes, path: Path) -> str:
    unknown = f"something unknown, with tensors such as {', '.join(sorted(shapes)[:2]) or 'none at all'}"
    marked = (kind for mark, kind in _OTHER_KINDS if any(n.startswith(mark) or f".{mark}" in n for n in shapes))
    kind = next(marked, unknown)
    advice = (
        "Put its whole Hugging Face folder (config.json, weights, tokenizer) into models/llm and choose the folder."
        if "decoder-only" in kind
        else "Choose a T5 encoder (T5-v1.1-XL, flan-T5-XL, RankGen T5-XL), a file of another LLM that ComfyUI knows, "
        "or a Hugging Face folder."
    )
    return f"LLM {path} is {kind}; expected a T5 text encoder or another language model. {advice}"
