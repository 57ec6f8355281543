"""Painting without ComfyUI, and what else `train` and `evaluation` share: model families, pipeline, statistics, pages.

Uses `llm4gen_core`, and none of its users.
"""
