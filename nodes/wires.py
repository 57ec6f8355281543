"""Types of the pack's own inputs and outputs, and helpers of its node definitions."""

from typing import Any

from comfy_api.v0_0_2 import io
from server import PromptServer

LLMWire = io.Custom("LLM4GEN_LLM")
AdapterWire = io.Custom("LLM4GEN_ADAPTER")
FeaturesWire = io.Custom("LLM4GEN_FEATURES")

CATEGORY = "LLM4GEN"


def search_aliases(*names: str) -> dict[str, Any]:
    """Schema field with further search words of a node, for hosts that support it (after 0.3.64)."""
    return {"search_aliases": list(names)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}


def say(node: type[io.ComfyNode], text: str) -> None:
    """Show a line of text on the executed node, which must have `io.Hidden.unique_id`."""
    PromptServer.instance.send_progress_text(text, node.hidden.unique_id)


def llm_input() -> io.MultiType.Input:
    """Input for an LLM, or for a text encoder with an LLM from the host's or another pack's loaders."""
    return io.MultiType.Input(
        "llm",
        [LLMWire, io.Clip],
        display_name="LLM",
        tooltip="From Load LLM, or the CLIP output of any loader of a T5, Llama, Qwen, Mistral or Gemma text encoder, "
        "such as one for GGUF files.",
    )


def strength_input() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=4.0,
        step=0.05,
        tooltip="λ, the scale of the LLM's tokens. 1 is the value of the training; 0 is plain CLIP without the LLM. "
        "Use the same value for the positive and the negative prompt.",
    )
