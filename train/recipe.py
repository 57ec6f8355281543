"""Recipes: everything about a training run. Sections, their defaults, and what does not go together.

`recipe_file` reads them. A recipe is checked as a whole before anything large is opened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked
from pydantic_core import PydanticCustomError

from llm4gen_core.adapter import FUSIONS, CrossAdapterConfig
from llm4gen_core.entity_guidance import GuidanceOptions
from llm4gen_core.lambda_modes import LAMBDA_MODES

Precision = Literal["float32", "float16", "bfloat16"]
Parts = Literal["cam", "cam+cross_attention_kv", "cam+lora", "cam+unet", "unet", "text_encoder"]
WHOLE_UNET = ("cam+unet", "unet")
"""`Parts` in which all of the UNet is trained."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


if TYPE_CHECKING:
    Guidance = GuidanceOptions
else:
    Guidance = checked(GuidanceOptions, config=ConfigDict(extra="forbid"), frozen=True)
    """The method's own options, with an error for unknown keys."""


_REMOVED_GUIDANCE = {
    "wordpieces": "mean",
    "heads": "mean",
    "axis": "tokens",
    "support": "full",
    "reduction": "mean",
    "attributes": "each",
    "stop_gradient": "none",
    "time_weight": "none",
    "time_window": [0.0, 1.0],
    "max_pairs": 16,
}
"""Options that recipes of older runs hold, with the values that are built in now."""


def has_adapter(parts: Parts) -> bool:
    """Whether there is a CAM, and with it an LLM."""
    return parts.startswith("cam")


# What the sections call while the module loads, for their defaults are checked too, stands above them.


def _require(ok: bool, name: str, found: Any, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {shown(found)}; expected {expected}")


def shown(value: Any) -> str:
    """As it would stand in YAML, not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def missing(name: str) -> str:
    """What to do about a key that a recipe has to give."""
    if any(part.isdigit() for part in name.split(".")):
        return f"{name} is missing; write it into the recipe"
    is_folder = name in ("output", "data.sources")
    example = "FOLDER" if is_folder else "PATH" if name.startswith("model.") else "VALUE"
    return f"{name} is missing; give {name}={example} or write it into the recipe"


def _list_of_sources(value: Any) -> Any:
    """A path stands for a source of its own, and one source for a list of one."""
    found = value if isinstance(value, list) else [value]
    return [{"path": source} if isinstance(source, str) else source for source in found]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _not_true_for_one(cls, value: Any, info: ValidationInfo) -> Any:
        """`flip: yes` is not 1.0: pydantic would mirror every image."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth", "a number or a word, not true or false (yes, no, on, off)")
        return value


class Model(Section):
    """What is trained on; paths of local files, from the folder in which the command runs.

    Attributes:
        base: diffusers folder, or a single checkpoint as ComfyUI loads it.
        unet, vae, tokenizer: diffusers folders in place of the base's. `tokenizer` is needed for a checkpoint only.
        llm: Hugging Face folder; none when `trainable.parts` is unet or text_encoder.
        adapter: file of an adapter to go on from, such as stage 1's; its UNet part too.
        unet_dtype: precision of a UNet that is not trained as a whole; a trained one is kept in float32.
        vae_dtype, text_dtype, llm_dtype: precision of these frozen models.
    """

    base: str
    unet: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    llm: str | None = None
    adapter: str | None = None
    unet_dtype: Precision = "float32"
    vae_dtype: Precision = "float32"
    text_dtype: Precision = "float32"
    llm_dtype: Precision = "float32"


class LLM(Section):
    """How prompts are prepared for the LLM; stored with the adapter as its `LLMSpec`.

    Attributes:
        model: name of the weights, such as a Hugging Face id, so that users of the adapter find it.
        prefix: put before every prompt, the empty one too; None takes the model's own ("pre " for RankGen).
        suffix: put behind every prompt; with the prefix it makes a prompt template.
        max_length: tokens; every prompt is padded to it (the paper: 128, the release: 256).
        padding_side, layer: see `LLMSpec`.
    """

    model: str | None = None
    prefix: str | None = None
    suffix: str = ""
    max_length: Count = 128
    padding_side: Literal["right", "left"] = "right"
    layer: int | Literal["last", "mean"] = "last"


class Adapter(Section):
    """The Cross-Adapter.

    Attributes:
        fusion: the method, or a row of Table 4; see `CrossAdapterConfig`.
        lambda_mode: how the UNet's attention reads λ, a reading of eq. 3; see `LAMBDA_MODES`.
        heads: of its attention. The layers start as PyTorch initialises them; the paper says nothing else.
    """

    fusion: str = "cross_adapter"
    lambda_mode: str = "embedding"
    heads: Count = 8

    @model_validator(mode="after")
    def _check(self) -> Adapter:
        _require(self.fusion in FUSIONS, "fusion", self.fusion, f"one of {', '.join(FUSIONS)}")
        _require(self.lambda_mode in LAMBDA_MODES, "lambda_mode", self.lambda_mode, f"one of {', '.join(LAMBDA_MODES)}")
        beside = len(self.layout) == 2
        what = "embedding with a fusion that leaves no CLIP tokens to stand beside"
        _require(beside or self.lambda_mode == "embedding", "lambda_mode", self.lambda_mode, what)
        return self

    @property
    def layout(self) -> tuple[str, ...]:
        """See `CrossAdapterConfig.context_layout`."""
        config = CrossAdapterConfig(d_text=self.heads, d_llm=1, heads=self.heads, fusion=self.fusion)
        return config.context_layout


class Trainable(Section):
    """What is trained. The release trained the CAM and the full UNet.

    Attributes:
        parts: cam | cam+cross_attention_kv | cam+lora | cam+unet; without adapter and LLM: unet (the paper's control
            "SD1.5 (ft)", and how a base is trained), text_encoder (Table 4's row 2).
        lora_rank, lora_alpha: of cam+lora, on the UNet's attention projections; the update is alpha / rank * B A.
    """

    parts: Parts = "cam+unet"
    lora_rank: Count = 32
    lora_alpha: Positive = 32.0


class Source(Section):
    """Where image-text pairs come from.

    Attributes:
        path: a folder, a .jsonl file, a data set saved by Hugging Face's `save_to_disk`, or webdataset shards
            (.tar, or a pattern with braces or stars).
        type: told by the path unless given.
        image, caption: field, column or file extension of each; None takes the usual names.
        repeats: how often an epoch sees each pair.
    """

    path: str
    type: Literal["auto", "folder", "jsonl", "dataset", "webdataset"] = "auto"
    image: str | None = None
    caption: str | None = None
    repeats: Count = 1


class Buckets(Section):
    """Aspect-ratio buckets: an image goes to the size of its shape, each of about resolution² pixels.

    Attributes:
        enabled: otherwise every image is cut to a square.
        step: sides are multiples of it, in pixels.
        max_ratio: of the longer to the shorter side; what is longer is cut.
    """

    enabled: bool = False
    step: Count = 64
    max_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0


class Cache(Section):
    """What is computed once and kept.

    Attributes:
        folder: None is `cache` inside the run's folder; give one to share it between runs.
        latents: mean and standard deviation of the VAE's distribution for each image.
        crops: with `crop: random`, how many different cuts of each image are cached; epochs take them in turn.
        text: hidden states of CLIP and LLM for each caption. Large: 128 tokens of T5-XL are 512 KiB in bfloat16.
    """

    folder: str | None = None
    latents: bool = False
    crops: Count = 1
    text: bool = False


class Data(Section):
    """Image-text pairs and how they become samples.

    Attributes:
        sources: one or several; a path alone is enough.
        resolution: pixels of a side of the square, or of the square as large as a bucket.
        crop: where an image is cut that does not have the sample's shape.
        flip: share of samples that are mirrored. Captions with left and right become wrong: off by default.
        min_size: images with a shorter side below this many pixels are left out (None: half of the resolution).
        max_ratio: images with a longer side of more than this many times the shorter are left out.
        caption_dropout: share of samples that see the empty prompt in both encoders; drawn anew at every step.
        llm_dropout: share of samples whose LLM alone sees the empty prompt.
        clip_chunks: chunks of as many tokens as CLIP reads at once, 77; a longer caption is cut.
        entities: parser of attribute-entity pairs where the data gives none; see `parse_entities`.
        buckets, cache: see there.
        workers: processes that read and decode images.
    """

    sources: Annotated[list[Source], Field(min_length=1), BeforeValidator(_list_of_sources)]
    resolution: Annotated[int, Field(ge=16, le=4096)] = 512
    crop: Literal["center", "random"] = "center"
    flip: Share = 0.0
    min_size: Count | None = None
    max_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 8.0
    caption_dropout: Share = 0.1
    llm_dropout: Share = 0.0
    clip_chunks: Count = 1
    entities: str = "auto"
    buckets: Buckets = Buckets()
    cache: Cache = Cache()
    workers: Annotated[int, Field(ge=0)] = 4

    @model_validator(mode="after")
    def _check(self) -> Data:
        total = self.caption_dropout + self.llm_dropout
        _require(total <= 1, "caption_dropout + llm_dropout", total, "at most 1")
        known = re.fullmatch(r"auto|rules|spacy(:.+)?", self.entities) is not None
        _require(known, "entities", self.entities, "auto, rules, spacy or spacy:PACKAGE")
        return self


class Loss(Section):
    """The objective beside entity guidance; every correction is off unless asked for, as in the paper.

    Attributes:
        prediction: what the UNet predicts; "base" is what its base model says.
        min_snr_gamma: weight min(SNR, gamma) / SNR of a timestep (arXiv 2303.09556; for v-prediction the
            denominator is SNR + 1); 5 is usual.
        zero_terminal_snr: rescale the noise schedule so that the last timestep is pure noise (arXiv 2305.08891);
            needs v_prediction.
        noise_offset: standard deviation of a constant added to each channel of the noise; 0.05 is usual.
    """

    prediction: Literal["base", "epsilon", "v_prediction"] = "base"
    min_snr_gamma: Positive | None = None
    zero_terminal_snr: bool = False
    noise_offset: NotNegative = 0.0


class Optimizer(Section):
    """Attributes:
    name: adamw, adamw_8bit (bitsandbytes), adafactor (transformers), prodigy (prodigyopt).
    learning_rate: the paper's 2e-5 for SD1.5 and 1e-5 for SDXL; prodigy finds its own and wants 1.
    unet_learning_rate: of the UNet's trained part, if it is to differ.
    weight_decay, betas, eps: of the optimizer. PyTorch's defaults; the paper does not say. Parameters of one
        dimension (norms, biases) are never decayed. Adafactor has neither betas nor this eps.
    max_grad_norm: gradients are clipped to it over all parameters; None is no clipping.
    schedule: of the learning rate, as diffusers and transformers name them.
    warmup_steps: optimizer steps.
    """

    name: Literal["adamw", "adamw_8bit", "adafactor", "prodigy"] = "adamw"
    learning_rate: Positive = 2e-5
    unet_learning_rate: Positive | None = None
    weight_decay: NotNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    max_grad_norm: Positive | None = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if self.name == "adafactor":
            for name in ("betas", "eps"):
                default = type(self).model_fields[name].default
                _require(getattr(self, name) == default, name, getattr(self, name), "nothing: adafactor has none")
        if self.name == "prodigy":
            _require(
                self.unet_learning_rate in (None, self.learning_rate),
                "unet_learning_rate",
                self.unet_learning_rate,
                "nothing: prodigy finds one learning rate for all",
            )
        return self


class Ema(Section):
    """Exponential moving average of what is trained (diffusers' EMAModel); what `export` writes if it is on.

    Attributes:
        enabled: whether there is one.
        decay: at its highest; it grows from 0 as (1 + step) / (10 + step).
        device: where it is kept; cpu spares memory on the accelerator.
    """

    enabled: bool = False
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    device: Literal["accelerator", "cpu"] = "accelerator"


class Train(Section):
    """The loop.

    Attributes:
        steps: optimizer steps.
        batch_size: samples an optimizer step, over all processes and accumulation steps.
        micro_batch: samples that one process computes at once; accumulation follows from the three.
        precision: of the forward and backward pass (autocast); trained weights stay in float32.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: torch.compile of the UNet's blocks.
        tf32: let float32 matrix products on NVIDIA GPUs round to TF32.
    """

    steps: Count
    batch_size: Count
    micro_batch: Count
    precision: Precision = "bfloat16"
    gradient_checkpointing: bool = False
    compile: bool = False
    tf32: bool = True
    ema: Ema = Ema()

    @model_validator(mode="after")
    def _check(self) -> Train:
        _require(
            self.batch_size % self.micro_batch == 0,
            "micro_batch",
            self.micro_batch,
            f"a divisor of batch_size {self.batch_size}",
        )
        return self


class Checkpoints(Section):
    """Attributes:
    every: optimizer steps between two.
    keep: how many of the newest stay; None keeps all.
    """

    every: Count = 1000
    keep: Count | None = 3


class Logging(Section):
    """Attributes:
    every: optimizer steps between two lines of metrics.jsonl and TensorBoard.
    gradient_ratio_every: optimizer steps between two measurements of |grad L_reg| / |grad L_diff|; each costs
        about two more backward passes of one micro-batch. 0 is never.
    tensorboard: event files in the run's folder.
    wandb: project name at Weights & Biases; None is off. Needs the package wandb.
    """

    every: Count = 10
    gradient_ratio_every: Annotated[int, Field(ge=0)] = 200
    tensorboard: bool = True
    wandb: str | None = None


class Validation(Section):
    """Images painted during the run, always from the same prompts and seeds.

    Attributes:
        every: optimizer steps between two times; 0 is never.
        prompts: texts; seeds: one image of each prompt for each.
        steps, guidance: of DDIM; size: pixels of a side, None for the data's resolution.
    """

    every: Annotated[int, Field(ge=0)] = 1000
    prompts: list[str] = []
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 7.5
    size: Count | None = None


class Recipe(Section):
    """A training run. The sections are described at their classes.

    Attributes:
        family: sd15, sdxl or miniature.
        output: folder of the run; must not hold another run.
        seed: of everything random.
        guidance: entity guidance, eq. 5 and 6; see `GuidanceOptions`.
        title, author, description: stored in the adapter, shown by model managers.
    """

    family: Literal["sd15", "sdxl", "miniature"]
    output: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    title: str = ""
    author: str = ""
    description: str = ""
    model: Model
    llm: LLM = LLM()
    adapter: Adapter = Adapter()
    trainable: Trainable = Trainable()
    data: Data
    loss: Loss = Loss()
    guidance: Guidance = Guidance()
    optimizer: Optimizer = Optimizer()
    train: Train
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    validation: Validation = Validation()

    @field_validator("guidance", mode="before")
    @classmethod
    def _guidance_values(cls, value: Any) -> Any:
        """Refuse booleans, and take the options of older recipes out where they say what is always done now."""
        if not isinstance(value, dict):
            return value
        for key, found in value.items():
            _require(not isinstance(found, bool), key, found, "a number or a word")
        return {key: found for key, found in value.items() if _REMOVED_GUIDANCE.get(key, _REMOVED_GUIDANCE) != found}

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        parts = self.trainable.parts
        uses_llm = has_adapter(parts)
        if uses_llm:
            if self.model.llm is None:
                raise ValueError(missing("model.llm"))
        else:
            trained = "CLIP" if parts == "text_encoder" else "the UNet"
            _require(
                self.model.llm is None and self.model.adapter is None,
                "model.llm" if self.model.llm else "model.adapter",
                self.model.llm or self.model.adapter,
                f"nothing, because trainable.parts {parts} trains {trained} without an LLM",
            )
            _require(self.data.llm_dropout == 0, "data.llm_dropout", self.data.llm_dropout, "0 without an LLM")
        if parts == "text_encoder":
            _require(
                self.loss.prediction == "base" and not self.loss.zero_terminal_snr,
                "loss.prediction" if self.loss.prediction != "base" else "loss.zero_terminal_snr",
                self.loss.prediction if self.loss.prediction != "base" else True,
                "the base's own schedule: nothing that a trained text encoder is stored with can say another",
            )
            _require(not self.data.cache.text, "data.cache.text", True, "false: the text encoder is what is trained")
        if self.loss.zero_terminal_snr:
            _require(
                self.loss.prediction != "epsilon",
                "loss.prediction",
                self.loss.prediction,
                "v_prediction with zero_terminal_snr: at pure noise there is no epsilon to predict",
            )
        _require(
            self.optimizer.warmup_steps < self.train.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"less than train.steps {self.train.steps}",
        )
        if self.guidance.alpha:
            kinds = _copies_of_words(self.adapter) if uses_llm else {"clip"}
            _require(
                self.guidance.tokens in ("both", *kinds),
                "guidance.tokens",
                self.guidance.tokens,
                f"both or {' or '.join(kinds)}: the UNet sees no other tokens with "
                + (f"adapter.fusion {self.adapter.fusion}" if uses_llm else f"trainable.parts {parts}"),
            )
        _require(
            self.model.unet_dtype == "float32" or parts not in WHOLE_UNET,
            "model.unet_dtype",
            self.model.unet_dtype,
            "float32, because the UNet is trained",
        )
        _require(
            self.model.unet_dtype in ("float32", self.train.precision),
            "model.unet_dtype",
            self.model.unet_dtype,
            f"float32 or train.precision, which is {self.train.precision}",
        )
        step = self.data.buckets.step if self.data.buckets.enabled else 8 if self.family != "miniature" else 2
        _require(self.data.resolution % step == 0, "data.resolution", self.data.resolution, f"a multiple of {step}")
        return self

    def absolute(self) -> Recipe:
        """With every path from the root, so that the run can go on from any folder."""
        model = {
            name: str(Path(path).absolute())
            for name in ("base", "unet", "vae", "tokenizer", "llm", "adapter")
            if (path := getattr(self.model, name)) is not None
        }
        sources = [s.model_copy(update={"path": str(Path(s.path).absolute())}) for s in self.data.sources]
        cache = self.data.cache
        if cache.folder is not None:
            cache = cache.model_copy(update={"folder": str(Path(cache.folder).absolute())})
        return self.model_copy(
            update={
                "output": str(Path(self.output).absolute()),
                "model": self.model.model_copy(update=model),
                "data": self.data.model_copy(update={"sources": sources, "cache": cache}),
            }
        )

    def to_yaml(self) -> str:
        """The whole recipe with its defaults, as it is stored with the run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)

    def to_dict(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def _copies_of_words(adapter: Adapter) -> set[str]:
    """Which text encoders' tokens the fused context holds, in `GuidanceOptions.tokens`' words."""
    return {"clip" if part == "text" else part for part in adapter.layout}
