"""Models of a recipe: the base, the adapter and the LLM, the parameters that are trained, and what is exported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llm4gen_core import (
    Adapter,
    AdapterMetadata,
    CrossAdapter,
    CrossAdapterConfig,
    LLM4GENError,
    LLMEncoder,
    LLMSpec,
    load_adapter,
    save_adapter,
)
from llm4gen_core.adapter_file import UNetPart
from llm4gen_core.encoder import folder_spec, load_tokenizer
from llm4gen_core.llm_spec import pad_id
from llm4gen_diffusers.attention import cross_attention_layers
from llm4gen_diffusers.families import FAMILIES, PARTS, Family
from llm4gen_diffusers.machine import DTYPES
from llm4gen_diffusers.options import GenerationOptions
from llm4gen_diffusers.sampling import Pipeline, add_unet_part, check_unet_part, save_png
from llm4gen_diffusers.schedule import NoiseSchedule

from .data.order import draw_seed
from .recipe import WHOLE_UNET, Parts, Recipe, Trainable, has_adapter

LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers with a LoRA, in every attention of the UNet, self-attention too: as usual for SD1.5 and SDXL."""

_KV = ("to_k", "to_v")
_PARTS_OF: dict[str, Parts] = {"lora": "cam+lora", "cross_attention_kv": "cam+cross_attention_kv"}
"""Trainable parts that each kind of UNet part comes from."""


@dataclass
class Models:
    """Models of a recipe.

    Attributes:
        family: the base's modules, as far as they were asked for; its noise schedule is the one to train with.
        spec: how prompts are prepared for the LLM; None without one.
        adapter: a new one, or the one that training starts from; None without an LLM.
        start: content of `model.adapter`, with its UNet part; None for a new adapter.
        llm: None before `load_llm`, and without one.
    """

    recipe: Recipe
    family: Family
    spec: LLMSpec | None
    adapter: CrossAdapter | None
    start: Adapter | None
    llm: LLMEncoder | None = None

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders are trained."""
        return self.recipe.trainable.parts == "text_encoder"

    @property
    def layout(self) -> tuple[str, ...]:
        """`CrossAdapterConfig.context_layout`; plain CLIP's without an adapter."""
        return self.adapter.config.context_layout if self.adapter is not None else ("text",)

    def trained_parts(self) -> TrainedParts:
        """Freeze and unfreeze parameters as the recipe says; called once, before anything is wrapped."""
        with seeded(self.recipe.seed, "lora"):
            return TrainedParts(
                self.recipe.trainable,
                getattr(self.family, "unet", None),
                getattr(self.family, "text_encoders", ()),
                self.adapter,
                self.start.unet_part if self.start is not None else None,
                self.family.unused_text_parameters() if self.trains_text else (),
            )

    def load_llm(self, device: torch.device | str) -> None:
        """Load the LLM, which `open_models` leaves out."""
        model = self.recipe.model
        if model.llm is not None:
            self.llm = LLMEncoder.from_folder(model.llm, self.spec, DTYPES[model.llm_dtype], device)

    @torch.no_grad()
    def features(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Encode B captions with the frozen text encoders, under the names of the text cache.

        Returns:
            "clip" [B, L k, d_text] and "pooled" [B, d_pooled] if CLIP is frozen, "llm" [B, L_llm, d_llm] if there is
            an LLM; each in the precision of its encoder.
        """
        found: dict[str, Tensor] = {}
        if not self.trains_text:
            text = self.family.encode_text(captions, self.recipe.data.clip_chunks)
            found["clip"] = text.hidden
            if text.pooled is not None:
                found["pooled"] = text.pooled
        if self.llm is not None:
            found["llm"] = self.llm.encode(captions).hidden
        return found

    def validation_images(self, folder: Path) -> list[Path]:
        """Generate every prompt of `recipe.validation` from every seed with the models as they are now.

        Returns:
            PNG files `prompt-01-seed-0.png`, ...
        """
        recipe, settings = self.recipe, self.recipe.validation
        size = settings.size or recipe.data.resolution
        adapter = None
        if self.adapter is not None:
            adapter = Adapter(self.adapter, AdapterMetadata(recipe.family, self.spec, recipe.adapter.lambda_mode))
        pipeline = Pipeline(self.family, adapter, self.llm)
        sampling: dict[str, Any] = {
            "steps": settings.steps,
            "guidance": settings.guidance,
            "width": size,
            "height": size,
        }
        options = GenerationOptions.model_construct(
            **sampling
        )  # unchecked: the miniature's sizes are no multiples of 8
        files = []
        folder.mkdir(parents=True, exist_ok=True)
        for number, prompt in enumerate(settings.prompts, 1):
            for seed in settings.seeds:
                image = pipeline.generate(prompt, options, seed=seed)[0]
                record = {"prompt": prompt, "seed": seed, **sampling}
                record |= {"run": folder.parent.parent.name, "step": folder.name}
                target = folder / f"prompt-{number:02d}-seed-{seed}.png"
                target.unlink(missing_ok=True)  # left by a run that was killed after this step and resumed before it
                files.append(save_png(image, target, record))
        return files

    def metadata(self, step: int, data: str, parser: str | None) -> AdapterMetadata:
        """Metadata to store with a trained adapter.

        Args:
            step: number of optimizer steps done.
            data: fingerprint of the data.
            parser: of the attribute-entity pairs; None if none were needed.
        """
        recipe = self.recipe
        training = {
            "steps": step,
            "samples": step * recipe.train.batch_size,
            "resolution": recipe.data.resolution,
            "parts": recipe.trainable.parts,
            "learning_rate": recipe.optimizer.learning_rate,
            "batch_size": recipe.train.batch_size,
            "guidance": asdict(recipe.guidance),
            "prediction": self.family.prediction_type,
            "zero_terminal_snr": recipe.loss.zero_terminal_snr,
            "seed": recipe.seed,
            "ema": recipe.train.ema.enabled,
            "base": Path(recipe.model.base).name,
            "data": data,
            "parser": parser,
        }
        return AdapterMetadata(
            base_family=recipe.family,
            llm=self.spec,
            lambda_mode=recipe.adapter.lambda_mode,
            training=training,
            title=recipe.title or Path(recipe.output).name,
            author=recipe.author,
            description=recipe.description,
        )


def open_models(recipe: Recipe, parts: Collection[str] = PARTS) -> Models:
    """Check that the models of a recipe exist and fit together, then load all but the LLM on the CPU.

    Configurations and headers of all files are read before the first large file.

    Args:
        recipe: checked.
        parts: parts of the family to load; none loads no weights of it.

    Raises:
        LLM4GENError: a file is missing or broken, or two of them do not belong together.
    """
    model = recipe.model
    family = FAMILIES[recipe.family].open(model.base, unet=model.unet, vae=model.vae, tokenizer=model.tokenizer)
    family.change_schedule(recipe.loss.prediction, recipe.loss.zero_terminal_snr)
    spec = _llm_spec(recipe)
    start = load_adapter(model.adapter) if model.adapter is not None else None
    adapter = None
    if spec is not None:
        config = CrossAdapterConfig(family.d_text, spec.width, recipe.adapter.heads, recipe.adapter.fusion)
        if start is not None:
            _check_start(start, config, spec, recipe)
            adapter = start.module
        else:
            with seeded(recipe.seed, "adapter"):
                adapter = CrossAdapter(config)
    family.load_parts(
        parts,
        unet_dtype=DTYPES[model.unet_dtype],
        vae_dtype=DTYPES[model.vae_dtype],
        text_dtype=DTYPES[model.text_dtype],
    )
    return Models(recipe, family, spec, adapter, start)


def _llm_spec(recipe: Recipe) -> LLMSpec | None:
    """Specification of the LLM with the changes of the recipe; reads no weights."""
    if recipe.model.llm is None:
        return None
    folder, settings = Path(recipe.model.llm), recipe.llm
    own = folder_spec(folder)
    return replace(
        own,
        model=own.model if settings.model is None else settings.model,
        prefix=own.prefix if settings.prefix is None else settings.prefix,
        suffix=settings.suffix,
        pad_id=pad_id(load_tokenizer(folder)),
        max_length=settings.max_length,
        padding_side=settings.padding_side,
        layer=settings.layer,
        dtype=recipe.model.llm_dtype,
    )


def _check_start(start: Adapter, config: CrossAdapterConfig, spec: LLMSpec, recipe: Recipe) -> None:
    """Check that the adapter to start from is one that the recipe would make."""
    path, metadata = recipe.model.adapter, start.metadata
    if start.config != config:
        raise LLM4GENError(f"model.adapter {path} is {start.config}; the recipe and its models need {config}.")
    if metadata.base_family not in (None, recipe.family):
        raise LLM4GENError(f"model.adapter {path} is for {metadata.base_family}; the recipe trains {recipe.family}.")
    if metadata.lambda_mode != recipe.adapter.lambda_mode:
        raise LLM4GENError(
            f"model.adapter {path} was trained with the λ mode {metadata.lambda_mode}, the recipe has "
            f"adapter.lambda_mode {recipe.adapter.lambda_mode}; set it to the adapter's."
        )
    known = metadata.llm
    if known is not None and known != replace(
        spec, dtype=known.dtype, pad_id=None if known.pad_id is None else spec.pad_id
    ):
        reason = known.mismatch(spec) or "its prompts were prepared differently (prefix, length or layer)"
        raise LLM4GENError(
            f"model.adapter {path} was trained with {known.label}, the recipe has {spec.label}: {reason}. Its "
            f"specification is {known.to_json()}."
        )


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Make random weights inside depend on the run's seed alone, without changing the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(seed, "", 0, purpose))
        yield


class TrainedParts:
    """The trainable parameters of a run; everything else is frozen.

    Trained weights are kept in float32, whatever precision the rest has: an update smaller than 2^-8 does not change
    a bfloat16 weight of size 1.

    Args:
        settings: parts to train.
        unet: diffusers' UNet2DConditionModel; None where only a text encoder is exported.
        text_encoders: transformers models; may be empty where only a UNet is exported.
        adapter: the CAM; None for `unet` and `text_encoder`.
        start: UNet part of the adapter that training starts from.
        unused_text: `Family.unused_text_parameters`, which no gradient reaches: they stay frozen.

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

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trained parameters by name, in the groups "cam", "unet" and "text_encoder" that are not empty."""
        modules = (
            ("cam", "adapter", self.adapter),
            ("unet", "unet", self.unet),
            ("text_encoder", "text_encoders", nn.ModuleList(self.text_encoders)),
        )
        groups = {}
        for name, attribute, module in modules:
            if module is None:
                continue
            trained = {f"{attribute}.{n}": p for n, p in module.named_parameters() if p.requires_grad}
            if trained:
                groups[name] = trained
        return groups

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by their names inside `TrainingLoss`, in the same order in every run."""
        return {name: parameter for group in self.groups().values() for name, parameter in group.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of a checkpoint, by the names of `named_parameters`.

        Raises:
            LLM4GENError: they belong to other parts or to another model.
        """
        own = self.named_parameters()
        if set(own) != set(weights):
            different = sorted(set(own) ^ set(weights))
            raise LLM4GENError(
                f"The checkpoint holds {len(weights)} trained tensors, expected {len(own)} ({different[0]} and others "
                "differ): it belongs to another recipe."
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
        """UNet part to store in the adapter file beside the CAM; None if nothing or all of the UNet is trained."""
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
        """Write the adapter file, and the models that were trained as a whole.

        Args:
            folder: made if it does not exist.
            name: of the adapter file, without its extension.
            metadata: of the adapter.
            schedule: noise schedule of the training, which a UNet's weights do not show.
            dtype: of the files. The modules themselves are cast to it, so give it only after the training.

        Returns:
            The adapter file, diffusers folders `unet` and `scheduler`, or transformers folders `text_encoder` and
            `text_encoder_2`, depending on the trained parts.
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
        """Start from an adapter's UNet part: as the same kind of part, or added to a UNet that is trained whole."""
        parts, same = self.settings.parts, _PARTS_OF[part.kind]
        if parts == "cam":
            raise LLM4GENError(
                "model.adapter has a UNet part, which trainable.parts cam would neither train nor store; choose "
                f"{same} or cam+unet."
            )
        if parts not in (same, "cam+unet"):
            raise LLM4GENError(
                f"model.adapter has a UNet part of kind {part.kind}, from which trainable.parts {parts} cannot "
                f"start; choose {same} or cam+unet."
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
                "others differ); choose cam+unet, which adds it to the UNet."
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
    """Names that `TrainedParts.export` writes, without a second text encoder."""
    if parts == "text_encoder":
        return ["text_encoder"]
    adapter = [f"{name}.safetensors"] if has_adapter(parts) else []
    return adapter + (["unet", "scheduler"] if parts in WHOLE_UNET else [])


def _save_text_encoder(encoder: Any, folder: Path) -> None:
    """Save as transformers does, but always under the names of released files, which ComfyUI looks for."""
    encoder.config.save_pretrained(folder)
    state = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in encoder.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
