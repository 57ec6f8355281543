"""Metrics: a class each, with what it needs to judge and what it says of an image or of a set."""

METRICS = {
    "miniature": "miniature:MiniatureJudge",
}
"""Name -> module and class. They load when they are used."""
