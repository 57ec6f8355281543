"""Workflow files: where prompt, seed and image are, and what is refused."""

from __future__ import annotations

import json

import pytest
from fake_comfyui import KINDS, changed, plain, prompts

from evaluation.comfyui.workflow import Workflow
from llm4gen_core import LLM4GENError


@pytest.fixture
def read(tmp_path):
    def read(nodes, prompt_inputs=("2.text",), **options):
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(nodes), encoding="utf-8")
        return Workflow(path, KINDS.get, prompt_inputs=prompt_inputs, **options)

    return read


def fused():
    return changed(
        {"5.positive": ["8", 0], "5.negative": ["3", 0]},
        n8=("LLM4GENFuse", {"conditioning": ["10", 0], "llm_features": ["11", 0]}),
        n9=("LLMLoader", {"llm_name": "t5/"}),
        n10=("LLM4GENEncodeCLIP", {"clip": ["1", 1], "text": "short", "paired_text": ["12", 0]}),
        n11=("LLM4GENEncodeLLM", {"llm": ["9", 0], "text": "long and dense"}),
        n12=("PrimitiveString", {"value": "ugly"}),
    )


def custom_sampler():
    nodes = plain()
    del nodes["3"]
    nodes["5"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["8", 0], "guider": ["9", 0], "latent_image": ["4", 0]},
    }
    nodes["8"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}}
    nodes["9"] = {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["2", 0]}}
    return nodes


def two_samplers():
    """Base and refiner, each with an encoder of its own, one string and one seed for both."""
    sampler = {"model": ["1", 0], "positive": ["10", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return changed(
        {"2.text": ["9", 0], "5.latent_image": ["8", 0], "5.seed": ["11", 0]},
        n8=("KSamplerAdvanced", {**sampler, "noise_seed": ["11", 0]}),
        n9=("PrimitiveString", {"value": "one text"}),
        n10=("CLIPTextEncode", {"text": ["9", 0], "clip": ["1", 1]}),
        n11=("PrimitiveInt", {"value": 5}),
    )


@pytest.mark.parametrize(
    ("nodes", "given", "seeds"),
    [
        (plain, ["2.text"], ["5.seed"]),
        (fused, ["10.text", "11.text"], ["5.seed"]),
        (custom_sampler, ["2.text"], ["8.noise_seed"]),
        (two_samplers, ["9.value"], ["5.seed", "8.noise_seed"]),
    ],
)
def test_prompt_goes_to_the_given_inputs_and_the_seed_to_seeds(read, nodes, given, seeds):
    about = read(nodes(), given).describe()
    assert about["prompt_inputs"] == given and about["seed_inputs"] == seeds


def test_a_missing_prompt_input_is_refused_with_the_candidates(read):
    message = (
        r"^It is not known which input of the workflow takes the prompt; name it in prompt_inputs, or write "
        r"\{prompt\} into its text. Text inputs are 10.text \(LLM4GENEncodeCLIP, 'short'\), "
        r"11.text \(LLM4GENEncodeLLM, 'long and dense'\), 12.value \(PrimitiveString, 'ugly'\), "
    )
    nodes = fused()
    nodes["3"]["inputs"]["text"] = "a wide " * 30
    with pytest.raises(LLM4GENError, match=message) as error:
        read({name: nodes[name] for name in ("10", "11", "12", "1", "3", "4", "5", "6", "7", "8", "9")}, ())
    assert len(str(error.value)) < 400
    nodes["11"]["inputs"]["text"] = "{prompt}, in oil"
    assert read(nodes, ()).describe()["prompt_inputs"] == ["11.text"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("text", "depends on no node 'text' .input 'text'.; expected an input such as 6.text"),
        ("42.text", "depends on no node '42' .*, of one of the nodes 1 .Loader."),
        ("7.filename_prefix", "depends on no node '7'"),
        ("2.clip", r"node 2 \(CLIPTextEncode\) has no input 'clip' that takes a text; expected 2.text\."),
        ("5.seed", "has no input 'seed' that takes a text; expected another node"),
    ],
)
def test_given_inputs_are_checked(read, given, message):
    with pytest.raises(LLM4GENError, match=message):
        read(plain(), [given])


def test_a_given_input_replaces_the_link_to_it(comfy, connect):
    pipeline = connect(two_samplers(), prompt_inputs=["2.text", "10.text"], seed_inputs=["5.seed", "8.noise_seed"])
    list(pipeline.generate(prompts(1), [3]))
    assert "9" not in comfy.got[0] and "11" not in comfy.got[0]
    assert comfy.got[0]["10"]["inputs"]["text"] == "prompt 0" and comfy.got[0]["8"]["inputs"]["noise_seed"] == 3


def test_one_seed_can_be_given_for_several_samplers(comfy, connect):
    list(connect(two_samplers(), prompt_inputs=["9.value"], seed_inputs=["11.value"]).generate(prompts(1), [3]))
    assert comfy.got[0]["11"]["inputs"]["value"] == 3 and comfy.got[0]["5"]["inputs"]["seed"] == ["11", 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative": "bad"}, r"without negative_inputs.* Text inputs are 2.text \(CLIPTextEncode, 'old text'\), 3.t"),
        ({"negative_inputs": ["3.text"]}, "without a negative prompt"),
        ({"negative": "bad", "negative_inputs": ["2.text"]}, "2.text is named for the prompt and for the negative"),
        ({"negative": "bad", "negative_inputs": ["5.steps"]}, "no input 'steps' that takes a text"),
    ],
)
def test_negative_prompt_and_its_inputs_belong_together(read, options, message):
    with pytest.raises(LLM4GENError, match=message):
        read(plain(), **options)


def test_a_workflow_without_a_seed_is_refused(read):
    nodes = changed({"6.samples": ["4", 0]}, n8=("Text/from a pack (x)", {"text": "{prompt}"}))
    nodes["4"]["inputs"]["width"] = ["8", 0]
    with pytest.raises(LLM4GENError, match="depends on no input named seed"):
        read(nodes, ())


def test_the_saved_image_counts_and_several_are_listed(read):
    def image(nodes, node=None):
        return read(nodes, output_node=node).end

    nodes = changed(n9=("LoadImage", {"image": "a.png"}), n20=("PreviewImage", {"images": ["9", 0]}))
    assert image(nodes) == "6-image", "a preview of another image is not the result"
    nodes["21"] = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "other"}}
    with pytest.raises(LLM4GENError, match=r"at the nodes 7 \(SaveImage\), 21 \(SaveImage\); name one"):
        image(nodes)
    assert image(nodes, "7") == image(nodes, "6") == "6-image"
    with pytest.raises(LLM4GENError, match=r"5 \(KSampler\) takes and makes no IMAGE"):
        image(nodes, "5")
    with pytest.raises(LLM4GENError, match=r"has no node '8'; expected one of 1 \(Loader\)"):
        image(nodes, "8")
    del nodes["7"], nodes["20"], nodes["21"]
    with pytest.raises(LLM4GENError, match="saves and shows no image"):
        image(nodes)


def test_a_canvas_is_refused_with_the_way_to_export_it(read):
    with pytest.raises(LLM4GENError, match=r"is in the format of Save, .* choose Workflow > Export \(API\)"):
        read({"nodes": [{"id": 1, "type": "Loader"}], "links": [], "version": 0.4})
