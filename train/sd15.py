"""Stable Diffusion 1.5 with an LLM beside its CLIP, through diffusers and transformers, from local folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from llm4gen_core import CrossAdapter, LLM4GENError, LLMEncoder, fuse, load_adapter
from llm4gen_core.encoder import folder_spec
from llm4gen_core.weights import read_header

from .clip_text import clip_hidden_states
from .schedule import DDIMUniformScheduler, unit_noise

PathLike = str | os.PathLike[str]
Model = TypeVar("Model", bound=nn.Module)


class SD15:
    """SD1.5, alone or with an LLM4GEN adapter and its LLM.

    CLIP and the adapter compute in float32, and so do guidance and the sampler; the UNet, the VAE and the LLM in
    the precision they were loaded in. ComfyUI divides the work in the same way.

    Args:
        pipeline: with `DDIMUniformScheduler.sd15()` and without a safety checker.
        adapter: CAM of width d_text.
        llm: the LLM of that adapter. Both or neither.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, adapter: CrossAdapter | None = None, llm: LLMEncoder | None = None
    ) -> None:
        _require_both_or_neither(adapter, llm)
        self.pipeline = pipeline
        self.adapter = adapter
        self.llm = llm
        pipeline.set_progress_bar_config(disable=None)  # None: shown on a terminal, silent in a script
        pipeline.unet.register_forward_pre_hook(_to_unet_precision, with_kwargs=True)
        pipeline.unet.register_forward_hook(_to_float32)

    @classmethod
    def from_folders(
        cls,
        base: PathLike,
        unet: PathLike | None = None,
        adapter: PathLike | None = None,
        llm: PathLike | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> SD15:
        """Load everything from this machine; nothing is downloaded.

        What does not fit together is found from the configuration files, before any large file is read.

        Args:
            base: SD1.5 as a diffusers folder (model_index.json, unet, vae, text_encoder, tokenizer).
            unet: a diffusers UNet folder in place of the base's, or a folder that holds one as `unet`.
            adapter: any file that `load_adapter` reads.
            llm: Hugging Face folder of the LLM.
            dtype: of UNet, VAE and LLM.
            device: for everything.

        Raises:
            LLM4GENError: a file is missing or broken, or two of them do not belong together.
        """
        _require_both_or_neither(adapter, llm)
        base = _check_base(Path(base))
        unet = base / "unet" if unet is None else _find_unet(Path(unet))
        _check_unet(unet, base)
        for folder, what in ((unet, "UNet"), (base / "vae", "VAE"), (base / "text_encoder", "Text encoder")):
            _check_weights(folder, what)
        cross_adapter = None
        if adapter is not None and llm is not None:
            cross_adapter = load_adapter(adapter)
            _check_adapter(cross_adapter, Path(adapter), base)
            _check_llm(Path(llm), cross_adapter, Path(adapter))
        assemble: Any = StableDiffusionPipeline  # its annotations forget that the last two may be None
        pipeline = assemble(
            vae=_load(AutoencoderKL, base / "vae", torch_dtype=dtype),
            text_encoder=_load(CLIPTextModel, base / "text_encoder", dtype=torch.float32),
            tokenizer=_load_tokenizer(base / "tokenizer"),
            unet=_load(UNet2DConditionModel, unet, torch_dtype=dtype),
            scheduler=DDIMUniformScheduler.sd15(),
            requires_safety_checker=False,
            safety_checker=None,
            feature_extractor=None,
        ).to(device)
        if cross_adapter is None or llm is None:
            return cls(pipeline)
        spec = cross_adapter.metadata.llm if cross_adapter.metadata else None
        encoder = LLMEncoder.from_folder(llm, spec, dtype, device)
        return cls(pipeline, cross_adapter.to(device=device, dtype=torch.float32), encoder)

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    def default_strength(self) -> float:
        """λ that the adapter was made for; 1 if it does not say."""
        metadata = self.adapter.metadata if self.adapter else None
        return metadata.default_strength if metadata else 1.0

    def encode_clip(self, prompts: Sequence[str]) -> Tensor:
        """c_t [B, 77 k, d_text] of B prompts in float32; see `clip_hidden_states`."""
        return clip_hidden_states(self.pipeline.text_encoder, self.pipeline.tokenizer, prompts)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], strength: float | None = None) -> Tensor:
        """The context that the UNet's cross-attention reads.

        Both sides of guidance go into one call: prompts that are encoded together come out equally long.

        Args:
            prompts: B texts.
            strength: λ of eq. 3; None for the adapter's default. 0 is plain CLIP.

        Returns:
            concat(c_t, λ c'_l) [B, 77 k + L_llm, d_text] in float32, or c_t [B, 77 k, d_text] without an adapter.
        """
        text = self.encode_clip(prompts)
        if self.adapter is None or self.llm is None:
            return text
        adapted = self.adapter(text, self.llm.encode(prompts).hidden.to(text.dtype))
        return fuse(text, adapted, self.default_strength() if strength is None else strength)

    @torch.no_grad()
    def predict_noise(self, latents: Tensor, timestep: int | Tensor, context: Tensor) -> Tensor:
        """The UNet's prediction of the noise in `latents`.

        Args:
            latents: [B, 4, H/8, W/8], x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.
            timestep: 0 to 999, one for all or [B].
            context: [B, L, d_text].

        Returns:
            [B, 4, H/8, W/8] in float32.
        """
        return self.pipeline.unet(
            latents.to(self.device), timestep, encoder_hidden_states=context.to(self.device), return_dict=False
        )[0]

    @torch.no_grad()
    def paint(
        self,
        prompt: str,
        negative: str = "",
        *,
        seed: int = 0,
        steps: int = 50,
        guidance: float = 7.5,
        width: int = 512,
        height: int = 512,
        batch: int = 1,
        strength: float | None = None,
        output: Literal["images", "latents"] = "images",
    ) -> Tensor:
        """Paint as ComfyUI's KSampler does with `ddim` and `ddim_uniform`.

        Args:
            prompt, negative: texts, taken literally.
            seed: 0 to 2**64 - 1.
            steps: where it does not divide 1000, more steps are made; see `schedule`.
            guidance: scale of classifier-free guidance; 1 switches it off.
            width, height: pixels, multiples of 8.
            batch: images of the same prompt, from one draw of noise.
            strength: see `encode`.
            output: "latents" leaves out the VAE.

        Returns:
            images [batch, 3, height, width] from 0 to 1, or latents [batch, 4, height/8, width/8]; float32, on the CPU.
        """
        context = self.encode([prompt, negative], strength)
        latents = self.pipeline.scheduler.first_latents(unit_noise(seed, batch, height, width), steps)
        latents = self.pipeline(
            prompt_embeds=context[:1].expand(batch, -1, -1),
            negative_prompt_embeds=context[1:].expand(batch, -1, -1),
            latents=latents,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            output_type="latent",
        ).images
        if output == "latents":
            return latents.cpu()
        vae = self.pipeline.vae
        # One by one, like ComfyUI does when memory is short: the VAE's activations are the peak of the whole run.
        images = [vae.decode((one / vae.config.scaling_factor).to(vae.dtype)).sample for one in latents.split(1)]
        return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1).cpu()


def _to_unet_precision(unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Latents and context in the UNet's dtype, as the pipeline, which keeps both in float32, does not do itself."""
    context = kwargs["encoder_hidden_states"].to(unet.dtype)
    return (args[0].to(unet.dtype), *args[1:]), {**kwargs, "encoder_hidden_states": context}


def _to_float32(unet: nn.Module, args: tuple[Any, ...], output: tuple[Tensor]) -> tuple[Tensor]:
    return (output[0].float(),)


def _require_both_or_neither(adapter: object, llm: object) -> None:
    if (adapter is None) != (llm is None):
        given, missing = ("an LLM", "adapter") if adapter is None else ("an adapter", "LLM")
        raise LLM4GENError(
            f"There is {given} but no {missing}; LLM4GEN needs both. Give the {missing} as well, or leave out both "
            "for plain SD1.5."
        )


def _check_base(base: Path) -> Path:
    if base.is_file():
        raise LLM4GENError(
            f"Base {base} is a file; expected a diffusers folder with model_index.json, unet, vae, text_encoder and "
            "tokenizer. Download SD1.5 in that form, or convert a checkpoint with diffusers."
        )
    pipeline = _read_json(base / "model_index.json", "Base").get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        raise LLM4GENError(
            f"Base {base} is a {pipeline}; expected a StableDiffusionPipeline, that is SD1.5 or a fine-tune of it."
        )
    prediction = _read_json(base / "scheduler" / "scheduler_config.json", "Base").get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise LLM4GENError(f"Base {base} predicts {prediction!r}; expected a model that predicts 'epsilon', as SD1.5.")
    return base


def _find_unet(folder: Path) -> Path:
    if folder.is_file():
        raise LLM4GENError(
            f"UNet {folder} is a file; expected a diffusers folder with config.json and "
            "diffusion_pytorch_model.safetensors, such as the release's unet."
        )
    return folder / "unet" if (folder / "unet" / "config.json").is_file() else folder


def _check_unet(unet: Path, base: Path) -> None:
    config = _read_json(unet / "config.json", "UNet")
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise LLM4GENError(f"UNet {unet} is a {kind}; expected a UNet2DConditionModel.")
    if config.get("in_channels") != 4:
        raise LLM4GENError(
            f"UNet {unet} reads {config.get('in_channels')} channels; expected 4. Inpainting models "
            "cannot be used here."
        )
    width, d_text = config.get("cross_attention_dim"), _text_width(base)
    if width != d_text:
        raise LLM4GENError(
            f"UNet {unet} reads a text context of width {width}, but the CLIP of {base} writes {d_text}; "
            "use a UNet of the same family as the base."
        )


def _check_adapter(adapter: CrossAdapter, path: Path, base: Path) -> None:
    d_text = _text_width(base)
    if adapter.config.d_text != d_text:
        raise LLM4GENError(
            f"Adapter {path} is made for a text context of width {adapter.config.d_text}, but base {base} has "
            f"{d_text}; use an adapter that was trained for SD1.5."
        )
    metadata = adapter.metadata
    if metadata is not None and metadata.base_family not in (None, "sd15"):
        raise LLM4GENError(
            f"Adapter {path} was trained for {metadata.base_family}; expected sd15. Use an adapter for SD1.5."
        )
    if metadata is not None and metadata.lambda_mode != "embedding":
        raise LLM4GENError(
            f"Adapter {path} was trained with λ mode {metadata.lambda_mode!r}; this command knows 'embedding' only. "
            "Use it in ComfyUI instead."
        )


def _check_llm(folder: Path, adapter: CrossAdapter, path: Path) -> None:
    """What `LLMEncoder` would find too, but before weights of gigabytes are read."""
    found = folder_spec(folder)
    expected = adapter.metadata.llm if adapter.metadata else None
    reason = expected.mismatch(found) if expected else None
    if expected and reason:
        raise LLM4GENError(
            f"LLM {folder} is {found.label}, but adapter {path} was trained with {expected.label}: {reason}. "
            "Use the LLM of the adapter."
        )
    if found.width != adapter.config.d_llm:
        raise LLM4GENError(
            f"LLM {folder} has hidden states of width {found.width}, but adapter {path} expects "
            f"{adapter.config.d_llm}; use the LLM that the adapter was trained with."
        )


def _text_width(base: Path) -> Any:
    return _read_json(base / "text_encoder" / "config.json", "Base").get("hidden_size")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise LLM4GENError(
            f"{what} {path} does not exist; expected a local diffusers folder. Nothing is downloaded: check the path, "
            "or download the model first."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LLM4GENError(f"{what} {path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise LLM4GENError(f"{what} {path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _check_weights(folder: Path, what: str) -> None:
    """Whether the weights are there, whole, and safetensors: pickles of a base model have no reason to be."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {others[0]}, a pickle that could run code" if others else "none"
        raise LLM4GENError(
            f"{what} {folder} should hold its weights as .safetensors; found {found}. Download the folder again, in "
            "that form."
        )
    for file in files:
        read_header(file, what)


def _load(kind: type[Model], folder: Path, **precision: torch.dtype) -> Model:
    """One model of a diffusers folder, all of its weights present."""
    only_half = all(".fp16." in file.name for file in folder.glob("*.safetensors"))
    loader: Any = kind
    try:
        model, report = loader.from_pretrained(
            folder,
            variant="fp16" if only_half else None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **precision,
        )
    except Exception as error:  # both libraries raise many types for one situation: the folder is broken
        raise LLM4GENError(
            f"{kind.__name__} {folder} cannot be loaded ({_first_sentence(error)}); expected the weights that "
            "belong to its config.json. Download the folder again."
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise LLM4GENError(
            f"{kind.__name__} {folder} lacks {len(missing)} of its weights ({missing[0]}, ...); expected the weights "
            "that belong to its config.json. Download the folder again."
        )
    return model.eval().requires_grad_(False)


def _load_tokenizer(folder: Path) -> Any:
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise LLM4GENError(
            f"Tokenizer {folder} cannot be loaded ({_first_sentence(error)}); expected CLIP's vocab.json and "
            "merges.txt. Download the folder again."
        ) from error


def _first_sentence(error: Exception) -> str:
    sentence = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return sentence.split(". ")[0].rstrip(".")
