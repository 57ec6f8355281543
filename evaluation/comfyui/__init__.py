"""Generation through a running ComfyUI server, with any workflow that ends in one image."""

from .pipeline import ComfyUIPipeline

__all__ = ["ComfyUIPipeline"]
