"""SOFS: small-object few-shot segmentation (arXiv 2407.21351)."""
