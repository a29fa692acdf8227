"""Fewspect: few-shot industrial visual inspection with one command."""

__version__ = "0.1.0"
