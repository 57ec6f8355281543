"""LLM4GEN beside packs of others that reach into the cross-attention too, on a server that runs them.

The packs are checked out at COMFYUI_PACKS_PATH (~/comfyui-packs). What is right is known from formulas or from graphs
without the other pack:

* IP-Adapter adds an attention over the image to that over the text, whichever that is.
* Attention couple paints each region as an image of its prompt alone would be.
* NegPip without negative weights changes nothing.
* Prompt Control's schedules are entries with ranges.
"""

from __future__ import annotations

import shutil

import other_models
import pytest
import torch
from comfy_server import OTHER_PACKS, ComfyServer, make_base, pack_folder
from diffusers_folder import diffusers_unet
from graphs import DENSE, beside, on_the_model, plain_clip, separate
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

MODES = ("embedding", "value", "decoupled")
LAMBDA = 0.6
OTHER = "a blue glass sphere on wet sand"
SIZE = 64


NEED_ANIMA = ("ComfyUI-ppm", "comfyui-prompt-control")
WITHOUT_ANIMA = """
import importlib, importlib.util, sys, types

def blank(module, *names):
    try:
        found = importlib.import_module(module)
    except ImportError:
        found = sys.modules[module] = types.ModuleType(module)
    for name in names:
        if not hasattr(found, name):
            setattr(found, name, type(name, (), {}))

blank("comfy.ldm.anima")
blank("comfy.ldm.anima.model", "Anima")
blank("comfy.ldm.cosmos.predict2", "Attention", "apply_rotary_pos_emb")
blank("comfy.model_base", "Anima")
spec = importlib.util.spec_from_file_location(NAME, FOLDER + "/__init__.py", submodule_search_locations=[FOLDER])
module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
comfy_entrypoint = module.comfy_entrypoint
"""


def install_without_anima(source, base):
    """Install a pack that runs another one as it is, with blanks for what this host lacks of the model family Anima.

    ppm and Prompt Control import names of it that hosts before Anima do not have yet, and ppm one that 0.33 does not
    have any more. Nothing of it is used for UNets.
    """
    folder = base / "custom_nodes" / source.name
    folder.mkdir()
    name = source.name.replace("-", "_")
    head = f"FOLDER = {str(source)!r}\nNAME = {name!r}\n"
    (folder / "__init__.py").write_text(head + WITHOUT_ANIMA, encoding="utf-8")


@pytest.fixture(scope="module")
def packs(tmp_path_factory, models):
    """A server with every pack that is here."""
    base = tmp_path_factory.mktemp("packs") / "base"
    here = [folder for folder in map(pack_folder, OTHER_PACKS) if folder.is_dir()]
    make_base(base, [folder for folder in here if folder.name not in NEED_ANIMA])
    for folder in here:
        if folder.name in NEED_ANIMA:
            install_without_anima(folder, base)
    other_models.fill(models)
    other_models.save_short_adapter(models / "llm4gen" / "short.safetensors")
    shutil.rmtree(base / "models")
    (base / "models").symlink_to(models, target_is_directory=True)
    (base / "input").mkdir()
    for name, seed in (("positive", 1), ("negative", 2)):
        torch.save(other_models.image_embeds(seed), base / "input" / f"{name}.ipadpt")
    with ComfyServer(base) as server:
        yield server


def needs(pack, node):
    """The server, where it runs this node of a pack."""

    @pytest.fixture(scope="module")
    def server(request):
        if not pack_folder(pack).is_dir():
            pytest.skip(f"{pack} is not at {pack_folder(pack)}")
        server = request.getfixturevalue("packs")
        if node not in server.get("/object_info"):
            lines = [line for line in server.log.read_text().splitlines() if f"/{pack}" in line and ": " in line]
            pytest.skip(f"this host does not load {node} of {pack}: {' | '.join(lines[-2:])}")
        return server

    return server


ip_adapter_server = needs("ComfyUI_IPAdapter_plus", "IPAdapterEmbeds")
couple_server = needs("ComfyUI-ppm", "AttentionCouplePPM")
negpip_server = needs("ComfyUI-ppm", "CLIPNegPip")
prompt_control_server = needs("comfyui-prompt-control", "PCTextEncode")
prompt_schedules_server = needs("comfyui-prompt-control", "PCLazyTextEncode")


def canvas(*changes, **options):
    return beside(*changes, adapter="short.safetensors", **options)


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def assert_order_does_not_matter(server, mode, *changes, **options):
    first, last = (
        server.latents(canvas(*changes, mode=mode, patch_first=patch_first, **options)) for patch_first in (True, False)
    )
    assert torch.equal(first, last)
    return last


# IP-Adapter

IMAGE_WEIGHT = 0.8


def ip_adapter(nodes):
    nodes["ip_file"] = {"class_type": "IPAdapterModelLoader", "inputs": {"ipadapter_file": "other.safetensors"}}
    for side in ("positive", "negative"):
        nodes[f"image_{side}"] = {"class_type": "IPAdapterLoadEmbeds", "inputs": {"embeds": f"{side}.ipadpt"}}
    on_the_model(nodes, "image", "IPAdapterEmbeds", ipadapter=["ip_file", 0], weight=IMAGE_WEIGHT)
    nodes["image"]["inputs"].update(pos_embed=["image_positive", 0], neg_embed=["image_negative", 0])
    nodes["image"]["inputs"].update(weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only")


@pytest.mark.parametrize("mode", MODES)
def test_ip_adapter_before_and_behind(ip_adapter_server, mode):
    server = ip_adapter_server
    both = assert_order_does_not_matter(server, mode, ip_adapter)
    image_alone = server.latents(canvas(ip_adapter, plain_clip))
    assert error(both, image_alone) > 1e-3, "LLM4GEN is not seen"
    assert error(both, server.latents(canvas(mode=mode))) > 1e-3, "the image is not seen"
    off = server.latents(canvas(ip_adapter, mode=mode, strength=0.0))
    assert torch.equal(off, image_alone), "λ = 0 is not the IP-Adapter with plain CLIP"


class TextAndImage:
    """diffusers' attention processor: λ in some mode, plus the image's tokens in the layers that have keys for them."""

    def __init__(self, mode, image=None):
        self.mode, self.image = mode, image

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        def attend(key, value):
            q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
            return ((q @ k.transpose(-1, -2) * attn.scale).softmax(-1) @ v).transpose(1, 2).flatten(2)

        query = attn.to_q(hidden_states)
        text, llm = encoder_hidden_states[:, :77], encoder_hidden_states[:, 77:]
        if self.mode == "decoupled":
            attended = attend(attn.to_k(text), attn.to_v(text)) + LAMBDA * attend(attn.to_k(llm), attn.to_v(llm))
        else:
            scaled = torch.cat((text, LAMBDA * llm), 1)
            attended = attend(
                attn.to_k(scaled if self.mode == "embedding" else encoder_hidden_states), attn.to_v(scaled)
            )
        if self.image is not None:
            attended = attended + IMAGE_WEIGHT * attend(*self.image)
        return attn.to_out[0](attended)


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_ip_adapter_adds_its_attention_to_ours(ip_adapter_server, models, tmp_path, mode):
    """The noise that one step takes away, against diffusers' UNet with both written out."""
    graph = canvas(ip_adapter, mode=mode, seed=3, positive_path=tmp_path / "positive.pt")
    graph["sampler"]["inputs"].update(steps=1, cfg=1.0, sampler_name="euler", scheduler="normal")
    denoised = 0.18215 * ip_adapter_server.latents(graph)
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.manual_seed(3))
    sigma = 14.6146  # SD1.5's noisiest level, at which x / sqrt(1 + sigma²) is the noise itself
    predicted = (noise * (1 + sigma**2) ** 0.5 - denoised) / sigma

    state = load_file(models / "ipadapter" / "other.safetensors")
    tokens = other_models.image_embeds(1) @ state["image_proj.proj.weight"].T + state["image_proj.proj.bias"]
    tokens = torch.nn.functional.layer_norm(
        tokens.view(1, -1, 768), (768,), state["image_proj.norm.weight"], state["image_proj.norm.bias"]
    )
    checkpoint = load_file(models / "checkpoints" / "sd15.safetensors")
    twin = diffusers_unet({name: tensor.float() for name, tensor in checkpoint.items()})
    numbers = {name: number for number, name in other_models.IP_ADAPTER_REACHES.items()}
    for name, layer in twin.named_modules():
        if name.endswith("attn2"):
            number = numbers.pop(name.removesuffix(".transformer_blocks.0.attn2"), None)
            names = [] if number is None else [f"ip_adapter.{number}.to_{part}_ip.weight" for part in "kv"]
            layer.set_processor(TextAndImage(mode, [tokens @ state[name].T for name in names] or None))
    assert not numbers, "a layer of the IP-Adapter is not in the UNet"
    [[context, _]] = torch.load(tmp_path / "positive.pt", weights_only=True)
    assert error(predicted, twin(noise, 999, context).sample) < 1e-4


# Attention couple, of ppm


def couple(base, region, region_text=OTHER, region_is_fused=True):
    """Attention Couple with two prompts, whose masks are full or empty."""

    def change(nodes):
        text = nodes["text"]
        if region_is_fused:
            nodes["region"] = {**text, "inputs": {**text["inputs"], "positive": region_text}}
        else:
            inputs = {"clip": text["inputs"]["clip"], "text": region_text}
            nodes["region"] = {"class_type": "CLIPTextEncode", "inputs": inputs}
        for name, value in (("base_mask", base), ("region_mask", region)):
            inputs = {"value": float(value), "width": SIZE, "height": SIZE}
            nodes[name] = {"class_type": "SolidMask", "inputs": inputs}
        on_the_model(nodes, "couple", "AttentionCouplePPM", base_cond=["text", 0], base_mask=["base_mask", 0])
        nodes["couple"]["inputs"].update(cond_1=["region", 0], mask_1=["region_mask", 0])

    return change


def plain_positive(nodes):
    """The host's own encoding of the other prompt on the positive side alone."""
    nodes["plain"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["ckpt", 1], "text": OTHER}}
    nodes["sampler"]["inputs"]["positive"] = ["plain", 0]


@pytest.mark.parametrize("mode", MODES)
def test_couple_paints_a_region_as_its_prompt_alone(couple_server, mode):
    server = couple_server
    alone = {text: server.latents(canvas(mode=mode, positive=text)) for text in (DENSE, OTHER)}
    assert error(alone[OTHER], alone[DENSE]) > 1e-3
    for change, text in ((couple(1, 0), DENSE), (couple(0, 1), OTHER)):
        assert error(assert_order_does_not_matter(server, mode, change), alone[text]) < 1e-4
    mixed = server.latents(canvas(couple(1, 1), mode=mode))
    assert min(error(mixed, one) for one in alone.values()) > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_a_region_of_plain_clip_stays_plain(couple_server, mode):
    change = couple(0, 1, region_is_fused=False)
    expected = couple_server.latents(canvas(plain_positive, mode=mode))
    assert error(assert_order_does_not_matter(couple_server, mode, change), expected) < 1e-4


def test_couple_without_llm4gen_is_couple(couple_server):
    """λ = 0 is bit for bit attention couple with plain CLIP."""

    def plain(nodes):
        couple(1, 1, region_is_fused=False)(nodes)
        plain_clip(nodes)

    expected = couple_server.latents(canvas(plain))
    for mode in MODES:
        assert torch.equal(couple_server.latents(canvas(couple(1, 1), mode=mode, strength=0.0)), expected)


# NegPip, of ppm


def negpip(nodes):
    on_the_model(nodes, "negpip", "CLIPNegPip", clip=["ckpt", 1])
    nodes["text"]["inputs"]["clip"] = ["negpip", 1]


@pytest.mark.parametrize("mode", [None, *MODES])
def test_negpip_without_negative_weights_changes_nothing(negpip_server, mode):
    expected = negpip_server.latents(canvas(mode=mode))
    assert error(negpip_server.latents(canvas(negpip, mode=mode)), expected) < 1e-4
    if mode:
        assert_order_does_not_matter(negpip_server, mode, negpip)


def test_negpip_and_couple_and_llm4gen(negpip_server, couple_server):
    expected = negpip_server.latents(canvas(mode="decoupled", positive=OTHER))
    found = assert_order_does_not_matter(negpip_server, "decoupled", negpip, couple(0, 1))
    assert error(found, expected) < 1e-4


def test_negpip_and_llm4gen_are_both_seen(negpip_server):
    server, text = negpip_server, "a ginger cat on a (red:-1.2) woven rug"
    both = assert_order_does_not_matter(server, "decoupled", negpip, positive=text)
    negpip_alone = server.latents(canvas(negpip, plain_clip, positive=text))
    assert error(both, negpip_alone) > 1e-3
    assert error(both, server.latents(canvas(mode="decoupled", positive=text))) > 1e-3
    assert torch.equal(server.latents(canvas(negpip, mode="decoupled", strength=0.0, positive=text)), negpip_alone)


# Prompt Control


def encoded_by(class_type, text):
    """Its text encoding of the positive prompt, between CLIP and Fuse."""

    def change(nodes):
        apart = separate(nodes)
        nodes.clear()
        nodes.update(apart)
        nodes["clip_positive"] = {"class_type": class_type, "inputs": {"clip": ["ckpt", 1], "text": text}}

    return change


@pytest.mark.parametrize("mode", MODES)
def test_coupled_prompts(prompt_control_server, mode):
    """Fuse changes the base prompt; a region is encoded by Prompt Control, and stays plain CLIP."""
    server = prompt_control_server
    base = server.latents(canvas(encoded_by("CLIPTextEncode", "a cat"), mode=mode))
    region = server.latents(canvas(encoded_by("CLIPTextEncode", "a cat"), plain_positive, mode=mode))
    assert error(region, base) > 1e-3
    for prompt, expected in (
        (f"a cat COUPLE MASK(0 0) {OTHER}", base),
        (f"a cat MASK(0 0) COUPLE MASK() {OTHER}", region),
    ):
        found = server.latents(canvas(encoded_by("PCTextEncode", prompt), mode=mode))
        assert error(found, expected) < 1e-4, prompt


def test_a_scheduled_prompt_is_entries_with_ranges(prompt_schedules_server):
    def by_hand(nodes):
        encoded_by("CLIPTextEncode", "a cat")(nodes)
        nodes["first"] = nodes.pop("clip_positive")
        nodes["last"] = {**nodes["first"], "inputs": {**nodes["first"]["inputs"], "text": "a dog"}}
        for name, start, end in (("first", 0.0, 0.5), ("last", 0.5, 1.0)):
            inputs = {"conditioning": [name, 0], "start": start, "end": end}
            nodes[f"{name}_range"] = {"class_type": "ConditioningSetTimestepRange", "inputs": inputs}
        inputs = {"conditioning_1": ["first_range", 0], "conditioning_2": ["last_range", 0]}
        nodes["clip_positive"] = {"class_type": "ConditioningCombine", "inputs": inputs}

    scheduled = encoded_by("PCLazyTextEncode", "a [cat:dog:0.5]")
    for mode in (None, "decoupled"):
        found, expected, one = (
            prompt_schedules_server.latents(canvas(change, mode=mode))
            for change in (scheduled, by_hand, encoded_by("CLIPTextEncode", "a cat"))
        )
        assert torch.equal(found, expected)
        assert error(found, one) > 1e-3


def test_a_scheduled_lora(prompt_schedules_server):
    """Its hooks are on CLIP's conditioning, and go through Fuse."""
    server = prompt_schedules_server

    def lora(nodes):
        on_the_model(nodes, "lora", "PCLazyLoraLoader", clip=["ckpt", 1], text="[<lora:other_kohya:1.0>::0.5]")
        nodes["text"]["inputs"]["clip"] = ["lora", 1]

    both = assert_order_does_not_matter(server, "decoupled", lora)
    alone = server.latents(canvas(lora, plain_clip))
    assert error(both, alone) > 1e-3
    assert error(both, server.latents(canvas(mode="decoupled"))) > 1e-3
    assert torch.equal(server.latents(canvas(lora, mode="decoupled", strength=0.0)), alone)
