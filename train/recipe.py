"""Recipes: all settings of a training run, in sections, with their defaults and their checks.

`recipe_file` reads them. A recipe is checked as a whole before any model is opened.
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
from llm4gen_core.attention import LAMBDA_MODES
from llm4gen_core.entity_guidance import GuidanceOptions

Precision = Literal["float32", "float16", "bfloat16"]
Parts = Literal["cam", "cam+cross_attention_kv", "cam+lora", "cam+unet", "unet", "text_encoder"]
WHOLE_UNET = ("cam+unet", "unet")
"""`Parts` that train the whole UNet."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


if TYPE_CHECKING:
    Guidance = GuidanceOptions
else:
    Guidance = checked(GuidanceOptions, config=ConfigDict(extra="forbid"), frozen=True)
    """Options of the method, with an error for unknown keys."""


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
"""Options in recipes of older runs that no longer exist, with the only values that are still supported."""


def has_adapter(parts: Parts) -> bool:
    """Whether there is a CAM, and therefore an LLM."""
    return parts.startswith("cam")


def _require(ok: bool, name: str, found: Any, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {shown(found)}; expected {expected}")


def shown(value: Any) -> str:
    """Format a value as in YAML, shortened to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def missing(name: str) -> str:
    """Describe a missing key that every recipe has to give."""
    if any(part.isdigit() for part in name.split(".")):
        return f"{name} is missing; write it into the recipe"
    is_folder = name in ("output", "data.sources")
    example = "FOLDER" if is_folder else "PATH" if name.startswith("model.") else "VALUE"
    return f"{name} is missing; give {name}={example} or write it into the recipe"


def _list_of_sources(value: Any) -> Any:
    """Turn a path into a source, and a single source into a list."""
    found = value if isinstance(value, list) else [value]
    return [{"path": source} if isinstance(source, str) else source for source in found]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _not_true_for_one(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `flip: yes`, which pydantic would read as 1.0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("truth", "a number or a word, not true or false (yes, no, on, off)")
        return value


class Model(Section):
    """Models to train on. Paths are local, relative to the current folder.

    Attributes:
        base: diffusers folder, or a single checkpoint file as ComfyUI loads it.
        unet, vae, tokenizer: diffusers folders that replace those of the base. A checkpoint file needs `tokenizer`.
        llm: Hugging Face folder; none if `trainable.parts` is unet or text_encoder.
        adapter: adapter file to start from, such as that of stage 1, with its UNet part.
        unet_dtype: precision of a UNet that is not trained as a whole; a trained UNet is kept in float32.
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
    """Preparation of prompts for the LLM; stored with the adapter as its `LLMSpec`.

    Attributes:
        model: name of the weights, such as a Hugging Face id, so that users of the adapter find them.
        prefix: text before every prompt, also the empty one; None for the model's own ("pre " for RankGen).
        suffix: text after every prompt; with the prefix it forms a prompt template.
        max_length: number of tokens that every prompt is padded to (the paper: 128, the release: 256).
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
        fusion: the method, or an ablation of Table 4; see `CrossAdapterConfig`.
        lambda_mode: how λ enters the UNet's attention, a reading of eq. 3; see `LAMBDA_MODES`.
        heads: number of attention heads. Layers are initialised by PyTorch's defaults; the paper does not say.
    """

    fusion: str = "cross_adapter"
    lambda_mode: str = "embedding"
    heads: Count = 8

    @model_validator(mode="after")
    def _check(self) -> Adapter:
        _require(self.fusion in FUSIONS, "fusion", self.fusion, f"one of {', '.join(FUSIONS)}")
        _require(self.lambda_mode in LAMBDA_MODES, "lambda_mode", self.lambda_mode, f"one of {', '.join(LAMBDA_MODES)}")
        beside = len(self.layout) == 2
        what = "embedding with a fusion that keeps no CLIP tokens beside the adapted ones"
        _require(beside or self.lambda_mode == "embedding", "lambda_mode", self.lambda_mode, what)
        return self

    @property
    def layout(self) -> tuple[str, ...]:
        """See `CrossAdapterConfig.context_layout`."""
        config = CrossAdapterConfig(d_text=self.heads, d_llm=1, heads=self.heads, fusion=self.fusion)
        return config.context_layout


class Trainable(Section):
    """Parameters to train. The release trained the CAM and the full UNet.

    Attributes:
        parts: cam | cam+cross_attention_kv | cam+lora | cam+unet; without adapter and LLM: unet (the paper's control
            "SD1.5 (ft)", or the training of a base), text_encoder (row 2 of Table 4).
        lora_rank, lora_alpha: for cam+lora, on the UNet's attention projections; the update is alpha / rank * B A.
    """

    parts: Parts = "cam+unet"
    lora_rank: Count = 32
    lora_alpha: Positive = 32.0


class Source(Section):
    """Source of image-text pairs.

    Attributes:
        path: folder, .jsonl file, data set saved by Hugging Face's `save_to_disk`, or webdataset shards
            (.tar, or a pattern with braces or stars).
        type: kind of source; "auto" finds it from the path.
        image, caption: field, column or file extension of each; None for the usual names.
        repeats: number of times that an epoch sees each pair.
    """

    path: str
    type: Literal["auto", "folder", "jsonl", "dataset", "webdataset"] = "auto"
    image: str | None = None
    caption: str | None = None
    repeats: Count = 1


class Buckets(Section):
    """Aspect-ratio buckets: each image gets the size nearest to its shape, of about resolution² pixels.

    Attributes:
        enabled: whether to use buckets; otherwise every image is cut to a square.
        step: pixels that all sides are multiples of.
        max_ratio: largest ratio of the longer to the shorter side; longer images are cut.
    """

    enabled: bool = False
    step: Count = 64
    max_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0


class Cache(Section):
    """Caches of frozen models' outputs.

    Attributes:
        folder: None is `cache` inside the run's folder; a folder can be shared between runs.
        latents: cache mean and standard deviation of the VAE's distribution for each image.
        crops: with `crop: random`, number of different cuts of each image to cache; epochs use them in turn.
        text: cache hidden states of CLIP and LLM for each caption. Large: 512 KiB for 128 tokens of T5-XL in bfloat16.
    """

    folder: str | None = None
    latents: bool = False
    crops: Count = 1
    text: bool = False


class Data(Section):
    """Image-text pairs and how they become samples.

    Attributes:
        sources: one or several sources; a path alone is enough.
        resolution: side of the square in pixels, or of the square with the area of a bucket.
        crop: position of the cut, if an image does not have the sample's shape.
        flip: share of samples that are mirrored. It makes captions with left and right wrong: off by default.
        min_size: shorter side in pixels below which images are left out; None for half of the resolution.
        max_ratio: ratio of the longer to the shorter side above which images are left out.
        caption_dropout: share of samples whose encoders both see the empty prompt; drawn anew at every step.
        llm_dropout: share of samples whose LLM alone sees the empty prompt.
        clip_chunks: number of chunks of 77 tokens that CLIP reads; longer captions are truncated.
        entities: parser of attribute-entity pairs, where the data has none; see `parse_entities`.
        buckets, cache: see `Buckets` and `Cache`.
        workers: number of processes that read and decode images.
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
    """Diffusion loss. All corrections are off by default, as in the paper.

    Attributes:
        prediction: prediction type of the UNet; "base" is that of the base model.
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
    """Optimizer and learning rate.

    Attributes:
        name: adamw, adamw_8bit (bitsandbytes), adafactor (transformers) or prodigy (prodigyopt).
        learning_rate: the paper's 2e-5 for SD1.5 and 1e-5 for SDXL; prodigy finds its own and needs 1.
        unet_learning_rate: learning rate of the UNet's trained part; None for `learning_rate`.
        weight_decay, betas, eps: PyTorch's defaults; the paper does not say. Parameters of one dimension (norms,
            biases) are never decayed. Adafactor has neither betas nor this eps.
        max_grad_norm: norm over all parameters that gradients are clipped to; None for no clipping.
        schedule: of the learning rate, by diffusers' and transformers' names.
        warmup_steps: number of optimizer steps.
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
                "nothing: prodigy finds one learning rate for all parameters",
            )
        return self


class Ema(Section):
    """Exponential moving average of the trained parameters (diffusers' EMAModel); `export` writes it if it is on.

    Attributes:
        enabled: whether there is a moving average.
        decay: largest value; it grows as (1 + step) / (10 + step).
        device: cpu saves memory on the accelerator.
    """

    enabled: bool = False
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    device: Literal["accelerator", "cpu"] = "accelerator"


class Train(Section):
    """Training loop.

    Attributes:
        steps: number of optimizer steps.
        batch_size: samples per optimizer step, over all processes and accumulation steps.
        micro_batch: samples that one process computes at once; it determines the accumulation steps.
        precision: autocast of the forward and backward pass; trained weights stay in float32.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: torch.compile of the UNet's blocks.
        tf32: use TF32 for float32 matrix products on NVIDIA GPUs.
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
    """Checkpoints of a run.

    Attributes:
        every: optimizer steps between two checkpoints.
        keep: number of the newest to keep; None keeps all.
    """

    every: Count = 1000
    keep: Count | None = 3


class Logging(Section):
    """Metrics of a run.

    Attributes:
        every: optimizer steps between two lines of metrics.jsonl and TensorBoard.
        gradient_ratio_every: optimizer steps between two measurements of |grad L_reg| / |grad L_diff|; each costs
            about two more backward passes of one micro-batch. 0 for never.
        tensorboard: write event files in the run's folder.
        wandb: project name at Weights & Biases; None is off. Needs the package wandb.
    """

    every: Count = 10
    gradient_ratio_every: Annotated[int, Field(ge=0)] = 200
    tensorboard: bool = True
    wandb: str | None = None


class Validation(Section):
    """Images generated during the run, always from the same prompts and seeds.

    Attributes:
        every: optimizer steps between two validations; 0 for never.
        prompts, seeds: one image is generated for each prompt and seed.
        steps, guidance: DDIM steps and guidance scale.
        size: side in pixels; None for the resolution of the data.
    """

    every: Annotated[int, Field(ge=0)] = 1000
    prompts: list[str] = []
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 7.5
    size: Count | None = None


class Recipe(Section):
    """Settings of a training run. The sections are described at their classes.

    Attributes:
        family: sd15, sdxl or miniature.
        output: folder of the run; must not hold another run.
        seed: of all random numbers.
        guidance: entity guidance, eq. 5 and 6; see `GuidanceOptions`.
        title, author, description: stored in the adapter and shown by model managers.
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
        """Refuse booleans, and remove options of older recipes whose value is the only one supported now."""
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
                "the base's own schedule: a text encoder is stored without a noise schedule",
            )
            _require(not self.data.cache.text, "data.cache.text", True, "false: the text encoder is trained")
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
        """Return the recipe with absolute paths, so that the run can be resumed from any folder."""
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
        """Format the complete recipe with its defaults, as it is stored with the run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)

    def to_dict(self) -> dict[str, Any]:
        """Return the complete recipe as JSON values."""
        return json.loads(self.model_dump_json())


def _copies_of_words(adapter: Adapter) -> set[str]:
    """Text encoders whose tokens the fused context holds, as values of `GuidanceOptions.tokens`."""
    return {"clip" if part == "text" else part for part in adapter.layout}
