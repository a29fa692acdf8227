"""Memory bank of patch features with nearest neighbours (arXiv 2106.08265, 2405.14529)."""
