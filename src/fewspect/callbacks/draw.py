"""Pictures of predictions: pure functions on arrays, Pillow for text and scaling only.

Images are (H, W, 3) uint8, masks (H, W) bool, probabilities (H, W) float in [0, 1].
Colours are from Okabe and Ito's palette for colour-blind readers: truth sky blue, prediction vermilion.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

TRUTH, PREDICTION, INK, PAPER = (86, 180, 233), (230, 80, 0), (235, 235, 235), (24, 24, 27)
GAP, LABEL, TILE = 8, 22, 288
"""Pixels between tiles, of a label line, and of the longest side of a tile."""
WIDE = 2.2
"""From this aspect ratio on, tiles are stacked instead of set side by side, and drawn twice as long."""
OKLAB = np.array(  # OKLab -> linear sRGB in two steps (Ottosson 2020): to cone response, cube, to linear sRGB
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
PALETTE = (
    *((0, 0, 0), (0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255), (255, 0, 255), (255, 255, 0)),
    *((128, 0, 0), (0, 128, 0), (0, 0, 128), (128, 128, 128)),
)
"""Colours of class indices 0 (background), 1, 2, ... (specification defect_gen, 1.3)."""

Tile = tuple[str, np.ndarray]


@cache
def colour_table() -> np.ndarray:
    """256 colours from black through violet and orange to pale yellow: (256, 3) uint8.

    Lightness in OKLab grows evenly (up to clipping), so equal steps look equal, also in grey print.
    """
    t = np.linspace(0, 1, 256)
    hue = np.deg2rad(np.interp(t, [0, 0.35, 0.65, 1], [285, 345, 405, 465]))
    chroma = np.interp(t, [0, 0.15, 0.45, 0.7, 0.88, 1], [0, 0.1, 0.19, 0.18, 0.15, 0.06])
    lab = np.stack([0.06 + 0.91 * t, chroma * np.cos(hue), chroma * np.sin(hue)], 1)  # (256, 3)
    linear = ((lab @ OKLAB.T) ** 3 @ LINEAR.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)


def to_array(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8, or float in [0, 1], to (H, W, 3) uint8."""
    array = image.detach().cpu().permute(1, 2, 0)
    if array.is_floating_point():
        array = (array.float().nan_to_num().clamp(0, 1) * 255).round()
    return np.ascontiguousarray(array.numpy().astype(np.uint8))


def class_colours(mask: np.ndarray) -> np.ndarray:
    """Class indices (H, W) in the colours of ``PALETTE``; from 11 on, colours of the heat map stand in."""
    further = colour_table()[64 + 97 * np.arange(256 - len(PALETTE)) % 192]
    return np.concatenate([np.array(PALETTE, np.uint8), further])[mask]


def heat(prob: np.ndarray) -> np.ndarray:
    """Probability in colour: 0 black, 1 pale yellow."""
    scaled = np.nan_to_num(np.asarray(prob, dtype=np.float32)).clip(0, 1) * 255
    return colour_table()[np.rint(scaled).astype(np.uint8)]


def overlay(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION, alpha: float = 0.5
) -> np.ndarray:
    """Tint the pixels of the mask."""
    result = image.copy()
    result[mask] = np.rint((1 - alpha) * image[mask] + alpha * np.array(colour)).astype(np.uint8)
    return result


def tint(image: np.ndarray, labels: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Tint the pixels of labels 1, 2, ... (H, W) in the colours of their classes."""
    marked = labels > 0
    result = image.copy()
    blend = (1 - alpha) * image[marked] + alpha * class_colours(labels)[marked]
    result[marked] = np.rint(blend).astype(np.uint8)
    return result


def outline(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = TRUTH, width: int = 2
) -> np.ndarray:
    """Draw the outer border of the mask, with a dark rim so that it shows on any ground.

    The line lies outside the mask: a defect of one pixel stays visible inside its ring.
    """
    if not mask.any():
        return image.copy()
    result = image.copy()
    distance = np.asarray(ndimage.distance_transform_edt(~mask))
    result[(distance > width) & (distance <= width + 1)] = PAPER
    result[(distance > 0) & (distance <= width)] = colour
    return result


def fit(image: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """Scale to a longest side of ``side``; small images grow by whole factors without smoothing."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    factor = float(int(factor)) if factor >= 2 else factor
    size = max(1, round(width * factor)), max(1, round(height * factor))
    smooth = Image.Resampling.NEAREST if nearest or factor >= 2 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, smooth))


def fit_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Scale a mask like ``fit``; a pixel is set if any source pixel under it is: tiny defects stay."""
    height, width = fit(mask.astype(np.uint8), side, nearest=True).shape
    if height >= mask.shape[0]:
        return fit(mask.astype(np.uint8), side, nearest=True) > 0
    result = np.zeros((height, width), dtype=bool)
    rows, columns = np.nonzero(mask)
    result[rows * height // mask.shape[0], columns * width // mask.shape[1]] = True
    return result


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the connected regions of a boolean (H, W) mask (8-neighbourhood) from 1 on, and count them."""
    label = np.zeros(mask.shape, dtype=np.int32)
    return label, int(ndimage.label(mask, structure=np.ones((3, 3)), output=label))  # type: ignore[arg-type]


def zoom_box(mask: np.ndarray, least: int = 48) -> tuple[slice, slice]:
    """Square around the largest region of the mask, with some margin; all of it if the mask is empty."""
    label, count = components(mask)
    if not count:
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    largest = 1 + int(np.argmax(np.bincount(label.ravel())[1:]))
    spans = ndimage.find_objects(label)[largest - 1]
    side = max(least, *(int(1.6 * (s.stop - s.start)) for s in spans))
    box = []
    for span, length in zip(spans, mask.shape, strict=True):
        start = min(max(0, (span.start + span.stop - side) // 2), max(0, length - side))
        box.append(slice(start, min(length, start + side)))
    return box[0], box[1]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all labels at a size in pixels."""
    return ImageFont.load_default(size)


def _clip(text: str, width: int, size: int) -> str:
    """Cut a text in the middle until it fits ``width`` pixels."""
    letters, keep, short = font(size), len(text), text
    while letters.getlength(short) > width and keep > 4:
        keep -= 1
        short = f"{text[: (keep + 1) // 2]}…{text[-(keep // 2) :]}"
    return short


def strip(tiles: Sequence[Tile], caption: str = "", stacked: bool = False) -> Image.Image:
    """Set labelled tiles in one row (or one column) above each other's baseline, with a caption on top.

    Args:
        tiles: Pairs of label and image.
        caption: One line; cut in the middle if too long.
        stacked: Column instead of row, for wide images.
    """
    widths, heights = [t.shape[1] for _, t in tiles], [t.shape[0] + LABEL for _, t in tiles]
    head = LABEL + GAP if caption else 0
    if stacked:
        size = max(widths), sum(heights) + GAP * (len(tiles) - 1)
    else:
        widths = [max(w, 96) for w in widths]
        size = sum(widths) + GAP * (len(tiles) - 1), max(heights)
    page = Image.new("RGB", (size[0] + 2 * GAP, size[1] + head + 2 * GAP), PAPER)
    pen, x, y = ImageDraw.Draw(page), GAP, GAP + head
    if caption:
        pen.text((GAP, GAP), _clip(caption, size[0], 16), INK, font=font(16))
    for (label, tile), width, height in zip(tiles, widths, heights, strict=True):
        pen.text((x, y), _clip(label, width, 14), (170, 170, 178), font=font(14))
        page.paste(Image.fromarray(tile), (x, y + LABEL))
        x, y = (x, y + height + GAP) if stacked else (x + width + GAP, y)
    return page


def sheet(strips: Sequence[Image.Image]) -> Image.Image:
    """Set strips below each other."""
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    y = 0
    for one in strips:
        page.paste(one, (0, y))
        y += one.height
    return page
