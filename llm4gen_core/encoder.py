"""Hidden states of an LLM through transformers: for training and scripts, and as the reference for the nodes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import LLM4GENError, first_line
from .files import SAFETENSORS_SUFFIXES, load_pickle, read_header, read_json
from .llm_spec import Layer, LLMSpec, Segment, own_spec, tokenize_prompt

RANKGEN_PREFIX = "t5_encoder."
"""Prefix of the names of RankGen's tensors."""

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files of a Hugging Face folder, in transformers' order of preference."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json")
"""Files that make a tokenizer, beside those that the tokenizer's class names."""


@dataclass(frozen=True)
class LLMFeatures:
    """LLM's hidden states of a batch of prompts.

    Attributes:
        hidden: c_l [B, L_llm, d_llm].
        mask: [B, L_llm], 1 for tokens and 0 for padding (integers).
        spec: how the prompts were encoded.
        lengths: B numbers of tokens before truncation to `spec.max_length`; empty if unknown.
    """

    hidden: Tensor
    mask: Tensor
    spec: LLMSpec
    lengths: tuple[int, ...] = ()


class LLMEncoder:
    """Transformers language model with its tokenizer.

    Args:
        model: encoder, or decoder without its language-model head.
        tokenizer: tokenizer of the same model.
        spec: how `encode` prepares prompts, and which hidden states it returns.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, spec: LLMSpec) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.spec = spec

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        spec: LLMSpec | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LLMEncoder:
        """Load a Hugging Face folder (config.json, weights, tokenizer). Nothing is downloaded.

        Args:
            folder: any architecture that transformers supports, RankGen's layout included.
            spec: usually an adapter's; None takes the model's own, see `folder_spec`.
            dtype: precision of the weights.
            device: device of the weights.

        Raises:
            LLM4GENError: the folder is incomplete, or holds another model than `spec` names.
        """
        folder = Path(folder)
        own = folder_spec(folder)
        if spec is not None and (reason := spec.mismatch(own)):
            raise LLM4GENError(
                f"LLM {folder} is {own.label}, but {spec.label} is needed: {reason}. "
                "Hidden states of another LLM mean nothing to the adapter."
            )
        model = load_language_model(folder, dtype).to(device)
        own = replace(own, dtype=str(dtype).removeprefix("torch."))
        return cls(model, load_tokenizer(folder), spec or own)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Sequence[Segment]]) -> LLMFeatures:
        """Return hidden states of prompts, in float32 or the model's own precision.

        Args:
            prompts: B texts. Weighted segments scale a token's distance from the same token of the empty
                prompt, as ComfyUI does: z = z_empty + w (z - z_empty).

        Returns:
            hidden [B, L_llm, d_llm] and mask [B, L_llm], on the model's device; L_llm is `LLMSpec.max_length`.

        Raises:
            LLM4GENError: there is no prompt, or the tokenizer belongs to another model.
        """
        if isinstance(prompts, str):
            raise LLM4GENError("prompts is a single text; give a list of texts, such as [text].")
        if not prompts:
            raise LLM4GENError("There are no prompts to encode; give at least one, which may be an empty text.")
        tokens = [tokenize_prompt(self.tokenizer, prompt, self.spec) for prompt in prompts]
        hidden, mask = self._hidden_states([t.ids for t in tokens], [t.mask for t in tokens])
        weights = torch.tensor([t.weights for t in tokens], device=hidden.device, dtype=hidden.dtype)
        if bool((weights != 1).any()):
            empty = tokenize_prompt(self.tokenizer, "", self.spec)
            z_empty, _ = self._hidden_states([empty.ids], [empty.mask])
            hidden = apply_token_weights(hidden, z_empty, weights)
        return LLMFeatures(hidden, mask, self.spec, tuple(t.length for t in tokens))

    def _hidden_states(self, ids: list[list[int]], masks: list[list[int]]) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        mask = torch.tensor(masks, device=device)
        input_ids = torch.tensor(ids, device=device)
        check_token_ids(input_ids, self.model)
        return hidden_states(self.model, mask, self.spec.layer, input_ids=input_ids), mask


def check_token_ids(ids: Tensor, model: Any) -> None:
    """Raise LLM4GENError if ids [B, L] exceed the token embedding of a transformers model."""
    rows = model.get_input_embeddings().weight.shape[0]
    if (highest := int(ids.max())) >= rows:
        raise LLM4GENError(
            f"The LLM's tokenizer returns the token id {highest}, but its embedding has {rows} rows: they belong to "
            "different models. Put the tokenizer files of the same model beside its weights."
        )


def hidden_states(model: nn.Module, mask: Tensor, layer: Layer, **inputs: Tensor) -> Tensor:
    """Return the hidden states that `LLMSpec.layer` names.

    Args:
        model: a transformers encoder or decoder.
        mask: [B, L], 0 on padding, to which the model does not attend.
        layer: see `LLMSpec`.
        inputs: `input_ids` [B, L] or `inputs_embeds` [B, L, d_llm].

    Returns:
        [B, L, d_llm].
    """
    if not bool(mask[:, 0].all()) and "position_ids" in inspect.signature(model.forward).parameters:
        # Left padding: positions count from the first real token, as in generation.
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + _first_position(model)
    needs_all = layer != "last"
    output = model(attention_mask=mask, output_hidden_states=needs_all, return_dict=True, **inputs)
    if layer == "last":
        return output.last_hidden_state
    return select_layer(output.hidden_states, layer)


def _first_position(model: nn.Module) -> int:
    """Position of a prompt's first token: 0, except that RoBERTa and its relatives reserve the first rows."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def apply_token_weights(hidden: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """Apply ComfyUI's rule for `(word:1.3)`: z_empty + w (z - z_empty). Tokens of weight 1 stay bit-identical.

    Args:
        hidden: z [B, L, d_llm].
        empty: z_empty [1, L, d_llm], hidden states of the empty prompt at the same positions.
        weights: w [B, L].

    Returns:
        [B, L, d_llm].
    """
    weights = weights.unsqueeze(-1)
    return torch.where(weights == 1, hidden, empty + weights * (hidden - empty))


def select_layer(states: Sequence[Tensor], layer: Layer) -> Tensor:
    """Select or average hidden states.

    Args:
        states: transformers' `hidden_states`: embedding, then the output of every block, the last one
            after the final norm; each [B, L, d_llm].
        layer: "last", "mean" (mean over the blocks of LayerNorm(h) without affine parameters), or an index.

    Returns:
        [B, L, d_llm].
    """
    if layer == "last":
        return states[-1]
    if layer == "mean":
        return torch.stack([F.layer_norm(state, state.shape[-1:]) for state in states[1:]]).mean(0)
    return states[layer]


def folder_spec(folder: Path) -> LLMSpec:
    """Return the `LLMSpec` of a Hugging Face folder by itself; see `own_spec`.

    Raises:
        LLM4GENError: there is no config.json, or transformers does not know the architecture.
    """
    config = _load_config(folder)
    architecture = config.model_type
    encoder = _encoder_config(config)
    if encoder is not None:
        config = encoder
    elif hasattr(config, "get_text_config"):
        config = config.get_text_config()
        architecture = config.model_type
    layers = next((v for n in ("num_layers", "num_hidden_layers", "n_layer") if (v := getattr(config, n, None))), None)
    width = next((v for n in ("d_model", "hidden_size", "n_embd") if (v := getattr(config, n, None))), None)
    if layers is None or width is None:
        raise LLM4GENError(f"LLM {folder} is a {architecture}, which is not a text encoder or language model.")
    return own_spec(architecture, layers, width, _is_rankgen(folder))


def _encoder_config(config: Any) -> Any:
    """Configuration of the encoder of a T5Gemma, whose halves have one each and often differ in size; else None."""
    encoder = getattr(config, "encoder", None)
    return encoder if config.is_encoder_decoder and hasattr(encoder, "hidden_size") else None


def load_language_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load the encoder or decoder stack of a Hugging Face folder, on the CPU, frozen and in evaluation mode.

    Raises:
        LLM4GENError: weights are missing, broken or do not belong to the architecture.
    """
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    config = _load_config(folder)
    auto_class = AutoModelForTextEncoding if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else AutoModel
    if _encoder_config(config) is not None:
        config.is_encoder_decoder = False  # otherwise T5Gemma's encoder cannot be loaded alone
    key_mapping = {"^" + RANKGEN_PREFIX.replace(".", r"\."): ""} if _is_rankgen(folder) else None
    try:
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            key_mapping=key_mapping,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are in the report and refused below
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many types for a broken folder
        raise LLM4GENError(f"LLM {folder} cannot be loaded: {first_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    mismatched = sorted(str(key[0]) for key in report["mismatched_keys"])
    if missing or mismatched:
        raise LLM4GENError(
            f"LLM {folder}: of the tensors of a {config.model_type}, {len(missing)} are missing from its weights and "
            f"{len(mismatched)} have another size ({', '.join((missing + mismatched)[:3])}). The weights belong to "
            "another model than config.json; download the whole folder again."
        )
    if model.config.is_encoder_decoder and hasattr(model, "get_encoder"):
        model = model.get_encoder()
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a Hugging Face folder.

    Raises:
        LLM4GENError: the folder has none.
    """
    from transformers import AutoTokenizer

    advice = (
        "Put tokenizer.json and tokenizer_config.json (or spiece.model) of the same model beside its config.json; "
        "RankGen uses those of google/t5-v1_1-xl."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above: many types for one situation
        raise LLM4GENError(f"LLM {folder} has no tokenizer that can be read ({first_line(error)}). {advice}") from error
    # Without a vocabulary, transformers builds a blank tokenizer, to which every word is unknown.
    own_files = tokenizer.vocab_files_names.values()
    if own_files and not any((folder / name).is_file() for name in (*own_files, *_TOKENIZER_FILES)):
        raise LLM4GENError(f"LLM {folder} has no tokenizer. {advice}")
    return tokenizer


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise LLM4GENError(
            f"LLM {folder} has no config.json; expected a Hugging Face model folder with config.json, weights and "
            "tokenizer."
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise LLM4GENError(
            f"LLM {folder}: transformers cannot read its config.json ({first_line(error)}). Download it again, or "
            "update transformers if the model is newer."
        ) from error


def _is_rankgen(folder: Path) -> bool:
    """Whether the names of the weights have RankGen's prefix."""
    return any(name.startswith(RANKGEN_PREFIX) for name in weight_names(folder))


def weight_names(folder: Path) -> list[str]:
    """Return the names of the tensors of a Hugging Face folder, without reading the tensors.

    Raises:
        LLM4GENError: the folder has no weights, or they are broken.
    """
    file = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise LLM4GENError(f"LLM {folder} has no weights; expected {' or '.join(_WEIGHT_FILES)}.")
    if file.suffix in SAFETENSORS_SUFFIXES:
        return list(read_header(file, "LLM")[0])
    if file.suffix == ".bin":
        return list(load_pickle(file, "LLM", device="meta"))
    weight_map = read_json(file, "LLM").get("weight_map")
    if not isinstance(weight_map, dict):
        raise LLM4GENError(f"LLM {file} is not an index of weights (no `weight_map`); download it again.")
    return list(weight_map)
