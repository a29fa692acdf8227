"""Few-shot defect classification from several views of every instance (AAAI 2025, arXiv 2412.16897)."""
