"""The prompt's syntax in both encoders: BREAK, and weights in parentheses, nested and escaped."""

from __future__ import annotations

import functools
import importlib
import json
from types import SimpleNamespace

import host_models
import pytest
import torch
from comfy_server import COMFYUI
from graphs import graph, separate

LONG = "word " * 100
"""Two chunks of CLIP."""


@pytest.fixture(scope="module")
def modules(pack):
    return {name: importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in ("conditioning", "host_llm")}


@pytest.fixture(scope="module")
def clip(comfy):
    """The host's CLIP-L with two of its twelve layers and random weights."""
    import comfy.sd
    import comfy.sd1_clip
    from comfy.supported_models_base import ClipTarget

    config = json.loads((COMFYUI / "comfy" / "sd1_clip_config.json").read_text(encoding="utf-8"))
    shallow = functools.partial(
        comfy.sd1_clip.SD1ClipModel,
        clip_model=comfy.sd1_clip.SDClipModel,
        textmodel_json_config={**config, "num_hidden_layers": 2},
        return_projected_pooled=False,
    )
    clip = comfy.sd.CLIP(ClipTarget(comfy.sd1_clip.SD1Tokenizer, shallow), model_options={"dtype": torch.float32})
    clip.cond_stage_model.load_state_dict(host_models.random_state(clip.cond_stage_model, 0))
    return clip


@pytest.fixture(scope="module")
def llm(modules, models):
    return modules["host_llm"].load_llm("rankgen.safetensors", {"dtype": torch.float32})


@pytest.fixture(scope="module")
def encode(modules, clip):
    """Function from the texts of both sides to (context, pooled output) of CLIP Encode."""

    @functools.cache
    def run(text, paired_text=""):
        ((context, options),) = modules["conditioning"].encode_clip(clip, text, paired_text)
        return context, options["pooled_output"]

    return run


@pytest.fixture(scope="module")
def stock(clip):
    """The same by the host alone."""

    @functools.cache
    def run(text):
        ((context, options),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return context, options["pooled_output"]

    return run


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_break_starts_a_new_chunk(encode, stock):
    """Equal to the host's Conditioning (Concat) of both parts: of one chunk, and of two."""
    for first, second in (("a red cat", "a (blue:1.3) dog"), (LONG, "a (blue:1.3) dog")):
        context, pooled = encode(f"{first} BREAK {second}")
        expected = torch.cat((stock(first)[0], stock(second)[0]), 1)
        assert context.shape == expected.shape
        assert error(context, expected) < 1e-5
        assert error(pooled, stock(first)[1]) < 1e-5
    assert error(context[:, :77], stock(second)[0]) > 0.1


def test_a_weight_applies_to_both_sides(encode, stock):
    context, _ = encode("a (red cat BREAK blue:1.3) dog")
    expected = torch.cat((stock("a (red cat:1.3)")[0], stock("(blue:1.3) dog")[0]), 1)
    assert error(context, expected) < 1e-5
    assert error(context, encode("a red cat BREAK blue dog")[0]) > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  a red cat,\n a dog ",
        r"a ((red:1.2) cat:0.9) \(with (escaped\) parentheses) and embedding:none (",
        "a tea-BREAK at 'BREAK' for BREAKFAST, break",
        LONG,
    ],
)
def test_without_break_clip_is_the_hosts(encode, stock, text):
    assert all(torch.equal(*pair) for pair in zip(encode(text), stock(text), strict=True))


@pytest.mark.parametrize("text", ["a (red:1.2) cat", r"((a:1.2) \(b:c\)) :d: e(f)g (h:-0.5)", "a (b (c:1.5)) d)("])
def test_parts_are_tokenized_like_separate_prompts(modules, clip, text):
    """Written out with every weight, a part has the very tokens and weights that it had."""
    first, second = modules["conditioning"]._parts(f"{text} BREAK x")
    assert second == "(x:1.0)" and first != text
    for found, expected in zip(clip.tokenize(first)["l"][0], clip.tokenize(text)["l"][0], strict=True):
        assert found[0] == expected[0] and found[1] == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("positive", "negative", "chunks"),
    [("a cat", "b BREAK u BREAK r", 3), (LONG + " BREAK b", "a cat BREAK a dog", 3)],
)
def test_both_sides_stay_equally_long(encode, stock, positive, negative, chunks):
    sides = encode(positive, negative)[0], encode(negative, positive)[0]
    assert sides[0].shape == sides[1].shape == (1, 77 * chunks, 768)
    for side, text in zip(sides, (positive, negative), strict=True):
        own = encode(text)[0].shape[1]
        for start in range(own, 77 * chunks, 77):
            assert error(side[:, start : start + 77], stock("")[0]) < 1e-5, "chunks of the empty prompt follow"


def test_both_of_sdxls_encoders_get_the_chunks(modules, comfy):
    from comfy.sdxl_clip import SDXLTokenizer

    tokenize = SDXLTokenizer().tokenize_with_weights
    sdxl = SimpleNamespace(tokenize=tokenize, encode_from_tokens_scheduled=lambda tokens, add_dict: tokens)
    tokens = modules["conditioning"].encode_clip(sdxl, "a cat BREAK a (dog:1.2)", "u BREAK v BREAK w")
    parts = [tokenize(text) for text in ("a cat", "a (dog:1.2)", "")]
    assert tokens == {name: [part[name][0] for part in parts] for name in ("g", "l")}


def test_empty_parts_start_no_chunk(encode, stock):
    context, _ = encode("BREAK a cat BREAK\nBREAK")
    assert context.shape == (1, 77, 768)
    assert error(context, stock("a cat")[0]) < 1e-5
    assert torch.equal(encode("BREAK")[0], stock("")[0])


# The LLM


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a red cat BREAK a dog", "pre a red cat a dog"),
        ("a cat,\nBREAK\n(a dog BREAK a bird:1.3)", "pre a cat, a dog a bird"),
        ("BREAK a cat BREAK", "pre a cat"),
        ("a sign that says 'BREAK'", "pre a sign that says 'BREAK'"),
    ],
)
def test_the_llm_ignores_break(modules, llm, text, read):
    ids = llm.tokenize(modules["conditioning"].without_breaks(text), llm.spec)["prompt"].ids
    assert llm.clip.tokenizer.tokenizer.decode(ids, skip_special_tokens=True) == read


def test_weights_of_the_llm_apply_to_both_sides(modules, llm):
    found = llm.tokenize(modules["conditioning"].without_breaks("a (red BREAK cat:1.3) dog"), llm.spec)["prompt"]
    assert found == llm.tokenize("a (red cat:1.3) dog", llm.spec)["prompt"]


@pytest.mark.parametrize("text", ["", "  a  (cat:1.2)\n", r"\(a\) (b", "tea-BREAK"])
def test_without_break_the_llms_text_is_unchanged(modules, text):
    assert modules["conditioning"].without_breaks(text) == text


def test_nested_weights_multiply_or_are_set_as_in_clip(llm, clip):
    """1.1 for each pair of parentheses; a number replaces those around it."""
    text = r"a ((red)) ((cat:1.5)) (and \(one\) dog)"
    tokens = llm.tokenize(text, llm.spec)["prompt"]
    pieces = llm.clip.tokenizer.tokenizer.convert_ids_to_tokens(tokens.ids)
    weight_of = dict(zip(pieces, tokens.weights, strict=True))
    expected = {"▁pre": 1.0, "▁red": 1.21, "▁cat": 1.5, "▁dog": 1.1, "</s>": 1.0}
    assert {piece: weight_of[piece] for piece in expected} == pytest.approx(expected)
    assert llm.clip.tokenizer.tokenizer.decode(tokens.ids, skip_special_tokens=True) == "pre a red cat and (one) dog"
    of_clip = {weight for _, weight in clip.tokenize(text)["l"][0]}
    assert sorted(of_clip) == pytest.approx(sorted({1.21, 1.5, 1.1, 1.0}))


# On the server


def test_text_encode_and_the_separate_nodes_agree(server, tmp_path):
    """Both nodes with the same BREAKs; the LLM's tokens see both of CLIP's chunks, and no cut is reported."""
    texts = {"positive": "a (red:1.2) cat BREAK a blue dog", "negative": "blurry"}
    saved = []
    for number, build in enumerate((lambda nodes: nodes, separate)):
        paths = {f"{side}_path": tmp_path / f"{side}{number}.pt" for side in texts}
        nodes = build(graph(**texts, **paths, model=tmp_path / f"{number}.pt"))
        nodes["sampler"]["inputs"]["steps"] = 1
        result, said = server.run_and_listen(nodes)
        assert result.error is None, result.error
        saved.append([torch.load(path, weights_only=True)[0][0] for path in paths.values()])
        assert len(torch.load(tmp_path / f"{number}.pt", weights_only=True)) == 1, "one UNet call a step"
    assert all(context.shape == (1, 2 * 77 + 256, 768) for context in saved[0])
    assert all(torch.equal(*pair) for pair in zip(*saved, strict=True))
    # pre, ▁, a, red, cat, ▁, a, blue, dog, end
    assert said["llm_positive"] == "10 of 256 LLM tokens"


def test_the_host_treats_break_as_text():
    """Reason for the pack's own BREAK: if a host adds BREAK, use the host's."""
    for name in ("comfy/sd1_clip.py", "comfy/sdxl_clip.py", "nodes.py"):
        assert "BREAK" not in (COMFYUI / name).read_text(encoding="utf-8")
