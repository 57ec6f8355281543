"""The context of the UNet: CLIP in chunks, fused with the adapted LLM."""

import dataclasses

import pytest
import torch
from small_painters import with_strength
from transformers import AutoTokenizer, CLIPTextModel, T5Config, T5EncoderModel

from llm4gen_core import fuse, load_adapter, save_adapter
from llm4gen_diffusers.families.stable_diffusion import clip_tokens
from llm4gen_diffusers.options import ModelFiles
from llm4gen_diffusers.sampling import Pipeline

PROMPT = "a red cat and two black dogs on a chair"


@pytest.fixture(scope="session")
def clip(models):
    return CLIPTextModel.from_pretrained(models.base / "text_encoder").eval()


def reference_clip(clip, tokenizer, prompt):
    """Reference: transformers' own padding to 77."""
    ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return clip(ids).last_hidden_state


def reference_llm(models, prompt):
    """RankGen by hand: keys without their prefix, "pre " before the prompt, padded with 0 to 256, masked."""
    encoder = T5EncoderModel(T5Config.from_pretrained(models.llm)).eval()
    state = torch.load(models.llm / "pytorch_model.bin", weights_only=True)
    encoder.load_state_dict({k.removeprefix("t5_encoder."): v for k, v in state.items() if k != "projection.weight"})
    ids = AutoTokenizer.from_pretrained(models.llm)("pre " + prompt)["input_ids"]
    assert ids[-1] == 1
    mask = torch.tensor([[1] * len(ids) + [0] * (256 - len(ids))])
    with torch.no_grad():
        return encoder(torch.tensor([ids + [0] * (256 - len(ids))]), attention_mask=mask).last_hidden_state


def test_context_is_the_fusion_of_separately_computed_features(sd15, models, clip):
    text = reference_clip(clip, sd15.family.tokenizers[0], PROMPT)
    llm = reference_llm(models, PROMPT)
    with torch.no_grad():
        expected = fuse(text, load_adapter(models.adapter)(text, llm))
    context = sd15.encode([PROMPT]).hidden
    assert context.shape == (1, 77 + 256, 64)
    torch.testing.assert_close(context, expected, rtol=1e-5, atol=1e-5)


def test_the_context_depends_on_the_llms_words(sd15):
    red, blue = (sd15.encode([f"a {color} cat"]).hidden[:, 77:] for color in ("red", "blue"))
    assert (red - blue).abs().max() > 1e-2


def test_without_llm_the_context_is_clips(plain, clip):
    expected = reference_clip(clip, plain.family.tokenizers[0], PROMPT)
    torch.testing.assert_close(plain.encode([PROMPT]).hidden, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_is_encoded_prompt_by_prompt(sd15):
    prompts = [PROMPT, "", "a blue boat"]
    together = sd15.encode(prompts).hidden
    assert together.shape == (3, 77 + 256, 64)
    torch.testing.assert_close(together, torch.cat([sd15.encode([p]).hidden for p in prompts]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_every_75_tokens_make_a_chunk(plain, words, chunks):
    tokenizer = plain.family.tokenizers[0]
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    cat = tokenizer("cat", add_special_tokens=False)["input_ids"]
    made = clip_tokens(tokenizer, "cat " * words, 77).ids
    assert len(cat) == 1 and len(made) == chunks
    for i, chunk in enumerate(made):
        here = min(75, words - 75 * i)
        assert chunk == [start, *cat * here, end] + [end] * (75 - here)


def test_chunks_of_a_long_prompt_are_encoded_one_by_one(plain, clip):
    tokenizer = plain.family.tokenizers[0]
    context = plain.encode(["cat " * 75 + "blue dog"]).hidden
    parts = [reference_clip(clip, tokenizer, text) for text in ("cat " * 75, "blue dog")]
    torch.testing.assert_close(context, torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)


def test_a_short_side_is_filled_up_with_empty_chunks(plain, clip):
    long, short = plain.encode(["cat " * 160, "dog"]).hidden
    tokenizer = plain.family.tokenizers[0]
    parts = [reference_clip(clip, tokenizer, text) for text in ("dog", "", "")]
    torch.testing.assert_close(short, torch.cat(parts, dim=1)[0], rtol=1e-5, atol=1e-5)
    assert long.shape == short.shape == (3 * 77, 64)


def test_strength_scales_the_llms_tokens_only(sd15):
    full, half = (with_strength(sd15, strength).encode([PROMPT]).hidden for strength in (1.0, 0.5))
    assert torch.equal(half[:, :77], full[:, :77])
    torch.testing.assert_close(half[:, 77:], full[:, 77:] * 0.5)


def test_strength_0_is_plain_clip(sd15, plain):
    assert torch.equal(with_strength(sd15, 0.0).encode([PROMPT]).hidden, plain.encode([PROMPT]).hidden)


def test_strength_is_the_adapters_unless_it_is_given(models, tmp_path):
    adapter = load_adapter(models.adapter)
    metadata = dataclasses.replace(adapter.metadata, base_family="sd15", default_strength=0.25)
    save_adapter(adapter.module, tmp_path / "a.safetensors", metadata)
    gentle = Pipeline.from_files(ModelFiles(base=models.base, adapter=tmp_path / "a.safetensors", llm=models.llm))
    assert torch.equal(gentle.encode([PROMPT]).hidden, with_strength(gentle, 0.25).encode([PROMPT]).hidden)
