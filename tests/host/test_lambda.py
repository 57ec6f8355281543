"""λ inside the UNet: three modes against their formulas in diffusers' UNet, the schedule, and λ = 0."""

from __future__ import annotations

import host_models
import pytest
import torch
from diffusers_folder import diffusers_unet
from graphs import graph
from PIL import Image
from safetensors.torch import load_file

MODES = ("embedding", "value", "decoupled")
TEXT, LLM = 77, 40
TIMESTEP = 481


@pytest.fixture(scope="module")
def twin(models):
    """diffusers' UNet with the checkpoint's weights."""
    state = load_file(models / "checkpoints" / "sd15.safetensors")
    return diffusers_unet({name: tensor.float() for name, tensor in state.items()})


@pytest.fixture(scope="module")
def model(models, comfy):
    """The host's model, in this process."""
    import comfy.model_management
    import comfy.sd

    patcher = comfy.sd.load_checkpoint_guess_config(
        str(models / "checkpoints" / "sd15.safetensors"), output_vae=False, output_clip=False
    )[0]
    comfy.model_management.load_models_gpu([patcher])
    return patcher


class WrittenOut:
    """diffusers' attention processor of a mode, from its formula, a matrix at a time."""

    def __init__(self, mode, strengths):
        self.mode, self.strengths = mode, strengths

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        strength = torch.tensor(self.strengths).view(-1, 1, 1)
        text, llm = encoder_hidden_states[:, :TEXT], encoder_hidden_states[:, TEXT:]
        if self.mode == "decoupled":
            attended = self.attend(attn, hidden_states, text, text)
            attended = attended + strength * self.attend(attn, hidden_states, llm, llm)
        else:
            value = torch.cat((text, strength * llm), 1)
            key = value if self.mode == "embedding" else encoder_hidden_states
            attended = self.attend(attn, hidden_states, key, value)
        return attn.to_out[0](attended)

    @staticmethod
    def attend(attn, hidden, key, value):
        heads = [
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden), attn.to_k(key), attn.to_v(value))
        ]
        weights = (heads[0] @ heads[1].transpose(-1, -2) * attn.scale).softmax(-1)
        return (weights @ heads[2]).transpose(1, 2).flatten(2)


@torch.inference_mode()
def expected(twin, mode, strengths, x, context):
    for name, layer in twin.named_modules():
        if name.endswith("attn2"):
            layer.set_processor(WrittenOut(mode, strengths))
    return twin(x, TIMESTEP, context).sample


@torch.inference_mode()
def found(patched, x, context, marks=None):
    """The noise that the host's model predicts, called as its samplers call it."""
    from comfy.patcher_extension import WrappersMP

    options = {
        **patched.model_options["transformer_options"],
        "wrappers": {WrappersMP.APPLY_MODEL: dict(patched.wrappers.get(WrappersMP.APPLY_MODEL, {}))},
    }
    sampling = patched.model.model_sampling
    sigma = sampling.sigmas[TIMESTEP]
    noisy = x * (1 + sigma**2).sqrt()
    marked = {} if marks is None else {"llm4gen_tokens": marks}
    denoised = patched.model.apply_model(
        noisy, sigma.expand(len(x)), c_crossattn=context, transformer_options=options, **marked
    )
    return (noisy - denoised) / sigma


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, TEXT + LLM, 768, generator=generator)


def marks(attention, *strengths, scaled=False):
    return torch.cat([attention.TokenMarks.of(TEXT, TEXT + LLM, one, scaled).cond for one in strengths])


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.3, 1.75)])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_its_formula_at_every_layer(attention, schedule, model, twin, mode, strengths):
    x, context = inputs()
    patched = attention.patch_attention(model, mode, schedule())
    predicted = found(patched, x, context, marks(attention, *strengths))
    assert error(predicted, expected(twin, mode, strengths, x, context)) < 1e-5
    if mode == "decoupled" or strengths != (1.0, 1.0):
        assert error(predicted, found(model, x, context)) > 1e-3


@pytest.mark.parametrize("mode", ["embedding", "decoupled"])
def test_the_schedule_multiplies(attention, schedule, model, twin, mode):
    x, context = inputs()
    percent = 1 - TIMESTEP / 999
    patched = attention.patch_attention(model, mode, schedule(2.0, 0.5))
    strength = 0.8 * (2.0 + percent * (0.5 - 2.0))
    predicted = found(patched, x, context, marks(attention, 0.8, 0.8))
    assert error(predicted, expected(twin, mode, (strength, strength), x, context)) < 1e-5


@pytest.mark.parametrize(
    ("mode", "off"),
    [("embedding", {"start": 0.0, "end": 0.0}), ("value", {"start_percent": 0.6}), ("decoupled", {"end_percent": 0.4})],
)
def test_lambda_0_is_bit_identical_to_plain_clip(attention, schedule, model, mode, off):
    x, context = inputs()
    patched = attention.patch_attention(model, mode, schedule(**off))
    predicted = found(patched, x, context, marks(attention, 1.0, 1.0))
    assert torch.equal(predicted, found(model, x, context[:, :TEXT]))


@pytest.mark.parametrize("mode", ["value", "decoupled"])
def test_tokens_that_fuse_has_scaled_are_restored(attention, schedule, model, twin, mode):
    """An adapter of mode `embedding`, used with another mode."""
    x, context = inputs()
    scaled = torch.cat((context[:, :TEXT], 0.5 * context[:, TEXT:]), 1)
    predicted = found(
        attention.patch_attention(model, mode, schedule()), x, scaled, marks(attention, 0.5, 0.5, scaled=True)
    )
    assert error(predicted, expected(twin, mode, (0.5, 0.5), x, context)) < 1e-5


def test_scaled_tokens_are_not_scaled_again(attention, schedule, model):
    x, context = inputs()
    patched = attention.patch_attention(model, "embedding", schedule())
    assert torch.equal(found(patched, x, context, marks(attention, 0.5, 0.5, scaled=True)), found(model, x, context))


@pytest.mark.parametrize("mode", ["embedding", "decoupled"])
def test_conditionings_without_marks_are_unchanged(attention, schedule, model, mode):
    x, context = inputs()
    assert torch.equal(
        found(attention.patch_attention(model, mode, schedule(0.3)), x, context), found(model, x, context)
    )


@pytest.mark.parametrize("mode", ["value", "decoupled"])
def test_a_context_that_was_repeated_keeps_its_tokens_apart(attention, schedule, model, mode):
    x, context = inputs()
    patched = attention.patch_attention(model, mode, schedule(0.6))
    once = found(patched, x, context, marks(attention, 1.0, 1.0))
    twice = found(patched, x, context.repeat(1, 2, 1), marks(attention, 1.0, 1.0))
    assert error(twice, once) < 1e-5


def test_appended_tokens_are_text(attention, schedule, model):
    x, context = inputs()
    more = torch.cat((context, context[:, :50]), 1)
    plain = torch.cat((context[:, :TEXT], context[:, :50]), 1)
    patched = attention.patch_attention(model, "value", schedule(0.0, 0.0))
    assert torch.equal(found(patched, x, more, marks(attention, 1.0, 1.0)), found(model, x, plain))


def test_a_second_patch_replaces_the_first(attention, schedule, model):
    x, context = inputs()
    both = attention.patch_attention(
        attention.patch_attention(model, "decoupled", schedule(0.2)), "value", schedule(0.7)
    )
    alone = attention.patch_attention(model, "value", schedule(0.7))
    assert torch.equal(*(found(one, x, context, marks(attention, 1.0, 1.0)) for one in (both, alone)))


def test_the_input_model_is_unchanged(attention, schedule, model):
    """With marks, which a leaked patch would apply."""
    x, context = inputs()
    before = found(model, x, context, marks(attention, 1.0, 1.0))
    patched = attention.patch_attention(model, "decoupled", schedule(0.5))
    assert not torch.equal(found(patched, x, context, marks(attention, 1.0, 1.0)), before)
    assert torch.equal(found(model, x, context, marks(attention, 1.0, 1.0)), before)


def test_other_packs_patches_run_as_well(attention, schedule, model):
    """One before and one after: both receive the tokens, and both take effect."""
    x, context = inputs()
    seen = []

    def other(query, key, value, options):
        seen.append(key.shape[1])
        return 2 * query, key, value

    first, last = model.clone(), attention.patch_attention(model, "value", schedule(0.5))
    first.set_model_attn2_patch(other)
    first = attention.patch_attention(first, "value", schedule(0.5))
    last.set_model_attn2_patch(other)
    images = [found(one, x, context, marks(attention, 1.0, 1.0)) for one in (first, last)]
    assert torch.equal(*images) and set(seen) == {TEXT + LLM}
    alone = attention.patch_attention(model, "value", schedule(0.5))
    assert error(images[0], found(alone, x, context, marks(attention, 1.0, 1.0))) > 1e-4


def test_marks_concatenate_only_if_equal(attention):
    of = attention.TokenMarks.of
    assert of(77, 117, 1.0, False).can_concat(of(77, 117, 0.5, True))
    assert not of(77, 117, 1.0, False).can_concat(of(154, 194, 1.0, False))
    assert not of(77, 117, 1.0, False).can_concat(of(76, 117, 1.0, False))
    rows = of(77, 117, 0.25, True).process_cond(batch_size=3, area=None).cond
    assert rows.shape == (3, 4) and not rows.is_floating_point()


@pytest.mark.parametrize("percent", [0.0, 0.1, 0.333, 0.5, 0.75, 0.98])
def test_percent_is_the_inverse_of_the_hosts(attention, model, percent):
    sampling = model.model.model_sampling
    sigma = sampling.percent_to_sigma(percent) if percent else float(sampling.sigma_max)
    assert attention._percent(sampling, sigma) == pytest.approx(percent, abs=1e-4)


def test_a_model_without_cross_attention_is_refused(attention, schedule, model):
    class Other:
        class model:  # noqa: N801
            diffusion_model = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="The model is a type and not a UNet with cross-attention; expected the SD1.5"):
        attention.patch_attention(Other, "value", schedule())


# On the server


@pytest.fixture(scope="module")
def adapters(models):
    for mode in MODES:
        host_models.save_own_adapter(models / "llm4gen" / f"{mode}.safetensors", 31, lambda_mode=mode)


def painted(server, name, strength=1.0, seed=1, positive=None, **settings):
    """(pixels, what the nodes said) of the usual graph with a Patch Model that has these settings, or without one."""
    nodes = graph(seed=seed, strength=strength, **({} if positive is None else {"positive": positive}))
    nodes["adapter"]["inputs"]["adapter_name"] = f"{name}.safetensors"
    if settings:
        defaults = {"strength_model": 1.0, "lambda_mode": "as trained", "lambda_start": 1.0, "lambda_end": 1.0}
        defaults |= {"curve": "linear", "start_percent": 0.0, "end_percent": 1.0}
        nodes["patch"] = {
            "class_type": "LLM4GENPatch",
            "inputs": {"model": ["ckpt", 0], "adapter": ["adapter", 0], **defaults, **settings},
        }
        nodes["sampler"]["inputs"]["model"] = ["patch", 0]
    result, said = server.run_and_listen(nodes)
    assert result.error is None, result.error
    return Image.open(server.base / "output" / result.images()[0]).tobytes(), said, result


@pytest.mark.parametrize("mode", ["embedding", "decoupled"])
def test_off_is_the_image_without_llm4gen(server, adapters, mode):
    plain = painted(server, mode, strength=0.0, seed=3)[0]
    assert painted(server, mode, seed=3, lambda_start=0.0, lambda_end=0.0)[0] == plain
    assert painted(server, mode, seed=3, lambda_start=1.0)[0] != plain


def test_a_neutral_patch_changes_nothing(server, adapters):
    image, said, _ = painted(server, "embedding", seed=4, lambda_start=1.0)
    assert image == painted(server, "embedding", seed=4)[0]
    assert said["patch"] == "no changes: the model is passed on unchanged"


def test_another_lambda_encodes_nothing(server, adapters):
    painted(server, "value", seed=5, lambda_start=0.9)
    image, said, result = painted(server, "value", seed=5, lambda_start=0.4)
    assert not {"text", "llm", "adapter", "ckpt"} & set(result.executed)
    assert said["patch"] == "λ mode value, λ 0.4 → 1 (linear), from 0 % to 100 %"


def test_the_strength_of_fuse_and_the_schedule_are_one_lambda(server, adapters):
    """0.5 at Fuse, or 0.5 all along in the schedule."""
    fused = painted(server, "decoupled", strength=0.5, seed=6, lambda_mode="decoupled")[0]
    scheduled = painted(server, "decoupled", seed=6, lambda_start=0.5, lambda_end=0.5)[0]
    assert max(abs(a - b) for a, b in zip(fused, scheduled, strict=True)) <= 1


def test_disconnecting_restores_the_image(server, adapters):
    before = painted(server, "decoupled", seed=8)[0]
    patched = painted(server, "decoupled", seed=8, lambda_start=0.7)[0]
    assert patched != before
    assert painted(server, "decoupled", seed=8)[0] == before


def test_load_adapter_names_patch_model(server, models):
    for mode, needs in (("value", True), ("embedding", False)):
        host_models.save_own_adapter(models / "llm4gen" / f"said_{mode}.safetensors", 31, lambda_mode=mode)
        said = painted(server, f"said_{mode}", seed=9)[1]["adapter"]
        assert said.endswith(f"λ mode {mode}: connect Patch Model too") == needs
        assert ("Patch" in said) == needs


def refused(server, name, **settings):
    """Error of the node that refuses these settings."""
    nodes = graph()
    nodes["adapter"]["inputs"]["adapter_name"] = f"{name}.safetensors"
    nodes["patch"] = {
        "class_type": "LLM4GENPatch",
        "inputs": {"model": ["ckpt", 0], "adapter": ["adapter", 0], "strength_model": 1.0, **settings},
    }
    nodes["sampler"]["inputs"]["model"] = ["patch", 0]
    result = server.run(nodes)
    assert result.error is not None and not result.images()
    return result.error


def test_an_empty_range_is_refused(server, adapters):
    error = refused(server, "embedding", lambda_mode="value", start_percent=0.8, end_percent=0.2)
    assert "The range of λ is 0.8 to 0.2; expected 0 <= start < end <= 1" in error


@pytest.mark.parametrize("settings", [{"lambda_mode": "value"}, {"lambda_end": 0.5}], ids=["mode", "schedule"])
def test_replacing_fusions_have_no_lambda_modes(server, models, settings):
    host_models.save_own_adapter(models / "llm4gen" / "replaces.safetensors", 31, "mlp")
    error = refused(server, "replaces", **settings)
    assert "has the fusion 'mlp', which replaces CLIP's tokens" in error
