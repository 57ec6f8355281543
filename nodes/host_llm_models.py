"""What `comfy.sd.CLIP` holds for an LLM: a tokenizer, and a model that gives hidden states of token ids.

A T5 encoder from one file is the host's own T5; a Hugging Face folder is built by transformers and its layers are
exchanged for the host's casting layers; a text encoder that the host has loaded for another purpose is looked into.
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
from ..llm4gen_core.llm_spec import Layer
from ..llm4gen_core.prompt_tokens import PromptTokens, Segment, tokenize_prompt


class HostTokenizer:
    """A transformers tokenizer behind the host's tokenizer interface, with the host's `(word:1.3)` syntax."""

    def __init__(self, tokenizer: Any, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, *, spec: LLMSpec, pad_to: int | None = None
    ) -> dict[str, PromptTokens]:
        prompt = tokenize_prompt(self.tokenizer, _weighted_segments(text), spec, pad_to)
        return {"prompt": prompt, "empty": tokenize_prompt(self.tokenizer, "", spec, len(prompt.ids))}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


def _weighted_segments(text: str) -> list[Segment]:
    parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    return [(comfy.sd1_clip.unescape_important(segment), weight) for segment, weight in parsed]


class HostModel(nn.Module):
    """What `comfy.sd.CLIP` asks of a text encoder. Subclasses give hidden states of token ids."""

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
        """(hidden [1, L, d_llm] float32, no pooled output, {"attention_mask": [1, L]})."""
        prompt, empty = tokens["prompt"], tokens["empty"]
        weighted = any(weight != 1.0 for weight in prompt.weights)
        rows = [prompt, empty] if weighted else [prompt]
        ids = torch.tensor([row.ids for row in rows], device=self.execution_device)
        mask = torch.tensor([row.mask for row in rows], device=self.execution_device)
        hidden = self.hidden_states(ids, mask)
        if weighted:
            weights = torch.tensor([prompt.weights], device=hidden.device, dtype=hidden.dtype)
            hidden = apply_token_weights(hidden[:1], hidden[1:], weights)
        device = comfy.model_management.intermediate_device()
        return hidden.to(device=device), None, {"attention_mask": mask[:1].to(device=device)}

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L, d_llm] float32 of ids [B, L] and mask [B, L]."""
        raise NotImplementedError


class T5Model(HostModel):
    """A T5 encoder of any size, built as the host builds its T5-XXL."""

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
    """A language model inside a text encoder that the host, or another pack, has loaded and manages.

    Args:
        encoder: the host's wrapper of it.
    """

    def __init__(self, encoder: comfy.sd1_clip.SDClipModel) -> None:
        transformer = encoder.transformer
        super().__init__(getattr(transformer, "dtype", torch.float32))
        # In a list, so that it is no second owner of its parts: the host moves them by their first one.
        self._encoder = [encoder]

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        transformer = self._encoder[0].transformer
        check_token_ids(ids, transformer)
        is_t5 = isinstance(transformer, comfy.text_encoders.t5.T5)  # which counts from each token, not from the first
        if not is_t5 and not bool(mask[:, 0].all()):
            raise LLM4GENError(
                f"The adapter pads prompts on the left, which ComfyUI's own {type(transformer).__name__} counts as "
                "part of the prompt. Load the LLM from its Hugging Face folder."
            )
        return host_hidden_states(transformer, ids, mask, self.layer)


def host_blocks(transformer: nn.Module) -> Sequence[nn.Module] | None:
    """The blocks of a host's T5, Llama-like or T5Gemma stack, in order; None for any other model."""
    if isinstance(transformer, comfy.text_encoders.t5.T5):
        return transformer.encoder.block
    stack = getattr(transformer, "model", None)
    if type(stack) is comfy.text_encoders.llama.Llama2_:
        return stack.layers
    if type(transformer).__name__ == "T5GemmaModel":  # in a module that the oldest host does not have
        return transformer.model.encoder.layers
    return None


def host_hidden_states(transformer: Any, ids: Tensor, mask: Tensor, layer: Layer) -> Tensor:
    """The hidden states that `LLMSpec.layer` names, of a model with `host_blocks`, in transformers' order.

    The host hands out one raw hidden state at most, and numbers them in its own way; hooks collect them.

    Args:
        ids, mask: [B, L]; the mask is 0 on padding.

    Returns:
        [B, L, d_llm] float32.
    """
    embeds = transformer.get_input_embeddings()(ids, out_dtype=torch.float32)
    if layer == "last":
        return transformer(None, mask, embeds=embeds, dtype=torch.float32)[0].float()
    blocks = host_blocks(transformer)
    assert blocks is not None
    states: list[Tensor] = []

    # Blocks work in place: hence the copies.
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
    """A tokenizer of the host's own, for Llama, Mistral, Gemma and others, behind the interface of transformers'.

    Args:
        tokenizer: gives ids of text, and text of ids.
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
        """Characters of each token: those that it adds to the text of the tokens before it."""
        first = int(bool(ids) and ids[0] == self.bos_token_id)
        # SentencePiece's own one is deeper down in the oldest host, and leaves nothing but the start out.
        decode = getattr(self.tokenizer, "decode", None)
        decode = self.tokenizer.tokenizer.decode if decode is None else partial(decode, skip_special_tokens=False)
        told = [decode(ids[first:end]) for end in range(first, len(ids) + 1)]
        if told[-1] != text:
            raise LLM4GENError(
                f"(word:1.3) cannot be mapped to this LLM's tokens: its tokenizer reads {told[-1]!r} where the prompt "
                f"says {text!r}. Leave the weights out, or load the LLM from its Hugging Face folder."
            )
        ends = [len(os.path.commonprefix([part, text])) for part in told]
        return [(0, 0)] * first + list(zip(ends[:-1], ends[1:], strict=True))


class TransformersModel(HostModel):
    """Any transformers encoder or decoder, its weights already loaded and its layers the host's."""

    def __init__(self, model: nn.Module, device: Any, dtype: torch.dtype, model_options: dict[str, Any]) -> None:
        super().__init__(dtype)
        # transformers models have a read-only `device`, which the host sets on what it manages: hence a holder.
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
    """Exchange linear layers and the token embedding for the host's, which compute in float32 and stream from memory.

    The rest (norms, position embeddings: mostly small) is kept in float32, so that no half-precision sum can overflow.
    """
    token_embedding = model.get_input_embeddings()
    exchanged: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            # Subclasses do something of their own, such as Gemma's scaled embedding.
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
            if child not in exchanged:
                layer.weight = child.weight
                exchanged[child] = layer.eval()
            setattr(module, name, exchanged[child])
    hosted = set(exchanged.values())
    for module in model.modules():
        if module not in hosted:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
