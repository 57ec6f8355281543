"""T5 encoders in a single file, identified by the names and shapes of their tensors."""

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
"""Rows of T5's embedding: 32,100 pieces, usually padded to 32,128 rows. mT5 and umT5 have other sizes."""

_OTHER_KINDS = (
    ("text_model.encoder.layers.", "a CLIP text encoder"),
    ("transformer.resblocks.", "a CLIP text encoder"),
    ("model.layers.0.self_attn.", "a decoder-only language model of an unknown architecture"),
    ("model.language_model.layers.", "a decoder-only language model of an unknown architecture"),
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
        key_prefix: prefix of `encoder.block...` in the file ("t5_encoder." for RankGen).
        embedding: full name of the token embedding in the file.
        config: sizes of the encoder, as fields of transformers' T5Config.
        spec: the file's own `LLMSpec`, see `own_spec`.
    """

    key_prefix: str
    embedding: str
    config: Mapping[str, Any]
    spec: LLMSpec

    @property
    def description(self) -> str:
        """Kind and size of the encoder, for people."""
        layout = ", RankGen layout" if self.key_prefix == RANKGEN_PREFIX else ""
        kind = "T5 v1.1 / flan-T5" if self.config["is_gated_act"] else "T5"
        return f"{kind} encoder ({self.spec.layers} layers, width {self.spec.width}{layout})"


def is_t5(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a T5-like encoder, of any size and with any key prefix."""
    return _first_query(names) is not None


def _first_query(names: Iterable[str]) -> str | None:
    return next((name for name in names if name == _FIRST_QUERY or name.endswith("." + _FIRST_QUERY)), None)


def describe_t5(shapes: Shapes, path: Path) -> T5File:
    """Identify the T5 encoder in a file.

    Args:
        shapes: shapes of the file's tensors, by name.
        path: the file, for messages.

    Raises:
        LLM4GENError: the file holds another model or an incomplete one; the message says which.
    """
    first = _first_query(shapes)
    if first is None:
        raise LLM4GENError(_what_else(shapes, path))
    prefix = first.removesuffix(_FIRST_QUERY)

    def shape(name: str) -> tuple[int, ...]:
        try:
            return shapes[prefix + name]
        except KeyError:
            raise LLM4GENError(
                f"LLM {path} looks like a T5 encoder but lacks {prefix}{name}; it is incomplete. Download it again."
            ) from None

    if f"{prefix}encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes:
        raise LLM4GENError(
            f"LLM {path} is a umT5 or Pile-T5 encoder (as in AuraFlow and Wan), with a position bias in every block "
            "and another tokenizer than T5's. Use its Hugging Face folder, with its tokenizer, in models/llm."
        )
    stem = f"{prefix}encoder.block."
    layers = 1 + max(int(name.removeprefix(stem).split(".")[0]) for name in shapes if name.startswith(stem))
    embedding = "encoder.embed_tokens.weight"
    if prefix + "shared.weight" in shapes or prefix + embedding not in shapes:
        embedding = "shared.weight"
    vocabulary, width = shape(embedding)
    if vocabulary not in _T5_VOCABULARY:
        raise LLM4GENError(
            f"LLM {path} is a T5 encoder with {vocabulary:,} word pieces; expected 32,128, as T5 and flan-T5 have. It "
            "needs its own tokenizer: use its Hugging Face folder in models/llm."
        )
    buckets, heads = shape("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    if buckets != 32:
        raise LLM4GENError(
            f"LLM {path} has {buckets} relative position buckets; expected 32, as T5 has. Use its Hugging Face folder "
            "in models/llm."
        )
    shape("encoder.final_layer_norm.weight")  # the loader takes its precision for the whole file's
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
    return T5File(prefix, prefix + embedding, config, spec)


def t5_without_tokenizer(folder: Path) -> Path | None:
    """Return the weights in a Hugging Face folder with a T5 encoder but no tokenizer, as RankGen is published.

    Such a file can be read as a single file, with T5's own tokenizer.
    """
    if any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        return None
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files or not any(name.endswith(_FIRST_QUERY) for name in weight_names(folder)):
        return None
    return files[0]


def encoder_tensors(file: T5File, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors under transformers' names, without key prefix, decoder and projection."""
    plain = {
        name.removeprefix(file.key_prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(file.key_prefix + "encoder.")
    }
    plain.pop("encoder.embed_tokens.weight", None)
    plain["shared.weight"] = tensors[file.embedding]
    return plain


def _what_else(shapes: Shapes, path: Path) -> str:
    unknown = f"an unknown model (tensors: {', '.join(sorted(shapes)[:2]) or 'none'})"
    marked = (kind for mark, kind in _OTHER_KINDS if any(n.startswith(mark) or f".{mark}" in n for n in shapes))
    kind = next(marked, unknown)
    advice = (
        "Put its whole Hugging Face folder (config.json, weights, tokenizer) into models/llm and choose the folder."
        if "decoder-only" in kind
        else "Choose a T5 encoder (T5-v1.1-XL, flan-T5-XL, RankGen T5-XL), a file of another LLM that ComfyUI "
        "supports, or a Hugging Face folder."
    )
    return f"LLM {path} is {kind}; expected a T5 text encoder or another language model. {advice}"
