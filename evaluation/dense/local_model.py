"""A vision-language model or an LLM of transformers, from a folder of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.provenance import content_hash

from .writing import Request

_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError)


class LocalModel:
    """A chat model that is asked by its chat template.

    Args:
        folder: with model and tokenizer, or processor.
        sees: it is a vision-language model (`AutoModelForImageTextToText`), else an LLM (`AutoModelForCausalLM`).
        device: to compute on.
        dtype: of the weights.

    Raises:
        LLM4GENError: the folder does not exist or holds another kind of model, lacks weights or a chat template, or
            cannot be read.
    """

    def __init__(self, folder: Path, sees: bool, device: torch.device, dtype: torch.dtype) -> None:
        self._folder, self._sees, self._device, self._dtype = folder, sees, device, dtype
        kind = "vision-language model" if sees else "language model"
        if not (folder / "config.json").is_file():
            raise LLM4GENError(
                f"Model {folder} {'has no config.json' if folder.is_dir() else 'does not exist'}; expected the folder "
                f"of a {kind} of transformers with a chat template, such as an instruct model of Qwen."
            )
        loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        reader: Any = AutoProcessor if sees else AutoTokenizer
        try:
            model, info = loader.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
            self._reader = reader.from_pretrained(folder, local_files_only=True)
        except _UNREADABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LLM4GENError(f"Model {folder} cannot be read as a {kind} ({reason}).") from error
        if missing := sorted(info["missing_keys"]):
            raise LLM4GENError(
                f"Model {folder} lacks {len(missing)} of its weights, {missing[0]} among them, and would write at "
                "random; download the folder again."
            )
        if not getattr(self._reader, "chat_template", None):
            raise LLM4GENError(
                f"Model {folder} has no chat template, so that it is not known how it is asked; expected an instruct "
                "or chat model."
            )
        self._model = model.to(device).eval()
        self._hash = content_hash(folder)

    @property
    def describe(self) -> dict[str, Any]:
        """What a prompt's provenance says of it. JSON values."""
        return {
            "model": self._folder.name,
            "hash": self._hash,
            "dtype": str(self._dtype).removeprefix("torch."),
            "transformers": transformers.__version__,
        }

    def write(self, request: Request) -> str:
        """The model's answer; the same request gives the same one on the same device.

        Raises:
            LLM4GENError: the model cannot answer, for want of memory or because the request is too long for it.
        """
        parts: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        if request.image is not None:
            parts.insert(0, {"type": "image", "image": request.image.convert("RGB")})
        content: Any = parts if self._sees else request.text
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": 0.95, "top_k": 0}
        try:
            inputs = self._reader.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._device)
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.no_grad():
                torch.manual_seed(request.seed)
                tokens = self._model.generate(**inputs, max_new_tokens=request.tokens, **sampling)
        except _UNREADABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LLM4GENError(f"Model {self._folder} could not answer ({reason}).") from error
        new = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self._reader.decode(new, skip_special_tokens=True)).strip()
