"""Types of the pack's own wires, and what its node definitions share."""

import dataclasses
from typing import Any

from comfy_api.v0_0_2 import io
from server import PromptServer

LLMWire = io.Custom("LLM4GEN_LLM")
AdapterWire = io.Custom("LLM4GEN_ADAPTER")
FeaturesWire = io.Custom("LLM4GEN_FEATURES")

CATEGORY = "LLM4GEN"

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def search_aliases(*names: str) -> dict[str, Any]:
    """Other words under which the node search finds a node, for hosts whose schema knows them (after 0.3.64)."""
    return {"search_aliases": list(names)} if "search_aliases" in _SCHEMA_FIELDS else {}


def say(node: type[io.ComfyNode], text: str) -> None:
    """Show a line of text on the node that is being executed; it must ask for `io.Hidden.unique_id`."""
    PromptServer.instance.send_progress_text(text, node.hidden.unique_id)


def llm_input() -> io.MultiType.Input:
    """An LLM, or a text encoder of the host's or of another pack's loaders that holds one."""
    return io.MultiType.Input(
        "llm",
        [LLMWire, io.Clip],
        display_name="LLM",
        tooltip="From Load LLM; or the CLIP output of any loader of a T5, Llama, Qwen, Mistral or Gemma text encoder, "
        "such as one for GGUF files.",
    )


def strength_input() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=4.0,
        step=0.05,
        tooltip="λ: scale of the LLM's tokens beside CLIP's. 1 is what the adapter was trained for; 0 leaves the LLM "
        "out and gives plain CLIP. Use the same value for the positive and the negative prompt.",
    )
