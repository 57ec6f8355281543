"""One page and one JSON file of what was measured on sets of images: `python -m evaluation report --help`."""
