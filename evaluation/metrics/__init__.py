"""Metrics: one class each, found by name in `evaluation.benchmarks.METRICS`."""
