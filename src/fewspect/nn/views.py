"""Square windows around an instance and their pixels as a network sees them (spec mvrec, 2.2 and 2.3).

Boxes are ``(left, top, right, bottom)`` in pixels of the image, right and bottom exclusive; they may lie
outside. A view set is a number of sizes times a grid of offsets: view index v = sizes outer, rows, columns
inner.

Example:
    >>> windows((240, 830, 290, 947), "mso")[4]  # centred, 256 pixels
    (137, 760, 393, 1016)
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ViewSet = Literal["none", "ms", "mo", "mso", "mso_bbox", "whole"]
SIZES = (256, 384, 512)
"""Published window sizes in pixels of the image."""

BOX_SCALES = (0.999, 1.4999, 1.999)
"""Published factors of ``mso_bbox`` on the box."""

THIRDS = (-1, 0, 1)
ALPHA_MEAN, ALPHA_STD = 0.5, 0.26

Box = tuple[int, int, int, int]


def windows(
    box: Sequence[float], kind: ViewSet = "mso", sizes: Sequence[float] = SIZES, *, relative: bool = False
) -> list[Box]:
    """Windows of a view set around an instance.

    Args:
        box: Instance x1, y1, x2, y2 in pixels.
        kind: ``none``: centred, smallest size; ``ms``: centred, every size; ``mo``: smallest size, 3 x 3
            offsets of a third; ``mso``: every size, 3 x 3 offsets; ``mso_bbox``: as ``mso`` with windows of
            the box's shape, sizes are factors on it (always relative); ``whole``: the box itself.
        sizes: Window sides in pixels.
        relative: Sizes are multiples of the box's longer side instead.

    Returns:
        As many windows as the set has views.
    """
    x1, y1, x2, y2 = box
    cx, cy = int((x1 + x2) // 2), int((y1 + y2) // 2)
    if kind == "whole":
        return [(int(x1), int(y1), max(int(x2), int(x1) + 1), max(int(y2), int(y1) + 1))]
    thirds = (0,) if kind in ("none", "ms") else THIRDS
    chosen = sizes[:1] if kind in ("none", "mo") else sizes
    if kind == "mso_bbox":
        spans = [(max(x2 - x1, 1) * s, max(y2 - y1, 1) * s) for s in chosen]
        return [
            (*_loose(cx, cy, w, h, i, j, 0), *_loose(cx, cy, w, h, i, j, 1))
            for w, h in spans
            for j in thirds
            for i in thirds
        ]
    unit = max(x2 - x1, y2 - y1, 1.0) if relative else 1.0
    sides = [max(2, round(s * unit)) for s in chosen]
    return [_square(cx + i * s // 3, cy + j * s // 3, s) for s in sides for j in thirds for i in thirds]


def _square(cx: int, cy: int, side: int) -> Box:
    left, top = cx - side // 2, cy - side // 2
    return left, top, left + side, top + side


def _loose(cx: int, cy: int, w: float, h: float, i: int, j: int, end: int) -> tuple[int, int]:  # noqa: PLR0917
    """Corner of a window of real size: truncated towards zero (published)."""
    return int(cx + i * w // 3 - w // 2 + end * w), int(cy + j * h // 3 - h // 2 + end * h)


def count(kind: ViewSet, sizes: Sequence[float] = SIZES) -> int:
    """Number of views of a set."""
    number = 1 if kind in ("none", "mo", "whole") else len(sizes)
    return number * (1 if kind in ("none", "ms", "whole") else len(THIRDS) ** 2)


def cut(
    image: Tensor, mask: Tensor, boxes: Sequence[Box], side: int, *, reflect: bool = False
) -> tuple[Tensor, Tensor]:
    """Cut windows and bring them to the network's side, all of one size together.

    One antialiased bicubic step on 8-bit pixels (the original takes two); the same on every device, as it
    runs on the CPU.

    Args:
        image: (3, H, W) uint8.
        mask: (H, W) uint8, 0 to 255.
        boxes: Windows; may lie outside the image.
        side: Side of the result in pixels.
        reflect: Mirror the image outside its borders; otherwise black and mask 0.

    Returns:
        Images (V, 3, side, side) float32 in [0, 1] and masks (V, 1, side, side) likewise.
    """
    both = torch.cat([image, mask[None]]).cpu()  # (4, H, W)
    pieces: dict[tuple[int, int], list[int]] = {}
    for number, (left, top, right, bottom) in enumerate(boxes):
        pieces.setdefault((bottom - top, right - left), []).append(number)
    result = torch.empty(len(boxes), 4, side, side, dtype=torch.uint8)
    for (height, width), numbers in pieces.items():
        stack = torch.stack([window(both, boxes[n], reflect=reflect) for n in numbers])  # (n, 4, h, w)
        if (height, width) != (side, side):
            stack = F.interpolate(stack, (side, side), mode="bicubic", align_corners=False, antialias=True)
        result[numbers] = stack
    values = result.float() / 255
    return values[:, :3], values[:, 3:]


def window(image: Tensor, box: Box, *, reflect: bool = False) -> Tensor:
    """Pixels (C, bottom - top, right - left) of an image (C, H, W); outside: zero, or mirrored."""
    left, top, right, bottom = box
    height, width = image.shape[-2:]
    if reflect:
        rows, columns = _mirror(top, bottom, height), _mirror(left, right, width)
        return image[:, rows][:, :, columns]
    result = torch.zeros(image.shape[0], bottom - top, right - left, dtype=image.dtype)
    t, b, le, r = max(top, 0), min(bottom, height), max(left, 0), min(right, width)
    if t < b and le < r:
        result[:, t - top : b - top, le - left : r - left] = image[:, t:b, le:r]
    return result


def _mirror(start: int, stop: int, length: int) -> Tensor:
    """Positions along an axis that is mirrored at both ends, the border pixel repeated."""
    place = torch.arange(start, stop) % (2 * length)
    return torch.where(place < length, place, 2 * length - 1 - place)


def normal_alpha(mask: Tensor) -> Tensor:
    """Masks in [0, 1] as AlphaCLIP takes them: background -1.92, defect +1.92."""
    return (mask - ALPHA_MEAN) / ALPHA_STD
