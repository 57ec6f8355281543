"""The paper's benchmarks, for any model that paints: `python -m evaluation --help`."""
