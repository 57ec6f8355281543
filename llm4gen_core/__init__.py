"""The method of LLM4GEN, free of any host: torch, transformers, safetensors, and spaCy where it is installed."""

from .adapter import CrossAdapter, CrossAdapterConfig, fuse
from .adapter_file import AdapterMetadata, load_adapter, save_adapter
from .encoder import LLMEncoder, LLMFeatures
from .entities import EntityPair, Span, covers, entity_backend, parse_entities, token_indices
from .errors import LLM4GENError
from .llm_spec import RANKGEN_T5_XL, LLMSpec
from .unet_part import UNetPart

__all__ = [
    "RANKGEN_T5_XL",
    "AdapterMetadata",
    "CrossAdapter",
    "CrossAdapterConfig",
    "EntityPair",
    "LLM4GENError",
    "LLMEncoder",
    "LLMFeatures",
    "LLMSpec",
    "Span",
    "UNetPart",
    "covers",
    "entity_backend",
    "fuse",
    "load_adapter",
    "parse_entities",
    "save_adapter",
    "token_indices",
]
