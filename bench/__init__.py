"""Measurements, each run from the repository root as `python -m bench.<name>`; results are JSON files in `bench/results/`."""
