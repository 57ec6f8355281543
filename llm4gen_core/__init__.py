"""The method of LLM4GEN, independent of a host; uses torch, transformers, safetensors, and spaCy if installed."""

from .adapter import CrossAdapter, CrossAdapterConfig, fuse
from .adapter_file import Adapter, AdapterMetadata, UNetPart, load_adapter, save_adapter
from .attention import attention_columns
from .encoder import LLMEncoder, LLMFeatures
from .entities import EntityPair, Span, covers, entity_backend, parse_entities, token_indices
from .entity_guidance import GuidanceOptions, GuidanceTargets, entity_guidance_loss
from .errors import LLM4GENError
from .llm_spec import RANKGEN_T5_XL, LLMSpec

__all__ = [
    "RANKGEN_T5_XL",
    "Adapter",
    "AdapterMetadata",
    "CrossAdapter",
    "CrossAdapterConfig",
    "EntityPair",
    "GuidanceOptions",
    "GuidanceTargets",
    "LLM4GENError",
    "LLMEncoder",
    "LLMFeatures",
    "LLMSpec",
    "Span",
    "UNetPart",
    "attention_columns",
    "covers",
    "entity_backend",
    "entity_guidance_loss",
    "fuse",
    "load_adapter",
    "parse_entities",
    "save_adapter",
    "token_indices",
]
