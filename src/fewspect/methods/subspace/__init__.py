"""Distance to the principal subspace of good features (arXiv 2204.02624, 2602.23013)."""
