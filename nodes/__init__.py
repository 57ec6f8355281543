"""ComfyUI nodes, thin wrappers of `llm4gen_core`."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .encode import LLM4GENEncodeCLIP, LLM4GENEncodeLLM, LLM4GENFuse, LLM4GENTextEncode
from .load import LLM4GENLoadAdapter, LLM4GENLoadLLM
from .patch import LLM4GENPatch


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
