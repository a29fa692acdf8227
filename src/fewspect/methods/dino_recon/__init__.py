"""Reconstruction of frozen features (Dinomaly, arXiv 2405.14325)."""
