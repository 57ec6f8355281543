"""What a recipe trains: which parameters, in which precision, and what becomes of them afterwards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llm4gen_core import AdapterMetadata, CrossAdapter, LLM4GENError, save_adapter
from llm4gen_core.unet_part import UNetPart
from llm4gen_diffusers.attention import cross_attention_layers
from llm4gen_diffusers.sampling import add_unet_part, check_unet_part
from llm4gen_diffusers.schedule import NoiseSchedule

from .optimizers import ParameterGroup
from .recipe import WHOLE_UNET, Parts, Trainable, has_adapter

LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Of every attention of the UNet, self-attention too: where LoRAs for SD1.5 and SDXL usually are."""

_KV = ("to_k", "to_v")
_PARTS_OF: dict[str, Parts] = {"lora": "cam+lora", "cross_attention_kv": "cam+cross_attention_kv"}
"""Which trainable parts a UNet part comes from."""


class TrainedParts:
    """The trainable parameters of a run; everything else is frozen.

    Trained weights are kept in float32, whatever precision the rest has: a bfloat16 weight of size 1 cannot take in
    an update smaller than 2^-8.

    Args:
        settings: which parts.
        unet: diffusers' UNet2DConditionModel; None where only a text encoder is exported.
        text_encoders: transformers models, which may be none where only a UNet is.
        adapter: the CAM; None for `unet` and `text_encoder`.
        start: UNet part of the adapter that training goes on from.
        unused_text: `Family.unused_text_parameters`, which no gradient would ever reach: they stay frozen.

    Raises:
        LLM4GENError: `start` does not belong to these parts or this UNet.
    """

    def __init__(
        self,
        settings: Trainable,
        unet: Any,
        text_encoders: tuple[Any, ...],
        adapter: CrossAdapter | None,
        start: UNetPart | None = None,
        unused_text: Collection[str] = (),
    ) -> None:
        self.settings = settings
        self.unet = unet
        self.text_encoders = text_encoders
        self.adapter = adapter
        self.base_weights: dict[str, Tensor] = {}
        for module in (unet, *text_encoders):
            if module is not None:
                module.requires_grad_(False)
        if adapter is not None:
            adapter.float().requires_grad_(True)
        parts: Parts = settings.parts
        if parts in WHOLE_UNET:
            unet.float().requires_grad_(True)
        elif parts == "cam+lora":
            self._add_lora()
        elif parts == "cam+cross_attention_kv":
            for name, layer in self._kv_layers().items():
                layer.float().requires_grad_(True)
                self.base_weights[name] = layer.weight.detach().to("cpu", copy=True)
        elif parts == "text_encoder":
            for index, encoder in enumerate(text_encoders):
                encoder.float()
                for name, parameter in encoder.named_parameters():
                    parameter.requires_grad_(f"{index}.{name}" not in unused_text)
        if start is not None:
            self._start_from(start)

    def groups(self) -> list[ParameterGroup]:
        """Named parameters for the optimizer: "cam", "unet" and "text_encoder", those that there are."""
        modules = (
            ("cam", "adapter", self.adapter),
            ("unet", "unet", self.unet),
            ("text_encoder", "text_encoders", nn.ModuleList(self.text_encoders)),
        )
        groups = []
        for name, attribute, module in modules:
            if module is None:
                continue
            trained = {f"{attribute}.{n}": p for n, p in module.named_parameters() if p.requires_grad}
            if trained:
                groups.append(ParameterGroup(name, trained))
        return groups

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, under its name inside `TrainingLoss`, the same in every run."""
        return {name: parameter for group in self.groups() for name, parameter in group.parameters.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put the weights of a checkpoint in place, by the names of `named_parameters`.

        Raises:
            LLM4GENError: they belong to other parts or to another model.
        """
        own = self.named_parameters()
        if set(own) != set(weights):
            different = sorted(set(own) ^ set(weights))
            raise LLM4GENError(
                f"The checkpoint holds {len(weights)} trained tensors, expected {len(own)} ({different[0]} and others "
                "differ): it is of another recipe."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                if parameter.shape != weights[name].shape:
                    raise LLM4GENError(
                        f"The checkpoint's {name} has shape {list(weights[name].shape)}; the model has "
                        f"{list(parameter.shape)}. The base model or the adapter's sizes have changed."
                    )
                parameter.copy_(weights[name])

    def unet_part(self) -> UNetPart | None:
        """What belongs into the adapter file beside the CAM."""
        if self.settings.parts == "cam+cross_attention_kv":
            layers = self._kv_layers()
            return UNetPart(
                "cross_attention_kv",
                {f"{n}.diff": layers[n].weight.detach().cpu() - base for n, base in self.base_weights.items()},
            )
        if self.settings.parts == "cam+lora":
            tensors = {}
            for name, layer in self._lora_layers().items():
                tensors[f"{name}.lora_A.weight"] = layer.lora_A["default"].weight.detach().cpu()
                tensors[f"{name}.lora_B.weight"] = layer.lora_B["default"].weight.detach().cpu()
                tensors[f"{name}.alpha"] = torch.tensor(float(self.settings.lora_alpha))
            return UNetPart("lora", tensors)
        return None

    def export(
        self,
        folder: Path,
        name: str,
        metadata: AdapterMetadata,
        schedule: NoiseSchedule,
        dtype: torch.dtype | None = None,
    ) -> list[Path]:
        """Write what can be painted with: the adapter file, and models of their own where a whole one was trained.

        Args:
            folder: made if it does not exist.
            name: of the adapter file, without its ending.
            metadata: of the adapter.
            schedule: what the run trained with, which a UNet's weights do not say.
            dtype: of the files; the modules themselves are cast to it, so it is for runs that are over.

        Returns:
            The adapter file, diffusers folders `unet` and `scheduler`, or transformers folders `text_encoder` and
            `text_encoder_2`, as the parts say.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        part = self.unet_part()
        if dtype is not None:
            for module in (self.adapter, self.unet, *self.text_encoders):
                if module is not None:
                    module.to(dtype)
            part = part and UNetPart(part.kind, {n: t.to(dtype) for n, t in part.tensors.items()})
        if self.adapter is not None:
            written.append(folder / f"{name}.safetensors")
            save_adapter(self.adapter, written[-1], metadata, part)
        if self.settings.parts in WHOLE_UNET:
            written.append(folder / "unet")
            self.unet.save_pretrained(written[-1], max_shard_size="1TB")  # ComfyUI reads one file
            written.append(folder / "scheduler")
            schedule.to_diffusers().save_pretrained(written[-1])
        if self.settings.parts == "text_encoder":
            for index, encoder in enumerate(self.text_encoders):
                written.append(folder / ("text_encoder" if index == 0 else f"text_encoder_{index + 1}"))
                _save_text_encoder(encoder, written[-1])
        return written

    def _kv_layers(self) -> dict[str, nn.Linear]:
        layers = cross_attention_layers(self.unet)
        return {f"{name}.{kv}": getattr(layer, kv) for name, layer in layers.items() for kv in _KV}

    def _add_lora(self) -> None:
        from peft import LoraConfig

        self.unet.add_adapter(
            LoraConfig(
                r=self.settings.lora_rank,
                lora_alpha=self.settings.lora_alpha,  # type: ignore[arg-type]
                target_modules=list(LORA_LAYERS),
                init_lora_weights="gaussian",
            )
        )
        for parameter in self.unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _lora_layers(self) -> dict[str, Any]:
        return {name: module for name, module in self.unet.named_modules() if hasattr(module, "lora_A")}

    def _start_from(self, part: UNetPart) -> None:
        """Go on from the UNet part of an adapter: in the same parts, or taken up by a UNet that is trained whole."""
        parts, same = self.settings.parts, _PARTS_OF[part.kind]
        if parts == "cam":
            raise LLM4GENError(
                "model.adapter brings a UNet part, which trainable.parts cam would neither train nor store; choose "
                f"{same} or cam+unet."
            )
        if parts not in (same, "cam+unet"):
            raise LLM4GENError(
                f"model.adapter brings a UNet part of kind {part.kind}, which trainable.parts {parts} cannot go on "
                f"from; choose {same} or cam+unet."
            )
        if parts == "cam+lora":
            self._copy_lora(part)
        else:
            add_unet_part(self.unet, part, "model.adapter")

    def _copy_lora(self, part: UNetPart) -> None:
        check_unet_part(self.unet, part, "model.adapter")
        layers = self._lora_layers()
        different = sorted(set(layers) ^ set(part.modules))
        if different:
            raise LLM4GENError(
                f"model.adapter holds a LoRA on other layers than trainable.parts cam+lora trains ({different[0]} and "
                "others differ); choose cam+unet, which takes it up."
            )
        for name, layer in layers.items():
            rank = part.tensors[f"{name}.lora_A.weight"].shape[0]
            alpha = float(part.tensors[f"{name}.alpha"])
            if (rank, alpha) != (self.settings.lora_rank, self.settings.lora_alpha):
                raise LLM4GENError(
                    f"model.adapter holds a LoRA of rank {rank} and alpha {alpha:g}, but trainable.lora_rank is "
                    f"{self.settings.lora_rank} and lora_alpha {self.settings.lora_alpha:g}; make them equal."
                )
            with torch.no_grad():
                for side in ("lora_A", "lora_B"):
                    getattr(layer, side)["default"].weight.copy_(part.tensors[f"{name}.{side}.weight"])


def exported_names(parts: Parts, name: str) -> list[str]:
    """What `TrainedParts.export` is going to write, but for the second of two text encoders."""
    if parts == "text_encoder":
        return ["text_encoder"]
    adapter = [f"{name}.safetensors"] if has_adapter(parts) else []
    return adapter + (["unet", "scheduler"] if parts in WHOLE_UNET else [])


def _save_text_encoder(encoder: Any, folder: Path) -> None:
    """As transformers does, but always under the names that released files have and that ComfyUI looks for."""
    encoder.config.save_pretrained(folder)
    state = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in encoder.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
