"""Painting through a running ComfyUI server, with any workflow that ends in one image."""

from .painter import ComfyUIPainter

__all__ = ["ComfyUIPainter"]
