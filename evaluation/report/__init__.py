"""Report on image sets: one HTML page and one JSON file (`python -m evaluation report --help`)."""
