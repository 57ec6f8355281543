"""LLM4GEN for ComfyUI: the node pack's entry point."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the pack's nodes; ComfyUI calls this. They import the host, so they are imported only here."""
    from .nodes import LLM4GENExtension

    return LLM4GENExtension()
