"""SDXL's shipped workflows through the host's API, with checkpoints that the host detects and loads itself."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
import sdxl_models
from comfy_server import REPOSITORY, to_api_format
from PIL import Image

pytestmark = pytest.mark.slow

PAPER = {"steps": 50, "cfg": 7.5, "sampler_name": "ddim", "scheduler": "ddim_uniform"}


@pytest.fixture(scope="module")
def sdxl_server(server, models):
    """The server with SDXL's files, which leave the disk and its memory when these tests have ended."""
    files = sdxl_models.fill(models, models / "checkpoints" / "sd15.safetensors")
    yield server
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/free", body, {"Content-Type": "application/json"}))
    for file in files:
        file.unlink()


@pytest.fixture
def shipped(sdxl_server):
    """A workflow's name to its graph with the small LLM, and the inputs of each class of node, to be changed."""

    def load(name):
        workflow = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        graph = to_api_format(workflow, sdxl_server.get("/object_info"))
        inputs = {}
        for node in graph.values():
            inputs.setdefault(node["class_type"], []).append(node["inputs"])
        inputs["LLM4GENLoadLLM"][0]["llm_name"] = "some/t5-folder/"
        (latent,) = inputs["EmptyLatentImage"]
        assert (latent["width"], latent["height"]) == (1024, 1024)
        latent.update(width=128, height=128)
        return graph, inputs

    return load


def generate(server, graph):
    """The texts that the nodes showed, and what the server logged meanwhile; the image is there."""
    before = len(server.log.read_text())
    result, said = server.run_and_listen(graph)
    assert result.error is None, result.error
    (name,) = result.images()
    image = Image.open(server.base / "output" / name)
    assert image.size == (128, 128)
    assert len(image.convert("L").getcolors()) > 16, "the image is flat"
    return " ".join(said.values()), server.log.read_text()[before:]


def test_base_with_the_adapters_unet_part(sdxl_server, shipped):
    graph, inputs = shipped("llm4gen_sdxl")
    (sampler,) = inputs["KSampler"]
    assert PAPER.items() <= sampler.items()
    sampler["steps"] = 2
    said, log = generate(sdxl_server, graph)
    assert "Adapter for sdxl" in said and "connect Patch Model too" in said
    assert re.search(r"UNet part \(LoRA of \d+ layers\) at strength 1", said)
    assert "Requested to load SDXL\n" in log


def test_base_hands_over_to_the_refiner(sdxl_server, shipped):
    """One schedule of noise, of which the refiner takes the rest; each model reads the text that it was made for."""
    graph, inputs = shipped("llm4gen_sdxl_refine")
    base, refiner = inputs["KSamplerAdvanced"]
    assert PAPER.items() <= base.items() and PAPER.items() <= refiner.items()
    assert (base["start_at_step"], base["end_at_step"], refiner["start_at_step"]) == (0, 40, 40)
    assert (base["add_noise"], base["return_with_leftover_noise"]) == ("enable", "enable")
    assert (refiner["add_noise"], refiner["return_with_leftover_noise"]) == ("disable", "disable")

    def source(sampler, side):
        return graph[sampler[side][0]]["class_type"]

    assert {source(base, side) for side in ("positive", "negative")} == {"LLM4GENTextEncode"}
    assert {source(refiner, side) for side in ("positive", "negative")} == {"CLIPTextEncodeSDXLRefiner"}
    base.update(steps=2, end_at_step=1)
    refiner.update(steps=2, start_at_step=1)
    _, log = generate(sdxl_server, graph)
    assert "Requested to load SDXLRefiner\n" in log
