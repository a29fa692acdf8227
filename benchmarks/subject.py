"""What is measured: methods with known weights, and pictures of the toy factory at any size."""

import itertools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.backbones.dino import Dino
from fewspect.backbones.tiny import EMBEDDED, Tiny
from fewspect.data.toy import DEFECTS, PRODUCTS, draw
from fewspect.methods.sofs.method import SOFS

T = TypeVar("T")

BLOCKS = (5, 6, 7, 8, 9, 10)
"""Layers of ViT-S/14 as published and as in ``conf/backbone/dinov2_vits14.yaml``."""

logging.getLogger("lightning").setLevel(logging.WARNING)


def vit_small(side: int = 518) -> Dino:
    """ViT-S/14 with random weights."""
    return Dino("dinov2_vits14", layers=BLOCKS, weights=None, side=side)


def tiny() -> Tiny:
    """The small backbone, with the weights that travel with the package where they are there."""
    return Tiny(weights="embedded" if EMBEDDED.exists() else None)


def tiny_weights() -> str:
    """Which weights ``tiny`` has, in words."""
    return "embedded weights" if EMBEDDED.exists() else "random weights"


def sofs(backbone: Backbone) -> SOFS:
    """SOFS with the default head, seeded, in evaluation mode, windows of the backbone's own side."""
    torch.manual_seed(0)
    side = backbone.side
    return SOFS(backbone, evaluate={"side": side, "crop_size": side}).eval()


def pictures(number: int, side: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (M, 3, side, side) uint8 of one product and defect with their masks (M, side, side) uint8."""
    drawn = [draw(0, "wood", "scratch", first + i, side) for i in range(number)]
    images, masks = (torch.stack([torch.from_numpy(p) for p in part]) for part in zip(*drawn, strict=True))
    return images.permute(0, 3, 1, 2).contiguous(), masks


def assortment(number: int) -> list[tuple[str, str, int]]:
    """(product, defect, index) of pictures that go through all products and defects in turn."""
    pairs = list(itertools.product(PRODUCTS, DEFECTS))
    return [(*pairs[i % len(pairs)], i // len(pairs)) for i in range(number)]


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds of a call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
