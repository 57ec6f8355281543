"""What a person wires on the canvas: thin nodes over `llm4gen_core`."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .encode import LLM4GENEncodeCLIP, LLM4GENEncodeLLM
from .fuse import LLM4GENFuse
from .load import LLM4GENLoadAdapter, LLM4GENLoadLLM
from .patch import LLM4GENPatch
from .text_encode import LLM4GENTextEncode


class LLM4GENExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LLM4GENLoadLLM,
            LLM4GENLoadAdapter,
            LLM4GENTextEncode,
            LLM4GENEncodeLLM,
            LLM4GENEncodeCLIP,
            LLM4GENFuse,
            LLM4GENPatch,
        ]
