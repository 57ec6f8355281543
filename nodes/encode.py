"""Nodes that encode a prompt: with the LLM, and with CLIP."""

import comfy.sd
from comfy_api.v0_0_2 import io

from .conditioning import encode_clip, without_breaks
from .host import HostAdapter
from .host_llm import HostLLM, wired_llm
from .wires import CATEGORY, AdapterWire, FeaturesWire, llm_input, say, search_aliases

_SIZES = {
    "width": "SDXL: width of the image before it was cropped, in pixels. Twice what you paint is a common choice.",
    "height": "SDXL: height of the image before it was cropped, in pixels.",
    "crop_w": "SDXL: how much was cropped off its left, in pixels.",
    "crop_h": "SDXL: how much was cropped off its top, in pixels.",
    "target_width": "SDXL: width of the image that it became, in pixels.",
    "target_height": "SDXL: height of the image that it became, in pixels.",
}
"""SDXL's size condition by the host's names."""


def _size_input(name: str, meaning: str) -> io.Int.Input:
    default = "0 is no crop." if name.startswith("crop") else "0 is what is painted."
    return io.Int.Input(
        name, default=0, min=0, max=16384, step=8, optional=True, tooltip=f"{meaning} {default} SD1.5 has none."
    )


class LLM4GENEncodeLLM(io.ComfyNode):
    """Encode a prompt with the language model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENEncodeLLM",
            display_name="LLM Encode (LLM4GEN)",
            category=CATEGORY,
            description="Turns a prompt into the language model's hidden states, for the Fuse node.",
            **search_aliases("t5 encode", "llm text encode", "llm features"),
            inputs=[
                llm_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, as long and dense as you like; (word:1.3) weights work. The official adapter "
                    "reads 256 tokens, about 190 words. embedding:name and the word BREAK are skipped here.",
                ),
                AdapterWire.Input(
                    "adapter",
                    display_name="ADAPTER",
                    optional=True,
                    tooltip="Connect the adapter, so that the prompt is prepared as in its training (prefix, length, "
                    "layer). Without it the LLM's own settings are used.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                FeaturesWire.Output(display_name="LLM_FEATURES", tooltip="Hidden states of the prompt, for Fuse.")
            ],
        )

    @classmethod
    def execute(cls, llm: HostLLM | comfy.sd.CLIP, text: str, adapter: HostAdapter | None = None) -> io.NodeOutput:
        llm = wired_llm(llm)
        spec = llm.spec if adapter is None else llm.spec_for(adapter.metadata.llm, adapter.name)
        text = without_breaks(text)
        say(cls, llm.count_tokens(text, spec))
        return io.NodeOutput(llm.encode(text, spec))


class LLM4GENEncodeCLIP(io.ComfyNode):
    """Encode a prompt with the checkpoint's own CLIP, at the length of its counterpart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENEncodeCLIP",
            display_name="CLIP Encode (LLM4GEN)",
            category=CATEGORY,
            description="Encodes a prompt with CLIP, as CLIP Text Encode does, and can keep the positive and the "
            "negative side equally long. With SDXL it takes its size condition too.",
            **search_aliases("clip text encode", "prompt", "sdxl", "clip text encode sdxl"),
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt; usually the same text as in LLM Encode. (word:1.3) and embedding:name work; "
                    "BREAK, in capitals, begins a new chunk of 75 tokens.",
                ),
                io.String.Input(
                    "paired_text",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="The text of the other side: the negative prompt at the positive node, and the other way "
                    "round. Only its length counts: the shorter side is continued with empty chunks, so that guidance "
                    "stays one UNet call a step when one prompt has more than 75 tokens.",
                ),
                *(_size_input(name, meaning) for name, meaning in _SIZES.items()),
            ],
            outputs=[io.Conditioning.Output(tooltip="CLIP's conditioning, for Fuse or for any other node.")],
        )

    @classmethod
    def execute(cls, clip: comfy.sd.CLIP, text: str, paired_text: str = "", **sizes: int) -> io.NodeOutput:
        given = {name: size for name, size in sizes.items() if size}
        return io.NodeOutput(encode_clip(clip, text, paired_text, given))
