"""The host's model folders and memory management."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import folder_paths
import torch
from torch import Tensor

from ..llm4gen_core import Adapter, LLM4GENError, load_adapter
from ..llm4gen_core.files import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES

log = logging.getLogger("llm4gen")

ADAPTER_FOLDERS = ("llm4gen",)
LLM_FOLDERS = ("text_encoders", "llm")


def register_folders() -> None:
    """Register models/llm and models/llm4gen with the host, in addition to the paths of extra_model_paths.yaml."""
    for name in ("llm", "llm4gen"):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, suffixes = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, {*suffixes, *SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES})


def list_adapters() -> list[str]:
    """Choices of the adapter list; if there are none, one entry that names the searched folders."""
    return _list_files(ADAPTER_FOLDERS) or [f"no adapter found in {_searched(ADAPTER_FOLDERS)}"]


def list_llms() -> list[str]:
    """Choices of the LLM list: single files, and Hugging Face folders (ending in a slash) instead of their files."""
    choices = set()
    for name in _list_files(LLM_FOLDERS):
        parent = name.rpartition("/")[0]
        if parent and _find(LLM_FOLDERS, f"{parent}/config.json") is not None:
            choices.add(f"{parent}/")
        else:
            choices.add(name)
    return sorted(choices) or [f"no LLM found in {_searched(LLM_FOLDERS)}"]


def adapter_path(name: str) -> Path:
    """Return the path of a choice of `list_adapters`.

    Raises:
        LLM4GENError: it does not exist; the message names the searched folders.
    """
    return _require(ADAPTER_FOLDERS, name, "Adapter")


def llm_path(name: str) -> Path:
    """Return the path of a choice of `list_llms`, a file or a folder. Raises as `adapter_path`."""
    folder = name.replace("\\", "/")
    if folder.endswith("/"):
        return _require(LLM_FOLDERS, f"{folder}config.json", "LLM").parent
    return _require(LLM_FOLDERS, name, "LLM")


def fingerprint(find: Callable[[str], Path], name: str) -> str:
    """Return a text that changes when a file, or a file in a folder, is replaced; empty if there is none.

    It holds modification times and sizes, so that nothing is read. Loading reports a missing file.

    Args:
        find: `adapter_path` or `llm_path`.
        name: choice of the list.
    """
    try:
        path = find(name)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [(file.name, file.stat()) for file in files if file.is_file()]
    except (LLM4GENError, OSError):
        return ""
    return "\n".join(f"{file} {stat.st_mtime_ns} {stat.st_size}" for file, stat in found)


def _list_files(folders: tuple[str, ...]) -> list[str]:
    """Names of weight files, relative to their folder, with forward slashes on every system."""
    names = {
        name.replace("\\", "/")
        for folder in folders
        for name in folder_paths.get_filename_list(folder)
        if name.lower().endswith(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES)
    }
    return sorted(names)


def _find(folders: tuple[str, ...], name: str) -> Path | None:
    paths = (folder_paths.get_full_path(folder, name) for folder in folders)
    return next((Path(path) for path in paths if path is not None), None)


def _require(folders: tuple[str, ...], name: str, what: str) -> Path:
    # Workflows move between systems: a name saved on Windows has backslashes.
    found = _find(folders, name.replace("\\", "/"))
    if found is None:
        raise LLM4GENError(
            f"{what} {name!r} was not found in {_searched(folders)}. Put the file there, press R to refresh the lists, "
            "and choose it again."
        )
    return found


def _searched(folders: tuple[str, ...]) -> str:
    paths = [path for folder in folders for path in folder_paths.get_folder_paths(folder)]
    return " or ".join(dict.fromkeys(paths))


def release(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Move a model off the compute device after its use, unless the host is set to keep models there."""
    management = comfy.model_management
    if patcher.load_device == patcher.offload_device or management.vram_state == management.VRAMState.HIGH_VRAM:
        return
    loaded_models = management.current_loaded_models
    others = [other for other in loaded_models if other.model is None or other.model.model is not patcher.model]
    management.free_memory(1e30, patcher.load_device, keep_loaded=others)


@dataclass(frozen=True, kw_only=True)
class HostAdapter(Adapter):
    """Adapter under the host's memory management. Calling it loads the module to the compute device.

    Attributes:
        patcher: the host's manager of the module.
        name: choice of the adapter list.
    """

    patcher: comfy.model_patcher.ModelPatcher
    name: str

    @classmethod
    def load(cls, name: str) -> HostAdapter:
        """Read a choice of the adapter list. Raises LLM4GENError as `load_adapter`."""
        loaded = load_adapter(adapter_path(name), operations=comfy.ops.manual_cast)
        management = comfy.model_management
        # The host replaces the class at start-up, so it is looked up when used; 0.3.64 has only ModelPatcher.
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        patcher = patcher_class(
            loaded.module,
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        if loaded.metadata.lambda_mode != "embedding" and loaded.config.context_layout[0] != "text":
            raise LLM4GENError(
                f"Adapter {name} has the λ mode {loaded.metadata.lambda_mode!r} and the fusion "
                f"{loaded.config.fusion!r}, which replaces CLIP's tokens; that fusion needs λ mode 'embedding'. Train "
                "it with that mode."
            )
        adapter = cls(**vars(loaded), patcher=patcher, name=name)
        log.info("Adapter %s: %s", name, adapter.description)
        return adapter

    def __call__(self, text: Tensor, llm: Tensor, llm_mask: Tensor | None = None) -> Tensor:
        """Return `CrossAdapter.forward` in float32, on the host's intermediate device."""
        comfy.model_management.load_models_gpu([self.patcher])
        device = self.patcher.load_device
        adapted = self.module(text.to(device, torch.float32), llm.to(device, torch.float32), llm_mask)
        return adapted.to(device=comfy.model_management.intermediate_device())

    @property
    def base(self) -> str:
        """Base family, for people."""
        return self.metadata.base_family or f"text width {self.config.d_text}"

    @property
    def unet_label(self) -> str:
        """Trained part of the UNet, for people; empty if there is none."""
        part = self.unet_part
        if part is None:
            return ""
        kinds = {"lora": "LoRA", "cross_attention_kv": "cross-attention keys and values"}
        return f"UNet part ({kinds[part.kind]} of {len(part.modules)} layers)"

    @property
    def description(self) -> str:
        """Models that the adapter was trained with, and what else must be connected, for people."""
        llm = self.metadata.llm.label if self.metadata.llm else f"an LLM of width {self.config.d_llm}"
        text = f"Adapter for {self.base} and {llm}"
        if self.config.fusion != "cross_adapter":
            text += f" · ablation {self.config.fusion}"
        if self.unet_label:
            text += f" · with a {self.unet_label}: connect Patch Model too"
        if self.metadata.lambda_mode != "embedding":
            text += f" · λ mode {self.metadata.lambda_mode}: connect Patch Model too"
        if self.metadata.training.get("prediction") == "v_prediction":
            zsnr = ", zsnr" if self.metadata.training.get("zero_terminal_snr") else ""
            text += f" · for a model that predicts velocity: connect ModelSamplingDiscrete (v_prediction{zsnr}) too"
        return text
