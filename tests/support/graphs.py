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
