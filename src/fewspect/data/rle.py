"""COCO run-length codes: background and foreground in turn, column by column, background first."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fewspect.errors import UserError

CHUNK_BITS = 5
"""The compressed form stores five bits per character, least significant first, plus a continuation bit."""

MORE, SIGN, OFFSET = 0x20, 0x10, 48


def decode(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Run lengths to a (height, width) bool mask.

    Raises:
        UserError: The runs are negative or do not add up to the image.
    """
    check(counts, height, width)
    runs = np.asarray(counts, dtype=np.int64)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def check(counts: Sequence[int], height: int, width: int) -> None:
    """Refuse runs that do not describe an image of this size.

    Raises:
        UserError: The runs are negative or do not add up to the image.
    """
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        message = f"run-length code covers {sum(counts)} pixels, the image has {height} x {width}"
        raise UserError(message, "Export the annotations again for images of this size.")


def decompress(text: str | bytes) -> tuple[int, ...]:
    """COCO's compressed string to run lengths; from the fourth run on, differences to the run two before.

    Raises:
        UserError: Characters outside the code, or an unfinished number.
    """
    codes = text.encode("ascii", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - OFFSET
        if not 0 <= bits < 2 * MORE or shift > 60:
            raise UserError(f"run-length code holds the invalid character {chr(code)!r}", "Export it again.")
        value |= (bits & (MORE - 1)) << shift
        shift += CHUNK_BITS
        if bits & MORE:
            continue
        if bits & SIGN:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("run-length code ends inside a number", "Export it again.")
    return tuple(counts)
