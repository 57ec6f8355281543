"""Nodes that load: the LLM and the adapter."""

from typing import Any

import torch
from comfy_api.v0_0_2 import io

from .host import HostAdapter, adapter_path, fingerprint, list_adapters, list_llms, llm_path, register_folders
from .host_llm import load_llm
from .wires import CATEGORY, AdapterWire, LLMWire, say, search_aliases

register_folders()

_PRECISIONS = {
    "default": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class LLM4GENLoadLLM(io.ComfyNode):
    """Load a language model from one file or from a Hugging Face folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENLoadLLM",
            display_name="Load LLM (LLM4GEN)",
            category=CATEGORY,
            description="Loads the language model that an LLM4GEN adapter was trained with. The official SD1.5 adapter "
            "needs RankGen T5-XL.",
            **search_aliases("load t5", "text encoder loader", "rankgen", "flan-t5", "load language model"),
            inputs=[
                io.Combo.Input(
                    "llm_name",
                    options=list_llms(),
                    tooltip="A T5 encoder in one file (T5-v1.1-XL, flan-T5-XL, RankGen T5-XL; fp16 and fp8 too), a "
                    "file of another language model that ComfyUI supports (Llama 3, Qwen, Gemma), or a Hugging Face "
                    "folder (names ending in a slash), in models/text_encoders or models/llm.",
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    tooltip="Device of the LLM. 'cpu' saves GPU memory, is slower, and differs by rounding.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(_PRECISIONS),
                    default="default",
                    optional=True,
                    tooltip="Precision of the stored weights. 'default' follows the host, as for CLIP. Calculations "
                    "are always in float32.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[LLMWire.Output(display_name="LLM", tooltip="The language model, for LLM4GEN's encode nodes.")],
        )

    @classmethod
    def fingerprint_inputs(cls, llm_name: str = "", **settings: Any) -> str:
        # The host passes only inputs that are set on the node itself.
        return fingerprint(llm_path, llm_name)

    @classmethod
    def validate_inputs(cls, llm_name: str) -> bool:
        # An input named here skips the host's check of the list, so that load_llm reports a missing file.
        return True

    @classmethod
    def execute(cls, llm_name: str, device: str = "default", precision: str = "default") -> io.NodeOutput:
        options: dict[str, Any] = {}
        if device == "cpu":
            options["load_device"] = options["offload_device"] = torch.device("cpu")
        dtype = _PRECISIONS[precision]
        if dtype is not None:
            options["dtype"] = dtype
        llm = load_llm(llm_name, options)
        say(cls, llm.description)
        return io.NodeOutput(llm)


class LLM4GENLoadAdapter(io.ComfyNode):
    """Load a Cross-Adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GENLoadAdapter",
            display_name="Load Adapter (LLM4GEN)",
            category=CATEGORY,
            description="Loads a Cross-Adapter: the official projector.pth or a file trained with LLM4GEN. No code "
            "in the file is executed.",
            **search_aliases("projector", "cross-adapter", "cam", "load llm4gen"),
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=list_adapters(),
                    tooltip="A file in models/llm4gen: projector.pth of the official release, or a .safetensors.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[AdapterWire.Output(display_name="ADAPTER", tooltip="The Cross-Adapter.")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str = "") -> str:
        return fingerprint(adapter_path, adapter_name)

    @classmethod
    def validate_inputs(cls, adapter_name: str) -> bool:
        return True

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        adapter = HostAdapter.load(adapter_name)
        say(cls, adapter.description)
        return io.NodeOutput(adapter)
