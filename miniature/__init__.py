"""Miniature world: scenes, their captions and an exact judge of images; small models of it, and experiments with them.

Everything follows from a seed. The world itself (scenes, captions, facts, dataset, judge) needs neither torch nor the
trainer.
"""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Folder of the shipped models: `base`, `t5`, `llm4gen` (adapter and UNet), and `provenance.json`."""

STEPS, GUIDANCE = 20, 3.0
"""DDIM steps and guidance scale for all models of this world. More steps change nothing that the judge sees, and a
higher scale oversaturates the images."""
