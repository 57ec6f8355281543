"""A complete small world to check text-to-image models in: scenes, their descriptions, and an exact judge of images.

Everything follows from a seed. It imports neither `train` nor `evaluation`, and both may use it.
"""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Weights that were trained on this world and come with it: `base`, `t5` and `llm4gen`; `provenance.json` says how."""

STEPS, GUIDANCE = 20, 3.0
"""Of DDIM, for all models of this world. More steps change nothing that the judge sees, and a higher scale burns these
images out."""
