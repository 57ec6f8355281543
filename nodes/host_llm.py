"""LLMs as text encoders of the host, with its memory management, offloading, streaming and precision.

There are four sources. A T5 encoder in one file is built from the host's T5; another language model in one file is
read by the host, if it supports the model; a Hugging Face folder is built by transformers, with the host's casting
layers; and a CLIP input that holds a language model shares it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders
import comfy.text_encoders.t5
import comfy.utils
import torch
from torch import Tensor
from transformers import T5TokenizerFast

from ..llm4gen_core import LLM4GENError, LLMFeatures, LLMSpec
from ..llm4gen_core.encoder import folder_spec, load_language_model, load_tokenizer
from ..llm4gen_core.errors import first_line
from ..llm4gen_core.files import (
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIXES,
    load_pickle,
    load_tensors,
    read_header,
    read_json,
)
from ..llm4gen_core.llm_spec import PromptTokens
from ..llm4gen_core.t5_file import T5File, describe_t5, encoder_tensors, is_t5, t5_without_tokenizer
from .host import llm_path, log, release
from .host_llm_models import HostTokenizer, T5Model, TransformersModel, use_host_layers
from .host_text_encoder import language_model, look_inside

Loaded = tuple[comfy.sd.CLIP, LLMSpec, str]
"""LLM as the host's text encoder, its own specification, and its description."""


@dataclass(frozen=True)
class HostLLM:
    """LLM under the host's memory management.

    Attributes:
        clip: the host's text encoder object.
        spec: the LLM's own specification, see `own_spec`.
        name: choice of the LLM list.
        description: model and precision of the file or folder, for people.
    """

    clip: comfy.sd.CLIP
    spec: LLMSpec
    name: str
    description: str

    def encode(self, text: str, spec: LLMSpec) -> LLMFeatures:
        """Encode one prompt, with its `(word:1.3)` weights; the LLM leaves the compute device afterwards.

        Args:
            text: the prompt.
            spec: the adapter's specification, or the LLM's own: prefix, length, padding and layer.

        Returns:
            hidden [1, L_llm, d_llm] float32 and mask [1, L_llm], on the host's intermediate device.
        """
        tokens = self.tokenize(text, spec)
        length = tokens["prompt"].length
        if length > spec.max_length:
            log.warning("The prompt has %d LLM tokens; those after %d are cut.", length, spec.max_length)
        clip = self.clip.clone()
        clip.clip_layer(spec.layer)
        encoded = clip.encode_from_tokens(tokens, return_dict=True)
        release(clip.patcher)
        return LLMFeatures(encoded["cond"], encoded["attention_mask"], spec, (length,))

    def tokenize(self, text: str, spec: LLMSpec) -> dict[str, PromptTokens]:
        """Tokenize the prompt and, if it has weights, the empty prompt that they are relative to."""
        return self.clip.tokenize(text, spec=spec)

    def spec_for(self, adapter_spec: LLMSpec | None, adapter_name: str) -> LLMSpec:
        """Return the specification to encode with for an adapter: the adapter's, or this LLM's own if it has none.

        Raises:
            LLM4GENError: the adapter was trained with another LLM.
        """
        if adapter_spec is None:
            return self.spec
        if reason := adapter_spec.mismatch(self.spec):
            raise LLM4GENError(
                f"Adapter {adapter_name} was trained with the LLM {adapter_spec.label}, but {self.name} is "
                f"{self.spec.label}: {reason}. Load the adapter's LLM, or an adapter that was trained with this one."
            )
        if adapter_spec.model and not self.spec.model:
            message = "Adapter %s was trained with %s. %s has the same size but does not name its weights."
            log.warning(message, adapter_name, adapter_spec.model, self.name)
        return adapter_spec


def token_count(features: LLMFeatures) -> str:
    """Number of LLM tokens of a prompt, and how many were cut, for people."""
    [length], limit = features.lengths, features.spec.max_length
    if length <= limit:
        return f"{length} of {limit} LLM tokens"
    return f"{length} LLM tokens: the adapter reads {limit}, the last {length - limit} are cut"


def wired_llm(llm: HostLLM | comfy.sd.CLIP) -> HostLLM:
    """Return the LLM of an LLM input, which also accepts text encoders of the host's or another pack's loaders.

    Raises:
        LLM4GENError: the text encoder holds no language model, or several.
    """
    if isinstance(llm, HostLLM):
        return llm
    name = "the wired CLIP"
    clip, spec = look_inside(llm, name)
    return HostLLM(clip, spec, name, spec.label)


def load_llm(name: str, model_options: dict[str, Any]) -> HostLLM:
    """Load a file or a Hugging Face folder from the LLM list.

    Args:
        name: a choice of `list_llms`.
        model_options: options of the host, such as `dtype`, `load_device` and `offload_device`.

    Raises:
        LLM4GENError: the file or folder is missing, broken, or not an LLM; the message says what it is.
    """
    path = llm_path(name)
    if path.is_dir():
        path = t5_without_tokenizer(path) or path
    progress = comfy.utils.ProgressBar(2)
    load = _load_folder if path.is_dir() else _load_file
    clip, spec, description = load(path, model_options, partial(progress.update, 1))
    progress.update(1)
    clip.cond_stage_model.execution_device = clip.patcher.load_device
    log.info("LLM %s: %s", name, description)
    return HostLLM(clip, spec, name, description)


def _load_file(path: Path, model_options: dict[str, Any], read: Callable[[], None]) -> Loaded:
    suffix = path.suffix.lower()
    shapes: Mapping[str, Any] = {}
    if suffix in SAFETENSORS_SUFFIXES:
        shapes = read_header(path, "LLM")[0]
    elif suffix in PICKLE_SUFFIXES:
        shapes = load_pickle(path, "LLM", device="meta")
    kind = None if is_t5(shapes) else comfy.sd.detect_te_model(shapes)
    # The T5 loader reports files that are neither.
    load = _load_t5_file if kind is None or "CLIP" in kind.name else _load_host_file
    return load(path, model_options, read)


def _load_host_file(path: Path, model_options: dict[str, Any], read: Callable[[], None]) -> Loaded:
    """Load a language model that the host recognises by its tensors: Llama 3, Qwen, Gemma and others."""
    tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    read()
    options = dict(model_options)
    if hasattr(comfy.utils, "convert_old_quants"):
        tensors, metadata = comfy.utils.convert_old_quants(tensors, model_prefix="", metadata=metadata)
    is_quantized = any(name.endswith(("scaled_fp8", ".comfy_quant", ".weight_scale")) for name in tensors)
    dtype = options.get("dtype")
    if dtype is not None and not is_quantized:  # the host keeps those in their stored precision
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    names = {*tensors}
    try:
        clip = comfy.sd.load_text_encoder_state_dicts([tensors], model_options=options)
    except RuntimeError as error:  # of torch; the first line names the module, the next ones the tensors
        _, _, mismatches = str(error).partition("\n")
        raise LLM4GENError(
            f"LLM {path} looks like a language model that ComfyUI supports, but its tensors have other sizes "
            f"({first_line(RuntimeError(mismatches or error))}). Put its whole Hugging Face folder (config.json, "
            "weights, tokenizer) into models/llm and choose the folder."
        ) from error
    own, spec = look_inside(clip, str(path))
    _, encoder = language_model(clip, str(path))
    wanted = [name for name in encoder.transformer.state_dict() if name.startswith("model.") and ".weight" in name]
    if missing := [name for name in wanted if name not in names]:
        raise LLM4GENError(
            f"LLM {path} is a {spec.label} but lacks {len(missing)} of its tensors ({missing[0]}, ...); download "
            "it again."
        )
    return own, spec, f"{spec.label}, as ComfyUI reads it"


def _load_t5_file(path: Path, model_options: dict[str, Any], read: Callable[[], None]) -> Loaded:
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
        partial(T5Model, file.config, weights["encoder.final_layer_norm.weight"].dtype),
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
    """Convert a file's quantization to the form that the installed version of the host reads."""
    if hasattr(comfy.utils, "convert_old_quants"):
        tensors, _ = comfy.utils.convert_old_quants(tensors, model_prefix=file.key_prefix, metadata=metadata)
        quantized = comfy.utils.detect_layer_quantization(tensors, file.key_prefix)
        if quantized is not None:
            options["quantization_metadata"] = quantized
    elif f"{file.key_prefix}scaled_fp8" in tensors:
        options["scaled_fp8"] = tensors[f"{file.key_prefix}scaled_fp8"].dtype
    return tensors


def _load_folder(path: Path, model_options: dict[str, Any], read: Callable[[], None]) -> Loaded:
    spec = folder_spec(path)
    tokenizer = load_tokenizer(path)
    management = comfy.model_management
    device = model_options.get("load_device", management.text_encoder_device())
    dtype = model_options.get("dtype")
    if dtype is None:
        stored = read_json(path / "config.json", "LLM")
        name = stored.get("dtype", stored.get("torch_dtype"))
        stored_dtype = getattr(torch, name, None) if isinstance(name, str) else None
        dtype = management.pick_weight_dtype(stored_dtype, management.text_encoder_dtype(device), device)
    model = load_language_model(path, dtype)
    read()
    use_host_layers(model)
    clip = _host_text_encoder(
        partial(TransformersModel, model),
        tokenizer,
        sum(parameter.nelement() for parameter in model.parameters()),
        # transformers has loaded the weights to the CPU; the host moves them when they are used.
        {**model_options, "dtype": dtype, "initial_device": torch.device("cpu")},
    )
    return clip, spec, f"{spec.label}, Hugging Face folder, weights in {str(dtype).removeprefix('torch.')}"


def _host_text_encoder(
    model: Callable, tokenizer: Any, parameters: int, options: dict[str, Any], weights: dict[str, Tensor] | None = None
) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(partial(HostTokenizer, tokenizer), model)
    # Quantized layers of newer hosts have no weight until it is loaded, which CLIP must do itself.
    loads = weights is not None and "state_dict" in inspect.signature(comfy.sd.CLIP.__init__).parameters
    given = {"state_dict": [weights]} if loads else {}
    clip = comfy.sd.CLIP(target, parameters=parameters, model_options=options, **given)
    if weights is not None and not loads:
        clip.load_sd(weights)
    return clip
