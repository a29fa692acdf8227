"""The toy factory: pictures of products with defects and exact masks, drawn from a seed.

Example:
    >>> image, mask = draw(0, "wood", "scratch", 3, 128)
    >>> image.shape, mask.shape
    ((128, 128, 3), (128, 128))
"""

from fewspect.data.toy.factory import DEFECTS, PRODUCTS, draw
from fewspect.data.toy.layouts import LAYOUTS, Picture, write

__all__ = ["DEFECTS", "LAYOUTS", "PRODUCTS", "Picture", "draw", "write"]
