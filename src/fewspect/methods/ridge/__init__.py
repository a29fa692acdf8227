"""Few-shot segmentation by ridge regression on frozen patch features."""
