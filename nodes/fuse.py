"""The node that fuses CLIP conditioning with LLM features."""

from comfy_api.v0_0_2 import io

from ..llm4gen_core import LLMFeatures
from .conditioning import Conditioning, fuse_conditioning
from .host import HostAdapter
from .wires import CATEGORY, AdapterWire, FeaturesWire, search_aliases, strength_input


class LLM4GENFuse(io.ComfyNode):
    """Let the LLM's tokens look at CLIP's and append them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENFuse",
            display_name="Fuse (LLM4GEN)",
            category=CATEGORY,
            description="Runs the Cross-Adapter and appends the adapted LLM tokens to CLIP's. The result is an "
            "ordinary conditioning for any sampler; ControlNets go on seeing plain CLIP.",
            **search_aliases("cross-adapter", "apply llm4gen", "fuse conditioning"),
            inputs=[
                AdapterWire.Input("adapter", display_name="ADAPTER", tooltip="From Load Adapter."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="CLIP's conditioning of the prompt. With several entries (combined, masked, scheduled) "
                    "each is fused, and keeps its mask, range and other settings.",
                ),
                FeaturesWire.Input(
                    "llm_features", display_name="LLM_FEATURES", tooltip="From LLM Encode, usually of the same prompt."
                ),
                strength_input(),
            ],
            outputs=[io.Conditioning.Output(tooltip="CLIP's tokens followed by the adapted LLM tokens.")],
        )

    @classmethod
    def execute(
        cls, adapter: HostAdapter, conditioning: Conditioning, llm_features: LLMFeatures, strength: float
    ) -> io.NodeOutput:
        return io.NodeOutput(fuse_conditioning(adapter, conditioning, llm_features, strength))
