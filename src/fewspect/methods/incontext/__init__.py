"""Few-shot segmentation by comparing patches with those of the support."""
