"""From a recipe to models: the base, the LLM, the adapter, and what of them is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from llm4gen_core import (
    Adapter,
    AdapterMetadata,
    CrossAdapter,
    CrossAdapterConfig,
    LLM4GENError,
    LLMEncoder,
    LLMSpec,
    load_adapter,
)
from llm4gen_core.encoder import folder_spec, load_tokenizer
from llm4gen_core.prompt_tokens import pad_id
from llm4gen_diffusers.devices import DTYPES
from llm4gen_diffusers.families import FAMILIES, PARTS, Family

from .parts import TrainedParts
from .recipe import Recipe
from .seeds import draw_seed


@dataclass(frozen=True)
class Models:
    """Everything that a recipe names, loaded on the CPU.

    Attributes:
        family: its modules as far as they were asked for; its noise schedule is the one that is trained.
        spec: how prompts are prepared for the LLM; None without one.
        adapter: new, or the one to go on from; None without an LLM.
        start: what `model.adapter` held, the UNet part among it.
    """

    recipe: Recipe
    family: Family
    spec: LLMSpec | None
    adapter: CrossAdapter | None
    start: Adapter | None

    @property
    def trains_text(self) -> bool:
        return self.recipe.trainable.parts == "text_encoder"

    @property
    def layout(self) -> tuple[str, ...]:
        """`CrossAdapterConfig.context_layout`; plain CLIP's without an adapter."""
        return self.adapter.config.context_layout if self.adapter is not None else ("text",)

    def trained_parts(self) -> TrainedParts:
        """Freeze and unfreeze as the recipe says; to be called once, before anything is wrapped."""
        with seeded(self.recipe.seed, "lora"):
            return TrainedParts(
                self.recipe.trainable,
                getattr(self.family, "unet", None),
                getattr(self.family, "text_encoders", ()),
                self.adapter,
                self.start.unet_part if self.start is not None else None,
                self.family.unused_text_parameters() if self.trains_text else (),
            )

    def validation_adapter(self) -> Adapter | None:
        """The adapter as the run's validation images need it."""
        if self.adapter is None:
            return None
        return Adapter(self.adapter, AdapterMetadata(self.recipe.family, self.spec, self.recipe.adapter.lambda_mode))

    def load_llm(self, device: torch.device | str) -> LLMEncoder | None:
        """The LLM itself, which `open_models` leaves out."""
        model = self.recipe.model
        if model.llm is None:
            return None
        return LLMEncoder.from_folder(model.llm, self.spec, DTYPES[model.llm_dtype], device)


def open_models(recipe: Recipe, parts: Collection[str] = PARTS) -> Models:
    """Check that all that a recipe names is there and fits together, then load it; the LLM is left for later.

    Configurations and headers of everything are read before the first large file.

    Args:
        recipe: checked.
        parts: of the family; none loads no weights of it.

    Raises:
        LLM4GENError: a file is missing or broken, or two of them do not belong together.
    """
    model = recipe.model
    family = FAMILIES[recipe.family].open(model.base, unet=model.unet, vae=model.vae, tokenizer=model.tokenizer)
    family.change_schedule(recipe.loss.prediction, recipe.loss.zero_terminal_snr)
    spec = llm_spec(recipe)
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


def llm_spec(recipe: Recipe) -> LLMSpec | None:
    """The LLM's own specification with the recipe's changes; its weights are not read."""
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
    """An adapter to go on from must be what the recipe would make."""
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
        reason = known.mismatch(spec) or "its prompts were prepared in another way (prefix, length or layer)"
        raise LLM4GENError(
            f"model.adapter {path} was trained with {known.label}, the recipe has {spec.label}: {reason}. Its "
            f"specification is {known.to_json()}."
        )


def adapter_metadata(models: Models, step: int, data: str, parser: str | None) -> AdapterMetadata:
    """What is stored with a trained adapter.

    Args:
        models: of the run.
        step: optimizer steps done.
        data: fingerprint of the data.
        parser: of the attribute-entity pairs; None if none were needed.
    """
    recipe = models.recipe
    training = {
        "steps": step,
        "samples": step * recipe.train.batch_size,
        "resolution": recipe.data.resolution,
        "parts": recipe.trainable.parts,
        "learning_rate": recipe.optimizer.learning_rate,
        "batch_size": recipe.train.batch_size,
        "guidance": asdict(recipe.guidance),
        "prediction": models.family.prediction_type,
        "zero_terminal_snr": recipe.loss.zero_terminal_snr,
        "seed": recipe.seed,
        "ema": recipe.train.ema.enabled,
        "base": Path(recipe.model.base).name,
        "data": data,
        "parser": parser,
    }
    return AdapterMetadata(
        base_family=recipe.family,
        llm=models.spec,
        lambda_mode=recipe.adapter.lambda_mode,
        training=training,
        title=recipe.title or Path(recipe.output).name,
        author=recipe.author,
        description=recipe.description,
    )


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """New weights made inside come from the run's seed alone; the caller's random numbers go on undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(seed, "", 0, purpose))
        yield
