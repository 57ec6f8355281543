"""Where prompt, seed and image of a workflow are."""

from __future__ import annotations

import pytest
from fake_comfyui import KINDS, changed, plain, prompts

from evaluation.comfyui.graph import Graph
from evaluation.comfyui.places import find_image, find_seeds, find_texts
from llm4gen_core import LLM4GENError


def read(nodes):
    graph = Graph(nodes, KINDS.get)
    return graph, find_image(graph)


def texts(nodes, side="positive", given=()):
    graph, image = read(nodes)
    return [str(place) for place in find_texts(graph, image, side, given)]


def seeds(nodes, given=()):
    graph, image = read(nodes)
    return [str(place) for place in find_seeds(graph, image, given)]


def text_encode():
    text = {"clip": ["1", 1], "llm": ["9", 0], "positive": "good", "negative": "bad", "strength": 1.0}
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["8", 1]},
        n8=("LLM4GENTextEncode", text),
        n9=("LLMLoader", {"llm_name": "t5/"}),
    )


def fused():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["3", 0]},
        n8=("LLM4GENFuse", {"conditioning": ["10", 0], "llm_features": ["11", 0]}),
        n9=("LLMLoader", {"llm_name": "t5/"}),
        n10=("LLM4GENEncodeCLIP", {"clip": ["1", 1], "text": "short", "paired_text": ["12", 0]}),
        n11=("LLM4GENEncodeLLM", {"llm": ["9", 0], "text": "long and dense"}),
        n12=("PrimitiveString", {"value": "ugly"}),
    )


def sdxl():
    return changed(
        {"5.positive": ["8", 0]},
        n8=("CLIPTextEncodeSDXL", {"clip": ["1", 1], "width": 1024, "text_g": "a scene", "text_l": "a style"}),
    )


def control_net():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["8", 1]},
        n8=("ControlNetApplyAdvanced", {"positive": ["2", 0], "negative": ["3", 0], "image": ["9", 0]}),
        n9=("LoadImage", {"image": "a.png"}),
    )


def both_sides():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["8", 1]}, n8=("BothSides", {"text": "good", "negative_text": "bad"})
    )


def negative_on_a_detour():
    """A node on the negative side whose input does not say which side it is on."""
    return changed({"5.negative": ["8", 0]}, n8=("FluxGuidance", {"conditioning": ["3", 0], "guidance": 3.5}))


def flux():
    nodes = plain()
    del nodes["3"]
    nodes["5"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["8", 0], "guider": ["9", 0], "latent_image": ["4", 0]},
    }
    nodes["8"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}}
    nodes["9"] = {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["10", 0]}}
    nodes["10"] = {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "guidance": 3.5}}
    return nodes


def edit():
    """Guidance with two conditions, of which one is the negative prompt with an image."""
    nodes = flux()
    nodes["3"] = plain()["3"]
    nodes["9"] = {"class_type": "DualCFGGuider", "inputs": {"cond1": ["2", 0], "cond2": ["3", 0], "negative": ["3", 0]}}
    return nodes


def other_types():
    nodes = plain()
    del nodes["2"], nodes["3"], nodes["4"]
    nodes["5"] = {"class_type": "OtherSampler", "inputs": {"embeds": ["8", 0], "seed": 1}}
    nodes["8"] = {"class_type": "OtherEncoder", "inputs": {"prompt": "good", "negative_prompt": "bad"}}
    return nodes


def two_samplers():
    """Base and refiner, each with an encoder of its own, one string for both."""
    return changed(
        {"2.text": ["9", 0], "5.latent_image": ["8", 0]},
        n8=(
            "KSamplerAdvanced",
            {
                "model": ["1", 0],
                "positive": ["10", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "noise_seed": ["11", 0],
            },
        ),
        n9=("PrimitiveString", {"value": "one text"}),
        n10=("CLIPTextEncode", {"text": ["9", 0], "clip": ["1", 1]}),
        n11=("PrimitiveInt", {"value": 5}),
    )


@pytest.mark.parametrize(
    ("nodes", "positive", "negative", "seed"),
    [
        (plain, ["2.text"], ["3.text"], ["5.seed"]),
        (text_encode, ["8.positive"], ["8.negative"], ["5.seed"]),
        (fused, ["10.text", "11.text"], ["3.text"], ["5.seed"]),
        (sdxl, ["8.text_g", "8.text_l"], ["3.text"], ["5.seed"]),
        (control_net, ["2.text"], ["3.text"], ["5.seed"]),
        (both_sides, ["8.text"], ["8.negative_text"], ["5.seed"]),
        (negative_on_a_detour, ["2.text"], ["3.text"], ["5.seed"]),
        (flux, ["2.text"], None, ["8.noise_seed"]),
        (edit, ["2.text"], ["3.text"], ["8.noise_seed"]),
        (other_types, ["8.prompt"], ["8.negative_prompt"], ["5.seed"]),
        (two_samplers, ["9.value"], ["3.text"], ["11.value", "5.seed"]),
    ],
)
def test_prompt_and_seed_are_found(nodes, positive, negative, seed):
    assert texts(nodes()) == positive
    if negative is not None:
        assert texts(nodes(), "negative") == negative
    assert seeds(nodes()) == seed


def test_equal_texts_are_one_prompt_and_others_are_listed():
    combined = changed(
        {"5.positive": ["8", 0]},
        n8=("ConditioningCombine", {"conditioning_1": ["2", 0], "conditioning_2": ["9", 0]}),
        n9=("CLIPTextEncode", {"text": "old text", "clip": ["1", 1]}),
    )
    assert texts(combined) == ["2.text", "9.text"]
    combined["9"]["inputs"]["text"] = "another region"
    message = (
        r"several texts that may be the prompt: 2.text \(CLIPTextEncode, 'old text'\), "
        r"9.text \(CLIPTextEncode, 'another region'\); name those"
    )
    with pytest.raises(LLM4GENError, match=message):
        texts(combined)
    assert texts(combined, given=["9.text"]) == ["9.text"]
    combined["2"]["inputs"]["text"] = "{prompt}, in oil"
    assert texts(combined) == ["2.text"]


def test_joined_strings_are_ambiguous():
    joined = {"string_a": "a photo of", "string_b": "a cat", "delimiter": " "}
    with pytest.raises(LLM4GENError, match="several texts that may be the prompt: 8.delimiter"):
        texts(changed({"2.text": ["8", 0]}, n8=("StringConcatenate", joined)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "'text' names no input of a workflow"),
        ("42.text", "node '42': it does not exist; it depends on 1 .Loader."),
        ("7.filename_prefix", "node '7': its image does not depend on it"),
        ("2.clip", r"node 2 \(CLIPTextEncode\) has no input 'clip' that takes a text; expected text\."),
        ("5.seed", "has no input 'seed' that takes a text; expected another node"),
    ],
)
def test_inputs_that_are_given_are_checked(given, message):
    with pytest.raises(LLM4GENError, match=message):
        texts(plain(), given=[given])


def test_a_given_input_replaces_the_wire_to_it(comfy, connect):
    pipeline = connect(two_samplers(), prompt_inputs=["2.text", "10.text"], seed_inputs=["5.seed", "8.noise_seed"])
    list(pipeline.generate(prompts(1), [3]))
    assert "9" not in comfy.got[0] and "11" not in comfy.got[0]
    assert comfy.got[0]["10"]["inputs"]["text"] == "prompt 0" and comfy.got[0]["8"]["inputs"]["noise_seed"] == 3


def test_a_negative_that_is_made_from_the_prompt_cannot_be_set(connect):
    zero = changed({"5.negative": ["8", 0]}, n8=("ConditioningZeroOut", {"conditioning": ["2", 0]}))
    connect(zero)
    with pytest.raises(LLM4GENError, match="makes its negative side from the prompt"):
        connect(zero, negative="bad")


def test_no_prompt_and_no_seed():
    no_seed = changed({"5.seed": ["8", 0]}, n8=("LoadImage", {"image": "a.png"}))
    with pytest.raises(LLM4GENError, match=r"5.seed is wired to 8 \(LoadImage\), whose number is not clear"):
        seeds(no_seed)
    nodes = changed(n6=("LoadImage", {"image": "a.png"}))
    with pytest.raises(LLM4GENError, match="depends on no input named seed"):
        seeds(nodes)
    with pytest.raises(LLM4GENError, match="no text reaches a sampler"):
        texts(nodes)


def test_the_saved_image_counts_and_several_are_listed():
    nodes = control_net()
    nodes["20"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    assert read(nodes)[1] == ("6", 0), "a preview of the control image is not the result"
    nodes["21"] = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "control"}}
    with pytest.raises(LLM4GENError, match=r"at the nodes 7 \(SaveImage\), 21 \(SaveImage\); name one"):
        read(nodes)
    graph = Graph(nodes, KINDS.get)
    assert [find_image(graph, node) for node in ("7", "6", "21", "20")] == [("6", 0), ("6", 0), ("9", 0), ("9", 0)]
    with pytest.raises(LLM4GENError, match=r"5 \(KSampler\) takes and makes no IMAGE"):
        find_image(graph, "5")
    del nodes["7"], nodes["20"], nodes["21"]
    with pytest.raises(LLM4GENError, match="saves and shows no image"):
        read(nodes)
