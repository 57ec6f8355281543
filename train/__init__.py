"""Trainer of LLM4GEN adapters: `python -m train --help`."""
