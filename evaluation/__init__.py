"""The paper's benchmarks for any text-to-image model: `python -m evaluation --help`."""
