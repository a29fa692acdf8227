"""Image files to tensors: what cameras and labelling tools write is read right, or refused by name.

The file's content decides, never its ending. Orientation is applied once, here. Depths above 8 bits are
scaled, never clipped. The size is checked in the header before a pixel is decoded. Embedded colour profiles
are ignored, for support and query alike. 16-bit colour PNG keeps its upper 8 bits (Pillow's limit).
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewspect.data.listing import list_images
from fewspect.errors import UserError

MAX_PIXELS = 178_956_970
"""Default pixel cap: where Pillow's own limit is an error (twice the number at which it warns)."""

__all__ = ["decode_image", "image_size", "list_images", "opened", "orientation", "read_image", "turned"]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
"""Decoders that may run: none that starts another program or follows references."""

FULL_16_BIT = 65535
HINT_SHARE = 1 / 8
"""A 16-bit image that uses less than this share of its range probably holds 10- or 12-bit values."""

ORIENTATION_TAG = 274
TRANSPOSING = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""

READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, OverflowError),
    *(AttributeError, MemoryError, struct.error, zlib.error),
)
"""Everything that Pillow's decoders raise on damaged files."""


def read_image(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, white_level: int | None = None, upright: bool = True
) -> Tensor:
    """Read one image.

    Args:
        path: The file.
        max_pixels: Larger images are refused from the header, before memory is spent.
        white_level: Value that means white in images deeper than 8 bits (e.g. 4095 for 12-bit cameras); None
            = full range (65535; 1.0 for floats).
        upright: Apply the EXIF orientation.

    Returns:
        (3, H, W) uint8; grey is repeated.

    Raises:
        UserError: The file is missing, damaged, not an image, too large, or has values that need a white
            level.
    """
    pixels, _ = decode_image(path, max_pixels=max_pixels, white_level=white_level, upright=upright)
    if pixels.ndim == 2:
        pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def decode_image(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, white_level: int | None = None, upright: bool = True
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Like ``read_image``, as (H, W) or (H, W, 3) uint8, with notices on what was dropped or guessed."""
    with opened(path, max_pixels) as image:
        turn = orientation(image) if upright else 1
        notices = _notices(image)
        pixels, more = _to_uint8(image, Path(path), white_level)
    return turned(pixels, turn), (*notices, *more)


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> tuple[int, int]:
    """Return (height, width) of the upright image, from the header alone.

    Raises:
        UserError: The file is missing, not an image, or too large.
    """
    with opened(path, max_pixels) as image:
        width, height = image.size
        swap = upright and orientation(image) in TRANSPOSING
    return (width, height) if swap else (height, width)


@contextmanager
def opened(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open with the header checked; decoder errors inside the block become a ``UserError`` with the name."""
    try:
        # through a file object: Pillow 13 garbles memory-mapped TIFF that carries an orientation
        with Path(path).open("rb") as file, _unlimited(file) as image:
            _refuse_size(image, path, max_pixels)
            yield image
    except READ_ERRORS as error:
        raise UserError(*_explain(Path(path), error)) from error


_SIZE_HINT = "Cut the image into tiles, or raise data.reader.max_pixels if the memory allows it."


_OPENING = Lock()


def _unlimited(file: BinaryIO) -> Image.Image:
    """Read a header without Pillow's pixel limit: ours decides.

    That limit is a global of Pillow, hence the lock: images are read by several threads.
    """
    with _OPENING:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse_size(image: Image.Image, path: str | Path, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        size = f"{height} x {width} = {height * width} pixels"
        raise UserError(f"{path}: {size}, above the limit of {max_pixels}", _SIZE_HINT)


def _explain(path: Path, error: BaseException) -> tuple[str, str]:
    """Message and hint for a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        kind = "dangling link" if path.is_symlink() else "file not found"
        return f"{path}: {kind}", "Check the path, or remove the entry from the list."
    if isinstance(error, PermissionError):
        return f"{path}: no permission to read", "Change the permissions of the file."
    head = _head(path)
    if not head:
        return f"{path}: unreadable (0 bytes, or a folder)", "Copy the file again, or remove it."
    if head.lstrip()[:1] in (b"<", b"{") or (head.isascii() and head.decode().isprintable()):
        return f"{path}: not an image (text or a web page under an image name)", "Download the file again."
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path}: not an image, or a format without decoder ({path.suffix})", "Convert it to PNG."
    return f"{path}: damaged or cut short ({error})", "Copy the file again, or remove it."


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return None


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 from the header (1 where it is absent, broken, or Pillow applies it itself)."""
    if image.format == "TIFF":  # Pillow turns TIFF while loading and reports the turned size
        return 1
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1  # asking further would decode the whole image
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except READ_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def turned(pixels: NDArray, value: int) -> NDArray:
    """Apply EXIF orientation ``value`` to (H, W, ...) pixels."""
    if value in TRANSPOSING:
        pixels = pixels.swapaxes(0, 1)
    if value in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if value in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _notices(image: Image.Image) -> tuple[str, ...]:
    found = []
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        found.append("alpha channel dropped")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        found.append(f"{getattr(image, 'n_frames', 1)} pages, the first is used")
    return tuple(found)


def _to_uint8(
    image: Image.Image, path: Path, white_level: int | None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode to (H, W) grey or (H, W, 3) RGB."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        return _scale(np.asarray(image), path, white_level)
    if mode in ("L", "1", "LA", "La"):
        grey = image.convert("LA") if mode == "La" else image
        return np.asarray(grey.convert("L") if mode != "LA" else grey.getchannel("L")), ()
    if mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")), ()


def _scale(values: NDArray, path: Path, white_level: int | None) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Deep grey values to 0..255: ``round(255 * value / white)``; values above white saturate.

    Raises:
        UserError: NaN, infinite or negative values, or floats outside 0..1 without a white level.
    """
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite values", "Repair the file, or remove it.")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    is_float = values.dtype.kind == "f"
    white = white_level or (1 if is_float else FULL_16_BIT)
    if low < 0 or (white_level is None and high > white):
        expected = "0..1" if is_float else f"0..{FULL_16_BIT}"
        hint = "Set data.reader.white_level to the value that means white; negative values are not supported."
        raise UserError(f"{path}: values {low:g}..{high:g} lie outside {expected}", hint)
    notices: tuple[str, ...] = ()
    if not is_float and white_level is None and 0 < high < FULL_16_BIT * HINT_SHARE:
        bits = max(int(high).bit_length(), 8)
        notices = (f"16-bit file uses values up to {high:g} only; set data.reader.white_level={2**bits - 1}",)
    if high > white:
        notices = (f"values up to {high:g} above the white level {white} are saturated",)
    scaled = np.minimum(values.astype(np.float64) * 255 / white, 255)
    return np.floor(scaled + 0.5).astype(np.uint8), notices
