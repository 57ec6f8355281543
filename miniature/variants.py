"""The arms of the reproduction: what is trained, on what, and which number of the paper it stands beside."""

from __future__ import annotations

from dataclasses import dataclass

CORE = ("finetune", "no_regularisation", "llm4gen")
"""The arms that the claim rests on; they always run with several seeds."""


@dataclass(frozen=True)
class Variant:
    """One way to train, from the same base, with the same steps, data and trainable UNet as the others.

    Attributes:
        name: of the run's folder and in the results.
        title: for people.
        experiment: the table that it belongs to, a key of `EXPERIMENTS`.
        recipe: name of the project's recipe.
        overrides: changes of the recipe.
        llm: "t5", "llama", or "" for none.
        pairs: how many of the training pairs; None for all.
        trained_as: the arm whose training is this one's too; "" for one of its own.
        lambda_mode: that it is painted with; None for the one that it was trained in.
        paper: the paper's T2I-CompBench scores of colour, shape and texture in percent, where it has this row.
    """

    name: str
    title: str
    experiment: str
    recipe: str = "miniature-llm4gen"
    overrides: tuple[str, ...] = ()
    llm: str = "t5"
    pairs: int | None = None
    trained_as: str = ""
    lambda_mode: str | None = None
    paper: tuple[float, float, float] | None = None


EXPERIMENTS = {
    "core": "LLM4GEN against its base",
    "modules": "The Cross-Adapter's parts (Table 4)",
    "llms": "Encoder against decoder (Table 3)",
    "data": "How much data it needs (Fig. 8a)",
    "alpha": "Weight of the regulariser",
    "tokens": "Which of a word's two tokens the regulariser binds",
    "lambda": "The readings of λ (eq. 3)",
}
"""What is compared, by the names that the command takes."""

BASE_PAPER = (37.65, 35.76, 41.56)
"""SD1.5's row of Tables 1, 3 and 4."""


def _fusion(name: str, title: str, paper: tuple[float, float, float] | None = None) -> Variant:
    return Variant(name, title, "modules", overrides=(f"adapter.fusion={name}",), paper=paper)


_ALL = (
    Variant("finetune", "Base, fine-tuned", "core", recipe="miniature-finetune", llm=""),
    Variant(
        "no_regularisation",
        "LLM4GEN without the regulariser",
        "core",
        overrides=("guidance.alpha=0",),
        paper=(46.10, 44.31, 54.81),
    ),
    Variant("llm4gen", "LLM4GEN", "core", paper=(47.34, 45.35, 55.39)),
    Variant(
        "finetuned_clip",
        "Base with its CLIP fine-tuned",
        "modules",
        recipe="miniature-finetune",
        overrides=("trainable.parts=text_encoder", "data.cache.text=false"),
        llm="",
        paper=(38.76, 36.85, 42.56),
    ),
    _fusion("mlp", "MLP in place of CLIP", (39.25, 37.68, 42.89)),
    _fusion("cross_attention", "Cross-attention in place of CLIP", (39.25, 37.68, 42.89)),
    _fusion("mlp_concat", "MLP, concatenated", (40.24, 38.23, 44.39)),
    _fusion("cross_attention_concat", "Cross-attention, concatenated", (42.31, 39.43, 46.21)),
    _fusion("clip_query", "CLIP as query, LLM as key and value", (43.69, 42.82, 49.56)),
    Variant("llama", "Decoder, last layer", "llms", llm="llama", paper=(44.98, 41.03, 49.21)),
    Variant("llama_mean", "Decoder, mean over its layers", "llms", overrides=("llm.layer=mean",), llm="llama"),
    Variant("pairs_300", "300 pairs", "data", pairs=300),
    Variant("pairs_1000", "1,000 pairs", "data", pairs=1000),
    Variant("pairs_3000", "3,000 pairs", "data", pairs=3000),
    Variant("pairs_10000", "10,000 pairs", "data", pairs=10000),
    Variant("balance_0.03", "a thirtieth of the diffusion gradient", "alpha", overrides=("guidance.balance=0.03",)),
    Variant("balance_0.3", "three tenths", "alpha", overrides=("guidance.balance=0.3",)),
    Variant("balance_1", "as much as it", "alpha", overrides=("guidance.balance=1",)),
    Variant("tokens_clip", "CLIP's token", "tokens", overrides=("guidance.tokens=clip",)),
    Variant("tokens_llm", "The LLM's token", "tokens", overrides=("guidance.tokens=llm",)),
    # λ is 1 in training, where a λ on the values is the same as one on the embedding.
    Variant("value", "λ on the values", "lambda", trained_as="llm4gen", lambda_mode="value"),
    Variant("decoupled", "λ decoupled", "lambda", overrides=("adapter.lambda_mode=decoupled",)),
)
VARIANTS = {arm.name: arm for arm in _ALL}
"""By name, in the order of the report. `base` is no arm: it is what all of them begin with."""


def find_variant(name: str) -> Variant:
    """The arm of that name.

    Raises:
        LLM4GENError: there is none.
    """
    from llm4gen_core import LLM4GENError

    if name not in VARIANTS:
        raise LLM4GENError(f"Variant {name!r} is not known; expected one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""λ at painting time, for `STRENGTH_VARIANTS`."""

STRENGTH_VARIANTS = {"llm4gen": "embedding", "value": "value", "decoupled": "decoupled"}
"""Arms that are painted with other λ than 1, and the readings of eq. 3 that they stand for."""
