"""Language models beside T5: as single files that the host reads, on a CLIP wire, and as Hugging Face folders."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
import transformers
from host_models import T5_CONFIG, random_state
from safetensors.torch import save_file

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1}
PROMPT = "a red cube on a blue sphere"
MASK_LENGTH = 40


def rope(theta):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


KINDS = {
    # host's name of the encoder, transformers' configuration, what else of the host's configuration is made small
    "llama": (
        "llama",
        transformers.LlamaConfig(
            **SIZES, **ATTENTION, head_dim=128, vocab_size=128256, rms_norm_eps=1e-5, **rope(500000.0)
        ),
        {"num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "qwen2": (
        "qwen25_3b",
        transformers.Qwen2Config(
            **{**SIZES, "hidden_size": 512},
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=151936,
            rms_norm_eps=1e-6,
            **rope(1e6),
        ),
        {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 512},
    ),
    "gemma2": (
        "gemma2_2b",
        # ComfyUI leaves out the soft limit of Gemma 2's attention, which matters to large logits alone.
        transformers.Gemma2Config(
            **SIZES,
            **ATTENTION,
            head_dim=256,
            query_pre_attn_scalar=256,
            vocab_size=300,
            attn_logit_softcapping=None,
            **rope(10000.0),
        ),
        {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300},
    ),
    "gemma3_text": (
        "gemma3_4b",
        transformers.Gemma3TextConfig(
            **{**SIZES, "num_hidden_layers": 6},
            **ATTENTION,
            head_dim=256,
            query_pre_attn_scalar=256,
            vocab_size=300,
            sliding_window=1024,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "num_hidden_layers": 6},
    ),
}


@pytest.fixture(scope="module")
def host_llm(pack, models):
    return importlib.import_module(f"{pack.__name__}.nodes.host_llm")


@pytest.fixture(scope="module")
def spiece():
    """A small SentencePiece model of Gemma's kind."""
    import io

    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT, "a small green cat sits on the table"] * 50),
        model_writer=file,
        vocab_size=280,
        byte_fallback=True,
        hard_vocab_limit=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, models, spiece, small_llama_tokenizer):
    """(transformers' name, the file's name, options that make the host's model small, transformers' own model)."""
    encoder, config, small = KINDS[request.param]
    with torch.device("meta"):
        twin = transformers.AutoModel.from_config(config)
    state = random_state(twin, 5)
    if request.param.startswith("gemma"):  # these norms count from one
        state = {n: t - 1 if t.ndim == 1 and "norm" in n else t for n, t in state.items()}
    twin.load_state_dict(state, assign=True)
    twin = transformers.AutoModel.from_config(config)  # with its rotary frequencies, which meta does not make
    twin.load_state_dict(state)
    file = {f"model.{name}": tensor for name, tensor in state.items()}
    if request.param.startswith("gemma"):
        file["spiece_model"] = spiece
    name = f"{request.param}.safetensors"
    save_file(file, models / "text_encoders" / name)
    return request.param, name, {f"{encoder}_model_config": {**SIZES, **small}}, twin.eval()


@pytest.fixture(scope="module")
def llm(host_llm, kind):
    return host_llm.load_llm(kind[1], {"dtype": torch.float32, **kind[2]})


def states(twin, tokens):
    with torch.no_grad():
        return twin(
            input_ids=torch.tensor([tokens.ids]),
            attention_mask=torch.tensor([tokens.mask]),
            output_hidden_states=True,
        ).hidden_states


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("layer", ["last", "mean", 0, -2, 1])
def test_a_single_file_equals_transformers(llm, kind, layer):
    spec = replace(llm.spec, max_length=MASK_LENGTH, layer=layer)
    tokens = llm.tokenize(PROMPT, spec)["prompt"]
    assert 0 < sum(tokens.mask) < MASK_LENGTH
    of_twin = states(kind[3], tokens)
    if layer == "mean":
        expected = torch.stack([torch.nn.functional.layer_norm(s, s.shape[-1:]) for s in of_twin[1:]]).mean(0)
    else:
        expected = of_twin[-1 if layer == "last" else layer]
    found = llm.encode(PROMPT, spec).hidden
    assert found.shape == (1, MASK_LENGTH, kind[3].config.hidden_size)
    assert error(found, expected) < 1e-5


def test_label(llm, kind):
    config = kind[3].config
    assert (llm.spec.architecture, llm.spec.layers, llm.spec.width) == (
        kind[0],
        config.num_hidden_layers,
        config.hidden_size,
    )
    assert llm.description.endswith("as ComfyUI reads it")


def test_another_precision_is_applied(host_llm, kind):
    llm = host_llm.load_llm(kind[1], {"dtype": torch.bfloat16, **kind[2]})
    precisions = {p.dtype for n, p in llm.clip.patcher.model.named_parameters() if "logit_scale" not in n}
    assert precisions == {torch.bfloat16}


def test_a_file_that_lacks_tensors_is_refused(host_llm, kind, models, pack):
    from safetensors.torch import load_file

    state = load_file(models / "text_encoders" / kind[1])
    missing = state.pop("model.layers.1.mlp.up_proj.weight")
    assert missing is not None
    save_file(state, models / "text_encoders" / "broken-llm.safetensors")
    with pytest.raises(Exception, match=r"lacks 1 of its tensors \(model.layers.1.mlp.up_proj.weight"):
        host_llm.load_llm("broken-llm.safetensors", {"dtype": torch.float32, **kind[2]})


def test_weights_reach_the_tokens_of_their_word(llm, kind):
    spec = replace(llm.spec, max_length=MASK_LENGTH)
    plain = llm.tokenize(PROMPT, spec)["prompt"]
    weighted = llm.tokenize("a red (cube:1.3) on a blue sphere", spec)["prompt"]
    assert weighted.ids == plain.ids
    tokenizer = llm.clip.tokenizer.tokenizer
    chosen = [token for token, weight in zip(weighted.ids, weighted.weights, strict=True) if weight != 1]
    while not hasattr(tokenizer, "decode"):
        tokenizer = tokenizer.tokenizer
    assert tokenizer.decode(chosen).strip() == "cube"
    assert {*weighted.weights} == {1.0, 1.3}


def test_padding_on_the_left_is_refused(llm):
    with pytest.raises(Exception, match=r"pads prompts on the left.*Hugging Face folder"):
        llm.encode(PROMPT, replace(llm.spec, max_length=MASK_LENGTH, padding_side="left"))


def test_the_empty_prompt_has_a_token(llm):
    tokens = llm.tokenize("", replace(llm.spec, max_length=MASK_LENGTH))["prompt"]
    assert sum(tokens.mask) == 1 and llm.encode("", llm.spec).hidden.isfinite().all()


@pytest.fixture(scope="module")
def core(pack):
    return importlib.import_module(f"{pack.__name__}.llm4gen_core")


def loaded(kind, models):
    """The host's own Load CLIP, with the sizes made small."""
    import comfy.sd
    import comfy.utils

    state = comfy.utils.load_torch_file(str(models / "text_encoders" / kind[1]))
    return comfy.sd.load_text_encoder_state_dicts([state], model_options={"dtype": torch.float32, **kind[2]})


def test_a_clip_input_is_used_and_not_changed(host_llm, llm, kind, models):
    clip = loaded(kind, models)
    before = (clip.cond_stage_model, clip.tokenizer, clip.layer_idx)
    wired = host_llm.wired_llm(clip)
    assert wired.spec == llm.spec
    spec = replace(llm.spec, max_length=MASK_LENGTH, layer=-2)
    assert torch.equal(wired.encode(PROMPT, spec).hidden, llm.encode(PROMPT, spec).hidden)
    assert before == (clip.cond_stage_model, clip.tokenizer, clip.layer_idx)
    assert wired.clip.patcher.model is clip.patcher.model  # one set of weights, managed once


def test_a_t5_in_a_clip_input_equals_its_file(host_llm, models, comfy):
    """A T5-XXL for PixArt from Load CLIP, with the sizes of the small T5 of these tests."""
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.pixart_t5 as pixart

    native = host_llm.load_llm("rankgen.safetensors", {"dtype": torch.float32})
    encoder = native.clip.cond_stage_model.text_encoder.transformer
    small = {"t5xxl_model_config": {**T5_CONFIG, "is_gated_act": True, "dense_act_fn": "gelu_pytorch_tanh"}}
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(pixart.PixArtTokenizer, pixart.pixart_te()),
        model_options={"dtype": torch.float32, **small},
    )
    clip.cond_stage_model.t5xxl.transformer.load_state_dict(encoder.state_dict())
    wired = host_llm.wired_llm(clip)
    assert (wired.spec.architecture, wired.spec.layers, wired.spec.width) == ("t5", 3, 64)
    for layer in ("last", -2):
        spec = replace(native.spec, layer=layer)
        assert torch.equal(wired.encode(PROMPT, spec).hidden, native.encode(PROMPT, spec).hidden)


def test_an_llm_input_is_used_unchanged(host_llm, llm):
    assert host_llm.wired_llm(llm) is llm


def test_a_clip_without_language_model_is_refused(host_llm, models, comfy):
    import comfy.sd

    clip = comfy.sd.load_checkpoint_guess_config(
        str(models / "checkpoints" / "sd15.safetensors"), output_vae=False, output_model=False
    )[1]
    with pytest.raises(Exception, match=r"the wired CLIP holds no supported language model, but CLIPText"):
        host_llm.wired_llm(clip)


def test_a_decoder_of_another_size_is_refused(host_llm, models):
    """The host takes the file for Llama 3; only its folder has its configuration."""
    config = transformers.LlamaConfig(**SIZES, **ATTENTION, head_dim=32, vocab_size=32000)
    with torch.device("meta"):
        other = transformers.AutoModel.from_config(config)
    state = {f"model.{name}": tensor for name, tensor in random_state(other, 1).items()}
    save_file(state, models / "text_encoders" / "llama-2.safetensors")
    small = {"llama_model_config": {**SIZES, **ATTENTION}}
    with pytest.raises(Exception, match=r"its tensors have other sizes \(size mismatch.*Hugging Face folder"):
        host_llm.load_llm("llama-2.safetensors", {"dtype": torch.float32, **small})
