"""The families behind their one interface: text, offsets, latents, predictions, and what is loaded when."""

import json
import shutil
import unicodedata

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from llm4gen_core import LLM4GENError
from llm4gen_diffusers.families import FAMILIES, SD15, SDXL, Miniature, family_class, load_family
from llm4gen_diffusers.schedule import NoiseSchedule, rescale_zero_terminal_snr

PROMPT = "a red cat and two black dogs on a chair"
UNICODE = "A  RED\tcat, İstanbul e\u0301té 猫 👩\u200d🚀 ﬁx <|endoftext|> 3x10,000 it's tail"


@pytest.fixture(scope="session")
def families(models):
    return {name: load_family(name, getattr(models, folder)) for name, folder in FOLDERS.items()}


FOLDERS = {"sd15": "base", "sdxl": "sdxl", "miniature": "miniature"}
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [("sd15", SD15, (64, 4, 8, 512)), ("sdxl", SDXL, (192, 4, 8, 1024)), ("miniature", Miniature, (64, 12, 2, 32))],
)
def test_a_base_tells_its_family_and_sizes(models, name, kind, sizes):
    folder = getattr(models, FOLDERS[name])
    assert family_class(None, folder) is family_class(name, folder) is kind
    family = kind.open(folder)
    assert (family.d_text, family.latent_channels, family.pixels_per_latent, family.native_size) == sizes
    assert family.prediction_type == "epsilon" and family.alphas_cumprod.shape == (1000,)


def test_sizes_and_schedule_need_no_weights(models, tmp_path):
    base = shutil.copytree(models.base, tmp_path / "sd15", ignore=shutil.ignore_patterns("*.safetensors"))
    assert SD15.open(base).d_text == 64


@every_family
def test_only_the_parts_asked_for_are_loaded(models, name):
    folder = getattr(models, FOLDERS[name])
    vae, text = (load_family(name, folder, parts=[part]) for part in ("vae", "text"))
    assert hasattr(vae, "vae") and not hasattr(vae, "unet") and not hasattr(vae, "text_encoders")
    assert text.text_encoders and text.tokenizers and not hasattr(text, "unet") and not hasattr(text, "vae")


def test_a_part_that_does_not_exist(models):
    with pytest.raises(LLM4GENError, match="'clip'"):
        load_family("sd15", models.base, parts=["clip"])


@every_family
def test_modules_are_frozen_and_in_evaluation_mode(families, name):
    family = families[name]
    for module in (family.unet, family.vae, *family.text_encoders):
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_a_folder_in_half_precision_only(models, tmp_path):
    """Named with the variant, as most SDXL folders are."""
    base = shutil.copytree(models.sdxl, tmp_path / "sdxl")
    for file in base.rglob("*.safetensors"):
        save_file({n: t.half() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
        file.rename(file.with_suffix(".fp16.safetensors"))
    family = load_family(None, base, vae_dtype=torch.float32, unet_dtype=torch.float16)
    assert family.unet.dtype == torch.float16 and family.vae.dtype == family.text_encoders[1].dtype == torch.float32
    assert family.unet.conv_in.weight.std() > 0


# Text


def test_sdxls_text_is_that_of_diffusers_pipeline(families):
    """Both encoders, the layer that is read, the padding of each, and pooled."""
    family = families["sdxl"]
    pipeline = StableDiffusionXLPipeline(
        family.vae, *family.text_encoders, *family.tokenizers, family.unet, scheduler=None
    )
    with torch.no_grad():
        expected, _, pooled, _ = pipeline.encode_prompt([PROMPT, "blue"], do_classifier_free_guidance=False)
        text = family.encode_text([PROMPT, "blue"])
    assert torch.equal(text.hidden, expected) and torch.equal(text.pooled, pooled)
    assert family.tokenizers[1].pad_token_id == 0 != family.tokenizers[0].pad_token_id


@every_family
def test_a_long_prompt_is_encoded_chunk_by_chunk(families, name):
    """And only its first chunk is pooled, as in ComfyUI."""
    with torch.no_grad():
        text = families[name].encode_text(["cat " * 75 + PROMPT])
        parts = [families[name].encode_text([part]) for part in ("cat " * 75, PROMPT)]
    torch.testing.assert_close(text.hidden, torch.cat([part.hidden for part in parts], dim=1), rtol=1e-5, atol=1e-5)
    if text.pooled is not None:
        torch.testing.assert_close(text.pooled, parts[0].pooled, rtol=1e-5, atol=1e-5)


@every_family
def test_a_fixed_number_of_chunks_cuts_and_fills(families, name):
    family = families[name]
    with torch.no_grad():
        cut = family.encode_text(["cat " * 100], chunks=1)
        filled = family.encode_text([PROMPT], chunks=2)
        one, empty, all_of_it = (family.encode_text([text]) for text in (PROMPT, "", "cat " * 100))
    assert cut.hidden.shape == (1, 77, family.d_text)
    torch.testing.assert_close(cut.hidden, all_of_it.hidden[:, :77], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(filled.hidden, torch.cat([one.hidden, empty.hidden], dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [0, -1])
def test_no_chunks_at_all(families, chunks):
    with pytest.raises(LLM4GENError, match="expected a whole number of at least 1"):
        families["sd15"].encode_text(["a cat"], chunks=chunks)


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_prompts_that_are_no_list_of_texts(families, prompts):
    with pytest.raises(LLM4GENError, match="expected a list of at least one text"):
        families["sd15"].encode_text(prompts)


@every_family
def test_gradients_reach_every_used_parameter_of_the_text_encoders(families, name):
    family = families[name]
    for encoder in family.text_encoders:
        encoder.requires_grad_(True)
    try:
        text = family.encode_text([PROMPT])
        (text.hidden.square().sum() + (0 if text.pooled is None else text.pooled.square().sum())).backward()
        for encoder in family.text_encoders:
            without = {n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().any()}
            expected = set()
            if name == "sdxl" and encoder is family.text_encoders[0]:  # its last block and norm are not read
                expected = {n for n, _ in encoder.named_parameters() if "layers.2." in n or "final_layer_norm" in n}
            # a bias of the keys shifts every logit alike
            assert {n for n in without if not n.endswith("k_proj.bias")} == {
                n for n in expected if not n.endswith("k_proj.bias")
            }
    finally:
        for encoder in family.text_encoders:
            encoder.requires_grad_(False).zero_grad()


@pytest.mark.parametrize(
    "text", [PROMPT, UNICODE, "cat " * 80 + UNICODE, "\u1112\u1161\u11ab\u1112 a\u0308\u0301 x", "", " \n "]
)
def test_offsets_name_the_characters_of_every_token(families, text):
    """The characters, normalised as by CLIP, contain the text of the token, and all but white space is covered."""
    offsets, tokenizer = families["sd15"].text_offsets(text), families["sd15"].tokenizers[0]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert len(offsets) == 77 * max(1, -(-len(ids) // 75))
    inside = [pair for i, pair in enumerate(offsets) if 0 < i % 77 < 76 and i // 77 * 75 + i % 77 - 1 < len(ids)]
    assert [pair for pair in offsets if pair != (0, 0)] == inside and len(inside) == len(ids)
    for token, (start, end) in zip(tokenizer.convert_ids_to_tokens(ids), inside, strict=True):
        letters = unicodedata.normalize("NFC", text[start:end]).lower()
        spelled = "".join(piece for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(letters))
        assert token.removesuffix("</w>") in spelled, (token, text[start:end])
    named = {place for start, end in inside for place in range(start, end)}
    assert {place for place, letter in enumerate(text) if not letter.isspace()} == named


def test_offsets_are_cut_and_filled_as_the_text_is(families):
    family = families["sd15"]
    whole = family.text_offsets("cat " * 100)
    assert len(whole) == 154 and whole[1] == (0, 3) and whole[78] == (300, 303)
    assert family.text_offsets("cat " * 100, chunks=1) == whole[:77]
    assert family.text_offsets("cat", chunks=2) == [(0, 0), (0, 3)] + [(0, 0)] * 152


def test_case_and_white_space_do_not_move_offsets(families):
    text = "A  RED\t\n cat"
    places = [text[start:end] for start, end in families["sd15"].text_offsets(text) if end]
    assert places == ["A", "RED", "cat"]


# Images


@pytest.mark.parametrize(("name", "scale"), [("sd15", 0.18215), ("sdxl", 0.13025)])
def test_latents_are_the_vaes_in_the_unets_scale(families, models, name, scale):
    vae = AutoencoderKL.from_pretrained(getattr(models, FOLDERS[name]) / "vae")
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, std = families[name].encode_images(images)
    with torch.no_grad():
        distribution = vae.encode(images).latent_dist
        expected = vae.decode(mean[:1] / scale).sample / 2 + 0.5
    torch.testing.assert_close(mean, distribution.mean * scale)
    torch.testing.assert_close(std, distribution.std * scale)
    torch.testing.assert_close(families[name].decode_latents(mean)[:1], expected.clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_a_vae_with_a_shift(models, tmp_path):
    base = shutil.copytree(models.sdxl, tmp_path / "sdxl")
    config = base / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0.5}))
    plain, shifted = (load_family(None, path, parts=["vae"]) for path in (models.sdxl, base))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    mean, std = shifted.encode_images(images)
    torch.testing.assert_close(mean, plain.encode_images(images)[0] - 0.5 * 0.13025)
    assert torch.equal(std, plain.encode_images(images)[1])
    torch.testing.assert_close(shifted.decode_latents(mean), plain.decode_latents(plain.encode_images(images)[0]))


def test_the_miniatures_latents_lose_nothing(families):
    images = torch.rand(2, 3, 16, 24)
    mean, std = families["miniature"].encode_images(images * 2 - 1)
    assert mean.shape == (2, 12, 8, 12) and not std.any()
    torch.testing.assert_close(families["miniature"].decode_latents(mean), images)


# The UNet


@every_family
def test_a_prediction_is_the_unets_own(families, models, name):
    family = families[name]
    unet = UNet2DConditionModel.from_pretrained(getattr(models, FOLDERS[name]) / "unet").eval()
    with torch.no_grad():
        text = family.encode_text([PROMPT, "a dog"])
        latents, timesteps = torch.randn(2, family.latent_channels, 8, 8), torch.tensor([5, 700])
        sizes = torch.tensor([[600, 500, 10, 0, 512, 512], [64, 64, 0, 0, 64, 64]])
        added = {"text_embeds": text.pooled, "time_ids": sizes} if name == "sdxl" else None
        expected = unet(latents, timesteps, encoder_hidden_states=text.hidden, added_cond_kwargs=added).sample
        found = family.predict(latents, timesteps, text.hidden, text.pooled, sizes)
    assert torch.equal(found, expected)


@every_family
def test_a_unet_in_half_precision_predicts_in_float32(models, name):
    folder = getattr(models, FOLDERS[name])
    full, half = (load_family(name, folder, unet_dtype=dtype) for dtype in (torch.float32, torch.float16))
    with torch.no_grad():
        text = full.encode_text([PROMPT])
        latents = torch.randn(1, full.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        inputs = (latents, 500, text.hidden, text.pooled, torch.tensor([[1500, 1027, 3, 0, 1024, 1024]]))
        exact, rounded = full.predict(*inputs), half.predict(*inputs)
    assert half.unet.dtype == torch.float16 and rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.1 * exact.abs().max()


@every_family
def test_gradients_flow_through_a_prediction_into_context_and_unet(families, name):
    family = families[name]
    context = torch.randn(1, 9, family.d_text, requires_grad=True)
    pooled, sizes = torch.randn(1, 128), torch.ones(1, 6)
    family.unet.requires_grad_(True)
    try:
        family.predict(
            torch.randn(1, family.latent_channels, 8, 8), 500, context, pooled, sizes
        ).square().sum().backward()
        assert context.grad.abs().max() > 0 and family.unet.conv_in.weight.grad.abs().max() > 0
    finally:
        family.unet.requires_grad_(False).zero_grad()


@pytest.mark.parametrize(
    ("pooled", "sizes", "message"),
    [
        (None, torch.ones(1, 6), "needs pooled"),
        (torch.randn(1, 128), None, "needs sizes"),
        (torch.randn(1, 128), torch.ones(6), "sizes has shape [6]; expected [1, 6]"),
    ],
)
def test_sdxl_without_its_conditions(families, pooled, sizes, message):
    with pytest.raises(LLM4GENError) as caught:
        families["sdxl"].predict(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 9, 192), pooled, sizes)
    assert message in str(caught.value)


# The noise schedule


def test_zero_terminal_snr_keeps_the_first_noise_level_and_ends_in_pure_noise():
    alphas = NoiseSchedule.stable_diffusion().alphas_cumprod
    rescaled = rescale_zero_terminal_snr(alphas)
    torch.testing.assert_close(rescaled[0], alphas[0])
    assert rescaled[-1] == 0 and (rescaled.diff() < 0).all()


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.stable_diffusion(),
        NoiseSchedule.stable_diffusion("v_prediction", zero_terminal_snr=True),
        NoiseSchedule(0.0001, 0.02, "linear", "v_prediction"),
    ],
    ids=str,
)
def test_a_schedule_is_told_to_diffusers_and_read_back(schedule):
    theirs = schedule.to_diffusers()
    assert NoiseSchedule.from_config(json.loads(theirs.to_json_string()), "it") == schedule
    torch.testing.assert_close(theirs.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-3, atol=1e-5)


def test_the_schedule_beside_a_unet_takes_the_place_of_the_bases(models, tmp_path):
    unet = shutil.copytree(models.base / "unet", tmp_path / "unet")
    assert SD15.open(models.base, unet=unet).prediction_type == "epsilon", "there is none"
    velocity = NoiseSchedule.stable_diffusion("v_prediction")
    velocity.to_diffusers().save_pretrained(tmp_path / "scheduler")
    for path in (unet, tmp_path):
        assert SD15.open(models.base, unet=path).base.schedule == velocity
    shutil.copytree(unet, tmp_path / "another")  # the scheduler is not said to be that of every folder beside it
    assert SD15.open(models.base, unet=tmp_path / "another").prediction_type == "epsilon"
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(LLM4GENError, match=r"Scheduler .*scheduler_config\.json is not valid JSON"):
        SD15.open(models.base, unet=unet)


def test_a_schedule_is_that_of_the_bases_file(models, tmp_path):
    config = json.loads((models.base / "scheduler" / "scheduler_config.json").read_text())
    usual = NoiseSchedule.from_config(config, "it")
    assert torch.equal(usual.alphas_cumprod, NoiseSchedule.stable_diffusion().alphas_cumprod)
    linear = NoiseSchedule.from_config({**config, "beta_schedule": "linear"}, "it").alphas_cumprod
    expected = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0).float()
    torch.testing.assert_close(linear, expected)
    assert NoiseSchedule.from_config({**config, "rescale_betas_zero_snr": True}, "it").alphas_cumprod[-1] == 0
