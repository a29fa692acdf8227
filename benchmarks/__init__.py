"""Benchmarks of Fewspect: ratios measured in one run, never asserted. ``python benchmarks/run.py``."""
