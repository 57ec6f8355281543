"""Fused conditionings through the host's own combiners: masks, areas, ranges, averages, concatenations, batches.

What is right is put together here, from predictions for one plain entry each. Every model has a schedule that makes λ
0.6 of what Fuse says, so that an entry that lost the marks of its LLM tokens, or has them in the wrong place, is seen.
"""

from __future__ import annotations

import importlib

import host_models
import pytest
import torch

MODES = ("embedding", "value", "decoupled")
LLM = 40
"""Tokens of the LLM."""


@pytest.fixture(scope="module")
def pack_nodes(pack):
    names = ("conditioning", "host", "host_attention")
    return {name: importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in names}


@pytest.fixture(scope="module")
def core(pack):
    return importlib.import_module(f"{pack.__name__}.llm4gen_core")


@pytest.fixture(scope="module")
def host(pack):
    """The host's node classes."""
    return importlib.import_module("nodes")


@pytest.fixture(scope="module")
def base_model(comfy):
    return host_models.narrow_sd15(levels=2)


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def adapter(pack_nodes, base, mode):
    """One of its λ mode."""
    name = f"regions_{mode}.safetensors"
    host_models.save_own_adapter(base / "models" / "llm4gen" / name, 31, lambda_mode=mode)
    return pack_nodes["host"].HostAdapter.load(name)


@pytest.fixture(scope="module")
def patch(pack_nodes, base_model, mode, pack):
    """λ, or λ at the start and at the end, to the patched model."""
    schedule = importlib.import_module(f"{pack.__name__}.llm4gen_core.attention").StrengthSchedule

    def run(start=0.6, end=None):
        return pack_nodes["host_attention"].patch_attention(
            base_model, mode, schedule(start, start if end is None else end)
        )

    return run


def plain(seed, chunks=1, batch=1):
    """CLIP's conditioning of some prompt."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(batch, 77 * chunks, 768, generator=generator)
    return [[context, {"pooled_output": torch.randn(batch, 768, generator=generator)}]]


@pytest.fixture(scope="module")
def features(core):
    """LLM features of some prompt, or of a batch of them."""

    def run(seed, batch=1):
        hidden = torch.randn(batch, LLM, host_models.LLM_WIDTH, generator=torch.Generator().manual_seed(seed))
        spec = core.LLMSpec(model="", architecture="t5", layers=3, width=host_models.LLM_WIDTH)
        return core.LLMFeatures(hidden, torch.ones(batch, LLM, dtype=torch.long), spec)

    return run


@pytest.fixture(scope="module")
def fused(pack_nodes, adapter, features):
    """Output of Fuse for some prompt."""

    def run(seed, chunks=1, strength=1.0):
        with torch.inference_mode():
            return pack_nodes["conditioning"].fuse_conditioning(
                adapter, plain(seed, chunks), features(seed + 100), strength
            )

    return run


@pytest.fixture(scope="module")
def tokens(fused):
    """(CLIP's tokens, the LLM's as the adapter makes them) of the same prompt."""

    def run(seed, chunks=1):
        context = fused(seed, chunks)[0][0]
        return context[:, : 77 * chunks], context[:, 77 * chunks :]

    return run


@pytest.fixture(scope="module")
def entry(pack_nodes, adapter):
    """A conditioning from CLIP's and the LLM's tokens, put together here."""
    scaled = adapter.metadata.lambda_mode == "embedding"

    def run(text, llm, strength=1.0):
        context = torch.cat((text, strength * llm if scaled else llm), 1)
        marks = pack_nodes["host_attention"].TokenMarks.of(text.shape[1], context.shape[1], strength, scaled)
        return [[context, {"model_conds": {"llm4gen_tokens": marks}}]]

    return run


def noise(batch=1, width=8):
    return torch.randn(batch, 4, 8, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def predict(model, conditioning, x=None, percent=0.5, negative=None, guidance=1.0):
    """The noise that the host's sampling predicts, at a place of the sampling range; guided above a guidance of 1."""
    import comfy.sample
    import comfy.samplers

    x = noise() if x is None else x
    sigma = float(model.model.model_sampling.percent_to_sigma(percent))
    found = []

    def first_step(denoise, noisy, sigmas, extra_args=None, **options):
        found.append((noisy - denoise(noisy, sigmas[:1].expand(len(noisy)), **extra_args)) / sigma)
        return noisy

    comfy.sample.sample_custom(
        model,
        x,
        guidance,
        comfy.samplers.KSAMPLER(first_step),
        torch.tensor([sigma, 0.0]),
        conditioning,
        plain(0) if negative is None else negative,
        torch.zeros_like(x),
        disable_pbar=True,
    )
    return found[0]


@pytest.fixture
def calls(base_model):
    """Rows of every UNet call that the test makes."""
    rows = []
    hook = base_model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    hook.remove()


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_the_marks_matter(patch, fused):
    """Precondition of the tests below: without its marks the same context has another prediction."""
    ((context, options),) = fused(1)
    assert error(predict(patch(), [[context, {}]]), predict(patch(), [[context, options]])) > 1e-3


def test_combine_is_the_mean_each_with_its_own_lambda(patch, fused, host, calls):
    model, first, second = patch(), fused(1, strength=0.3), fused(2, strength=1.75)
    (combined,) = host.ConditioningCombine().combine(first, second)
    found = predict(model, combined)
    assert calls == [2], "one UNet call for both"
    expected = (predict(model, first) + predict(model, second)) / 2
    assert error(found, expected) < 1e-5
    assert error(found, predict(model, first)) > 1e-3


def test_masks_weigh_what_prompts_of_different_lengths_predict(patch, fused, host):
    """One prompt of two chunks on the left, one of one chunk on the right, fading into each other."""
    model, first, second = patch(), fused(1, chunks=2), fused(2, strength=0.5)
    left = torch.linspace(1, 0, 8).clamp(0.2, 0.8).expand(1, 8, 8)
    set_mask = host.ConditioningSetMask().append
    regions = set_mask(first, left, "default", 0.7)[0] + set_mask(second, 1 - left, "default", 1.0)[0]
    weights = 0.7 * left, 1 - left
    expected = (weights[0] * predict(model, first) + weights[1] * predict(model, second)) / sum(weights)
    assert error(predict(model, regions), expected) < 1e-5


def test_guidance_between_regions_and_a_negative_prompt_of_another_length(patch, fused, host):
    """Masked prompts with λs of their own on one side, a longer fused prompt on the other: each keeps its λ."""
    model, first, second = patch(), fused(1, strength=0.3), fused(2)
    negative = fused(3, chunks=2, strength=1.75)
    left = torch.linspace(1, 0, 8).clamp(0.2, 0.8).expand(1, 8, 8)
    set_mask = host.ConditioningSetMask().append
    regions = set_mask(first, left, "default", 1.0)[0] + set_mask(second, 1 - left, "default", 1.0)[0]
    away = predict(model, negative)
    expected = away + 5.0 * (left * predict(model, first) + (1 - left) * predict(model, second) - away)
    assert error(predict(model, regions, negative=negative, guidance=5.0), expected) < 1e-5


def test_an_area_with_its_weight_at_the_edge(patch, fused, host):
    """The right half, beside another prompt everywhere at half the strength."""
    model, inside, everywhere, x = patch(), fused(1), fused(2), noise(width=16)
    (area,) = host.ConditioningSetArea().append(inside, 64, 64, 64, 0, 1.0)
    (half,) = host.ConditioningSetAreaStrength().append(everywhere, 0.5)
    weight = torch.tensor([0.5] + [1.0] * 7)
    expected = predict(model, everywhere, x).clone()
    of_area = predict(model, inside, x[..., 8:].clone())
    expected[..., 8:] = (weight * of_area + 0.5 * expected[..., 8:]) / (weight + 0.5)
    assert error(predict(model, area + half, x), expected) < 1e-5


def test_adjoining_ranges_take_turns_under_the_schedule_of_lambda(patch, fused, host):
    """Prompt schedule: an entry until half of the sampling, another from there on."""
    model, first, second = patch(1.4, 0.2), fused(1), fused(2)
    set_range = host.ConditioningSetTimestepRange().set_range
    schedule = set_range(first, 0.0, 0.5)[0] + set_range(second, 0.5, 1.0)[0]
    for percent, alone, strength in ((0.25, first, 1.1), (0.75, second, 0.5)):
        expected = predict(patch(strength), alone, percent=percent)
        assert error(predict(model, schedule, percent=percent), expected) < 1e-4


def test_average_is_that_of_the_tokens(patch, fused, host, tokens, entry):
    ((text, llm), (other_text, other_llm)) = tokens(1), tokens(2)
    (blend,) = host.ConditioningAverage().addWeighted(fused(1), fused(2), 0.3)
    expected = entry(0.3 * text + 0.7 * other_text, 0.3 * llm + 0.7 * other_llm)
    assert error(predict(patch(), blend), predict(patch(), expected)) < 1e-5


def test_average_of_different_lambdas(patch, fused, host, tokens, entry, mode):
    """Each keeps its λ if Fuse scales the tokens; if the UNet applies it, that of `conditioning_to` holds."""
    ((text, llm), (other_text, other_llm)) = tokens(1), tokens(2)
    (blend,) = host.ConditioningAverage().addWeighted(fused(1, strength=0.5), fused(2, strength=2.0), 0.3)
    ratio = 2.0 / 0.5 if mode == "embedding" else 1.0
    expected = entry(0.3 * text + 0.7 * other_text, 0.3 * llm + 0.7 * ratio * other_llm, 0.5)
    assert error(predict(patch(), blend), predict(patch(), expected)) < 1e-5


def test_average_with_plain_clip_scales_the_llms_tokens(patch, fused, host, tokens, entry):
    (text, llm), other = tokens(1), plain(5)
    (blend,) = host.ConditioningAverage().addWeighted(fused(1), other, 0.3)
    expected = entry(0.3 * text + 0.7 * other[0][0], 0.3 * llm)
    assert error(predict(patch(), blend), predict(patch(), expected)) < 1e-5


def test_average_to_plain_clip_drops_the_llms_tokens(patch, fused, host, tokens, base_model):
    (text, _), other = tokens(1), plain(5)
    (blend,) = host.ConditioningAverage().addWeighted(other, fused(1), 0.3)
    expected = predict(base_model, [[0.3 * other[0][0] + 0.7 * text, {}]])
    assert error(predict(patch(), blend), expected) < 1e-5


def test_tokens_appended_by_concat_are_text(patch, fused, host, tokens, entry):
    (text, llm), other = tokens(1), plain(5)
    (both,) = host.ConditioningConcat().concat(fused(1, strength=0.8), other)
    expected = entry(torch.cat((text, other[0][0]), 1), llm, 0.8)
    assert error(predict(patch(), both), predict(patch(), expected)) < 1e-5


def test_concat_of_two_fused_prompts_of_one_length_is_that_of_their_parts(patch, fused, host, tokens, entry):
    ((text, llm), (other_text, other_llm)) = tokens(1), tokens(2)
    (both,) = host.ConditioningConcat().concat(fused(1, strength=0.8), fused(2, strength=0.8))
    expected = entry(torch.cat((text, other_text), 1), torch.cat((llm, other_llm), 1), 0.8)
    assert error(predict(patch(), both), predict(patch(), expected)) < 1e-5


def test_a_fused_prompt_of_another_length_is_appended_as_text(patch, fused, host, tokens, entry):
    """The host keeps the marks of the first one alone."""
    (text, llm), longer = tokens(1), fused(2, chunks=2)
    (both,) = host.ConditioningConcat().concat(fused(1, strength=0.8), longer)
    expected = entry(torch.cat((text, longer[0][0]), 1), llm, 0.8)
    assert error(predict(patch(), both), predict(patch(), expected)) < 1e-5


def test_a_fused_prompt_behind_plain_clip_is_text(patch, fused, host, base_model):
    (both,) = host.ConditioningConcat().concat(plain(5), fused(1))
    assert torch.equal(predict(patch(), both), predict(base_model, [[both[0][0], {}]]))


@torch.inference_mode()
def test_concat_and_average_before_fuse(pack_nodes, adapter, features, host, patch, entry):
    """This keeps all tokens apart: one adapter pass over both prompts of CLIP."""
    (both,) = host.ConditioningConcat().concat(plain(1), plain(2, chunks=2))
    found = pack_nodes["conditioning"].fuse_conditioning(adapter, both, features(3), 0.8)
    text = torch.cat((plain(1)[0][0], plain(2, chunks=2)[0][0]), 1)
    expected = entry(text, adapter(text, features(3).hidden), 0.8)
    assert found[0][0].shape == (1, 3 * 77 + LLM, 768)
    assert error(predict(patch(), found), predict(patch(), expected)) < 1e-5


# A prompt for each image of a batch


@pytest.mark.parametrize("of_llm", [1, 3])
def test_each_image_of_a_batch_gets_its_own_prompt(pack_nodes, adapter, patch, features, calls, of_llm):
    """CLIP conditionings of three prompts, with the LLM's features of each, or with the same for all."""
    with torch.inference_mode():
        fuse = pack_nodes["conditioning"].fuse_conditioning
        text, llm = plain(1, batch=3), features(2, batch=of_llm)
        together = fuse(adapter, text, llm, 0.8)
        assert together[0][0].shape == (3, 77 + LLM, 768)
        alone = [
            fuse(
                adapter,
                [[text[0][0][i : i + 1], {}]],
                type(llm)(llm.hidden[i % of_llm][None], llm.mask[:1], llm.spec),
                0.8,
            )
            for i in range(3)
        ]
    found = predict(patch(), together, noise(3))
    assert calls == [3]
    for i in range(3):
        assert error(found[i : i + 1], predict(patch(), alone[i], noise(3)[i : i + 1])) < 1e-5
    assert error(found[1:2], predict(patch(), alone[0], noise(3)[1:2])) > 1e-3


def test_other_numbers_of_prompts_are_refused(pack_nodes, adapter, features):
    with pytest.raises(ValueError, match="holds 3 prompts and the LLM features 2; encode the same prompts with both"):
        pack_nodes["conditioning"].fuse_conditioning(adapter, plain(1, batch=3), features(2, batch=2), 1.0)
