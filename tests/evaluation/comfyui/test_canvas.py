"""A canvas as ComfyUI saves it, turned into the graph that Run would send."""

from __future__ import annotations

import pytest
from fake_comfyui import KINDS, changed, prompts

from evaluation.comfyui.canvas import convert
from llm4gen_core import LLM4GENError


def canvas():
    """The plain graph as a canvas, with a reroute, a primitive node, a bypassed node and a note."""

    def node(number, kind, values, inputs=(), mode=0):
        slots = [{"name": name, "type": kind_, "link": link} for name, kind_, link in inputs]
        return {"id": number, "type": kind, "widgets_values": values, "inputs": slots, "mode": mode}

    return {
        "nodes": [
            node(1, "Loader", ["a.safetensors"]),
            node(2, "CLIPTextEncode", ["old text // a comment"], [("clip", "CLIP", 1)]),
            node(3, "CLIPTextEncode", [r"\{ugly\}"], [("clip", "CLIP", 2)]),
            node(4, "EmptyLatentImage", [64, 64, 1]),
            node(
                5,
                "KSampler",
                [7, "randomize", 20],
                [
                    ("model", "MODEL", 3),
                    ("positive", "CONDITIONING", 4),
                    ("negative", "CONDITIONING", 5),
                    ("latent_image", "LATENT", 6),
                    ("steps", "INT", 7),
                ],
            ),
            node(6, "VAEDecode", [], [("samples", "LATENT", 8), ("vae", "VAE", 9)]),
            node(7, "SaveImage", ["a"], [("images", "IMAGE", 10)]),
            node(8, "Reroute", [], [("", "*", 11)]),
            node(9, "PrimitiveNode", [25, "fixed"]),
            node(10, "FluxGuidance", [3.5], [("conditioning", "CONDITIONING", 12)], mode=4),
            node(11, "Note", ["a note"]),
        ],
        "links": [
            [1, 1, 1, 2, 0, "CLIP"],
            [2, 8, 0, 3, 0, "CLIP"],
            [3, 1, 0, 5, 0, "MODEL"],
            [4, 10, 0, 5, 1, "CONDITIONING"],
            [5, 3, 0, 5, 2, "CONDITIONING"],
            [6, 4, 0, 5, 3, "LATENT"],
            [7, 9, 0, 5, 4, "INT"],
            [8, 5, 0, 6, 0, "LATENT"],
            [9, 1, 2, 6, 1, "VAE"],
            [10, 6, 0, 7, 0, "IMAGE"],
            [11, 1, 1, 8, 0, "CLIP"],
            {"id": 12, "origin_id": 2, "origin_slot": 0, "target_id": 10, "target_slot": 0, "type": "CONDITIONING"},
        ],
        "version": 0.4,
    }


def on_canvas(**nodes):
    """The canvas with other fields of some nodes: n5={"mode": 2}."""
    content = canvas()
    for node in content["nodes"]:
        node.update(nodes.get(f"n{node['id']}", {}))
    return content


def test_a_canvas_is_what_run_sends():
    nodes, choices = convert(canvas(), KINDS.get)
    assert nodes == changed({"3.text": "{ugly}", "2.text": "old text ", "5.steps": 25}) and not choices


def test_a_muted_node_takes_its_wires_away():
    nodes, _ = convert(on_canvas(n9={"mode": 2}, n10={"mode": 2}), KINDS.get)
    assert "positive" not in nodes["5"]["inputs"] and "steps" not in nodes["5"]["inputs"]


def test_a_widget_that_came_later_has_its_default():
    nodes, _ = convert(on_canvas(n5={"widgets_values": [7, "fixed"], "inputs": []}), KINDS.get)
    assert nodes["5"]["inputs"] == {"seed": 7, "steps": 20}


def test_every_seed_has_a_control_behind_it():
    """The front end adds it by the input's name, where the node itself does not ask for it."""
    nodes, _ = convert(
        on_canvas(n5={"type": "OtherSampler", "widgets_values": [7, "fixed", 30], "inputs": []}), KINDS.get
    )
    assert nodes["5"]["inputs"] == {"seed": 7, "steps": 30}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"n5": {"widgets_values": [7, "fixed", 20, "euler"]}}, r"node 5 \(KSampler\) has more values .*'euler'"),
        ({"n5": {"widgets_values": ["seven", "fixed", 20]}}, "has 'seven' for seed, which is INT"),
        ({"n4": {"type": "SetNode"}}, "node 4 is a SetNode, which the server does not know"),
        ({"n4": {"type": "0a1b"}}, r"node 4 is a subgraph \(My latents\)"),
        ({"n8": {"inputs": [{"name": "", "type": "*", "link": 99}]}}, "wire 99 leads nowhere"),
    ],
)
def test_what_is_not_certain_is_refused_with_the_way_out(connect, nodes, message):
    content = on_canvas(**nodes)
    content["definitions"] = {"subgraphs": [{"id": "0a1b", "name": "My latents"}]}
    with pytest.raises(
        LLM4GENError, match=f"is a saved canvas, .*{message}.* Export it in ComfyUI by Workflow > Export"
    ):
        connect(content)


def test_choices_in_braces_are_refused_but_where_another_text_goes(comfy, connect):
    choices = {"widgets_values": ["a {red|blue} cat"]}
    connect(on_canvas(n2=choices))
    connect(on_canvas(n3=choices), negative="bad")
    with pytest.raises(LLM4GENError, match=r"text 3.text \(CLIPTextEncode\) has choices in braces"):
        connect(on_canvas(n3=choices))
    with pytest.raises(LLM4GENError, match=r"text 2.text \(CLIPTextEncode\) has choices in braces"):
        connect(on_canvas(n2={"widgets_values": ["{prompt} in {red|blue}"]}))
    list(connect(on_canvas(n2={"widgets_values": ["{prompt}, \\{in oil\\}"]})).generate(prompts(1), [0]))
    assert comfy.got[0]["2"]["inputs"]["text"] == "prompt 0, {in oil}"
