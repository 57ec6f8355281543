"""The ablations of Table 4: images, and the context that the UNet reads."""

from __future__ import annotations

import host_models
import pytest
import torch
from graphs import DENSE, graph, separate
from PIL import Image

from llm4gen_core import LLMEncoder, LLMSpec, load_adapter
from llm4gen_core.adapter import FUSIONS

LENGTHS = {"mlp": 256, "cross_attention": 256, "clip_query": 77 + 77}


@pytest.fixture(scope="module")
def adapters(models):
    for fusion in FUSIONS:
        host_models.save_own_adapter(models / "llm4gen" / f"{fusion}.safetensors", 40, fusion)
    return models / "llm4gen"


@pytest.fixture(scope="module")
def features(comfy, models):
    """(c_t, c_l) of the dense prompt, from the host's CLIP and transformers' T5."""
    import comfy.sd

    clip = comfy.sd.load_checkpoint_guess_config(str(models / "checkpoints" / "sd15.safetensors"), output_vae=False)[1]
    spec = LLMSpec(model="", architecture="t5", layers=3, width=64, prefix="pre ")
    llm = LLMEncoder.from_folder(models / "llm" / "some" / "t5-folder", spec).encode([DENSE]).hidden
    return clip.encode_from_tokens(clip.tokenize(DENSE)), llm


def graph_of(fusion, **options):
    nodes = graph(**options)
    nodes["adapter"]["inputs"]["adapter_name"] = f"{fusion}.safetensors"
    return nodes


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_unet_reads_what_combine_gives(server, adapters, features, tmp_path, fusion):
    paths = {name: tmp_path / f"{name}.pt" for name in ("model", "positive_path", "negative_path")}
    result = server.run(graph_of(fusion, strength=0.5, **paths))
    assert result.error is None, result.error
    ((context, options),), ((negative, _),) = load(paths["positive_path"]), load(paths["negative_path"])
    adapter = load_adapter(adapters / f"{fusion}.safetensors")
    text, llm = features
    expected = adapter.module.combine(text, adapter(text, llm), 0.5)
    assert context.shape == negative.shape == (1, LENGTHS.get(fusion, 77 + 256), 768)
    assert ((context - expected).norm() / expected.norm()).item() < 1e-5
    assert ((options["cross_attn_controlnet"] - text).norm() / text.norm()).item() < 1e-5
    calls = load(paths["model"])
    assert len(calls) == 2 and all(call["rows"] == 2 for call in calls), "guidance stays one UNet call a step"
    for call in calls:
        sides = torch.cat([context if row == 0 else negative for row in call["cond_or_uncond"]])
        assert call["contexts"] and all(torch.equal(seen, sides) for seen in call["contexts"])


def test_images_of_all_fusions_differ(server, adapters):
    images = set()
    for fusion in FUSIONS:
        result = server.run(graph_of(fusion))
        assert result.error is None, result.error
        image = Image.open(server.base / "output" / result.images()[0])
        assert len(image.convert("L").getcolors()) > 16, "the image is flat"
        images.add(image.tobytes())
    assert len(images) == len(FUSIONS)


@pytest.mark.parametrize("fusion", ["mlp", "clip_query"])
def test_strength_zero_is_plain_clip(server, adapters, fusion):
    """To the bit the image of the method at strength 0, which is that of the stock nodes."""
    results = [server.run(graph_of(name, strength=0.0, seed=3)) for name in (fusion, "cross_adapter")]
    assert [r.error for r in results] == [None, None]
    pixels = [Image.open(server.base / "output" / r.images()[0]).tobytes() for r in results]
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize("fusion", ["mlp", "clip_query"])
def test_separate_nodes_give_the_same(server, adapters, tmp_path, fusion):
    together, apart = tmp_path / "together.pt", tmp_path / "apart.pt"
    long = "word " * 100
    assert server.run(graph_of(fusion, positive=long, positive_path=together)).error is None
    assert server.run(separate(graph_of(fusion, positive=long, positive_path=apart))).error is None
    assert torch.equal(load(together)[0][0], load(apart)[0][0])


def test_conditioning_of_replacing_fusions_is_not_fused_again(server, adapters):
    nodes = separate(graph_of("mlp"))
    nodes["again"] = {**nodes["fuse_positive"], "inputs": dict(nodes["fuse_positive"]["inputs"])}
    nodes["again"]["inputs"]["conditioning"] = ["fuse_positive", 0]
    nodes["sampler"]["inputs"]["positive"] = ["again", 0]
    error = server.run(nodes).error
    assert error is not None and "is already fused" in error


def test_load_adapter_names_the_ablation(server, adapters):
    nodes = graph_of("clip_query", seed=9)
    nodes["loaded"] = nodes.pop("adapter")  # under another name it is not taken from the cache
    nodes["text"]["inputs"]["adapter"] = ["loaded", 0]
    result, said = server.run_and_listen(nodes)
    assert result.error is None, result.error
    assert said["loaded"].endswith("· ablation clip_query")
