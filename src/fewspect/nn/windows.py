"""Geometry between an image of any size and a network that sees squares (specification sofs, 1.6 and 5.2).

Boxes are ``(top, bottom, left, right)`` in pixels, rows ``top..bottom-1``. Images are enlarged as well as
reduced until their longest side fits, and padded at the right and at the bottom. Resizing happens on 8-bit
pixels with antialiasing, which equals PIL's bilinear filter within one grey level.

Example:
    >>> tile(100, 130, 100)
    [(0, 100, 0, 100), (0, 100, 30, 130)]
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_COLOUR = (0.485, 0.456, 0.406)
"""Padding is the ImageNet mean colour, i.e. 0 after normalisation."""

MASK_THRESHOLD = 0.1
"""A resized mask pixel counts from this share of the largest value on, strictly above (original)."""

HARD_THRESHOLD = 0.9
"""A decision that was resized counts above this value (original)."""

Box = tuple[int, int, int, int]


def tile(height: int, width: int, crop: int, overlap: float = 0.0) -> list[Box]:
    """Cover an image with windows of side ``min(crop, side of the image)``, row by row.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        crop: Window side in pixels.
        overlap: Share of a window in common with its neighbour, 0 (original) to below 1.

    Returns:
        Boxes; the last window of each axis is aligned to the image's end.
    """
    th, tw = min(crop, height), min(crop, width)
    rows, columns = (
        positions(length, size, max(1, math.floor(size * (1.0 - overlap) + 0.5)))
        for length, size in ((height, th), (width, tw))
    )
    return [(top, top + th, left, left + tw) for top in rows for left in columns]


def positions(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along an axis: 0, stride, 2 * stride, ..., and one that ends with the axis.

    Args:
        length: Of the axis in pixels, at least ``size``.
        size: Of a window in pixels.
        stride: Distance of neighbouring windows in pixels, at least 1.
    """
    steps = -(-(length - size) // stride)  # windows after the first
    return [min(step * stride, length - size) for step in range(steps + 1)]


def crop_box(row: int, col: int, height: int, width: int, crop: int, down: int, right: int) -> Box:  # noqa: PLR0917
    """Box of a random crop around a pixel, with its two random numbers given.

    Args:
        row: Row of the centre pixel.
        col: Column of the centre pixel.
        height: Image height in pixels.
        width: Image width in pixels.
        crop: Side of the crop; cut to the image where that is smaller.
        down: Draw in ``0..crop``: rows from the centre to the lower border; 0 (original) can leave the pixel
            outside.
        right: Draw in ``0..crop``: columns from the centre to the right border.
    """
    top, bottom = _span(row, height, min(crop, height), down)
    left, end = _span(col, width, min(crop, width), right)
    return top, bottom, left, end


def _span(centre: int, length: int, size: int, draw: int) -> tuple[int, int]:
    stop = centre + min(length - centre, draw)
    return (stop - size, stop) if stop >= size else (0, size)


def fit_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (rows, columns) after scaling so that the longest side equals ``side``; at least 1 each."""
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_pad(image: Tensor, side: int) -> Tensor:
    """Fit an image into a square.

    Args:
        image: (..., 3, h, w) uint8.
        side: Side of the square in pixels.

    Returns:
        (..., 3, side, side) float32 in [0, 1], padded with ``PAD_COLOUR`` at the right and at the bottom.
    """
    rows, columns = fit_size(image.shape[-2], image.shape[-1], side)
    pixels = _resize_uint8(image, rows, columns).float() / 255
    if (rows, columns) == (side, side):
        return pixels
    colour = torch.tensor(PAD_COLOUR, device=image.device)[:, None, None]  # (3, 1, 1)
    canvas = colour.expand(*image.shape[:-3], 3, side, side).clone()
    canvas[..., :rows, :columns] = pixels
    return canvas


def squash(image: Tensor, side: int) -> Tensor:
    """Bring an image to a square whatever its shape; no padding, the aspect ratio changes.

    Args:
        image: (..., 3, h, w) uint8.
        side: Side of the square in pixels.

    Returns:
        (..., 3, side, side) float32 in [0, 1].
    """
    return _resize_uint8(image, side, side).float() / 255


def squash_labels(mask: Tensor, side: int) -> Tensor:
    """Bring a mask of class indices to a square as ``squash`` does its image; no label is invented.

    Args:
        mask: (h, w) integers.
        side: Side of the square in pixels.

    Returns:
        (side, side) of the same type; every pixel is the nearest one by pixel centres (PIL's NEAREST).
    """
    if mask.shape == (side, side):
        return mask
    resized = F.interpolate(mask[None, None].float(), (side, side), mode="nearest-exact")
    return resized[0, 0].to(mask.dtype)


def resize_mask(mask: Tensor, side: int) -> Tensor:
    """Fit a mask into a square; slightly dilating, so that a thin defect survives.

    Args:
        mask: (h, w) uint8; 1 = foreground, any other value counts as background.
        side: Side of the square in pixels.

    Returns:
        (side, side) uint8 in {0, 1}; an empty mask stays empty.
    """
    rows, columns = fit_size(mask.shape[-2], mask.shape[-1], side)
    foreground = (mask == 1).to(torch.uint8) * 255
    grey = _resize_uint8(foreground[None], rows, columns)[0].float() / 255
    share = grey / grey.max().clamp(min=1 / 255)  # an empty mask is 0 / (1/255), never 0 / 0
    return F.pad((share > MASK_THRESHOLD).to(torch.uint8), (0, side - columns, 0, side - rows))


def _resize_uint8(image: Tensor, rows: int, columns: int) -> Tensor:
    """PIL's bilinear filter on (..., C, h, w) uint8; on the CPU, so that every device gives the same."""
    if image.shape[-2:] == (rows, columns):
        return image
    flat = image.reshape(-1, *image.shape[-3:]).cpu()  # (M, C, h, w)
    resized = F.interpolate(flat, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*image.shape[:-2], rows, columns).to(image.device)


def restore(prob: Tensor, height: int, width: int, valid: tuple[int, int]) -> Tensor:
    """Bring the answer for a padded square back to the image's size.

    Args:
        prob: (..., side, side) float.
        height: Rows of the result.
        width: Columns of the result.
        valid: Rows and columns of the square that show the image (``fit_size``).

    Returns:
        (..., height, width), bilinear without aligned corners.
    """
    return _restore(prob, height, width, valid, align=False)


def restore_hard(hard: Tensor, height: int, width: int, valid: tuple[int, int]) -> Tensor:
    """The original's way back for decisions: corners aligned, then > 0.9 (erodes the mask).

    Args:
        hard: (..., side, side) in {0, 1}.
        height: Rows of the result.
        width: Columns of the result.
        valid: Rows and columns of the square that show the image.

    Returns:
        (..., height, width) float in {0, 1}.
    """
    return (_restore(hard.float(), height, width, valid, align=True) > HARD_THRESHOLD).float()


def restore_heat(heat: Tensor, height: int, width: int, valid: tuple[int, int]) -> Tensor:
    """The original's way back for heat maps: as ``restore``, with aligned corners."""
    return _restore(heat, height, width, valid, align=True)


def _restore(maps: Tensor, height: int, width: int, valid: tuple[int, int], *, align: bool) -> Tensor:
    shown = maps[..., : valid[0], : valid[1]]
    flat = shown.reshape(-1, 1, *valid)  # (M, 1, rows, columns)
    out = F.interpolate(flat, (height, width), mode="bilinear", align_corners=align)
    return out.reshape(*maps.shape[:-2], height, width)


class Merger:
    """Weighted mean over overlapping windows, kept in two maps whatever the number of windows.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        device: Where to add up.
    """

    def __init__(self, height: int, width: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(height, width, device=device)
        self.count = torch.zeros(height, width, device=device)

    def add(self, box: Box, values: Tensor, weight: Tensor | None = None) -> None:
        """Add the answer (bottom - top, right - left) of one window, with a weight of that size or 1."""
        top, bottom, left, right = box
        self.total[top:bottom, left:right] += values if weight is None else values * weight
        self.count[top:bottom, left:right] += 1 if weight is None else weight

    def result(self) -> Tensor:
        """Return the mean (H, W); 0 where no window lay."""
        return self.total / torch.where(self.count > 0, self.count, 1)
