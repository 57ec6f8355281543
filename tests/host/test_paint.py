"""Images from a real server by its HTTP API, and the inputs of the UNet."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from comfy_server import REPOSITORY, to_api_format
from graphs import DENSE, graph, separate
from PIL import Image


@pytest.fixture(scope="module", autouse=True)
def log_before(server):
    """Length of the server's log before this file's tests: others provoke errors on purpose."""
    return len(server.log.read_text())


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def fused(server, tmp_path):
    """Run a graph; give the result, the recorded UNet calls, and the saved conditioning of each side."""

    def run(**options):
        paths = {name: tmp_path / f"{name}.pt" for name in ("model", "positive_path", "negative_path")}
        result = server.run(graph(**options, **paths))
        assert result.error is None, result.error
        return result, load(paths["model"]), load(paths["positive_path"]), load(paths["negative_path"])

    return run


def test_workflow_runs_on_the_small_models(server, models, tmp_path):
    """The shipped workflow with the names of the small models and fewer steps."""
    workflow = json.loads((REPOSITORY / "workflows" / "llm4gen_sd15.json").read_text(encoding="utf-8"))
    api = to_api_format(workflow, server.get("/object_info"))
    by_class = {node["class_type"]: node["inputs"] for node in api.values()}
    assert (by_class["KSampler"]["steps"], by_class["KSampler"]["cfg"]) == (50, 7.5)
    assert (by_class["KSampler"]["sampler_name"], by_class["KSampler"]["scheduler"]) == ("ddim", "ddim_uniform")
    by_class["KSampler"]["steps"] = 2
    by_class["EmptyLatentImage"].update(width=128, height=128)
    by_class["CheckpointLoaderSimple"]["ckpt_name"] = "sd15.safetensors"
    by_class["UNETLoader"]["unet_name"] = "llm4gen_unet.safetensors"
    by_class["LLM4GENLoadLLM"]["llm_name"] = "rankgen.safetensors"
    result = server.run(api)
    assert result.error is None, result.error
    (name,) = result.images()
    image = Image.open(server.base / "output" / name)
    assert image.size == (128, 128)
    assert len(image.convert("L").getcolors()) > 16, "the image is flat"


def test_unet_sees_what_fuse_gives_in_one_call(fused):
    _, calls, positive, negative = fused()
    ((positive_context, _),), ((negative_context, _),) = positive, negative
    assert positive_context.shape == negative_context.shape == (1, 77 + 256, 768)
    assert len(calls) == 2, "one UNet call a step"
    for call in calls:
        expected = [positive_context if row == 0 else negative_context for row in call["cond_or_uncond"]]
        assert sorted(call["cond_or_uncond"]) == [0, 1]
        assert call["contexts"]
        for context in call["contexts"]:
            assert torch.equal(context, torch.cat(expected))


def test_conditioning_is_clip_then_adapted_llm(fused, pack, models):
    """Computed again from the parts: the host's CLIP, transformers' T5, this pack's CAM from the same files."""
    import comfy.sd

    from llm4gen_core import LLMEncoder, LLMSpec, fuse, load_adapter

    _, _, ((context, options),), _ = fused(strength=0.5)
    clip = comfy.sd.load_checkpoint_guess_config(str(models / "checkpoints" / "sd15.safetensors"), output_vae=False)[1]
    text = clip.encode_from_tokens(clip.tokenize(DENSE))
    spec = LLMSpec(model="", architecture="t5", layers=3, width=64, prefix="pre ")
    llm = LLMEncoder.from_folder(models / "llm" / "some" / "t5-folder", spec).encode([DENSE]).hidden
    adapter = load_adapter(models / "llm4gen" / "projector.pth")
    expected = fuse(text, adapter(text, llm), 0.5)
    assert ((context - expected).norm() / expected.norm()).item() < 1e-5
    assert torch.equal(options["cross_attn_controlnet"], context[:, :77])
    assert options["pooled_output"].shape == (1, 768)


def test_separate_nodes_give_the_same(server, fused, tmp_path):
    options = {"positive": "word " * 100, "negative": "blurry"}
    _, calls, positive, negative = fused(**options)
    paths = {name: tmp_path / f"separate_{name}.pt" for name in ("model", "positive_path", "negative_path")}
    result = server.run(separate(graph(**options, **paths)))
    assert result.error is None, result.error
    assert torch.equal(load(paths["positive_path"])[0][0], positive[0][0])
    assert torch.equal(load(paths["negative_path"])[0][0], negative[0][0])
    assert len(load(paths["model"])) == len(calls) == 2


@pytest.mark.parametrize(
    ("positive", "negative", "length"),
    [
        ("word " * 100, "blurry", 154 + 256),
        ("blurry", "word " * 100, 154 + 256),
        ("word " * 400, "", 6 * 77 + 256),
        ("", "", 77 + 256),
    ],
    ids=["positive takes two chunks", "negative takes two chunks", "400 tokens", "both empty"],
)
def test_lengths_stay_equal_and_guidance_one_call(fused, positive, negative, length):
    _, calls, ((positive_context, _),), ((negative_context, _),) = fused(positive=positive, negative=negative)
    assert positive_context.shape == negative_context.shape == (1, length, 768)
    assert len(calls) == 2
    assert all(call["rows"] == 2 for call in calls)


def test_a_long_llm_prompt_is_cut_and_reported(server, fused):
    fused(positive="word " * 400)
    assert "LLM tokens; those after 256 are cut" in server.log.read_text()


def test_another_seed_encodes_nothing_again(server):
    first = server.run(graph(seed=101, positive="a seeded prompt"))
    second = server.run(graph(seed=102, positive="a seeded prompt"))
    assert first.error is None and second.error is None
    assert "text" in first.executed
    assert second.executed == {"sampler", "decode", "save"}
    images = [Image.open(server.base / "output" / r.images()[0]).tobytes() for r in (first, second)]
    assert images[0] != images[1]


def test_batch_of_four(fused, server):
    result, calls, _, _ = fused(batch=4)
    assert len(result.images()) == 4
    assert all(call["rows"] == 8 for call in calls)
    assert len({Image.open(server.base / "output" / name).tobytes() for name in result.images()}) == 4


def test_two_prompts_combined(server, tmp_path):
    nodes = graph(model=tmp_path / "calls.pt")
    nodes["text2"] = copy.deepcopy(nodes["text"])
    nodes["text2"]["inputs"]["positive"] = "a blue sphere"
    nodes["combine"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["text", 0], "conditioning_2": ["text2", 0]},
    }
    nodes["sampler"]["inputs"]["positive"] = ["combine", 0]
    result = server.run(nodes)
    assert result.error is None, result.error
    calls = load(tmp_path / "calls.pt")
    assert len(calls) == 2
    assert all(call["rows"] == 3 for call in calls)
    rows = calls[0]["contexts"][0]
    assert len({row.numpy().tobytes() for row in rows}) == 3


def test_every_entry_is_fused_and_keeps_its_fields(server, tmp_path):
    """Combined, scheduled and masked entries through the Fuse node."""
    nodes = separate(graph(positive_path=tmp_path / "positive.pt"))
    nodes["other"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["ckpt", 1], "text": "a blue sphere"}}
    nodes["range"] = {
        "class_type": "ConditioningSetTimestepRange",
        "inputs": {"conditioning": ["other", 0], "start": 0.25, "end": 0.75},
    }
    nodes["mask"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}}
    nodes["masked"] = {
        "class_type": "ConditioningSetMask",
        "inputs": {
            "conditioning": ["clip_positive", 0],
            "mask": ["mask", 0],
            "strength": 0.75,
            "set_cond_area": "default",
        },
    }
    nodes["combine"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["range", 0], "conditioning_2": ["masked", 0]},
    }
    nodes["fuse_positive"]["inputs"]["conditioning"] = ["combine", 0]
    result = server.run(nodes)
    assert result.error is None, result.error
    (scheduled, scheduled_options), (masked, masked_options) = load(tmp_path / "positive.pt")
    assert scheduled.shape == masked.shape == (1, 333, 768)
    assert not torch.equal(scheduled[:, 77:], masked[:, 77:]), "each entry's own CLIP tokens are attended to"
    assert (scheduled_options["start_percent"], scheduled_options["end_percent"]) == (0.25, 0.75)
    assert masked_options["mask_strength"] == 0.75 and masked_options["mask"].shape == (1, 128, 128)
    for context, options in ((scheduled, scheduled_options), (masked, masked_options)):
        assert torch.equal(options["cross_attn_controlnet"], context[:, :77])


def test_controlnet_context_is_plain_clip(fused):
    _, calls, ((positive_context, _),), ((negative_context, _),) = fused()
    for call in calls:
        expected = [positive_context if row == 0 else negative_context for row in call["cond_or_uncond"]]
        assert torch.equal(call["controlnet"], torch.cat(expected)[:, :77])


def test_strength_zero_is_plain_clip(server):
    """To the bit the image of the stock nodes."""
    ours = server.run(graph(strength=0.0, prefix="zero"))
    nodes = graph(prefix="stock")
    for side in ("positive", "negative"):
        text = nodes["text"]["inputs"][side]
        nodes[side] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["ckpt", 1], "text": text}}
        nodes["sampler"]["inputs"][side] = [side, 0]
    del nodes["text"], nodes["llm"], nodes["adapter"]
    stock = server.run(nodes)
    assert ours.error is None and stock.error is None
    pixels = [Image.open(server.base / "output" / r.images()[0]).tobytes() for r in (ours, stock)]
    assert pixels[0] == pixels[1]


def test_strength_changes_the_image(server):
    results = [server.run(graph(strength=strength)) for strength in (0.0, 0.5, 1.0)]
    pixels = {Image.open(server.base / "output" / r.images()[0]).tobytes() for r in results}
    assert len(pixels) == 3


def test_an_image_with_the_folder_llm(server):
    nodes = graph()
    nodes["llm"]["inputs"]["llm_name"] = "some/t5-folder/"
    result = server.run(nodes)
    assert result.error is None, result.error
    assert len(result.images()) == 1


def test_names_saved_on_windows_are_found(server):
    nodes = graph(seed=5)
    nodes["llm"]["inputs"]["llm_name"] = "some\\t5-folder\\"
    result = server.run(nodes)
    assert result.error is None, result.error


def test_log_has_no_traceback(server, log_before):
    assert "Traceback" not in server.log.read_text()[log_before:]


def test_nodes_show_a_summary(server):
    """The loaders and all encode nodes send text to the browser."""
    nodes = separate(graph(positive="a red cat that says something"))
    nodes["text"] = graph(negative="and another")["text"]
    nodes["other"] = {**nodes["sampler"], "inputs": {**nodes["sampler"]["inputs"], "positive": ["text", 0]}}
    nodes["preview"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode_other", 0]}}
    nodes["decode_other"] = {**nodes["decode"], "inputs": {**nodes["decode"]["inputs"], "samples": ["other", 0]}}
    for loader in ("llm", "adapter"):  # under other names they are not taken from the cache
        nodes[f"{loader}_again"] = nodes.pop(loader)
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if value in (["llm", 0], ["adapter", 0]):
                node["inputs"][name] = [f"{value[0]}_again", 0]
    nodes["llm_again"]["inputs"]["llm_name"] = "some/t5-folder/"

    result, said = server.run_and_listen(nodes)
    assert result.error is None, result.error
    assert said["llm_again"].startswith("t5, 3 layers, width 64, Hugging Face folder")
    assert said["llm_positive"].endswith("of 256 LLM tokens")
    assert said["text"].startswith("positive: ") and "· negative: " in said["text"]
