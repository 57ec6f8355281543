"""LLM4GEN for ComfyUI: the node pack's entry point."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls to get the pack's nodes; they import the host, so they load only here."""
    from .nodes import LLM4GENExtension

    return LLM4GENExtension()
