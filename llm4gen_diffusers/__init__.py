"""LLM4GEN on diffusers: families of base models, image generation, attention maps, conversion of adapters."""
