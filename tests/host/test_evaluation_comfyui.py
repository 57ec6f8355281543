"""`evaluation` generates a prompt set through a real server, as a person would who typed each prompt."""

from __future__ import annotations

import copy
import json
import threading
import time

import pytest
from comfy_server import REPOSITORY, to_api_format
from graphs import graph as usual_graph
from graphs import plain_clip, separate
from host_models import adapter_state
from PIL import Image
from safetensors.torch import save_file

from evaluation.comfyui import ComfyUIPipeline
from evaluation.image_set import Prompt
from llm4gen_core import LLM4GENError

PROMPTS = [Prompt(id="cube", text="a red cube left of a (blue) sphere"), Prompt(id="cat", text="a ginger cat")]
PAIRS = [(prompt, seed) for prompt in PROMPTS for seed in (42, 43)]


def graph(**options):
    """The usual graph at 64 pixels."""
    nodes = usual_graph(**options)
    nodes["latent"]["inputs"].update(width=64, height=64)
    return nodes


@pytest.fixture
def connect(server, tmp_path):
    """A pipeline of a workflow of this host; its file holds `content`."""
    pipelines = []

    def connect(content, prompt_inputs=("text.positive",), **options):
        file = tmp_path / "workflow.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        pipelines.append(ComfyUIPipeline.connect(server.url, file, prompt_inputs=prompt_inputs, **options))
        return pipelines[-1]

    yield connect
    for pipeline in pipelines:
        pipeline.close()


def by_hand(server, nodes):
    result = server.run(nodes)
    assert result.error is None, result.error
    (name,) = result.images()
    return Image.open(server.base / "output" / name).convert("RGB")


def generate(pipeline, pairs):
    return [
        image.tobytes() for image in pipeline.generate([prompt for prompt, _ in pairs], [seed for _, seed in pairs])
    ]


def small(content):
    """The shipped SD1.5 canvas with the small models' names, two steps and 64 pixels."""
    content = copy.deepcopy(content)
    names = {
        "CheckpointLoaderSimple": ["sd15.safetensors"],
        "UNETLoader": ["llm4gen_unet.safetensors", "default"],
        "LLM4GENLoadLLM": ["rankgen.safetensors", "default", "default"],
        "EmptyLatentImage": [64, 64, 1],
        "KSampler": [42, "fixed", 2, 7.5, "ddim", "ddim_uniform", 1.0],
    }
    for node in content["nodes"]:
        node["widgets_values"] = names.get(node["type"], node.get("widgets_values"))
    return content


def test_generates_what_a_person_would_get(server, models, connect):
    pipeline = connect(graph(positive="what stands in the file", seed=7))
    saved = len(list((server.base / "output").glob("*")))
    images = list(pipeline.generate([prompt for prompt, _ in PAIRS], [seed for _, seed in PAIRS]))
    assert [image.mode for image in images] == ["RGB"] * 4 and images[0].size == (64, 64)
    assert len({image.tobytes() for image in images}) == 4, "prompt and seed must both count"
    assert len(list((server.base / "output").glob("*"))) == saved, "the user's output folder is left alone"
    for (prompt, seed), image in zip(PAIRS, images, strict=True):
        literal = prompt.text.replace("(", "\\(").replace(")", "\\)")
        assert image.tobytes() == by_hand(server, graph(positive=literal, seed=seed)).tobytes()
    again = [PAIRS[0], PAIRS[0], PAIRS[3]]  # the second comes out of the server's cache
    assert generate(pipeline, again) == [images[place].tobytes() for place in (0, 0, 3)]
    assert generate(connect(graph(), weights=True), PAIRS[:1]) != [images[0].tobytes()], (
        "(blue) is a word, not a weight"
    )


def test_negative_prompt_replaces_the_workflows(server, models, connect):
    (image,) = connect(graph(negative="blurry"), negative="ugly", negative_inputs=["text.negative"]).generate(
        PROMPTS[1:], [3]
    )
    assert image.tobytes() == by_hand(server, graph(positive="a ginger cat", negative="ugly", seed=3)).tobytes()


@pytest.mark.parametrize(
    ("name", "prompt", "seeds"),
    [
        ("llm4gen_sd15", "5.positive", 1),
        ("llm4gen_sdxl", "5.positive", 1),
        ("llm4gen_sdxl_refine", "5.value", 2),
    ],
)
def test_shipped_workflows_after_export(server, name, prompt, seeds, connect):
    content = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    with pytest.raises(LLM4GENError, match="is in the format of Save"):
        connect(content)
    nodes = to_api_format(content, server.get("/object_info"))
    with pytest.raises(LLM4GENError, match=rf"name it in prompt_inputs.* {prompt} \("):
        connect(nodes, ())
    about = connect(nodes, prompt_inputs=[prompt]).describe()
    assert about["prompt_inputs"] == [prompt] and len(about["seed_inputs"]) == seeds


def test_the_shipped_workflow_generates_what_run_generates(server, models, connect):
    content = json.loads((REPOSITORY / "workflows" / "llm4gen_sd15.json").read_text(encoding="utf-8"))
    nodes = to_api_format(small(content), server.get("/object_info"))
    pipeline = connect(nodes, prompt_inputs=["5.positive"])
    assert pipeline.describe()["models"] == [
        "llm4gen_unet.safetensors",
        "projector.pth",
        "rankgen.safetensors",
        "sd15.safetensors",
    ]
    (image,) = pipeline.generate(PROMPTS[1:], [5])
    nodes["5"]["inputs"]["positive"], nodes["7"]["inputs"]["seed"] = "a ginger cat", 5
    assert image.tobytes() == by_hand(server, nodes).tobytes()


def test_separate_and_stock_nodes_get_the_prompt(server, models, connect):
    nodes = separate(graph())
    both = ["clip_positive.text", "llm_positive.text"]
    assert connect(nodes, both).describe()["prompt_inputs"] == both
    (image,) = connect(plain_clip(graph()), ["clip_positive.text"]).generate(PROMPTS[1:], [8])
    assert image.tobytes() == by_hand(server, plain_clip(graph(positive="a ginger cat", seed=8))).tobytes()


def test_description_names_the_host(server, models, connect):
    about = connect(graph(seed=1)).describe()
    assert about["comfyui"] == server.get("/system_stats")["system"]["comfyui_version"]
    assert about["packs"] == ["renamed-by-the-user"] and about["comfyui_switches"] == ["--cpu"]
    assert about == connect(graph(positive="another text", seed=2)).describe(), "both are replaced"
    assert about["workflow_hash"] != connect(graph(strength=0.5)).describe()["workflow_hash"]


def test_refusal_names_node_input_and_value(server, models, connect):
    nodes = graph()
    nodes["ckpt"]["inputs"]["ckpt_name"] = "missing.safetensors"
    with pytest.raises(
        LLM4GENError, match=r"node ckpt \(CheckpointLoaderSimple\), input ckpt_name: Value not in list.*'missing"
    ):
        list(connect(nodes).generate(PROMPTS[:1], [1]))
    nodes["ckpt"]["class_type"] = "NoSuchNode"
    with pytest.raises(LLM4GENError, match="node ckpt is a NoSuchNode, which the ComfyUI server does not know"):
        connect(nodes)


def test_a_failing_node_is_named(server, models, connect):
    save_file(adapter_state(0, d_llm=48), models / "llm4gen" / "narrow.safetensors")
    nodes = graph()
    nodes["adapter"]["inputs"]["adapter_name"] = "narrow.safetensors"
    with pytest.raises(
        LLM4GENError, match=r"prompt 'cube' with seed 1 failed at node text \(LLM4GENTextEncode\): .*48"
    ):
        list(connect(nodes).generate(PROMPTS[:1], [1]))


def until_idle(server):
    deadline = time.monotonic() + 60
    while any(server.get("/queue").values()):
        assert time.monotonic() < deadline, "entries were left in the queue"
        time.sleep(0.1)


def long_graph():
    nodes = graph(prefix="long")
    nodes["sampler"]["inputs"]["steps"] = 999
    return nodes


def test_a_timeout_leaves_nothing_in_the_queue_but_what_others_put_there(server, models, connect):
    pipeline = connect(long_graph(), timeout=2)
    with pytest.raises(LLM4GENError, match="seed 1 is not ready after 2 s"):
        list(pipeline.generate(PROMPTS * 2, [1, 2, 3, 4]))
    until_idle(server)
    assert generate(connect(graph()), PAIRS[:1]), "the server goes on"


def test_an_interruption_in_the_browser_is_reported(server, models, connect):
    import urllib.request

    pipeline = connect(long_graph())
    stop = threading.Event()

    def interrupt():
        while not stop.wait(1):
            if server.get("/queue")["queue_running"]:
                urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"{}"), timeout=30).close()
                return

    person = threading.Thread(target=interrupt)
    person.start()
    try:
        with pytest.raises(LLM4GENError, match=r"was interrupted in ComfyUI at node sampler \(KSampler\)"):
            list(pipeline.generate(PROMPTS, [1, 2]))
    finally:
        stop.set()
        person.join()
    until_idle(server)
