"""Memory and the host's cache: loading, unloading, and results that are reused.

There is no graphics card here. For the host's memory management "cpu:0" is another device than "cpu", although both
are the same memory; told that the one is the compute device, all that it does is real but the copies.
"""

from __future__ import annotations

import importlib
import shutil
from functools import partial

import host_models
import pytest
import torch
from comfy_server import ComfyServer, make_base
from graphs import DENSE, graph, separate
from PIL import Image
from safetensors.torch import save_file

CARD = torch.device("cpu", 0)
MEMORY = torch.device("cpu")


@pytest.fixture(scope="module")
def modules(pack, models):
    names = ("conditioning", "host", "host_llm", "load")
    return {name: importlib.import_module(f"{pack.__name__}.nodes.{name}") for name in names}


def load(modules):
    llm = modules["host_llm"].load_llm("rankgen.safetensors", {"dtype": torch.float32})
    return llm, modules["host"].HostAdapter.load("projector.pth")


@torch.inference_mode()
def encode(modules, llm, adapter):
    """(LLM features, fused context) of the dense prompt, with a random conditioning in place of CLIP's."""
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0))
    features = llm.encode(DENSE, llm.spec)
    return features.hidden, modules["conditioning"].fuse_conditioning(adapter, [[text, {}]], features, 1.0)[0][0]


@pytest.fixture(scope="module")
def expected(modules):
    """Output where compute device and memory are one."""
    return encode(modules, *load(modules))


@pytest.fixture(params=["NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM"])
def state(request, comfy, monkeypatch):
    """The host's memory management with a card of its own, in one of its modes."""
    import comfy.model_management as management

    free = 1 << 40
    for name, value in {
        "vram_state": management.VRAMState[request.param],
        "current_loaded_models": [],
        "is_device_cpu": lambda device: device == MEMORY,
        "get_torch_device": lambda: CARD,
        "should_use_fp16": lambda *_, **options: True,
        "get_free_memory": lambda device=None, torch_free_too=False: (free, free) if torch_free_too else free,
    }.items():
        monkeypatch.setattr(management, name, value)
    return request.param


def test_every_memory_mode_is_equal_and_frees_the_device(state, modules, expected):
    """With --lowvram and --novram the host keeps text encoders off the card; with --highvram they stay there."""
    import comfy.model_management as management

    llm, adapter = load(modules)
    bystander = modules["host_llm"].load_llm("some/t5-folder/", {"dtype": torch.float32}).clip.patcher
    management.load_models_gpu([bystander])
    while_computing = {}

    def watch(name, patcher):
        def note(*_):
            is_there = any(entry.model.model is patcher.model for entry in management.current_loaded_models)
            while_computing[name] = (is_there, patcher.current_loaded_device())

        return note

    llm.clip.cond_stage_model.text_encoder.transformer.register_forward_pre_hook(watch("llm", llm.clip.patcher))
    adapter.module.register_forward_pre_hook(watch("adapter", adapter.patcher))
    found = encode(modules, llm, adapter)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))

    place = CARD if state in ("NORMAL_VRAM", "HIGH_VRAM") else MEMORY
    assert while_computing == {name: (True, place) for name in ("llm", "adapter")}
    on_card = {id(entry.model.model) for entry in management.current_loaded_models if entry.device == CARD}
    stays = state == "HIGH_VRAM"
    for patcher in (llm.clip.patcher, adapter.patcher):
        assert (id(patcher.model) in on_card) == stays
        assert patcher.current_loaded_device() == (CARD if stays else MEMORY)
    assert (id(bystander.model) in on_card) == (place == CARD), "other models stay where they are"


def test_partial_loading_of_the_adapter_with_little_memory(modules, expected, monkeypatch):
    """Every layer is loaded when it computes, as for the LLM."""
    import comfy.model_management as management

    llm, adapter = load(modules)
    streamed = []

    def load_in_parts(patchers, **options):
        for patcher in patchers:
            patcher.detach()
            patcher.load(device_to=MEMORY, lowvram_model_memory=1)
            streamed.append((patcher.model, patcher.model.model_lowvram))

    monkeypatch.setattr(management, "load_models_gpu", load_in_parts)
    assert torch.equal(encode(modules, llm, adapter)[1], expected[1])
    assert (adapter.module, True) in streamed


# A server that keeps nothing between runs, neither models nor results

TEXTS = ("a red cat", "a blue dog on a hill")
TWO_TEXTS = f"""
class TwoTexts:
    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}

    def run(self):
        return (list({TEXTS!r}),)


NODE_CLASS_MAPPINGS = {{"TwoTexts": TwoTexts}}
"""


def quick(nodes):
    """In one step."""
    nodes["sampler"]["inputs"]["steps"] = 1
    return nodes


def with_patch(nodes):
    """The usual graph with λ that falls, decoupled: all of the pack's work in one image."""
    nodes["patch"] = {
        "class_type": "LLM4GENPatch",
        "inputs": {"model": ["ckpt", 0], "adapter": ["adapter", 0], "strength_model": 1.0, "lambda_mode": "decoupled"}
        | {"lambda_start": 1.2, "lambda_end": 0.3, "curve": "linear", "start_percent": 0.0, "end_percent": 1.0},
    }
    nodes["sampler"]["inputs"]["model"] = ["patch", 0]
    return nodes


def painted(server, nodes):
    """(images' pixels, result)"""
    result = server.run(nodes)
    assert result.error is None, result.error
    return [Image.open(server.base / "output" / name).tobytes() for name in result.images()], result


@pytest.fixture(scope="module")
def forgetful_server(models, tmp_path_factory):
    base = make_base(tmp_path_factory.mktemp("memory") / "base")
    shutil.rmtree(base / "models")
    (base / "models").symlink_to(models, target_is_directory=True)
    (base / "custom_nodes" / "two_texts.py").write_text(TWO_TEXTS, encoding="utf-8")
    with ComfyServer(base, ("--disable-smart-memory", "--cache-none")) as running:
        yield running


def test_it_paints_the_same_image(server, forgetful_server):
    nodes = with_patch(graph(seed=60))
    expected, _ = painted(server, nodes)
    first, _ = painted(forgetful_server, nodes)
    again, result = painted(forgetful_server, nodes)
    assert first == again == expected
    assert result.executed == set(nodes)


def test_a_list_of_texts_paints_an_image_for_each(server, forgetful_server):
    """The host's own way to several prompts in one run: whatever gives a list, wired to the text."""
    nodes = quick(graph(seed=61))
    nodes["texts"] = {"class_type": "TwoTexts", "inputs": {}}
    nodes["text"]["inputs"]["positive"] = ["texts", 0]
    images, _ = painted(forgetful_server, nodes)
    assert images == [painted(server, quick(graph(seed=61, positive=text)))[0][0] for text in TEXTS]


# What is not computed again


def test_another_strength_at_fuse_encodes_nothing(server):
    first, _ = painted(server, quick(separate(graph(seed=62, strength=0.5))))
    second, result = painted(server, quick(separate(graph(seed=62, strength=0.6))))
    assert result.executed == {"fuse_positive", "fuse_negative", "sampler", "decode", "save"}
    assert first != second


def test_another_negative_text_encodes_that_side_alone(server):
    """Prompt of the first one's length, since CLIP Encode looks at the other side's length."""
    painted(server, quick(separate(graph(seed=63, negative="blurry"))))
    _, result = painted(server, quick(separate(graph(seed=63, negative="ugly"))))
    assert "llm_negative" in result.executed
    assert not {"llm", "adapter", "llm_positive"} & result.executed


# Files that are replaced under their name


def test_a_replaced_adapter_is_loaded_and_an_unchanged_one_is_not(server, models):
    nodes = quick(graph(seed=64))
    nodes["adapter"]["inputs"]["adapter_name"] = "replaced.safetensors"
    host_models.save_own_adapter(models / "llm4gen" / "replaced.safetensors", 50)
    first, _ = painted(server, nodes)
    _, result = painted(server, {**nodes, "sampler": quick(graph(seed=65))["sampler"]})
    assert result.executed == {"sampler", "decode", "save"}

    host_models.save_own_adapter(models / "llm4gen" / "new.safetensors", 51)
    (models / "llm4gen" / "new.safetensors").replace(models / "llm4gen" / "replaced.safetensors")
    second, result = painted(server, nodes)
    assert {"adapter", "text", "sampler"} <= result.executed
    assert not {"llm", "ckpt"} & result.executed
    assert first != second


def test_a_replaced_llm_is_loaded(server, models):
    nodes = quick(graph(seed=66))
    nodes["llm"]["inputs"]["llm_name"] = "replaced.safetensors"
    save_file(host_models.rankgen_state(52), models / "text_encoders" / "replaced.safetensors")
    first, _ = painted(server, nodes)
    save_file(host_models.rankgen_state(53), models / "text_encoders" / "new.safetensors")
    (models / "text_encoders" / "new.safetensors").replace(models / "text_encoders" / "replaced.safetensors")
    second, result = painted(server, nodes)
    assert {"llm", "text"} <= result.executed and "adapter" not in result.executed
    assert first != second


@pytest.mark.parametrize("node", ["LLM4GENLoadLLM", "LLM4GENLoadAdapter"])
def test_missing_files_have_a_fingerprint_too(modules, node):
    """The loader explains them; here the host would only log a warning."""
    name = {"LLM4GENLoadLLM": "llm_name", "LLM4GENLoadAdapter": "adapter_name"}[node]
    fingerprint = getattr(modules["load"], node).fingerprint_inputs
    for value in ("missing.safetensors", "missing/", "", "../../secret.safetensors"):
        assert fingerprint(**{name: value}) == ""
    assert fingerprint() == "", "the name is a connected input"


def test_a_folders_fingerprint_is_that_of_its_files(modules, models):
    fingerprint = partial(modules["host"].fingerprint, modules["host"].llm_path)
    folder = models / "llm" / "replaced-folder"
    shutil.copytree(models / "llm" / "some" / "t5-folder", folder)
    before = fingerprint("replaced-folder/")
    assert before == fingerprint("replaced-folder\\") and "model.safetensors" in before
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    after = fingerprint("replaced-folder/")
    assert after != before
    (folder / "model.safetensors").unlink()
    assert fingerprint("replaced-folder/") not in (before, after)
