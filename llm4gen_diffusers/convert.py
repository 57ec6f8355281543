"""`python -m llm4gen_diffusers convert`: any form of an adapter to the project's own file."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from llm4gen_core import (
    RANKGEN_T5_XL,
    Adapter,
    AdapterMetadata,
    LLM4GENError,
    LLMSpec,
    load_adapter,
    save_adapter,
)
from llm4gen_core.adapter_file import FAMILIES
from llm4gen_core.encoder import folder_spec

from .options import ConvertSettings


def convert(settings: ConvertSettings) -> None:
    """Write the file, and print what was found and written.

    Raises:
        LLM4GENError: the source cannot be used, its family or LLM is unknown or does not fit, or the target exists.
    """
    source, target = Path(settings.source), Path(settings.target)
    if target.exists() and not settings.force:
        raise LLM4GENError(f"Target {target} exists; choose another name, or give --force to replace it.")
    adapter = load_adapter(source)
    found = adapter.metadata
    family = settings.family or found.base_family
    if family is None:
        raise LLM4GENError(
            f"Adapter {source} (d_text {adapter.config.d_text}) does not say which base family it was trained for; "
            f"give --family with one of {', '.join(FAMILIES)}."
        )
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    given = settings.model_dump(include={"title", "author", "description"}, exclude_none=True)
    metadata = dataclasses.replace(
        found,
        base_family=family,
        llm=_llm_spec(settings, adapter),
        training=dict(found.training) or {"converted_from": source.name, "sha256": sha256},
        **given,
    )
    save_adapter(adapter.module, target, metadata, adapter.unet_part)
    print(_summary(adapter, metadata, source, target))


def _llm_spec(settings: ConvertSettings, adapter: Adapter) -> LLMSpec | None:
    """Specification of the adapter's LLM: the given one, or the one in the file; None if neither is known."""
    spec = adapter.metadata.llm
    if settings.llm is not None:
        path = Path(settings.llm)
        spec = folder_spec(path) if path.is_dir() else _read_spec(path)
    elif spec is None and settings.llm_model == RANKGEN_T5_XL.model:
        spec = RANKGEN_T5_XL
    if settings.llm_model is not None:
        if spec is None:
            raise LLM4GENError(
                f"LLM {settings.llm_model!r} is a name only, and {settings.source} does not say the LLM's size and "
                "how prompts are prepared for it; give --llm with its Hugging Face folder or a JSON file as well."
            )
        spec = dataclasses.replace(spec, model=settings.llm_model)
    if spec is not None and spec.width != adapter.config.d_llm:
        raise LLM4GENError(
            f"LLM {spec.label} does not fit adapter {settings.source}, which expects hidden states of width "
            f"{adapter.config.d_llm}; give the LLM that it was trained with."
        )
    return spec


def _read_spec(path: Path) -> LLMSpec:
    try:
        return LLMSpec.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LLM4GENError(
            f"LLM {path} cannot be read ({error.strerror}); expected a Hugging Face folder or a JSON file with the "
            "fields of LLMSpec."
        ) from error
    except ValueError as error:
        raise LLM4GENError(f"LLM {path}: {error}") from error


def _summary(adapter: Adapter, metadata: AdapterMetadata, source: Path, target: Path) -> str:
    config = adapter.config
    tensors = adapter.module.state_dict().values()
    precisions = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return "\n".join(
        (
            f"read     {source} ({source.stat().st_size:,} bytes)",
            f"adapter  d_text {config.d_text}, d_llm {config.d_llm}, {config.heads} heads, "
            f"{sum(tensor.numel() for tensor in tensors):,} parameters in {', '.join(precisions)}",
            f"family   {metadata.base_family}",
            f"LLM      {metadata.llm.label if metadata.llm else 'unknown: any LLM of that width will be accepted'}",
            f"title    {metadata.title or target.stem}",
            f"wrote    {target} ({target.stat().st_size:,} bytes)",
        )
    )
