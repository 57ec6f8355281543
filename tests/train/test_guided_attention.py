"""Attention processor: the same prediction, loss and gradients however the UNet is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from small_models import make_unet_folder
from torch import Tensor

from llm4gen_core import LLM4GENError
from llm4gen_core.attention import LLMTokens
from llm4gen_core.entity_guidance import GuidanceOptions, GuidanceTargets, PairPositions, guidance_targets
from llm4gen_diffusers import attention
from llm4gen_diffusers.attention import GuidanceRecorder, cross_attention_layers, install_cross_attention

B, T, D_TEXT = 2, 20, 64
OPTIONS = GuidanceOptions()
PAIRS = [[PairPositions((1,), (2, 3)), PairPositions((5, 6), (7,))], [PairPositions((10,), (19,))]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unet_folder(tmp_path_factory.mktemp("unet"), D_TEXT, (32, 64, 64))


@pytest.fixture
def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder).train()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, 4, 8, 8, generator=generator),
        torch.tensor([10, 700]),
        torch.randn(B, T, D_TEXT, generator=generator),
    )


def forward(unet: UNet2DConditionModel) -> Tensor:
    latents, timesteps, context = inputs()
    return unet(latents, timesteps, encoder_hidden_states=context).sample


def guided(
    unet: UNet2DConditionModel, recorder: GuidanceRecorder, targets: GuidanceTargets
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Prediction, L_reg and the gradients of their sum by parameter."""
    unet.zero_grad()
    recorder.begin(targets)
    prediction = forward(unet)
    loss, _ = recorder.finish(B)
    (prediction.square().mean() + 100 * loss.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
    return prediction.detach(), loss.detach(), gradients


@contextmanager
def watched(unet: UNet2DConditionModel) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Query and key of every cross-attention, taken from its linear layers."""
    seen: dict[str, dict[str, Tensor]] = {}
    handles = []
    for name, layer in cross_attention_layers(unet).items():
        for side in ("to_q", "to_k"):

            def keep(module: object, arguments: object, output: Tensor, name: str = name, side: str = side) -> None:
                seen.setdefault(name, {})[side] = output

            handles.append(getattr(layer, side).register_forward_hook(keep))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    yield found
    found.update({name: (of["to_q"], of["to_k"]) for name, of in seen.items()})
    for handle in handles:
        handle.remove()


def test_the_prediction_is_the_same_as_with_the_stock_processors(unet: UNet2DConditionModel) -> None:
    expected = forward(unet)
    recorder = install_cross_attention(unet, OPTIONS)
    recorder.begin(guidance_targets(PAIRS))
    torch.testing.assert_close(forward(unet), expected, rtol=1e-6, atol=1e-6)


def test_loss_is_the_literal_one_of_every_cross_attention(unet: UNet2DConditionModel) -> None:
    layers = cross_attention_layers(unet)
    assert len(layers) == 7  # two levels down with one block each, the middle, two levels up with two blocks each
    recorder = install_cross_attention(unet, OPTIONS)
    with torch.no_grad(), watched(unet) as seen:
        recorder.begin(guidance_targets(PAIRS))
        forward(unet)
        found, _ = recorder.finish(B)
    terms = []
    for name, (query, key) in seen.items():
        heads = layers[name].heads
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).double() for x in (query, key))
        maps = (q @ k.transpose(-1, -2) * layers[name].scale).softmax(-1).mean(1)
        per_sample = []
        for b, pairs in enumerate(PAIRS):
            distances = [
                (maps[b][:, list(p.attribute)].mean(1) - maps[b][:, list(p.entity)].mean(1)).square().mean()
                for p in pairs
            ]
            per_sample.append(torch.stack(distances).mean())
        terms.append(torch.stack(per_sample))
    expected = torch.stack(terms).mean(0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)


def test_gradient_checkpointing_changes_nothing(unet: UNet2DConditionModel) -> None:
    recorder = install_cross_attention(unet, OPTIONS)
    targets = guidance_targets(PAIRS)
    prediction, loss, gradients = guided(unet, recorder, targets)
    unet.enable_gradient_checkpointing()
    again = guided(unet, recorder, targets)
    torch.testing.assert_close(again[0], prediction)
    torch.testing.assert_close(again[1], loss)
    assert gradients.keys() == again[2].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[2][name], gradient, msg=lambda m, name=name: f"{name}: {m}")


def test_the_regularizer_has_a_gradient_of_its_own_under_checkpointing(unet: UNet2DConditionModel) -> None:
    recorder = install_cross_attention(unet, OPTIONS)
    unet.enable_gradient_checkpointing()
    recorder.begin(guidance_targets(PAIRS))
    forward(unet)
    loss, _ = recorder.finish(B)
    loss.sum().backward()
    for name, layer in cross_attention_layers(unet).items():
        assert layer.to_k.weight.grad.abs().max() > 0, name


def test_checkpointing_that_loses_the_gradient_is_refused(unet: UNet2DConditionModel) -> None:
    recorder = install_cross_attention(unet, OPTIONS)
    unet.enable_gradient_checkpointing(
        lambda module, *args: torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=True)
    )
    recorder.begin(guidance_targets(PAIRS))
    latents, timesteps, context = inputs()
    unet(latents.requires_grad_(), timesteps, encoder_hidden_states=context)
    with pytest.raises(LLM4GENError, match="use_reentrant"):
        recorder.finish(B)


def test_compiled_blocks_with_checkpointing_change_nothing(unet: UNet2DConditionModel) -> None:
    """Without checkpointing, test_training_options.py trains with compiled blocks."""
    torch._dynamo.reset()
    recorder = install_cross_attention(unet, OPTIONS)
    targets = guidance_targets(PAIRS)
    prediction, loss, gradients = guided(unet, recorder, targets)
    unet.enable_gradient_checkpointing()
    unet.compile_repeated_blocks(backend="aot_eager")
    again = guided(unet, recorder, targets)
    torch.testing.assert_close(again[0], prediction)
    torch.testing.assert_close(again[1], loss, rtol=1e-5, atol=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[2][name], gradient, rtol=1e-4, atol=1e-7)


def test_layers_can_be_chosen(unet: UNet2DConditionModel) -> None:
    options = replace(OPTIONS, layers=(4,))  # 4x4 queries: the second level of 8x8 latents
    recorder = install_cross_attention(unet, options)
    recorder.begin(guidance_targets(PAIRS))
    forward(unet)
    assert recorder._terms is not None
    assert set(recorder._terms) == {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    }


def test_choosing_no_layer_is_an_error(unet: UNet2DConditionModel) -> None:
    options = replace(OPTIONS, layers=("nowhere*",))
    recorder = install_cross_attention(unet, options)
    recorder.begin(guidance_targets(PAIRS))
    forward(unet)
    with pytest.raises(LLM4GENError, match="selects none"):
        recorder.finish(B)


def test_nothing_is_computed_without_targets(unet: UNet2DConditionModel) -> None:
    recorder = install_cross_attention(unet, OPTIONS)
    recorder.begin(None)
    forward(unet)
    loss, mass = recorder.finish(B)
    assert loss.tolist() == [0.0] * B
    assert mass.shape == (B, 2)


def test_attention_of_an_unknown_kind_is_refused(unet: UNet2DConditionModel) -> None:
    layer = next(iter(cross_attention_layers(unet).values()))
    layer.norm_q = torch.nn.Identity()
    with pytest.raises(LLM4GENError, match="not plain cross-attention"):
        install_cross_attention(unet, OPTIONS)


@pytest.mark.parametrize("llm", [None, LLMTokens("value", 30, 0.7), LLMTokens("decoupled", 30, 0.7)])
def test_few_pixels_attend_to_the_context_itself_with_the_same_result(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch, llm: LLMTokens | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(B, 4, 2, 2, generator=generator).double()
    context = torch.randn(B, 160, D_TEXT, generator=generator).double()
    unet.double()
    recorder = install_cross_attention(unet, OPTIONS)
    recorder.llm = llm

    def run() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        unet.zero_grad()
        given = context.clone().requires_grad_()
        recorder.begin(guidance_targets(PAIRS))
        prediction = unet(latents, torch.tensor([10, 700]), encoder_hidden_states=given).sample
        loss, _ = recorder.finish(B)
        (prediction.square().mean() + 100 * loss.sum()).backward()
        assert given.grad is not None
        gradients = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
        return prediction.detach(), loss.detach(), {**gradients, "context": given.grad}

    judge = attention._is_cheaper_to_project_back
    judged: list[bool] = []
    monkeypatch.setattr(
        attention, "_is_cheaper_to_project_back", lambda *args: judged.append(judge(*args)) or judged[-1]
    )
    found = run()
    assert sum(judged) >= 4  # of seven layers, those of one pixel
    monkeypatch.setattr(attention, "_is_cheaper_to_project_back", lambda *args: False)
    expected = run()
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-10)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_projections_beyond_a_product_are_not_bypassed(unet: UNet2DConditionModel) -> None:
    layer = next(iter(cross_attention_layers(unet).values()))
    query, context = torch.zeros(1, layer.heads, 1, layer.inner_dim // layer.heads), torch.zeros(1, 160, D_TEXT)
    assert attention._is_cheaper_to_project_back(layer, query, context)
    handle = layer.to_v.register_forward_hook(lambda *_: None)
    assert not attention._is_cheaper_to_project_back(layer, query, context)
    handle.remove()
    layer.to_k.bias = torch.nn.Parameter(torch.zeros(layer.inner_dim))
    assert not attention._is_cheaper_to_project_back(layer, query, context)
    layer.to_k = torch.nn.Sequential(layer.to_v)  # what a LoRA layer looks like
    assert not attention._is_cheaper_to_project_back(layer, query, context)


def test_sd15_and_sdxl_at_their_sizes_project_as_usual() -> None:
    """Their deepest maps, 8x8 of 1280 channels in 8 heads and 32x32 in 20."""
    for pixels, heads, d_text in ((64, 8, 768), (1024, 20, 2048)):
        layer = torch.nn.Module()
        layer.to_k = layer.to_v = torch.nn.Linear(d_text, 1280, bias=False, device="meta")
        query, context = torch.empty(1, heads, pixels, 1280 // heads, device="meta"), torch.empty(1, 333, d_text)
        assert not attention._is_cheaper_to_project_back(layer, query, context)
