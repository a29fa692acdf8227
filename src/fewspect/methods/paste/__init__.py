"""Defects on good images without any training."""
