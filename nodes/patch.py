"""The node that gives a model the UNet part of an adapter."""

import comfy.model_patcher
from comfy_api.v0_0_2 import io

from .host import HostAdapter
from .host_unet import patch_unet
from .wires import CATEGORY, AdapterWire, say, search_aliases


class LLM4GENPatch(io.ComfyNode):
    """Change the UNet as in the adapter's training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENPatch",
            display_name="Patch Model (LLM4GEN)",
            category=CATEGORY,
            description="Applies what an adapter holds of the UNet (LoRA, or key and value weights of the "
            "cross-attention) to the model. Load Adapter says whether there is such a part; without one the model "
            "passes unchanged.",
            **search_aliases("apply adapter", "lora", "unet part", "apply llm4gen"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model that the adapter was trained on, or a fine-tune of it. LoRA nodes may "
                    "come before or after.",
                ),
                AdapterWire.Input(
                    "adapter",
                    display_name="ADAPTER",
                    tooltip="From Load Adapter: the same that makes the conditioning.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Scale of the change of the UNet's weights. 1 is what the adapter was trained with; 0 "
                    "leaves the model as it is.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(tooltip="The model with the adapter's changes, for the sampler.")],
        )

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, adapter: HostAdapter, strength_model: float
    ) -> io.NodeOutput:
        patched = patch_unet(model, adapter, strength_model)
        part = adapter.module.unet_part
        if part is None:
            say(cls, f"{adapter.name} has no UNet part: the model passes unchanged")
        elif patched is model:
            say(cls, "strength 0: the model passes unchanged")
        else:
            say(cls, f"{adapter.unet_label} at strength {strength_model:g}")
        return io.NodeOutput(patched)
