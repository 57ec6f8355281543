"""Training loss: caption dropout, positions of words in the context, noise target and timestep weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import recipe_content
from small_models import make_world

from llm4gen_core import CrossAdapter, CrossAdapterConfig, EntityPair, LLM4GENError, LLMEncoder, LLMSpec
from llm4gen_core.encoder import folder_spec
from llm4gen_diffusers.families import Family, load_family
from llm4gen_diffusers.schedule import NoiseSchedule
from train.data.batches import Batch
from train.loss import CaptionDropout, Conditioner, NoiseTarget
from train.models import Models
from train.recipe_file import parse_recipe

CAPTION = "a Red  circle, a red square and a red circle"
PAIRS = [
    EntityPair.from_offsets(CAPTION, 2, 5, 7, 13),
    EntityPair.from_offsets(CAPTION, 17, 20, 21, 27),
    EntityPair.from_offsets(CAPTION, 34, 37, 38, 44),
]
LENGTH = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, images=2)
    return folder


@pytest.fixture(scope="module")
def family(world: Path) -> Family:
    return load_family("miniature", world / "base", parts=("text",))


@pytest.fixture(scope="module", params=["right", "left"])
def llm(world: Path, request: pytest.FixtureRequest) -> LLMEncoder:
    own = folder_spec(world / "llm")
    spec = LLMSpec(own.model, own.architecture, own.layers, own.width, "pre ", LENGTH, padding_side=request.param)
    return LLMEncoder.from_folder(world / "llm", spec)


FUSIONS = {("text", "llm"): "cross_adapter", ("llm",): "mlp", ("text", "text"): "clip_query"}
"""Fusion of each layout of the context; plain CLIP has none."""


def conditioner(
    family: Family, llm: LLMEncoder, layout: tuple[str, ...] = ("text", "llm"), **sections: Any
) -> Conditioner:
    content = recipe_content(Path(), Path(), **sections)
    adapter, spec = None, llm.spec
    if layout == ("text",):
        content["model"]["llm"] = None
        content["trainable"] = {"parts": "unet"}
    else:
        content["adapter"] = {"fusion": FUSIONS[layout], "heads": 4}
        adapter = CrossAdapter(CrossAdapterConfig(family.d_text, spec.width, 4, FUSIONS[layout]))
        assert adapter.config.context_layout == layout
    models = Models(parse_recipe(content, "test"), family, spec, adapter, None, llm if adapter is not None else None)
    return Conditioner(models, torch.device("cpu"))


def words(
    conditioner: Conditioner, caption: str, drop: CaptionDropout = CaptionDropout.NOTHING
) -> list[tuple[str, str]]:
    """(attribute, entity) of each pair of the targets, as the tokens at their positions decode."""
    family, llm = conditioner.models.family, conditioner.models.llm
    clip_ids = family._clip_ids(0, [caption], 1, None).flatten().tolist()
    llm_ids = llm_tokens(llm, caption) if llm is not None else []
    context = []
    for position, part in enumerate(conditioner.models.layout):
        if part == "text":
            context += [(family.tokenizers[0], token) for token in clip_ids]
        else:
            assert llm is not None and position == len(conditioner.models.layout) - 1
            context += [(llm.tokenizer, token) for token in llm_ids]
    targets = conditioner.targets([caption], [PAIRS], [drop])
    assert targets is not None

    def word(shares: torch.Tensor) -> str:
        positions = targets.columns[0, shares.nonzero().flatten()].tolist()
        return "".join(context[p][0].decode([context[p][1]]) for p in sorted(positions)).replace(" ", "")

    return [
        (word(targets.attribute[0, p]), word(targets.entity[0, p]))
        for p in range(len(targets.pairs[0]))
        if targets.pairs[0, p]
    ]


def llm_tokens(llm: LLMEncoder, caption: str) -> list[int]:
    from llm4gen_core.llm_spec import tokenize_prompt

    return tokenize_prompt(llm.tokenizer, caption, llm.spec).ids


CLIP = [("red", "circle"), ("red", "square"), ("red", "circle")]
LLM = [("Red", "circle"), ("red", "square"), ("red", "circle")]


@pytest.mark.parametrize(
    ("layout", "drop", "options", "expected"),
    [
        (("text", "llm"), CaptionDropout.NOTHING, {}, CLIP + LLM),
        (("text", "llm"), CaptionDropout.NOTHING, {"tokens": "llm"}, LLM),
        (("llm",), CaptionDropout.NOTHING, {}, LLM),
        (("text", "text"), CaptionDropout.NOTHING, {}, CLIP + CLIP),
        (("text",), CaptionDropout.NOTHING, {}, CLIP),
        (("text", "llm"), CaptionDropout.LLM, {}, CLIP),
        (("text", "llm"), CaptionDropout.CAPTION, {}, []),
    ],
    ids=str,
)
def test_the_positions_hold_the_words(
    family: Family, llm: LLMEncoder, layout: tuple[str, ...], drop: CaptionDropout, options: dict, expected: list
) -> None:
    assert words(conditioner(family, llm, layout, guidance=options), CAPTION, drop) == expected


def test_each_mention_has_its_own_tokens(family: Family, llm: LLMEncoder) -> None:
    targets = conditioner(family, llm).targets([CAPTION], [PAIRS], [CaptionDropout.NOTHING])
    assert targets is not None
    assert targets.pairs.sum() == 6
    circles = [targets.columns[0, targets.entity[0, p].nonzero().flatten()].tolist() for p in (0, 2)]
    assert not set(circles[0]) & set(circles[1])


def test_dropped_captions_see_empty_prompts(family: Family, llm: LLMEncoder) -> None:
    made = conditioner(family, llm)
    own, empty = made.models.features([CAPTION]), made.models.features([""])
    found = made.encode([CAPTION] * 3, [CaptionDropout.NOTHING, CaptionDropout.LLM, CaptionDropout.CAPTION])
    for row, (clip, of_llm) in enumerate([(own, own), (own, empty), (empty, empty)]):
        torch.testing.assert_close(found["clip"][row], clip["clip"][0])
        torch.testing.assert_close(found["llm"][row], of_llm["llm"][0])


def test_cached_features_are_used_unchanged(family: Family, llm: LLMEncoder) -> None:
    made = conditioner(family, llm)
    cached = made.models.features([CAPTION, "a blue cross"])
    found = made.encode(["not looked at", "either"], [CaptionDropout.NOTHING] * 2, cached)
    assert torch.equal(found["clip"], cached["clip"]) and torch.equal(found["llm"], cached["llm"])


def test_shares_of_caption_dropout(family: Family, llm: LLMEncoder) -> None:
    made = conditioner(
        family, llm, data={"sources": "images", "resolution": 16, "caption_dropout": 0.2, "llm_dropout": 0.1}
    )
    keys = [str(number) for number in range(2000)]
    none = torch.empty(0)
    drops = made.dropout(Batch(keys, [0] * 2000, [], [], none, [], None, None, None, none))
    assert drops.count(CaptionDropout.CAPTION) == pytest.approx(400, abs=60)
    assert drops.count(CaptionDropout.LLM) == pytest.approx(200, abs=50)


# Noise target


TIMESTEPS = torch.tensor([0, 250, 700, 999])


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def test_noise_is_added_and_is_the_target(latents: torch.Tensor, noise: torch.Tensor) -> None:
    schedule = NoiseSchedule.stable_diffusion()
    noisy, target = NoiseTarget(schedule).add_noise(latents, noise, TIMESTEPS)
    for b, t in enumerate(TIMESTEPS):
        alpha = schedule.alphas_cumprod[t]
        torch.testing.assert_close(noisy[b], alpha.sqrt() * latents[b] + (1 - alpha).sqrt() * noise[b])
    assert torch.equal(target, noise)


def test_velocity_recovers_latents_and_noise(latents: torch.Tensor, noise: torch.Tensor) -> None:
    schedule = NoiseSchedule.stable_diffusion("v_prediction")
    noisy, velocity = NoiseTarget(schedule).add_noise(latents, noise, TIMESTEPS)
    alpha = schedule.alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((1 - alpha).sqrt() * noisy + alpha.sqrt() * velocity, noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prediction", "added"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weights(prediction: str, added: int) -> None:
    schedule = NoiseSchedule.stable_diffusion(prediction)
    alpha = schedule.alphas_cumprod.double()[TIMESTEPS]
    snr = alpha / (1 - alpha)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + added)
    torch.testing.assert_close(NoiseTarget(schedule, 5.0).weights(TIMESTEPS).double(), expected, rtol=1e-3, atol=1e-6)
    assert NoiseTarget(schedule).weights(TIMESTEPS).tolist() == [1, 1, 1, 1]


def test_zero_terminal_snr_ends_in_pure_noise(latents: torch.Tensor, noise: torch.Tensor) -> None:
    schedule = NoiseSchedule.stable_diffusion().trained_with("v_prediction", zero_terminal_snr=True)
    target_of = NoiseTarget(schedule, 5.0)
    noisy, velocity = target_of.add_noise(latents, noise, TIMESTEPS)
    assert torch.equal(noisy[3], noise[3])
    assert torch.equal(velocity[3], -latents[3])
    assert target_of.weights(TIMESTEPS).isfinite().all()
    with pytest.raises(LLM4GENError, match="no epsilon to predict"):
        NoiseSchedule.stable_diffusion().trained_with("base", zero_terminal_snr=True)
