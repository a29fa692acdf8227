"""Regions to masks: mask images of every common kind, polygons, run-length codes and boxes.

A mask image is decoded in this order: (a) palette with transparency becomes RGBA; (b) an alpha channel that
is not constant is the mask (>= 128); if opaque pixels hold both black and coloured ones, only the coloured;
(c) palette: index != 0; (d) colour: largest channel >= 128, or > 0 if the whole mask stays below 128; (e)
grey with at most two values: the higher one, unless it is 0; (f) up to 32 small values: an index mask,
non-zero counts; (g) grey >= half.
"""

from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewspect.data import polygons, rle
from fewspect.data.images import MAX_PIXELS, READ_ERRORS, image_size, opened, orientation, turned
from fewspect.errors import UserError
from fewspect.types import Region

HALF = 128
"""Grey border: from here on a pixel of an 8-bit mask is defect."""

SMALL_VALUES = 32
"""A grey mask whose values all stay below this holds class indices, not grey levels."""

WHITES = (1, 255, 65535)
"""Full scale of float, 8-bit and 16-bit masks: the first that holds the largest value."""

VOID = 255
"""Value of index masks that annotators use for "do not care"; never a class, counted as background."""

Bools = NDArray[np.bool_]


def rasterise(
    regions: Iterable[Region],
    height: int,
    width: int,
    upright: bool = True,
    *,
    resize: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Union of ``regions`` as one mask.

    Args:
        regions: Sources of one class in one image.
        height: Image height in pixels.
        width: Image width in pixels.
        upright: Apply the EXIF orientation of mask files (False when the image is used unrotated as well).
        resize: Bring mask files of another size to the image's.
        max_pixels: Larger mask files are refused.

    Returns:
        (height, width) uint8 in {0, 1}.

    Raises:
        UserError: A mask file is unreadable or has another size than the image; a run-length code does not
            fit.
    """
    mask = np.zeros((height, width), dtype=bool)
    for region in regions:
        if region.kind == "polygon":
            for points in region.points:
                polygons.paint(mask, points)
        elif region.kind == "box":
            for x, y, w, h in region.points:
                _paint_box(mask, x, y, w, h)
        elif region.kind == "rle":
            mask |= rle.decode(region.counts, height, width)
        else:
            mask |= _fitted(region, _from_file(region, max_pixels, upright), (height, width), resize)
    return torch.from_numpy(mask.astype(np.uint8))


def _paint_box(mask: Bools, x: float, y: float, width: float, height: float) -> None:
    """Set the pixels whose centre lies in the box."""
    left, top = max(round(x), 0), max(round(y), 0)
    mask[top : max(round(y + height), 0), left : max(round(x + width), 0)] = True


def _from_file(region: Region, max_pixels: int, upright: bool) -> Bools:
    assert region.path is not None
    if region.values:
        mask = np.isin(read_index(region.path, max_pixels=max_pixels, upright=upright), region.values)
    else:
        mask, _ = decode_mask(region.path, max_pixels=max_pixels, upright=upright)
    return ~mask if region.invert else mask


def _fitted(region: Region, mask: Bools, size: tuple[int, int], resize: bool) -> Bools:
    """A mask as it is, or brought to the size of its image; refused where it may not be."""
    height, width = size
    if mask.shape == size:
        return mask
    swapped = mask.shape == (width, height)
    if resize and not swapped:
        return _resized(mask, height, width)
    sizes = f"mask is {mask.shape[0]} x {mask.shape[1]}, its image {height} x {width} (height x width)"
    if swapped:
        raise UserError(f"{region.path}: {sizes} (height and width are swapped)", "Turn the mask.")
    hint = "Save the mask at the size of its image, or set data.reader.resize_masks=true."
    raise UserError(f"{region.path}: {sizes}", hint)


def _resized(mask: Bools, height: int, width: int) -> Bools:
    """Nearest pixel when enlarged; when reduced, one pixel is enough, so that no defect is lost."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip((height, width), mask.shape, strict=True)
    )  # first source pixel of every target pixel
    tall = np.logical_or.reduceat(mask, rows, axis=0)
    return np.logical_or.reduceat(tall, columns, axis=1)


def mask_size(path: str | Path, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of a mask file from its header."""
    if Path(path).suffix.lower() == ".npy":
        height, width = _load_npy(Path(path), max_pixels).shape
        return height, width
    return image_size(path, max_pixels=max_pixels, upright=upright)


def decode_mask(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, upright: bool = True
) -> tuple[Bools, tuple[str, ...]]:
    """Read a binary mask file.

    Returns:
        (H, W) bool and notices on what was guessed.

    Raises:
        UserError: The file is not a readable mask.
    """
    if Path(path).suffix.lower() == ".npy":
        return _from_grey(np.asarray(_load_npy(Path(path), max_pixels)))
    with opened(path, max_pixels) as image:
        turn = orientation(image) if upright else 1
        lossy = (
            ("JPEG mask: edges are blurred by compression, threshold at 128",)
            if image.format == "JPEG"
            else ()
        )
        mask, notices = _binary(image)
    return turned(mask, turn), (*lossy, *notices)


def read_index(path: str | Path, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> NDArray:
    """Read a mask of class indices, (H, W) integers: palette indices, or grey values as stored.

    Raises:
        UserError: The file is not a readable mask, or a colour picture.
    """
    if Path(path).suffix.lower() == ".npy":
        return np.asarray(_load_npy(Path(path), max_pixels)).astype(np.int64)
    with opened(path, max_pixels) as image:
        turn = orientation(image) if upright else 1
        values = np.asarray(image.convert("L") if image.mode == "LA" else image)
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise UserError(
                f"{path}: a colour picture, not a mask of class indices", "Set data.reader.mask_type=binary."
            )
        values = values[..., 0]
    return turned(values.astype(np.int64), turn)


def _load_npy(path: Path, max_pixels: int) -> NDArray:
    """Memory-map a 2-D boolean or numeric array; object arrays (pickles) are refused."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*READ_ERRORS, TokenError) as error:  # the header of the format is Python source
        raise UserError(f"{path}: not a plain NumPy array ({error})", _MASK_HINT) from error
    if array.ndim != 2 or array.dtype.kind not in "buif" or array.size > max_pixels:
        raise UserError(
            f"{path}: array of shape {array.shape} and type {array.dtype} is not a mask", _MASK_HINT
        )
    return array


_MASK_HINT = (
    "Masks are PNG, TIFF, BMP, WebP or JPEG images, or .npy files with a 2-D boolean or integer array."
)


def _binary(image: Image.Image) -> tuple[Bools, tuple[str, ...]]:
    """Rules (a) to (g) of the module's docstring."""
    if image.mode in ("P", "PA") and ("transparency" in image.info or image.mode == "PA"):
        image = image.convert("RGBA")  # (a)
    if image.mode == "P":
        return np.asarray(image) != 0, ()  # (c)
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        alpha, pixels = pixels[..., -1], pixels[..., :-1]
        if alpha.min() != alpha.max():
            return _from_alpha(alpha, pixels), ("the alpha channel is the mask",)  # (b)
    if image.mode not in ("LA", "RGBA", "RGB", "La", "RGBa") and pixels.ndim == 3:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return _from_grey(pixels) if pixels.ndim == 2 else (_coloured(pixels), ())


def _from_alpha(alpha: NDArray, pixels: NDArray) -> Bools:
    opaque = alpha >= HALF
    black = pixels.max(axis=2) == 0
    if (opaque & black).any() and (opaque & ~black).any():
        return opaque & _coloured(pixels)
    return opaque


def _coloured(pixels: NDArray) -> Bools:
    """Rule (d) on (H, W, channels)."""
    peak = pixels.max(axis=2)
    return peak >= HALF if peak.max() >= HALF else peak > 0


def _from_grey(values: NDArray) -> tuple[Bools, tuple[str, ...]]:
    """Rules (e), (f), (g) on one channel of any depth."""
    if values.dtype == bool or not values.size:
        return values.astype(bool), ()
    low, high = values.min(), values.max()
    between = (values != low) & (values != high)
    if not between.any():
        return (values == high) & (high != 0), ()  # (e)
    if values.dtype.kind != "f" and low >= 0 and high < SMALL_VALUES:
        hint = f"index values up to {high} read as one class; set data.reader.mask_type=index"
        return values != 0, (hint,)  # (f)
    white = next((w for w in WHITES if high <= w and (w > 1 or values.dtype.kind == "f")), WHITES[-1])
    share = float(between.mean())
    stray = (f"grey values between {low} and {high} in {share:.2%} of the pixels, cut at half of {white}",)
    return values >= (white + 1) / 2 if white > 1 else values >= 0.5, stray  # (g)
