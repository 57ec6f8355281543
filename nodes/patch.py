"""The node that gives a model what an adapter changes of the UNet, and sets when the LLM's tokens count."""

import comfy.model_patcher
from comfy_api.v0_0_2 import io

from ..llm4gen_core import LLM4GENError
from ..llm4gen_core.lambda_modes import LAMBDA_MODES
from ..llm4gen_core.strength import CURVES, StrengthSchedule
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
    """Change the UNet as in the adapter's training, and let λ depend on the sampling step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENPatch",
            display_name="Patch Model (LLM4GEN)",
            category=CATEGORY,
            description="Applies what an adapter holds of the UNet (LoRA, or key and value weights of the "
            "cross-attention) to the model, and sets how λ, the strength of the LLM's tokens, works and when. Official "
            "SD1.5 adapters need this node for a schedule of λ alone.",
            **search_aliases("apply adapter", "lora", "unet part", "apply llm4gen", "lambda", "strength schedule"),
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
                io.Combo.Input(
                    "lambda_mode",
                    options=[OWN_MODE, *LAMBDA_MODES],
                    optional=True,
                    tooltip="What λ scales. as trained: what the adapter says. embedding: the LLM's tokens. value: "
                    "what they say, not how much they are looked at. decoupled: an attention of their own beside "
                    "CLIP's.",
                ),
                _lambda_input(
                    "lambda_start",
                    "at the beginning of the range; times the strength of Fuse. No prompt is encoded again",
                ),
                _lambda_input("lambda_end", "at the end of the range"),
                io.Combo.Input(
                    "curve", options=list(CURVES), optional=True, tooltip="How λ goes from its first value to its last."
                ),
                _percent_input(
                    "start_percent",
                    0.0,
                    "Where in sampling the LLM's tokens begin to count; before, the image is painted with plain CLIP.",
                ),
                _percent_input("end_percent", 1.0, "Where in sampling they cease to count."),
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
            config = adapter.module.config
            if config.context_layout[0] != "text":
                raise LLM4GENError(
                    f"Adapter {adapter.name} has the fusion {config.fusion!r}, which puts the LLM's tokens in the "
                    "place of CLIP's; λ's modes and its schedule need both. Set lambda_mode to 'as trained', both λ "
                    "to 1 and the range from 0 to 1; the strength is set at Fuse or Text Encode."
                )
            patched = patch_attention(patched, mode, schedule)
            said.append(f"λ mode {mode}, {schedule.label}")
        say(cls, " · ".join(said) or "nothing to change: the model passes unchanged")
        return io.NodeOutput(patched)
