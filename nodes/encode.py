"""Nodes that encode prompts: with the LLM, with CLIP, the fusion of both, and all of it in one node."""

import comfy.sd
from comfy_api.v0_0_2 import io

from ..llm4gen_core import LLMFeatures
from .conditioning import Conditioning, encode_clip, fuse_conditioning, without_breaks
from .host import HostAdapter
from .host_llm import HostLLM, token_count, wired_llm
from .wires import CATEGORY, AdapterWire, FeaturesWire, llm_input, say, search_aliases, strength_input

_SIZES = {
    "width": "SDXL: width of the image before cropping, in pixels. Twice the generated width is a common choice.",
    "height": "SDXL: height of the image before cropping, in pixels.",
    "crop_w": "SDXL: pixels that were cropped on the left.",
    "crop_h": "SDXL: pixels that were cropped at the top.",
    "target_width": "SDXL: width of the image after cropping and resizing, in pixels.",
    "target_height": "SDXL: height of the image after cropping and resizing, in pixels.",
}
"""SDXL's size conditions, under the host's names."""


def _size_input(name: str, meaning: str) -> io.Int.Input:
    default = "0 is no crop." if name.startswith("crop") else "0 is the size of the generated image."
    tooltip = f"{meaning} {default} Unused by SD1.5."
    return io.Int.Input(name, default=0, min=0, max=16384, step=8, optional=True, tooltip=tooltip)


class LLM4GENEncodeLLM(io.ComfyNode):
    """Encode a prompt with the language model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENEncodeLLM",
            display_name="LLM Encode (LLM4GEN)",
            category=CATEGORY,
            description="Encodes a prompt with the language model, for the Fuse node.",
            **search_aliases("t5 encode", "llm text encode", "llm features"),
            inputs=[
                llm_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, which may be long and dense; (word:1.3) weights work. The official adapter "
                    "reads 256 tokens, about 190 words. embedding:name and the word BREAK are ignored here.",
                ),
                AdapterWire.Input(
                    "adapter",
                    display_name="ADAPTER",
                    optional=True,
                    tooltip="Connect the adapter to encode the prompt as in its training (prefix, length, layer). "
                    "Without it the LLM's own settings are used.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[FeaturesWire.Output(display_name="LLM_FEATURES", tooltip="Hidden states of the prompt.")],
        )

    @classmethod
    def execute(cls, llm: HostLLM | comfy.sd.CLIP, text: str, adapter: HostAdapter | None = None) -> io.NodeOutput:
        llm = wired_llm(llm)
        spec = llm.spec if adapter is None else llm.spec_for(adapter.metadata.llm, adapter.name)
        features = llm.encode(without_breaks(text), spec)
        say(cls, token_count(features))
        return io.NodeOutput(features)


class LLM4GENEncodeCLIP(io.ComfyNode):
    """Encode a prompt with the checkpoint's own CLIP, as long as the prompt of the other side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENEncodeCLIP",
            display_name="CLIP Encode (LLM4GEN)",
            category=CATEGORY,
            description="Encodes a prompt with CLIP, as CLIP Text Encode does, and can keep the positive and the "
            "negative side equally long. Has SDXL's size conditions too.",
            **search_aliases("clip text encode", "prompt", "sdxl", "clip text encode sdxl"),
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt; usually the same text as in LLM Encode. (word:1.3) and embedding:name work; "
                    "BREAK, in capitals, starts a new chunk of 75 tokens.",
                ),
                io.String.Input(
                    "paired_text",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="The prompt of the other side: the negative prompt at the positive node, and vice versa. "
                    "Only its length matters: the shorter side is padded with empty chunks, so that guidance stays one "
                    "UNet call per step if one prompt has more than 75 tokens.",
                ),
                *(_size_input(name, meaning) for name, meaning in _SIZES.items()),
            ],
            outputs=[io.Conditioning.Output(tooltip="CLIP's conditioning, for Fuse or for any other node.")],
        )

    @classmethod
    def execute(cls, clip: comfy.sd.CLIP, text: str, paired_text: str = "", **sizes: int) -> io.NodeOutput:
        given = {name: size for name, size in sizes.items() if size}
        return io.NodeOutput(encode_clip(clip, text, paired_text, given))


class LLM4GENFuse(io.ComfyNode):
    """Let the LLM's tokens attend to CLIP's and append them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENFuse",
            display_name="Fuse (LLM4GEN)",
            category=CATEGORY,
            description="Runs the Cross-Adapter and appends the adapted LLM tokens to CLIP's. The result is an "
            "ordinary conditioning for any sampler; ControlNets still receive plain CLIP.",
            **search_aliases("cross-adapter", "apply llm4gen", "fuse conditioning"),
            inputs=[
                AdapterWire.Input("adapter", display_name="ADAPTER", tooltip="From Load Adapter."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="CLIP's conditioning of the prompt. With several entries (combined, masked, scheduled) "
                    "each is fused, and keeps its mask, range and other settings.",
                ),
                FeaturesWire.Input("llm_features", display_name="LLM_FEATURES", tooltip="From LLM Encode."),
                strength_input(),
            ],
            outputs=[io.Conditioning.Output(tooltip="CLIP's tokens followed by the adapted LLM tokens.")],
        )

    @classmethod
    def execute(
        cls, adapter: HostAdapter, conditioning: Conditioning, llm_features: LLMFeatures, strength: float
    ) -> io.NodeOutput:
        return io.NodeOutput(fuse_conditioning(adapter, conditioning, llm_features, strength))


class LLM4GENTextEncode(io.ComfyNode):
    """Encode and fuse the positive and the negative prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENTextEncode",
            display_name="Text Encode (LLM4GEN)",
            category=CATEGORY,
            description="Encodes the positive and the negative prompt with CLIP and with the LLM and fuses them. Both "
            "results are equally long, so that guidance stays one UNet call per step.",
            **search_aliases("prompt", "llm text encode", "positive negative", "ella"),
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                llm_input(),
                AdapterWire.Input("adapter", display_name="ADAPTER", tooltip="From Load Adapter."),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to generate; LLM4GEN is made for long, dense descriptions. (word:1.3) weights work; "
                    "BREAK, in capitals, starts a new chunk of CLIP's 75 tokens.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to avoid; may be empty, as in the paper.",
                ),
                strength_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Conditioning.Output("positive_conditioning", display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output("negative_conditioning", display_name="negative", tooltip="For the sampler."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: comfy.sd.CLIP,
        llm: HostLLM | comfy.sd.CLIP,
        adapter: HostAdapter,
        positive: str,
        negative: str,
        strength: float,
    ) -> io.NodeOutput:
        llm = wired_llm(llm)
        spec = llm.spec_for(adapter.metadata.llm, adapter.name)
        sides = (encode_clip(clip, positive, negative), encode_clip(clip, negative, positive))
        features = [llm.encode(without_breaks(text), spec) for text in (positive, negative)]
        say(cls, "positive: {} · negative: {}".format(*map(token_count, features)))
        fused = (fuse_conditioning(adapter, *side, strength) for side in zip(sides, features, strict=True))
        return io.NodeOutput(*fused)
