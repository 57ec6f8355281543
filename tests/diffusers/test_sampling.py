"""Generating images: noise prediction, seed, parts in place of the base's, equality with ComfyUI's sampler."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from small_painters import with_strength
from transformers import CLIPTextModel

from llm4gen_core import AdapterMetadata, LLM4GENError, UNetPart, load_adapter, save_adapter
from llm4gen_diffusers.families import load_family
from llm4gen_diffusers.machine import DTYPES
from llm4gen_diffusers.options import GenerationOptions, ModelFiles
from llm4gen_diffusers.sampling import Pipeline, add_unet_part
from llm4gen_diffusers.schedule import DDIMUniformScheduler, NoiseSchedule, unit_noise

SMALL = GenerationOptions(width=64, height=64, steps=4)


def host_sigmas():
    """Noise levels of SD1.5 in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas) / alphas).sqrt()


def host_timesteps(steps):
    """ComfyUI's rule in words: from timestep 1 on, every (1000 // steps)th, as long as there are any."""
    chosen, timestep = [], 1
    while timestep < 1000:
        chosen.append(timestep)
        timestep += max(1000 // steps, 1)
    return chosen[::-1]


def euler(model, prompt, negative, seed, steps, guidance, width, height):
    """ComfyUI's `ddim`: Euler's method from one sigma to the next, down to 0."""
    context = model.encode([prompt, negative])
    sigmas, timesteps = host_sigmas(), host_timesteps(steps)
    x = unit_noise(seed, (1, 4, height // 8, width // 8)).double()
    first = sigmas[timesteps[0]]
    x = x * ((1 + first**2).sqrt() if timesteps[0] == 999 else first)
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        sigma = sigmas[timestep]
        latents = (x / (1 + sigma**2).sqrt()).float()
        both = latents.repeat(2, 1, 1, 1)
        noise, noise_of_negative = model.predict_noise(both, timestep, context).double()
        noise = noise_of_negative + guidance * (noise - noise_of_negative)
        x = x + noise * ((0 if following is None else sigmas[following]) - sigma)
    return x.float()


@pytest.mark.parametrize(
    ("steps", "count", "first"), [(50, 50, 981), (20, 20, 951), (30, 31, 991), (7, 8, 995), (4, 4, 751)]
)
def test_timesteps_are_those_of_ddim_uniform(steps, count, first):
    scheduler = DDIMUniformScheduler.over(NoiseSchedule.stable_diffusion())
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == host_timesteps(steps)
    assert (len(scheduler.timesteps), scheduler.timesteps[0]) == (count, first)


@pytest.mark.parametrize(("steps", "guidance"), [(4, 7.5), (7, 5.0), (8, 1.0)])
def test_latents_equal_eulers_method_in_sigma_space(sd15, steps, guidance):
    options = GenerationOptions(negative="a dog", steps=steps, guidance=guidance, width=32, height=64)
    generated = sd15.generate("a red cat", options, seed=5, output="latents")
    expected = euler(sd15, "a red cat", "a dog", 5, steps, guidance, 32, 64)
    assert generated.shape == (1, 4, 8, 4)
    torch.testing.assert_close(generated, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("steps", [7, 50, 400])
def test_first_latents_are_those_of_comfyui(steps):
    """Noise at the level of the first timestep, but unit noise where that is the very last of training."""
    noise, first = torch.randn(1, 4, 8, 8), host_timesteps(steps)[0]
    sigma = host_sigmas()[first]
    started = noise * ((1 + sigma**2).sqrt() if first == 999 else sigma)
    latents = DDIMUniformScheduler.over(NoiseSchedule.stable_diffusion()).first_latents(noise, steps)
    assert (first == 999) == (steps == 400)
    torch.testing.assert_close(latents, (started / (1 + sigma**2).sqrt()).float(), rtol=1e-6, atol=1e-6)


def test_noise_is_one_draw_of_the_seed_for_the_whole_batch():
    torch.manual_seed(11)
    assert torch.equal(unit_noise(11, (3, 4, 8, 4)), torch.randn(3, 4, 8, 4))


def test_predicted_noise_equals_a_direct_call_of_the_unet(sd15, models):
    unet = UNet2DConditionModel.from_pretrained(models.base / "unet").eval()
    context, latents = sd15.encode(["a red cat", ""]), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = unet(latents, 501, encoder_hidden_states=context.hidden).sample
    assert torch.equal(sd15.predict_noise(latents, 501, context), expected)


def test_another_unet_takes_the_place_of_the_bases(models):
    """Also as the release has it, in a folder `unet` within the one that is given."""
    replaced = Pipeline.from_files(ModelFiles(base=models.base, unet=models.unet))
    within = Pipeline.from_files(ModelFiles(base=models.base, unet=models.unet.parent))
    expected = UNet2DConditionModel.from_pretrained(models.unet).state_dict()
    for model in (replaced, within):
        assert all(torch.equal(value, expected[name]) for name, value in model.family.unet.state_dict().items())


def test_images_have_the_size_and_range_that_were_asked_for(sd15):
    images = sd15.generate("a red cat", GenerationOptions(width=64, height=96, steps=2), batch=2)
    assert images.shape == (2, 3, 96, 64)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01


def test_the_same_seed_gives_the_same_image(sd15):
    assert torch.equal(sd15.generate("a cat", SMALL, seed=3), sd15.generate("a cat", SMALL, seed=3))


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"prompt": "a dog"}, {"options": SMALL.model_copy(update={"negative": "blue"})}]
)
def test_every_input_changes_the_image(sd15, change):
    settings = {"prompt": "a cat", "options": SMALL, "seed": 3}
    assert (sd15.generate(**settings) - sd15.generate(**{**settings, **change})).abs().max() > 1e-4


def test_strength_changes_the_image(sd15):
    weak = with_strength(sd15, 0.5)
    assert (sd15.generate("a cat", SMALL) - weak.generate("a cat", SMALL)).abs().max() > 1e-4


def test_the_first_image_of_a_batch_has_the_same_noise_as_a_single_one(sd15):
    batch = sd15.generate("a cat", SMALL, seed=3, batch=2)
    torch.testing.assert_close(batch[:1], sd15.generate("a cat", SMALL, seed=3), rtol=0, atol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 1e-2


def test_guidance_1_ignores_the_negative_prompt(sd15):
    dog, boat = (SMALL.model_copy(update={"guidance": 1.0, "negative": text}) for text in ("dog", "boat"))
    assert torch.equal(sd15.generate("a cat", dog), sd15.generate("a cat", boat))


def test_only_the_unet_computes_in_half_precision(sd15, models):
    """Latents, context and sampler stay in float32, as in ComfyUI."""
    half = Pipeline.from_files(ModelFiles(base=models.base, adapter=models.adapter, llm=models.llm, dtype="float16"))
    context, latents = sd15.encode(["a red cat", ""]), torch.randn(2, 4, 16, 16)
    exact, rounded = sd15.predict_noise(latents, 501, context), half.predict_noise(latents, 501, context)
    assert half.family.unet.dtype == torch.float16 and rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.01 * exact.abs().max()
    generated = half.generate("a cat", SMALL, output="latents")
    assert generated.dtype == torch.float32 and not torch.equal(generated, generated.half().float())


# Other families and predictions


@pytest.mark.parametrize("steps", [4, 7])
def test_sdxl_images_are_those_of_diffusers_pipeline(models, steps):
    """With ComfyUI's schedule in it. The pipeline counts text, sizes and the VAE together in its own way."""
    model = Pipeline.from_files(ModelFiles(base=models.sdxl))
    family = model.family
    pipeline = StableDiffusionXLPipeline(
        family.vae,
        *family.text_encoders,
        *family.tokenizers,
        family.unet,
        DDIMUniformScheduler.over(family.base.schedule),
    )
    pipeline.set_progress_bar_config(disable=True)
    options = GenerationOptions(negative="blue", steps=steps, guidance=5.0, width=64, height=96)
    generated = model.generate("a red cat", options, seed=3, batch=2)
    expected = pipeline(
        ["a red cat"] * 2,
        negative_prompt=["blue"] * 2,
        num_inference_steps=steps,
        guidance_scale=5.0,
        width=64,
        height=96,
        latents=pipeline.scheduler.first_latents(unit_noise(3, (2, 4, 12, 8)), steps),
        output_type="pt",
    ).images
    torch.testing.assert_close(generated, expected, rtol=0, atol=1e-5)


def test_sdxl_is_conditioned_on_pooled_text_and_sizes(models):
    model = Pipeline.from_files(ModelFiles(base=models.sdxl))
    context, latents = model.encode(["a red cat"]), torch.randn(1, 4, 8, 8)
    uncropped = torch.tensor([[64, 64, 0, 0, 64, 64]])
    usual = model.predict_noise(latents, 500, context)
    assert torch.equal(usual, model.predict_noise(latents, 500, context, uncropped))
    cropped = model.predict_noise(latents, 500, context, torch.tensor([[900, 700, 50, 9, 64, 64]]))
    other = type(context)(context.hidden, model.encode(["a dog"]).pooled)
    for changed in (cropped, model.predict_noise(latents, 500, other)):
        assert (usual - changed).abs().max() > 1e-4


def test_the_miniature_generates_images(models):
    pipeline = Pipeline.from_files(ModelFiles(base=models.miniature))
    images = pipeline.generate("a red circle", GenerationOptions(steps=2), batch=2)
    assert images.shape == (2, 3, 32, 32) and images.std() > 0.01


@pytest.fixture
def velocity(models, tmp_path):
    """The same SD1.5, declared to predict velocity."""
    base = shutil.copytree(models.base, tmp_path / "sd15")
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    return Pipeline.from_files(ModelFiles(base=base))


def test_velocity_gives_the_latents_of_eulers_method(velocity):
    options = GenerationOptions(negative="a dog", steps=7, guidance=5.0, width=32, height=64)
    generated = velocity.generate("a red cat", options, seed=5, output="latents")
    expected = euler(velocity, "a red cat", "a dog", 5, 7, 5.0, 32, 64)
    torch.testing.assert_close(generated, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_noise_of_a_velocity(velocity, plain):
    """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0, solved with x_t for the noise."""
    context, latents = plain.encode(["a cat", ""]), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([10, 900])
    v = plain.predict_noise(latents, timesteps, context)  # the same UNet
    noise = velocity.predict_noise(latents, timesteps, context)
    alpha_bar = plain.family.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    x_0 = (latents - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
    torch.testing.assert_close(alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0, v, rtol=1e-4, atol=1e-4)


# What an adapter and a run of training bring


def kv_part(unet):
    torch.manual_seed(0)
    names = [name for name, _ in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]
    return UNetPart("cross_attention_kv", {f"{n}.diff": torch.randn(unet.get_submodule(n).weight.shape) for n in names})


def lora_part(unet):
    torch.manual_seed(0)
    tensors = {}
    for name, layer in unet.named_modules():
        if name.endswith("attn2.to_q"):
            rows, columns = layer.weight.shape
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = (
                torch.randn(2, columns),
                torch.randn(rows, 2),
            )
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
    return UNetPart("lora", tensors)


@pytest.mark.parametrize("make", [kv_part, lora_part])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_the_adapter_stores_of_the_unet_is_added_to_it(models, plain, tmp_path, make, dtype):
    adapter, part = load_adapter(models.adapter), make(plain.family.unet)
    save_adapter(adapter.module, tmp_path / "a.safetensors", AdapterMetadata("sd15", None), part)
    model = Pipeline.from_files(
        ModelFiles(base=models.base, adapter=tmp_path / "a.safetensors", llm=models.llm, dtype=dtype)
    )
    base = load_family(None, models.base, parts=["unet"], unet_dtype=DTYPES[dtype]).unet.state_dict()
    deltas = {f"{name}.weight": delta for name, delta in part.deltas()}
    assert len(deltas) >= 3
    for name, weight in model.family.unet.state_dict().items():
        expected = (base[name].float() + deltas[name]).to(DTYPES[dtype]) if name in deltas else base[name]
        assert torch.equal(weight, expected)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ("down_blocks.7.attentions.0.transformer_blocks.0.attn2.to_q", "lacks it"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "has it as [32, 64]"),
    ],
)
def test_a_unet_part_that_does_not_fit_changes_nothing(models, layer, found):
    unet = load_family(None, models.base, parts=["unet"]).unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    wrong = {".lora_A.weight": torch.ones(2, 7), ".lora_B.weight": torch.ones(7, 2), ".alpha": torch.tensor(2.0)}
    part = UNetPart("lora", {**lora_part(unet).tensors, **{layer + name: tensor for name, tensor in wrong.items()}})
    with pytest.raises(LLM4GENError) as caught:
        add_unet_part(unet, part, "Adapter a")
    assert f"Adapter a changes the UNet's layer {layer} [7, 7], but this UNet {found}" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_a_fine_tuned_text_encoder_takes_the_place_of_the_bases(models, plain, tmp_path):
    clip = CLIPTextModel.from_pretrained(models.base / "text_encoder")
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    clip.save_pretrained(tmp_path / "clip")
    tuned = Pipeline.from_files(ModelFiles(base=models.base, clip=tmp_path / "clip"))
    found = tuned.encode(["a red cat"]).hidden
    assert torch.equal(found, type(plain)(with_text_encoder(plain.family, clip.eval())).encode(["a red cat"]).hidden)
    assert not torch.equal(found, plain.encode(["a red cat"]).hidden)


def with_text_encoder(family, clip):
    copy = type(family)(family.base)
    copy.tokenizers, copy.text_encoders = family.tokenizers, (clip,)
    return copy


def test_modules_in_training_generate_the_same_and_stay_in_training(models, sd15):
    """Some in evaluation mode, as frozen ones are, all with dropout; gradients and random numbers are left alone."""
    live = Pipeline.from_files(ModelFiles(base=models.base, adapter=models.adapter, llm=models.llm))
    unet, adapter = live.family.unet, live.adapter
    unet.train().requires_grad_(True)
    unet.mid_block.eval()
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    adapter.module.train()
    modes = [module.training for module in unet.modules()]
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    generated = live.generate("a cat", SMALL, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(generated, sd15.generate("a cat", SMALL, seed=3))
    assert [module.training for module in unet.modules()] == modes and adapter.module.training
    assert not unet._forward_hooks and not unet._forward_pre_hooks
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_the_mode_is_restored_after_an_error(models):
    live = Pipeline.from_files(ModelFiles(base=models.base))
    live.family.unet.train()
    with pytest.raises(RuntimeError):
        live.predict_noise(torch.randn(1, 5, 8, 8), 3, live.encode(["a cat"]))
    assert all(module.training for module in live.family.unet.modules())


def test_a_unet_frozen_in_half_precision_generates_while_parts_of_it_are_trained(models, plain):
    """Trained parts are in float32; on the way back nothing of the context stays."""
    live = Pipeline.from_files(ModelFiles(base=models.base, dtype="float16"))
    for name, layer in live.family.unet.named_modules():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            layer.float()
    context, latents = plain.encode(["a red cat", ""]), torch.randn(2, 4, 8, 8)
    exact, found = (model.predict_noise(latents, 501, context) for model in (plain, live))
    assert 0 < (exact - found).norm() < 0.01 * exact.norm()
    assert live.generate("a cat", SMALL).isfinite().all()
    assert not torch.is_autocast_enabled("cpu")


# Many prompts at once

LONG = "a cat " * 60  # two chunks of CLIP's tokens
PROMPTS = ["a red cat", LONG, "", "a blue dog on a chair", "a green boat"]
SEEDS = [3, 4, 3, 2**64 - 1, 0]


def alone(model, options):
    """Each of `PROMPTS` in a batch of its own."""
    return torch.cat([model.generate(prompt, options, seed=seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)])


@pytest.mark.parametrize("name", ["sd15", "plain", "sdxl"])
def test_prompts_in_a_batch_give_the_images_of_each_alone(models, request, name):
    """With an adapter, without, and with pooled text; a long prompt changes no other's image."""
    model = Pipeline.from_files(ModelFiles(base=models.sdxl)) if name == "sdxl" else request.getfixturevalue(name)
    options = GenerationOptions(negative="a dog", steps=2, guidance=3.0, width=64, height=32)
    if name == "sd15":
        model = with_strength(model, 0.7)
    together = model.generate_prompts(PROMPTS, options, seeds=SEEDS, batch=3)
    assert together.shape == (5, 3, 32, 64)
    torch.testing.assert_close(together, alone(model, options), rtol=0, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 1e-3, "the seed is not all there is"


@pytest.mark.parametrize(
    ("changes", "chunks"), [({"guidance": 1.0, "negative": LONG}, None), ({"negative": LONG}, None), ({}, 1), ({}, 2)]
)
def test_length_and_guidance_are_those_of_a_prompt_alone(plain, changes, chunks):
    options = GenerationOptions(steps=1, width=32, height=32, **changes)
    model = Pipeline(plain.family, chunks=chunks)
    together = model.generate_prompts(PROMPTS, options, seeds=SEEDS)
    torch.testing.assert_close(together, alone(model, options), rtol=0, atol=1e-4)


def test_one_chunk_cuts_a_prompt(plain):
    options, cutting = GenerationOptions(steps=1, width=32, height=32), Pipeline(plain.family, chunks=1)
    start = "a cat " * 37 + "a "  # 75 tokens
    assert torch.equal(cutting.generate(LONG, options), cutting.generate(start, options))
    assert not torch.equal(plain.generate(LONG, options), plain.generate(start, options))


def test_the_negative_prompt_is_encoded_once_and_the_unet_called_once_a_step_and_batch(plain, monkeypatch):
    encoded, called = [], []
    encode, predict = plain.encode, plain.family.predict
    monkeypatch.setattr(plain, "encode", lambda texts, *rest: (encoded.append(list(texts)), encode(texts, *rest))[1])
    monkeypatch.setattr(plain.family, "predict", lambda x, *rest: (called.append(len(x)), predict(x, *rest))[1])
    plain.generate_prompts(["a cat"] * 5, GenerationOptions(steps=2, width=16, height=16), seeds=range(5), batch=2)
    assert encoded == [[""], ["a cat"] * 2, ["a cat"] * 2, ["a cat"]]
    assert called == [4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize(
    ("prompts", "seeds", "batch", "message"),
    [
        ([], [], 1, "0 seeds for the prompts"),
        (["a"], [1, 2], 1, "2 seeds for the prompts"),
        ("ab", [1, 2], 1, "list of at least one text"),
        (["a"], [1], 0, "Batch is 0"),
    ],
)
def test_prompts_seeds_and_batches_that_cannot_be(plain, prompts, seeds, batch, message):
    with pytest.raises(LLM4GENError, match=message):
        plain.generate_prompts(prompts, seeds=seeds, batch=batch)
