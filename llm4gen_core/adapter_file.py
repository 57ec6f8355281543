"""The adapter file: one safetensors file with the CAM, the trained part of the UNet, and what they were trained with.

Three formats are read: the project's own, the official `projector.pth`, and the official keys in safetensors. Only the
first is written.

The part of the UNet is stored as differences to the base UNet's weights. A difference can be scaled, added to other
differences (LoRAs) in any order, and applied to fine-tunes of the base UNet; added to the base UNet itself it restores
the trained weights.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from .adapter import CrossAdapter, CrossAdapterConfig
from .attention import LAMBDA_MODES
from .errors import LLM4GENError
from .files import SAFETENSORS_SUFFIXES, load_tensors, read_header, write_bytes
from .llm_spec import RANKGEN_T5_XL, LLMSpec

UNET_PARTS = ("cross_attention_kv", "lora")
"""Kinds of UNet training whose result is stored in the adapter file."""

_DIFF = ".diff"
_LORA = (".lora_A.weight", ".lora_B.weight", ".alpha")
_KV = (".attn2.to_k", ".attn2.to_v")


@dataclass(frozen=True)
class UNetPart:
    """Changes of a UNet's linear layers.

    A `<module>` is a layer's path inside diffusers' UNet2DConditionModel, such as
    `down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k`.

    Attributes:
        kind: one of `UNET_PARTS`.
        tensors: for "cross_attention_kv", `<module>.diff` [out, in] = W_trained - W_base of the key and value layers
            of every trained cross-attention; for "lora", `<module>.lora_A.weight` [rank, in],
            `<module>.lora_B.weight` [out, rank] and `<module>.alpha` [] of every layer, which is changed by
            (alpha / rank) B A.

    Raises:
        LLM4GENError: the kind is unknown, or a tensor is missing, unknown, of another shape or not floating-point.
    """

    kind: str
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.kind not in UNET_PARTS:
            raise LLM4GENError(
                f"UNet part: kind {self.kind!r} is unknown; expected one of {', '.join(UNET_PARTS)}. Update LLM4GEN if "
                "the adapter was made with a newer version."
            )
        if not self.tensors:
            raise LLM4GENError(f"UNet part: it holds no tensors; expected those of {self.kind!r}.")
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                raise LLM4GENError(f"UNet part: {name} is {tensor.dtype}; expected floating-point numbers.")
        suffixes = _LORA if self.kind == "lora" else tuple(layer + _DIFF for layer in _KV)
        found = set(self.tensors)
        stems = {name.removesuffix(suffix) for name in found for suffix in suffixes if name.endswith(suffix)} - {""}
        expected = {stem + suffix for stem in stems for suffix in suffixes}
        if unknown := found - expected:
            raise LLM4GENError(
                f"UNet part: {len(unknown)} tensors do not belong to kind {self.kind!r} ({min(unknown)}, ...). "
                f"Expected {' and '.join(f'<module>{suffix}' for suffix in suffixes)}."
            )
        if missing := expected - found:
            raise LLM4GENError(
                f"UNet part: {len(missing)} tensors of kind {self.kind!r} are missing ({min(missing)}, ...); it is "
                "incomplete. Export or download it again."
            )
        for name, tensor in self.tensors.items():
            if not name.endswith(_LORA[2]) and (tensor.ndim != 2 or 0 in tensor.shape):
                raise LLM4GENError(f"UNet part: {name} has shape {list(tensor.shape)}; expected a matrix.")
        for module in stems if self.kind == "lora" else ():
            self._check_lora(module)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the changed layers, in the order of the tensors."""
        suffix = _LORA[0] if self.kind == "lora" else _DIFF
        return tuple(name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix))

    def shape(self, module: str) -> tuple[int, int]:
        """Shape (out, in) of the layer at a path of `modules`."""
        if self.kind == "lora":
            down, up = (self.tensors[module + suffix] for suffix in _LORA[:2])
            return up.shape[0], down.shape[1]
        out_width, in_width = self.tensors[module + _DIFF].shape
        return out_width, in_width

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (module, W_trained - W_base [out, in] in float32) of every layer."""
        for module in self.modules:
            if self.kind == "lora":
                down, up, alpha = (self.tensors[module + suffix].float() for suffix in _LORA)
                yield module, alpha / down.shape[0] * (up @ down)
            else:
                yield module, self.tensors[module + _DIFF].float()

    def _check_lora(self, module: str) -> None:
        down, up, alpha = (self.tensors[module + suffix] for suffix in _LORA)
        if down.shape[0] != up.shape[1]:
            raise LLM4GENError(
                f"UNet part: {module} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, whose ranks differ; "
                "expected [rank, in] and [out, rank]."
            )
        if alpha.shape != ():
            raise LLM4GENError(
                f"UNet part: {module}{_LORA[2]} has shape {list(alpha.shape)}; expected a single number []."
            )


FORMAT = "llm4gen-adapter"
FORMAT_VERSION = 2
"""Newest version that is read. 1: the Cross-Adapter alone; 2: with a UNet part, or one of the ablations.

A file is written in the lowest version that can describe its content, so that older readers either read or refuse it.
"""
FAMILIES = {
    "sd15": "stable-diffusion-v1",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
    "miniature": "llm4gen-miniature",
}
"""Base families, and their architecture names for model managers (ModelSpec)."""
FAMILY_OF_WIDTH = {768: "sd15", 2048: "sdxl", 4096: "sd3"}

_CAM = "cam."
_UNET = "unet."
_OFFICIAL_CAM = "CrossFusionModule.0."
_OFFICIAL = "CrossFusionModule."
_OFFICIAL_HEADS = 8


@dataclass(frozen=True)
class AdapterMetadata:
    """Models and settings that an adapter was trained with.

    Attributes:
        base_family: a key of `FAMILIES`; None if the file does not say.
        llm: the LLM; None if the file does not say.
        lambda_mode: one of `LAMBDA_MODES`, the interpretation of eq. 3.
        default_strength: recommended λ.
        training: summary of the training run (JSON values).
        title, author, description: for model managers.

    Raises:
        LLM4GENError: a value is invalid.
    """

    base_family: str | None
    llm: LLMSpec | None
    lambda_mode: str = "embedding"
    default_strength: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    author: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if self.base_family is not None and self.base_family not in FAMILIES:
            raise LLM4GENError(
                f"Adapter: base family {self.base_family!r} is not known; expected {', '.join(FAMILIES)}."
            )
        if self.lambda_mode not in LAMBDA_MODES:
            raise LLM4GENError(
                f"Adapter: λ mode {self.lambda_mode!r} is not known; expected {', '.join(LAMBDA_MODES)}."
            )
        if not math.isfinite(self.default_strength):
            raise LLM4GENError(f"Adapter: default strength is {self.default_strength}; expected a number such as 1.0.")
        if not isinstance(self.training, Mapping):
            raise LLM4GENError(
                f"Adapter: the training summary is a {type(self.training).__name__}; expected a JSON object."
            )


@dataclass(frozen=True)
class Adapter:
    """Content of an adapter file. Calling it calls the module.

    Attributes:
        module: the CAM.
        metadata: models and settings that it was trained with.
        unet_part: trained part of the UNet, if the file holds one.
    """

    module: CrossAdapter
    metadata: AdapterMetadata
    unet_part: UNetPart | None = None

    @property
    def config(self) -> CrossAdapterConfig:
        return self.module.config

    def __call__(self, text: Tensor, llm: Tensor, llm_mask: Tensor | None = None) -> Tensor:
        """Return `CrossAdapter.forward` of the same arguments."""
        return self.module(text, llm, llm_mask)


def load_adapter(path: str | os.PathLike[str], operations: Any = nn) -> Adapter:
    """Read an adapter in any of the three formats. No code in the file is executed.

    Args:
        path: `.safetensors` in the project's format or with the official keys, or the official `projector.pth`.
        operations: see `CrossAdapter`.

    Returns:
        The adapter in the file's precision, frozen and in evaluation mode.

    Raises:
        LLM4GENError: the file is missing, broken, unsafe, incomplete or not an adapter.
    """
    path = Path(path)
    is_safetensors = path.suffix.lower() in SAFETENSORS_SUFFIXES
    header = read_header(path, "Adapter")[1] if is_safetensors else {}
    tensors = load_tensors(path, "Adapter")
    if header.get("format") == FORMAT:
        config, metadata = _parse_header(header, path)
        cam = {name.removeprefix(_CAM): tensor for name, tensor in tensors.items() if name.startswith(_CAM)}
        unet_part = _parse_unet_part(header, tensors, path)
    elif any(name.startswith(_OFFICIAL) for name in tensors):
        cam = {n.removeprefix(_OFFICIAL_CAM): t for n, t in tensors.items() if n.startswith(_OFFICIAL_CAM)}
        blocks = {name.split(".")[1] for name in tensors if name.startswith(_OFFICIAL)}
        if blocks != {"0"}:
            raise LLM4GENError(
                f"Adapter {path} contains the Cross-Adapters {sorted(blocks)}; expected only 0, as in the official "
                "release. Download that file again."
            )
        unet_part = None
        config = _official_config(cam, path)
        metadata = _official_metadata(config)
    else:
        found = ", ".join(sorted(tensors)[:3]) or "no tensors"
        raise LLM4GENError(
            f"Adapter {path} is not an LLM4GEN adapter: its tensors are {found}. Expected {_CAM}* with the project's "
            f"metadata, or {_OFFICIAL_CAM}* as in the official projector.pth. Choose another file."
        )
    _check_state(cam, config, path)
    module = CrossAdapter(config, operations, device="meta")  # random weights would advance the global seed
    module.load_state_dict(cam, strict=True, assign=True)
    module.requires_grad_(False).eval()
    return Adapter(module, metadata, unet_part)


def save_adapter(
    module: CrossAdapter,
    path: str | os.PathLike[str],
    metadata: AdapterMetadata,
    unet_part: UNetPart | None = None,
) -> None:
    """Write an adapter in the project's own format. The file is written completely or not at all.

    Args:
        module: the CAM; its tensors are stored in their own precision.
        path: ends in `.safetensors`; an existing file is replaced.
        metadata: stored in the header, with the CAM's sizes and the ModelSpec fields.
        unet_part: trained part of the UNet. To keep that of a loaded adapter, pass `Adapter.unet_part`: it is not
            stored implicitly, because a trainer may have merged it into its own UNet.

    Raises:
        LLM4GENError: the name or folder cannot be used, the metadata is incomplete, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise LLM4GENError(f"Adapter {path} must end in .safetensors.")
    if path.is_dir():
        raise LLM4GENError(f"Adapter {path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise LLM4GENError(f"Adapter {path} cannot be written: the folder {path.parent} does not exist. Create it.")
    if metadata.base_family is None:
        raise LLM4GENError(
            f"Adapter {path} has no base family; set the one that it was trained for: {', '.join(FAMILIES)}."
        )
    stored = {_CAM + name: tensor for name, tensor in module.state_dict().items()}
    if unet_part is not None:
        # Layers may share their alpha, but safetensors refuses tensors that share memory.
        stored |= {_UNET + name: t if t.ndim else t.clone() for name, t in unet_part.tensors.items()}
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in stored.items()}
    header = _build_header(module.config, metadata, tensors, path.stem)
    if unet_part is not None:
        header["unet_part"] = unet_part.kind
    content = safetensors_bytes(tensors, header)
    advice = f"It needs {len(content):,} bytes: free that much, or choose a folder on another disk."
    write_bytes(path, content, "Adapter", advice)


def _build_header(
    config: CrossAdapterConfig, metadata: AdapterMetadata, tensors: Mapping[str, Tensor], name: str
) -> dict[str, str]:
    assert metadata.base_family is not None
    plain = safetensors_bytes(dict(tensors))
    data = plain[8 + int.from_bytes(plain[:8], "little") :]
    is_plain_cam = config.fusion == "cross_adapter" and all(name.startswith(_CAM) for name in tensors)
    return {
        "format": FORMAT,
        "format_version": "1" if is_plain_cam else "2",
        "base_family": metadata.base_family,
        "cam": json.dumps(config.to_dict(), sort_keys=True),
        "llm": metadata.llm.to_json() if metadata.llm else "",
        "lambda_mode": metadata.lambda_mode,
        "default_strength": repr(float(metadata.default_strength)),
        "training": json.dumps(dict(metadata.training), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{FAMILIES[metadata.base_family]}/llm4gen",
        "modelspec.implementation": "llm4gen",
        "modelspec.title": metadata.title or name,
        "modelspec.author": metadata.author,
        "modelspec.description": metadata.description,
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "modelspec.hash_sha256": "0x" + hashlib.sha256(data).hexdigest(),
    }


def _parse_header(header: Mapping[str, str], path: Path) -> tuple[CrossAdapterConfig, AdapterMetadata]:
    try:
        version = int(header["format_version"])
        if version > FORMAT_VERSION:
            raise LLM4GENError(
                f"format version {version} is newer than {FORMAT_VERSION}, the newest known one; update LLM4GEN."
            )
        metadata = AdapterMetadata(
            base_family=header["base_family"],
            llm=LLMSpec.from_json(header["llm"]) if header["llm"] else None,
            lambda_mode=header["lambda_mode"],
            default_strength=float(header["default_strength"]),
            training=json.loads(header["training"]),
            title=header.get("modelspec.title", ""),
            author=header.get("modelspec.author", ""),
            description=header.get("modelspec.description", ""),
        )
        return CrossAdapterConfig(**json.loads(header["cam"])), metadata
    except LLM4GENError as error:
        raise LLM4GENError(f"Adapter {path}: {error}") from error
    except KeyError as error:
        raise LLM4GENError(
            f"Adapter {path} lacks the metadata field {error}; it was not written by LLM4GEN. Download it again."
        ) from error
    except (TypeError, ValueError) as error:
        raise LLM4GENError(f"Adapter {path} has invalid metadata ({error}); download it again.") from error


def _parse_unet_part(header: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> UNetPart | None:
    foreign = sorted(name for name in tensors if not name.startswith((_CAM, _UNET)))
    if foreign:
        raise LLM4GENError(
            f"Adapter {path} holds {len(foreign)} tensors that are unknown to this version of LLM4GEN ({foreign[0]}, "
            "...); update LLM4GEN."
        )
    unet = {name.removeprefix(_UNET): tensor for name, tensor in tensors.items() if name.startswith(_UNET)}
    kind = header.get("unet_part")
    if kind is None and not unet:
        return None
    if kind is None:
        raise LLM4GENError(
            f"Adapter {path} holds {len(unet)} tensors of a UNet ({_UNET}{min(unet)}, ...) but lacks the metadata "
            "field 'unet_part' with their kind; it was not written by LLM4GEN. Download it again."
        )
    try:
        return UNetPart(kind, unet)
    except LLM4GENError as error:
        raise LLM4GENError(f"Adapter {path}: {error}") from error


def _official_config(cam: Mapping[str, Tensor], path: Path) -> CrossAdapterConfig:
    projection = cam.get("llm_proj.weight")
    if projection is None or projection.ndim != 2:
        raise LLM4GENError(
            f"Adapter {path} has no matrix {_OFFICIAL_CAM}llm_proj.weight; it is incomplete. Download it again."
        )
    d_text, d_llm = projection.shape
    try:
        return CrossAdapterConfig(d_text=d_text, d_llm=d_llm, heads=_OFFICIAL_HEADS)
    except LLM4GENError as error:
        raise LLM4GENError(f"Adapter {path}: {error}") from error


def _official_metadata(config: CrossAdapterConfig) -> AdapterMetadata:
    """Metadata of an official file, which stores none. Its sizes identify the SD1.5 weights."""
    if (config.d_text, config.d_llm) == (768, RANKGEN_T5_XL.width):
        return AdapterMetadata(
            base_family="sd15",
            llm=RANKGEN_T5_XL,
            title="LLM4GEN SD1.5 (official release)",
            author="Mushui Liu, Yuhang Ma et al.",
            description="Cross-Adapter of LLM4GEN, AAAI 2025. Needs the release's fine-tuned SD1.5 UNet.",
        )
    return AdapterMetadata(base_family=FAMILY_OF_WIDTH.get(config.d_text), llm=None)


def _check_state(cam: Mapping[str, Tensor], config: CrossAdapterConfig, path: Path) -> None:
    with torch.device("meta"):
        expected = CrossAdapter(config).state_dict()
    missing = sorted(set(expected) - set(cam))
    unexpected = sorted(set(cam) - set(expected))
    if missing or unexpected:
        problem = f"lacks {', '.join(missing[:3])}" if missing else f"has the unknown {', '.join(unexpected[:3])}"
        raise LLM4GENError(
            f"Adapter {path} {problem} ({len(missing)} tensors missing, {len(unexpected)} unknown); download it "
            "again, or update LLM4GEN if a newer version wrote it."
        )
    for name, tensor in cam.items():
        if tensor.shape != expected[name].shape:
            raise LLM4GENError(
                f"Adapter {path}: {name} has shape {list(tensor.shape)}; expected {list(expected[name].shape)} for "
                f"d_text {config.d_text} and d_llm {config.d_llm}. Download it again."
            )
        if not tensor.is_floating_point():
            raise LLM4GENError(
                f"Adapter {path}: {name} is {tensor.dtype}; expected floating-point numbers. Download it again."
            )
