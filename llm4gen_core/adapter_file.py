"""The adapter file: one safetensors with the CAM, what was trained of the UNet, and all that must fit around them.

Three forms are read: the project's own, the official `projector.pth`, and the official keys in
safetensors. Only the first is written.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from .adapter import CrossAdapter, CrossAdapterConfig
from .errors import LLM4GENError
from .lambda_modes import LAMBDA_MODES
from .llm_spec import RANKGEN_T5_XL, LLMSpec
from .unet_part import UNetPart
from .weights import SAFETENSORS_SUFFIXES, load_tensors, read_header

FORMAT = "llm4gen-adapter"
FORMAT_VERSION = 2
"""The newest version that is read. 1: the Cross-Adapter alone; 2: a UNet part, or an ablation in its place.

A file is written in the lowest version that can say what is in it, so that older readers take it or refuse it whole.
"""
FAMILIES = {
    "sd15": "stable-diffusion-v1",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
    "miniature": "llm4gen-miniature",
}
"""Base families, and the architecture names under which model managers know them (ModelSpec)."""
FAMILY_OF_WIDTH = {768: "sd15", 2048: "sdxl", 4096: "sd3"}

_CAM = "cam."
_UNET = "unet."
_OFFICIAL_CAM = "CrossFusionModule.0."
_OFFICIAL = "CrossFusionModule."
_OFFICIAL_HEADS = 8
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class AdapterMetadata:
    """What an adapter was made for.

    Attributes:
        base_family: a key of `FAMILIES`; None if the file does not tell.
        llm: the LLM that the adapter was trained with; None if the file does not tell.
        lambda_mode: one of `LAMBDA_MODES`, the reading of eq. 3 that it was trained with.
        default_strength: λ to start from.
        training: summary of the run that made it (JSON values).
        title, author, description: for model managers.
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
                f"Adapter: the training summary is a {type(self.training).__name__}; expected names with values."
            )


@dataclass(frozen=True)
class Adapter:
    """What an adapter file holds. Calling it calls the module.

    Attributes:
        module: the CAM.
        metadata: what it was made for.
        unet_part: what was trained of the UNet, if the file holds it.
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
    """Read an adapter of any of the three forms; nothing in the file is executed.

    Args:
        path: `.safetensors` of the project or with the official keys, or the official `projector.pth`.
        operations: see `CrossAdapter`.

    Returns:
        The adapter in the file's precision, frozen and in evaluation mode.

    Raises:
        LLM4GENError: the file is missing, broken, unsafe, incomplete or no adapter.
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
                f"Adapter {path} stacks Cross-Adapters {sorted(blocks)}; the release has exactly one, 0."
            )
        unet_part = None
        config = _official_config(cam, path)
        metadata = _official_metadata(config)
    else:
        found = ", ".join(sorted(tensors)[:3]) or "no tensors"
        raise LLM4GENError(
            f"Adapter {path} is not an LLM4GEN adapter: it holds {found}. Expected keys {_CAM}* with the project's "
            f"metadata, or {_OFFICIAL_CAM}* as in the official projector.pth."
        )
    _check_state(cam, config, path)
    module = CrossAdapter(config, operations, device="meta")  # no random weights: they would shift the global seed
    module.load_state_dict(cam, strict=True, assign=True)
    module.requires_grad_(False).eval()
    return Adapter(module, metadata, unet_part)


def save_adapter(
    module: CrossAdapter,
    path: str | os.PathLike[str],
    metadata: AdapterMetadata,
    unet_part: UNetPart | None = None,
) -> None:
    """Write the project's own form. The file appears whole or not at all.

    Args:
        module: the CAM; its tensors are stored in the precision they have.
        path: ends in `.safetensors`; an existing file is replaced.
        metadata: stored in the header, beside the CAM's sizes and the ModelSpec fields.
        unet_part: what was trained of the UNet. That of a loaded adapter is not stored by itself, because a trainer
            may have taken it up into a UNet of its own; pass `Adapter.unet_part` to keep it.

    Raises:
        LLM4GENError: the name or folder cannot be used, the metadata is incomplete, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        raise LLM4GENError(f"Adapter {path} must end in .safetensors.")
    if path.is_dir():
        raise LLM4GENError(f"Adapter {path} is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise LLM4GENError(f"Adapter {path} cannot be written: the folder {path.parent} does not exist.")
    if metadata.base_family is None:
        raise LLM4GENError(
            f"Adapter {path} needs a base family to be stored; say which of {', '.join(FAMILIES)} it was trained for."
        )
    stored = {_CAM + name: tensor for name, tensor in module.state_dict().items()}
    if unet_part is not None:
        # One number may serve as every layer's alpha, but safetensors stores no tensor twice.
        stored |= {_UNET + name: t if t.ndim else t.clone() for name, t in unet_part.tensors.items()}
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in stored.items()}
    header = _build_header(module.config, metadata, tensors, path.stem)
    if unet_part is not None:
        header["unet_part"] = unet_part.kind
    _write_whole(path, safetensors_bytes(tensors, header))


def _write_whole(path: Path, content: bytes) -> None:
    # Not tempfile's: its files can be read by their owner alone, and would stay so under the final name.
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise LLM4GENError(
                f"Adapter {path} cannot be written: the disk is full. It needs {len(content):,} bytes; nothing was "
                "left behind. Free that much, or choose a folder on another disk."
            ) from error
        raise


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
            raise LLM4GENError(f"format version {version} is newer than {FORMAT_VERSION}; update LLM4GEN to read it.")
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
            f"Adapter {path} lacks the metadata field {error}; it was not written by LLM4GEN."
        ) from error
    except (TypeError, ValueError) as error:
        raise LLM4GENError(f"Adapter {path} has metadata that cannot be understood ({error}).") from error


def _parse_unet_part(header: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> UNetPart | None:
    foreign = sorted(name for name in tensors if not name.startswith((_CAM, _UNET)))
    if foreign:
        raise LLM4GENError(
            f"Adapter {path} holds {len(foreign)} tensors that this version of LLM4GEN does not know ({foreign[0]}, "
            "...); update it to use this file whole."
        )
    unet = {name.removeprefix(_UNET): tensor for name, tensor in tensors.items() if name.startswith(_UNET)}
    kind = header.get("unet_part")
    if kind is None and not unet:
        return None
    if kind is None:
        raise LLM4GENError(
            f"Adapter {path} holds {len(unet)} tensors of a UNet ({_UNET}{min(unet)}, ...) but lacks the metadata "
            "field 'unet_part' that says what they are; it was not written by LLM4GEN."
        )
    try:
        return UNetPart(kind, unet)
    except LLM4GENError as error:
        raise LLM4GENError(f"Adapter {path}: {error}") from error


def _official_config(cam: Mapping[str, Tensor], path: Path) -> CrossAdapterConfig:
    projection = cam.get("llm_proj.weight")
    if projection is None or projection.ndim != 2:
        raise LLM4GENError(f"Adapter {path} has no matrix {_OFFICIAL_CAM}llm_proj.weight; it is incomplete.")
    d_text, d_llm = projection.shape
    try:
        return CrossAdapterConfig(d_text=d_text, d_llm=d_llm, heads=_OFFICIAL_HEADS)
    except LLM4GENError as error:
        raise LLM4GENError(f"Adapter {path}: {error}") from error


def _official_metadata(config: CrossAdapterConfig) -> AdapterMetadata:
    """The release stores none; its sizes identify the SD1.5 weights."""
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
        problem = f"lacks {', '.join(missing[:3])}" if missing else f"has unknown {', '.join(unexpected[:3])}"
        raise LLM4GENError(
            f"Adapter {path} {problem} ({len(missing)} keys missing, {len(unexpected)} unknown); download it again, "
            "or update LLM4GEN if a newer version wrote it."
        )
    for name, tensor in cam.items():
        if tensor.shape != expected[name].shape:
            raise LLM4GENError(
                f"Adapter {path}: {name} has shape {list(tensor.shape)}; its sizes (d_text {config.d_text}, "
                f"d_llm {config.d_llm}) require {list(expected[name].shape)}."
            )
        if not tensor.is_floating_point():
            raise LLM4GENError(f"Adapter {path}: {name} is {tensor.dtype}; expected floating point numbers.")
