"""The usual graph in one node."""

import comfy.sd
from comfy_api.v0_0_2 import io

from .conditioning import Conditioning, encode_clip, fuse_conditioning, without_breaks
from .host import HostAdapter
from .host_llm import HostLLM, wired_llm
from .wires import CATEGORY, AdapterWire, llm_input, say, search_aliases, strength_input


class LLM4GENTextEncode(io.ComfyNode):
    """Positive and negative text to both fused conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENTextEncode",
            display_name="Text Encode (LLM4GEN)",
            category=CATEGORY,
            description="Encodes the positive and the negative prompt with CLIP and with the LLM and fuses them. Both "
            "results are equally long, so that guidance stays one UNet call a step.",
            **search_aliases("prompt", "llm text encode", "positive negative", "ella"),
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                llm_input(),
                AdapterWire.Input("adapter", display_name="ADAPTER", tooltip="From Load Adapter."),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to paint: long, dense descriptions are what LLM4GEN is for. (word:1.3) weights work; "
                    "BREAK, in capitals, begins a new chunk of CLIP's 75 tokens.",
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
        read = {text: without_breaks(text) for text in (positive, negative)}
        counts = [llm.count_tokens(read[text], spec) for text in (positive, negative)]
        say(cls, "positive: {} · negative: {}".format(*counts))
        length = max(len(llm.tokenize(text, spec)["prompt"].ids) for text in read.values())

        def encode(text: str, other: str) -> Conditioning:
            conditioning = encode_clip(clip, text, paired_text=other)
            return fuse_conditioning(adapter, conditioning, llm.encode(read[text], spec, pad_to=length), strength)

        return io.NodeOutput(encode(positive, negative), encode(negative, positive))
