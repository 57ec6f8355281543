"""The graphs that the host tests run, in API format."""

from __future__ import annotations

import copy

DENSE = "a green velvet armchair left of a small round oak table, a ginger cat on a red woven rug"


def graph(positive=DENSE, negative="blurry", seed=1, batch=1, strength=1.0, prefix="test", **paths):
    """The usual graph on the small models; `model`, `positive_path`, `negative_path` record to files."""
    nodes = {
        "ckpt": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "llm": {"class_type": "LLM4GENLoadLLM", "inputs": {"llm_name": "rankgen.safetensors", "precision": "float32"}},
        "adapter": {"class_type": "LLM4GENLoadAdapter", "inputs": {"adapter_name": "projector.pth"}},
        "text": {
            "class_type": "LLM4GENTextEncode",
            "inputs": {
                "clip": ["ckpt", 1],
                "llm": ["llm", 0],
                "adapter": ["adapter", 0],
                "positive": positive,
                "negative": negative,
                "strength": strength,
            },
        },
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": batch}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["ckpt", 0],
                "positive": ["text", 0],
                "negative": ["text", 1],
                "latent_image": ["latent", 0],
                "seed": seed,
                "steps": 2,
                "cfg": 7.5,
                "sampler_name": "ddim",
                "scheduler": "ddim_uniform",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["ckpt", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": prefix}},
    }
    if "model" in paths:
        nodes["probe"] = {"class_type": "ProbeModel", "inputs": {"model": ["ckpt", 0], "path": str(paths["model"])}}
        nodes["sampler"]["inputs"]["model"] = ["probe", 0]
    for slot, side in enumerate(("positive", "negative")):
        if path := paths.get(f"{side}_path"):
            nodes[side] = {
                "class_type": "ProbeConditioning",
                "inputs": {"conditioning": ["text", slot], "path": str(path)},
            }
            nodes["sampler"]["inputs"][side] = [side, 0]
    return nodes


def separate(nodes):
    """The same graph with the encode and fuse nodes in place of the one Text Encode."""
    nodes = copy.deepcopy(nodes)
    text = nodes.pop("text")["inputs"]
    for slot, (side, other) in enumerate((("positive", "negative"), ("negative", "positive"))):
        nodes[f"string_{side}"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": text[side]}}
        nodes[f"clip_{side}"] = {
            "class_type": "LLM4GENEncodeCLIP",
            "inputs": {"clip": ["ckpt", 1], "text": text[side], "paired_text": [f"string_{other}", 0]},
        }
        nodes[f"llm_{side}"] = {
            "class_type": "LLM4GENEncodeLLM",
            "inputs": {"llm": ["llm", 0], "text": text[side], "adapter": ["adapter", 0]},
        }
        nodes[f"fuse_{side}"] = {
            "class_type": "LLM4GENFuse",
            "inputs": {
                "adapter": ["adapter", 0],
                "conditioning": [f"clip_{side}", 0],
                "llm_features": [f"llm_{side}", 0],
                "strength": text["strength"],
            },
        }
        for node in nodes.values():
            for name, value in node["inputs"].items():
                if value == ["text", slot]:
                    node["inputs"][name] = [f"fuse_{side}", 0]
    return nodes


def on_the_model(nodes, name, class_type, **inputs):
    """Put a node with a MODEL in and out before the sampler, behind those that are there. Gives `nodes` back."""
    sampler = nodes["sampler"]["inputs"]
    nodes[name] = {"class_type": class_type, "inputs": {"model": sampler["model"], **inputs}}
    sampler["model"] = [name, 0]
    return nodes


def patch_model(nodes, **settings):
    """Put Patch Model before the sampler, behind the nodes that are there."""
    defaults = {"strength_model": 1.0, "lambda_mode": "as trained", "lambda_start": 1.0, "lambda_end": 1.0}
    defaults |= {"curve": "linear", "start_percent": 0.0, "end_percent": 1.0}
    return on_the_model(nodes, "patch", "LLM4GENPatch", adapter=["adapter", 0], **{**defaults, **settings})


def to_latents(nodes, size=64):
    """End in the sampler's own numbers in place of an image, and be small."""
    del nodes["decode"], nodes["save"]
    nodes["latent"]["inputs"].update(width=size, height=size)
    nodes["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "test"}}
    return nodes


def plain_clip(nodes):
    """The same graph with the host's own text encoding in place of Text Encode: without LLM4GEN."""
    text = nodes.pop("text")["inputs"]
    del nodes["llm"], nodes["adapter"]
    for slot, side in enumerate(("positive", "negative")):
        nodes[f"clip_{side}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": text["clip"], "text": text[side]}}
        for node in nodes.values():
            for name, value in node["inputs"].items():
                if value == ["text", slot]:
                    node["inputs"][name] = [f"clip_{side}", 0]
    return nodes


def beside(*changes, mode=None, strength=0.6, patch_first=False, size=64, adapter="projector.pth", **options):
    """The usual graph with other nodes: each change puts some in. Patch Model stands behind theirs, or before them."""

    def patch(nodes):
        patch_model(nodes, lambda_mode=mode, lambda_start=strength, lambda_end=strength)

    patches = [patch] if mode else []
    nodes = to_latents(graph(**options), size)
    nodes["adapter"]["inputs"]["adapter_name"] = adapter
    for change in [*patches, *changes] if patch_first else [*changes, *patches]:
        change(nodes)
    return nodes
