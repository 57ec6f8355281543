"""Node that applies an adapter's UNet part to a model, and sets λ's mode and schedule."""

import comfy.model_patcher
from comfy_api.v0_0_2 import io

from ..llm4gen_core import LLM4GENError
from ..llm4gen_core.attention import CURVES, LAMBDA_MODES, StrengthSchedule
from .host import HostAdapter
from .host_attention import patch_attention
from .host_unet import check_model, patch_unet
from .wires import CATEGORY, AdapterWire, say, search_aliases

OWN_MODE = "as trained"


def _lambda_input(name: str, when: str) -> io.Float.Input:
    return io.Float.Input(name, optional=True, default=1.0, min=0.0, max=4.0, step=0.05, tooltip=f"λ {when}.")


def _percent_input(name: str, default: float, meaning: str) -> io.Float.Input:
    return io.Float.Input(name, optional=True, default=default, min=0.0, max=1.0, step=0.01, tooltip=meaning)


class LLM4GENPatch(io.ComfyNode):
    """Apply the adapter's UNet part, and λ's mode and schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENPatch",
            display_name="Patch Model (LLM4GEN)",
            category=CATEGORY,
            description="Applies the UNet part of an adapter (LoRA, or key and value weights of the cross-attention) "
            "to the model, and sets the mode and schedule of λ, the strength of the LLM's tokens. Official SD1.5 "
            "adapters need this node only for a schedule of λ.",
            **search_aliases("apply adapter", "lora", "unet part", "apply llm4gen", "lambda", "strength schedule"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model that the adapter was trained on, or a fine-tune of it. LoRA nodes may come "
                    "before or after.",
                ),
                AdapterWire.Input(
                    "adapter",
                    display_name="ADAPTER",
                    tooltip="From Load Adapter; the same adapter as for the conditioning.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Scale of the change of the UNet's weights. 1 is the trained UNet; 0 leaves the model "
                    "unchanged.",
                ),
                io.Combo.Input(
                    "lambda_mode",
                    options=[OWN_MODE, *LAMBDA_MODES],
                    optional=True,
                    tooltip="What λ scales. as trained: the adapter's mode. embedding: the LLM's tokens. value: their "
                    "values in the attention, not their keys. decoupled: the output of a separate attention to them.",
                ),
                _lambda_input(
                    "lambda_start",
                    "at the beginning of the range; multiplied by the strength of Fuse. No prompt is encoded again",
                ),
                _lambda_input("lambda_end", "at the end of the range"),
                io.Combo.Input(
                    "curve", options=list(CURVES), optional=True, tooltip="Interpolation from the first λ to the last."
                ),
                _percent_input(
                    "start_percent",
                    0.0,
                    "Point in sampling from which on the LLM's tokens are used; plain CLIP before.",
                ),
                _percent_input("end_percent", 1.0, "Point in sampling up to which the LLM's tokens are used."),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(tooltip="The model with the adapter's changes, for the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: comfy.model_patcher.ModelPatcher,
        adapter: HostAdapter,
        strength_model: float,
        lambda_mode: str = OWN_MODE,
        lambda_start: float = 1.0,
        lambda_end: float = 1.0,
        curve: str = "linear",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        schedule = StrengthSchedule(lambda_start, lambda_end, start_percent, end_percent, curve)
        check_model(model, adapter)
        patched = patch_unet(model, adapter, strength_model)
        said = [f"{adapter.unet_label} at strength {strength_model:g}"] if patched is not model else []
        mode = adapter.metadata.lambda_mode if lambda_mode == OWN_MODE else lambda_mode
        if mode != "embedding" or not schedule.is_neutral:
            if adapter.config.context_layout[0] != "text":
                raise LLM4GENError(
                    f"Adapter {adapter.name} has the fusion {adapter.config.fusion!r}, which replaces CLIP's tokens; "
                    "λ's modes and schedule need both. Set lambda_mode to 'as trained', both λ to 1 and the range from "
                    "0 to 1; set the strength at Fuse or Text Encode."
                )
            patched = patch_attention(patched, mode, schedule)
            said.append(f"λ mode {mode}, {schedule.label}")
        say(cls, " · ".join(said) or "no changes: the model is passed on unchanged")
        return io.NodeOutput(patched)
