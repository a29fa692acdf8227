"""Defect-Gen: two diffusion networks that draw an image and its mask together."""
