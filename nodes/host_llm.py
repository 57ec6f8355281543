"""LLMs as the host's own text encoders: its memory management, offloading, streaming and precision.

Two routes end in the same object. A T5 encoder from one file is built from the host's T5; a Hugging
Face folder is built by transformers and its layers are exchanged for the host's casting layers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders
import comfy.text_encoders.t5
import comfy.utils
import torch
from torch import Tensor, nn
from transformers import T5TokenizerFast

from ..llm4gen_core import LLM4GENError, LLMFeatures, LLMSpec
from ..llm4gen_core.encoder import (
    apply_token_weights,
    check_token_ids,
    folder_spec,
    hidden_states,
    load_language_model,
    load_tokenizer,
    select_layer,
)
from ..llm4gen_core.llm_spec import Layer
from ..llm4gen_core.prompt_tokens import PromptTokens, Segment, tokenize_prompt
from ..llm4gen_core.t5_file import T5File, describe_t5, encoder_tensors, t5_without_tokenizer
from ..llm4gen_core.weights import SAFETENSORS_SUFFIXES, load_tensors, read_header
from .host import llm_path, log, release


@dataclass(frozen=True)
class HostLLM:
    """An LLM under the host's memory management.

    Attributes:
        clip: the host's text encoder object.
        spec: what the LLM is by itself.
        name: as it was chosen in the list.
        description: what the file or folder was found to be.
    """

    clip: comfy.sd.CLIP
    spec: LLMSpec
    name: str
    description: str

    def encode(self, text: str, spec: LLMSpec, pad_to: int | None = None) -> LLMFeatures:
        """Hidden states of one prompt, `(word:1.3)` weights applied; the LLM leaves the compute device afterwards.

        Args:
            text: the prompt.
            spec: the adapter's, or the LLM's own: prefix, length, padding and layer.
            pad_to: see `tokenize_prompt`.

        Returns:
            hidden [1, L_llm, d_llm] float32 and mask [1, L_llm], on the host's intermediate device.
        """
        clip = self.clip.clone()
        clip.clip_layer(spec.layer)
        encoded = clip.encode_from_tokens(self.tokenize(text, spec, pad_to), return_dict=True)
        release(clip.patcher)
        return LLMFeatures(encoded["cond"], encoded["attention_mask"], spec)

    def tokenize(self, text: str, spec: LLMSpec, pad_to: int | None = None) -> dict[str, PromptTokens]:
        """Tokens of the prompt and, equally long, of the empty prompt that weights are measured from."""
        return self.clip.tokenize(text, spec=spec, pad_to=pad_to)

    def count_tokens(self, text: str, spec: LLMSpec) -> str:
        """How much of a prompt is read, for people; what is cut is logged too."""
        length = self.tokenize(text, spec)["prompt"].length
        if length <= spec.max_length:
            return f"{length} of {spec.max_length} LLM tokens"
        cut = f"{length} LLM tokens: the adapter reads {spec.max_length}, the last {length - spec.max_length} are cut"
        log.warning("A prompt has %s.", cut)
        return cut

    def spec_for(self, adapter_spec: LLMSpec | None, adapter_name: str) -> LLMSpec:
        """How to encode for an adapter; an adapter whose file does not tell its LLM takes this LLM's own way.

        Raises:
            LLM4GENError: the adapter was trained with another LLM; both are named.
        """
        if adapter_spec is None:
            return self.spec
        if reason := adapter_spec.mismatch(self.spec):
            raise LLM4GENError(
                f"Adapter {adapter_name} was trained with the LLM {adapter_spec.label}, but {self.name} is "
                f"{self.spec.label}: {reason}. Load the adapter's LLM, or an adapter that was trained with this one."
            )
        if adapter_spec.model and not self.spec.model:
            log.warning(
                "Adapter %s was trained with %s. %s does not tell whose weights it holds; others have the same size.",
                adapter_name,
                adapter_spec.model,
                self.name,
            )
        return adapter_spec


def load_llm(name: str, model_options: dict[str, Any]) -> HostLLM:
    """Load a file or a Hugging Face folder from the LLM list.

    Args:
        name: a choice of `list_llms`.
        model_options: the host's, such as `dtype`, `load_device` and `offload_device`.

    Raises:
        LLM4GENError: the file or folder is missing, broken, or not an LLM; the message says what it is.
    """
    path = llm_path(name)
    if path.is_dir():
        path = t5_without_tokenizer(path) or path
    progress = comfy.utils.ProgressBar(2)
    load = _load_folder if path.is_dir() else _load_t5_file
    clip, spec, description = load(path, model_options, partial(progress.update, 1))
    progress.update(1)
    clip.cond_stage_model.execution_device = clip.patcher.load_device
    log.info("LLM %s: %s", name, description)
    return HostLLM(clip, spec, name, description)


def _load_t5_file(
    path: Path, model_options: dict[str, Any], read: Callable[[], None]
) -> tuple[comfy.sd.CLIP, LLMSpec, str]:
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        file = describe_t5({key: info.shape for key, info in read_header(path, "LLM")[0].items()}, path)
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    else:
        tensors, metadata = load_tensors(path, "LLM"), None
        file = describe_t5({key: tuple(tensor.shape) for key, tensor in tensors.items()}, path)
    read()
    options = dict(model_options)
    tensors = _quantization(tensors, metadata, file, options)
    weights = encoder_tensors(file, tensors)
    clip = _host_text_encoder(
        partial(_HostT5, file.config, weights["encoder.final_layer_norm.weight"].dtype),
        T5TokenizerFast.from_pretrained(Path(comfy.text_encoders.t5.__file__).parent / "t5_tokenizer"),
        sum(tensor.nelement() for tensor in weights.values()),
        options,
        weights,
    )
    if missing := clip.cond_stage_model.missing:
        raise LLM4GENError(
            f"LLM {path} is a {file.description} but lacks {len(missing)} of its tensors ({missing[0]}, ...); "
            "download it again."
        )
    dtype = str(clip.cond_stage_model.text_encoder.transformer.dtype).removeprefix("torch.")
    return clip, file.spec, f"{file.description}, weights in {dtype}"


def _quantization(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, file: T5File, options: dict[str, Any]
) -> dict[str, Tensor]:
    """Tell the host's layers how a file is quantized, in the terms of its version."""
    if hasattr(comfy.utils, "convert_old_quants"):
        tensors, _ = comfy.utils.convert_old_quants(tensors, model_prefix=file.key_prefix, metadata=metadata)
        quantized = comfy.utils.detect_layer_quantization(tensors, file.key_prefix)
        if quantized is not None:
            options["quantization_metadata"] = quantized
    elif f"{file.key_prefix}scaled_fp8" in tensors:
        options["scaled_fp8"] = tensors[f"{file.key_prefix}scaled_fp8"].dtype
    return tensors


def _load_folder(
    path: Path, model_options: dict[str, Any], read: Callable[[], None]
) -> tuple[comfy.sd.CLIP, LLMSpec, str]:
    spec = folder_spec(path)
    tokenizer = load_tokenizer(path)
    management = comfy.model_management
    device = model_options.get("load_device", management.text_encoder_device())
    dtype = model_options.get("dtype")
    if dtype is None:
        stored = json.loads((path / "config.json").read_text(encoding="utf-8"))
        name = stored.get("dtype", stored.get("torch_dtype"))
        dtype = management.pick_weight_dtype(
            getattr(torch, name, None) if isinstance(name, str) else None,
            management.text_encoder_dtype(device),
            device,
        )
    model = load_language_model(path, dtype)
    read()
    _use_host_layers(model)
    clip = _host_text_encoder(
        partial(_HostTransformersModel, model),
        tokenizer,
        sum(parameter.nelement() for parameter in model.parameters()),
        # transformers has put the weights on the CPU already; the host moves them when they are used.
        {**model_options, "dtype": dtype, "initial_device": torch.device("cpu")},
    )
    return clip, spec, f"{spec.label}, Hugging Face folder, weights in {str(dtype).removeprefix('torch.')}"


def _host_text_encoder(
    model: Callable, tokenizer: Any, parameters: int, options: dict[str, Any], weights: dict[str, Tensor] | None = None
) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(partial(_HostTokenizer, tokenizer), model)
    if weights is None:
        return comfy.sd.CLIP(target, parameters=parameters, model_options=options)
    if "state_dict" in inspect.signature(comfy.sd.CLIP.__init__).parameters:
        # Quantized layers of newer hosts have no weight until it is loaded, which must then happen inside.
        return comfy.sd.CLIP(target, parameters=parameters, model_options=options, state_dict=[weights])
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=options)
    clip.load_sd(weights)
    return clip


class _HostTokenizer:
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


class _HostLLMModel(nn.Module):
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


class _HostT5(_HostLLMModel):
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
        t5 = self.text_encoder.transformer
        embeds = t5.get_input_embeddings()(ids, out_dtype=torch.float32)
        if self.layer == "last":
            return t5(None, mask, embeds=embeds, dtype=torch.float32)[0].float()
        # The host's T5 hands out one raw hidden state at most; hooks collect them in transformers' order.
        states = [embeds.clone()]
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output: states.append(output[0].clone()))
            for block in t5.encoder.block
        ]
        try:
            states_end = t5(None, mask, embeds=embeds, dtype=torch.float32)[0]
        finally:
            for hook in hooks:
                hook.remove()
        return select_layer([*states[:-1], states_end], self.layer).float()

    def load_sd(self, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        missing, unexpected = self.text_encoder.load_sd(tensors)
        # 0.3.64 marks a quantized model with an empty parameter of this name.
        self.missing = [name for name in missing if name != "scaled_fp8"]
        return self.missing, unexpected


class _HostTransformersModel(_HostLLMModel):
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


def _use_host_layers(model: nn.Module) -> None:
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
