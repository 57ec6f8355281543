"""Tokenizers and models that `comfy.sd.CLIP` holds for an LLM.

A T5 encoder in one file is the host's own T5. A Hugging Face folder is built by transformers, with its layers replaced
by the host's casting layers. A text encoder that the host has already loaded shares its language model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.llama
import comfy.text_encoders.t5
import torch
from torch import Tensor, nn

from ..llm4gen_core import LLM4GENError, LLMSpec
from ..llm4gen_core.encoder import apply_token_weights, check_token_ids, hidden_states, select_layer
from ..llm4gen_core.llm_spec import Layer, PromptTokens, Segment, tokenize_prompt


class HostTokenizer:
    """Transformers tokenizer with the host's tokenizer interface and `(word:1.3)` syntax."""

    def __init__(self, tokenizer: Any, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, *, spec: LLMSpec
    ) -> dict[str, PromptTokens]:
        tokens = {"prompt": tokenize_prompt(self.tokenizer, _weighted_segments(text), spec)}
        if any(weight != 1.0 for weight in tokens["prompt"].weights):
            tokens["empty"] = tokenize_prompt(self.tokenizer, "", spec)
        return tokens

    def state_dict(self) -> dict[str, Tensor]:
        return {}


def _weighted_segments(text: str) -> list[Segment]:
    parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    return [(comfy.sd1_clip.unescape_important(segment), weight) for segment, weight in parsed]


class HostModel(nn.Module):
    """Text encoder with the interface that `comfy.sd.CLIP` requires. Subclasses implement `hidden_states`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtypes = {dtype}
        self.layer: Layer = "last"
        self.execution_device: torch.device | None = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.layer = options.get("layer", self.layer)
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        self.layer = "last"

    def encode_token_weights(self, tokens: dict[str, PromptTokens]) -> tuple[Tensor, None, dict[str, Tensor]]:
        """Return hidden [1, L, d_llm] float32, no pooled output, and {"attention_mask": [1, L]}."""
        ids = torch.tensor([row.ids for row in tokens.values()], device=self.execution_device)
        mask = torch.tensor([row.mask for row in tokens.values()], device=self.execution_device)
        hidden = self.hidden_states(ids, mask)
        if "empty" in tokens:
            weights = torch.tensor([tokens["prompt"].weights], device=hidden.device, dtype=hidden.dtype)
            hidden = apply_token_weights(hidden[:1], hidden[1:], weights)
        device = comfy.model_management.intermediate_device()
        return hidden.to(device=device), None, {"attention_mask": mask[:1].to(device=device)}

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return hidden states [B, L, d_llm] float32 of ids [B, L] with mask [B, L]."""
        raise NotImplementedError


class T5Model(HostModel):
    """T5 encoder of any size, built like the host's T5-XXL."""

    def __init__(
        self,
        config: dict[str, Any],
        stored_dtype: torch.dtype,
        device: torch.device,
        dtype: torch.dtype,
        model_options: dict[str, Any],
    ) -> None:
        if "dtype" not in model_options:
            dtype = comfy.model_management.pick_weight_dtype(stored_dtype, dtype, device)
        super().__init__(dtype)
        self.text_encoder = comfy.sd1_clip.SDClipModel(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(config),
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            model_options={**model_options, "model_name": "llm4gen_t5"},
        )
        self.missing: list[str] = []

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return host_hidden_states(self.text_encoder.transformer, ids, mask, self.layer)

    def load_sd(self, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        missing, unexpected = self.text_encoder.load_sd(tensors)
        # 0.3.64 marks a quantized model with an empty parameter of this name.
        self.missing = [name for name in missing if name != "scaled_fp8"]
        return self.missing, unexpected


class ForeignModel(HostModel):
    """Language model inside a text encoder that the host, or another pack, has loaded and manages.

    Args:
        encoder: the host's wrapper of the model.
    """

    def __init__(self, encoder: comfy.sd1_clip.SDClipModel) -> None:
        transformer = encoder.transformer
        super().__init__(getattr(transformer, "dtype", torch.float32))
        # In a list, so that it is not a submodule of this one: the host already manages it.
        self._encoder = [encoder]

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        transformer = self._encoder[0].transformer
        check_token_ids(ids, transformer)
        is_t5 = isinstance(transformer, comfy.text_encoders.t5.T5)  # relative positions
        if not is_t5 and not bool(mask[:, 0].all()):
            raise LLM4GENError(
                f"The adapter pads prompts on the left, but ComfyUI's own {type(transformer).__name__} needs padding "
                "on the right. Load the LLM from its Hugging Face folder."
            )
        return host_hidden_states(transformer, ids, mask, self.layer)


def host_blocks(transformer: nn.Module) -> Sequence[nn.Module] | None:
    """Return the blocks of a host's T5, Llama-like or T5Gemma stack, in order; None for other models."""
    if isinstance(transformer, comfy.text_encoders.t5.T5):
        return transformer.encoder.block
    stack = getattr(transformer, "model", None)
    if type(stack) is comfy.text_encoders.llama.Llama2_:
        return stack.layers
    if type(transformer).__name__ == "T5GemmaModel":  # the oldest host does not have its module
        return transformer.model.encoder.layers
    return None


def host_hidden_states(transformer: Any, ids: Tensor, mask: Tensor, layer: Layer) -> Tensor:
    """Return the hidden states that `LLMSpec.layer` names, of a model with `host_blocks`, in transformers' order.

    The host returns at most one hidden state and numbers them differently, so that hooks collect them.

    Args:
        transformer: a model of the host.
        ids, mask: [B, L]; the mask is 0 on padding.
        layer: see `LLMSpec`.

    Returns:
        [B, L, d_llm] float32.
    """
    embeds = transformer.get_input_embeddings()(ids, out_dtype=torch.float32)
    if layer == "last":
        return transformer(None, mask, embeds=embeds, dtype=torch.float32)[0].float()
    blocks = host_blocks(transformer)
    assert blocks is not None
    states: list[Tensor] = []

    # Copies, because blocks modify their input in place.
    def keep_input(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        states.append((named["x"] if "x" in named else positional[0]).clone())

    def keep_output(_module: nn.Module, _inputs: object, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    hooks = [blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    hooks += [block.register_forward_hook(keep_output) for block in blocks]
    try:
        end = transformer(None, mask, embeds=embeds, dtype=torch.float32)[0]
    finally:
        for hook in hooks:
            hook.remove()
    return select_layer([*states[:-1], end], layer).float()


class PlainTokenizer:
    """The host's own tokenizer for Llama, Mistral, Gemma and others, with transformers' interface.

    Args:
        tokenizer: converts text to ids, and ids to text.
        pad: id of the padding token.
    """

    is_fast = True
    eos_token_id = None

    def __init__(self, tokenizer: Any, pad: int) -> None:
        self.tokenizer = tokenizer
        self.pad_token_id = pad
        start = tokenizer("")["input_ids"]
        self.bos_token_id = start[0] if start else None

    def __call__(self, text: str, return_offsets_mapping: bool = False, **_: object) -> dict[str, list[Any]]:
        ids = self.tokenizer(text)["input_ids"]
        if not return_offsets_mapping:
            return {"input_ids": ids}
        return {"input_ids": ids, "offset_mapping": self._offsets(text, ids)}

    def _offsets(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """Characters of each token: those that it adds to the decoded text of the preceding tokens."""
        first = int(bool(ids) and ids[0] == self.bos_token_id)
        # In the oldest host the decoder is an attribute of SentencePiece's tokenizer, which keeps special tokens.
        decode = getattr(self.tokenizer, "decode", None)
        decode = self.tokenizer.tokenizer.decode if decode is None else partial(decode, skip_special_tokens=False)
        decoded = [decode(ids[first:end]) for end in range(first, len(ids) + 1)]
        if decoded[-1] != text:
            raise LLM4GENError(
                f"(word:1.3) cannot be mapped to this LLM's tokens: its tokenizer decodes them to {decoded[-1]!r} "
                f"instead of the prompt {text!r}. Remove the weights, or load the LLM from its Hugging Face folder."
            )
        ends = [len(os.path.commonprefix([part, text])) for part in decoded]
        return [(0, 0)] * first + list(zip(ends[:-1], ends[1:], strict=True))


class TransformersModel(HostModel):
    """Transformers encoder or decoder with loaded weights and the host's layers."""

    def __init__(self, model: nn.Module, device: Any, dtype: torch.dtype, model_options: dict[str, Any]) -> None:
        super().__init__(dtype)
        # Wrapped, because the host sets `device`, which is read-only in transformers models.
        self.transformer = model

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        check_token_ids(ids, self.transformer)
        embedding = self.transformer.get_input_embeddings()
        if isinstance(embedding, comfy.ops.manual_cast.Embedding):
            embeds = embedding(ids, out_dtype=torch.float32)
        else:
            embeds = embedding(ids).float()
        return hidden_states(self.transformer, mask, self.layer, inputs_embeds=embeds).float()


def use_host_layers(model: nn.Module) -> None:
    """Replace linear layers and the token embedding with the host's, which compute in float32 and can be offloaded.

    Other parameters (norms, position embeddings: mostly small) become float32, so that sums in half precision cannot
    overflow.
    """
    token_embedding = model.get_input_embeddings()
    replaced: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            # Exact types only: subclasses compute something else, such as Gemma's scaled embedding.
            if type(child) is nn.Linear:
                layer = comfy.ops.manual_cast.Linear(
                    child.in_features, child.out_features, bias=child.bias is not None, device="meta"
                )
                layer.bias = child.bias
            elif type(child) is nn.Embedding and child is token_embedding:
                layer = comfy.ops.manual_cast.Embedding(
                    child.num_embeddings, child.embedding_dim, padding_idx=child.padding_idx, device="meta"
                )
            else:
                continue
            if child not in replaced:
                layer.weight = child.weight
                replaced[child] = layer.eval()
            setattr(module, name, replaced[child])
    hosted = set(replaced.values())
    for module in model.modules():
        if module not in hosted:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
