"""Conditioning of the UNet in training: caption dropout, and positions of words in the fused context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import recipe_content

from llm4gen_core import CrossAdapter, CrossAdapterConfig, EntityPair, LLMEncoder, LLMSpec
from llm4gen_core.encoder import folder_spec
from llm4gen_diffusers.families import Family, load_family
from miniature.miniature_world import make_world
from train.data.batches import Batch
from train.loss import CaptionDropout, Conditioner
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
    from llm4gen_core.prompt_tokens import tokenize_prompt

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


def test_dropped_captions_see_the_pair_of_empty_prompts(family: Family, llm: LLMEncoder) -> None:
    made = conditioner(family, llm)
    own, empty = made.models.features([CAPTION]), made.models.features([""])
    found = made.encode([CAPTION] * 3, [CaptionDropout.NOTHING, CaptionDropout.LLM, CaptionDropout.CAPTION])
    for row, (clip, of_llm) in enumerate([(own, own), (own, empty), (empty, empty)]):
        torch.testing.assert_close(found["clip"][row], clip["clip"][0])
        torch.testing.assert_close(found["llm"][row], of_llm["llm"][0])


def test_cached_features_are_taken_as_they_are(family: Family, llm: LLMEncoder) -> None:
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
