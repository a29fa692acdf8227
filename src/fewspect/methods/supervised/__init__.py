"""Supervised segmentation: a class label for every pixel, the measure of what generated images are worth."""
