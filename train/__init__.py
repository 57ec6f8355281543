"""Command line around `llm4gen_core`: `python -m train --help`."""
