"""Autoencoders that are trained on good images; what they cannot rebuild is a defect."""
