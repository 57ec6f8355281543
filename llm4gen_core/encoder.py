"""Hidden states of an LLM through transformers: for training, for scripts, and as the reference for the nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import LLM4GENError
from .llm_spec import Layer, LLMSpec
from .prompt_tokens import Segment, tokenize_prompt
from .weights import SAFETENSORS_SUFFIXES, read_header

RANKGEN_PREFIX = "t5_encoder."
RANKGEN_PROMPT_PREFIX = "pre "


@dataclass(frozen=True)
class LLMFeatures:
    """What an LLM says of one prompt or a batch of prompts.

    Attributes:
        hidden: c_l [B, L_llm, d_llm].
        mask: [B, L_llm], 1 for tokens and 0 for padding (integers).
        spec: how they were made.
    """

    hidden: Tensor
    mask: Tensor
    spec: LLMSpec


class LLMEncoder:
    """A transformers language model, its tokenizer, and how prompts are prepared for them.

    Args:
        model: encoder, or decoder without its language-model head.
        tokenizer: of the same model.
        spec: what `encode` follows.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, spec: LLMSpec) -> None:
        self.model = model
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
            folder: of any architecture that transformers knows, RankGen's layout included.
            spec: usually that of an adapter; None takes the model's own, see `folder_spec`.
            dtype: of the weights.
            device: where they are put.

        Raises:
            LLM4GENError: the folder is incomplete, or is another model than `spec` says.
        """
        folder = Path(folder)
        own = folder_spec(folder)
        if spec is not None and (reason := spec.mismatch(own)):
            raise LLM4GENError(
                f"LLM {folder} is {own.label}, but {spec.label} is needed: {reason}. "
                "Hidden states of another LLM mean nothing to the adapter."
            )
        model = load_language_model(folder, dtype).to(device)
        return cls(model, load_tokenizer(folder), spec or own)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Sequence[Segment]]) -> LLMFeatures:
        """Hidden states of prompts, in float32 or the model's own precision.

        Args:
            prompts: B texts. Weighted segments scale a token's distance from the same token of the empty
                prompt, as ComfyUI does: z = z_empty + w (z - z_empty).

        Returns:
            hidden [B, L_llm, d_llm] and mask [B, L_llm], on the model's device.
        """
        if not prompts:
            raise LLM4GENError("There are no prompts to encode; give at least one, an empty text if need be.")
        tokens = [tokenize_prompt(self.tokenizer, prompt, self.spec) for prompt in prompts]
        longest = max(len(t.ids) for t in tokens)
        tokens = [tokenize_prompt(self.tokenizer, prompt, self.spec, pad_to=longest) for prompt in prompts]
        hidden, mask = self._hidden_states([t.ids for t in tokens], [t.mask for t in tokens])
        weights = torch.tensor([t.weights for t in tokens], device=hidden.device, dtype=hidden.dtype)
        if bool((weights != 1).any()):
            empty = tokenize_prompt(self.tokenizer, "", self.spec, pad_to=longest)
            z_empty, _ = self._hidden_states([empty.ids], [empty.mask])
            hidden = torch.where(weights.unsqueeze(-1) == 1, hidden, z_empty + weights.unsqueeze(-1) * (hidden - z_empty))
        return LLMFeatures(hidden, mask, self.spec)

    def _hidden_states(self, ids: list[list[int]], masks: list[list[int]]) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        mask = torch.tensor(masks, device=device)
        return hidden_states(self.model, mask, self.spec.layer, input_ids=torch.tensor(ids, device=device)), mask


def hidden_states(model: nn.Module, mask: Tensor, layer: Layer, **inputs: Tensor) -> Tensor:
    """The hidden states that `LLMSpec.layer` names.

    Args:
        model: a transformers encoder or decoder.
        mask: [B, L], 0 on padding; the model does not attend to it.
        layer: see `LLMSpec`.
        inputs: `input_ids` [B, L] or `inputs_embeds` [B, L, d_llm].

    Returns:
        [B, L, d_llm].
    """
    if not bool(mask[:, 0].all()) and "position_ids" in model.forward.__code__.co_varnames:
        # Left padding: positions are counted from the first real token, as in generation.
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    needs_all = layer != "last"
    output = model(attention_mask=mask, output_hidden_states=needs_all, return_dict=True, **inputs)
    if layer == "last":
        return output.last_hidden_state
    return select_layer(output.hidden_states, layer)


def select_layer(states: Sequence[Tensor], layer: Layer) -> Tensor:
    """Pick or combine hidden states.

    Args:
        states: transformers' `hidden_states`: embedding, then the output of every block, the last one
            after the final norm; each [B, L, d_llm].
        layer: "last", "mean" (mean over the blocks of LayerNorm(h), no affine part), or an index.
    """
    if layer == "last":
        return states[-1]
    if layer == "mean":
        return torch.stack([F.layer_norm(state, state.shape[-1:]) for state in states[1:]]).mean(0)
    return states[layer]


def folder_spec(folder: Path) -> LLMSpec:
    """The `LLMSpec` that a Hugging Face folder stands for by itself.

    RankGen's key layout brings its prompt prefix. Every model is padded to 256 tokens on the right, as in
    the release, so that both sides of guidance are equally long.

    Raises:
        LLM4GENError: there is no config.json, or transformers does not know the architecture.
    """
    config = _load_config(folder)
    config = getattr(config, "get_text_config", lambda: config)()
    layers = next((v for n in ("num_layers", "num_hidden_layers", "n_layer") if (v := getattr(config, n, None))), None)
    width = next((v for n in ("d_model", "hidden_size", "n_embd") if (v := getattr(config, n, None))), None)
    if layers is None or width is None:
        raise LLM4GENError(f"LLM {folder} is a {config.model_type}, which is not a text encoder or language model.")
    is_rankgen = _is_rankgen(folder)
    return LLMSpec(
        model="kalpeshk2011/rankgen-t5-xl-all" if is_rankgen and width == 2048 else "",
        architecture=config.model_type,
        layers=layers,
        width=width,
        prefix=RANKGEN_PROMPT_PREFIX if is_rankgen else "",
    )


def load_language_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Encoder or decoder stack of a Hugging Face folder, on the CPU, in evaluation mode.

    Raises:
        LLM4GENError: weights are missing, broken or do not belong to the architecture.
    """
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    config = _load_config(folder)
    auto_class = AutoModelForTextEncoding if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else AutoModel
    key_mapping = {"^" + RANKGEN_PREFIX.replace(".", r"\."): ""} if _is_rankgen(folder) else None
    try:
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            key_mapping=key_mapping,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises a different type for every way in which a folder can be broken
        raise LLM4GENError(f"LLM {folder} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing or report["mismatched_keys"]:
        raise LLM4GENError(
            f"LLM {folder}: its weights lack {len(missing)} tensors of a {config.model_type} "
            f"({', '.join(missing[:3]) or report['mismatched_keys']}). The weights belong to another model than config.json."
        )
    if model.config.is_encoder_decoder and hasattr(model, "get_encoder"):
        model = model.get_encoder()
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """Tokenizer of a Hugging Face folder.

    Raises:
        LLM4GENError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above: many types for one situation
        raise LLM4GENError(
            f"LLM {folder} has no tokenizer that can be read ({_first_line(error)}). Put tokenizer.json and "
            "tokenizer_config.json (or spiece.model) of the same model beside its config.json."
        ) from error


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise LLM4GENError(
            f"LLM {folder} has no config.json; expected a Hugging Face model folder with config.json, weights and tokenizer."
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise LLM4GENError(f"LLM {folder}: transformers cannot read its config.json ({_first_line(error)}).") from error


def _is_rankgen(folder: Path) -> bool:
    """Whether the weights carry RankGen's key prefix."""
    return any(name.startswith(RANKGEN_PREFIX) for name in _weight_names(folder))


def _weight_names(folder: Path) -> list[str]:
    for index in sorted(folder.glob("*.index.json")):
        return list(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}))
    for file in sorted(folder.iterdir()):
        if file.suffix in SAFETENSORS_SUFFIXES:
            return list(read_header(file, "LLM")[0])
    for file in sorted(folder.glob("*.bin")):
        try:
            return list(torch.load(file, map_location="meta", weights_only=True, mmap=True))
        except Exception as error:
            raise LLM4GENError(f"LLM {file} cannot be read ({_first_line(error)}); download it again.") from error
    return []


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
