"""What the feature bank does to one instance, as a module with tensors alone: for exported classifiers.

``Describer`` looks at an instance the way ``FeatureBank.look`` does, and describes what it sees; image sizes
stay open, so that torch.export can make a graph of it.

Shapes: image (3, H, W) uint8, mask (H, W) uint8 0 to 255, box (4,) float32 x1, y1, x2, y2, features
(1, V, D).
"""

from typing import cast

import torch
from torch import Tensor, nn

from fewspect.data.bank import FACTORS, SHARES, FeatureBank, describe
from fewspect.data.features import Token, chosen
from fewspect.errors import UserError
from fewspect.nn import traced
from fewspect.nn.views import THIRDS


class Describer(nn.Module):
    """A backbone and how it looks at instances.

    Args:
        bank: What made the features of the supports.
        token: Which tokens of the store are used.
        drawn: Instances have masks; otherwise images are instances as a whole.

    Raises:
        UserError: The views were cut in a way that has no graph.
    """

    def __init__(self, bank: FeatureBank, token: Token, *, drawn: bool) -> None:
        super().__init__()
        o = bank.options
        if drawn and (o.exact or o.kind in ("mso_bbox", "whole")):
            raise UserError(
                f"Views of kind {'exact' if o.exact else o.kind} have no graph: Pillow or the box cuts them.",
                "Use data.features.views.kind=mso (or none, ms, mo) without exact.",
            )
        self.backbone, self.options = bank.backbone, o
        self.token: Token = token
        self.whole, self.side = bank.whole, bank.backbone.side

    def forward(self, image: Tensor, mask: Tensor | None = None, box: Tensor | None = None) -> Tensor:
        """Features (1, V, D) of one instance; without mask and box: of the whole image."""
        if mask is None or box is None:
            full = torch.full_like(image[:1], 255)
            seen = self._quarters(torch.cat([image, full]))
            again = [k % len(seen) for k in range(self.whole)]
        else:
            seen = self._windows(torch.cat([image, mask[None]]), box.double())
            again = list(range(len(seen)))
        described = describe(self.backbone, seen[:, :3], seen[:, 3:])  # (V, T, D)
        kept = described[again][None].half()  # the store's precision
        return chosen(kept, self.token).float()

    def _quarters(self, both: Tensor) -> Tensor:
        """``bank.whole_views`` without repetitions: (5, 4, side, side) in [0, 1]."""
        boxes = [(slice(None), slice(None))]
        rows, columns = ((slice(0, n // 2), slice(n - n // 2, n)) for n in both.shape[-2:])
        boxes += [(y, x) for y in rows for x in columns]
        return torch.stack([_brought(both[:, y, x], self.side) for y, x in boxes])

    def _windows(self, both: Tensor, box: Tensor) -> Tensor:
        """``views.windows`` around a box, cut and resized: (V, 4, side, side) in [0, 1]."""
        o = self.options
        size = traced.length(both[0, :, 0]), traced.length(both[0, 0])
        x1, y1, x2, y2 = _at_least(box, o.least) if o.relative else box.unbind()
        centre = ((y1 + y2) / 2).floor().trunc(), ((x1 + x2) / 2).floor().trunc()
        unit = torch.maximum(x2 - x1, y2 - y1).clamp(min=1.0) if o.relative else torch.ones_like(x1)
        factors = o.sizes or (FACTORS if o.relative else SHARES)
        if o.sizes is None and not o.relative:
            unit = torch.maximum(*size)
        thirds = (0,) if o.kind in ("none", "ms") else THIRDS
        parts = []
        for factor in factors[:1] if o.kind in ("none", "mo") else factors:
            number = (factor * unit).round().clamp(min=2.0)
            side = cast(int, number.long().item())
            torch._check(side >= 2)
            begin = [
                torch.stack([c + (i * number / 3).floor() - (number / 2).floor() for i in thirds])
                for c in centre
            ]
            cut = self._cut(both, begin, side, size)  # (views, 4, side, side)
            parts.append(_brought(cut, self.side))
        return torch.cat(parts)

    def _cut(self, both: Tensor, begin: list[Tensor], side: int, size: tuple[Tensor, Tensor]) -> Tensor:
        """Windows (rows * columns, 4, side, side); outside of the image zero, or mirrored."""
        places, known = [], []
        for start, total, number in zip(begin, size, both.shape[-2:], strict=True):
            place = start[:, None] + traced.steps(side, start)
            known.append((place >= 0) & (place < total))
            if self.options.reflect:
                place = place - 2 * total * (place / (2 * total)).floor()
                place = torch.where(place < total, place, 2 * total - 1 - place)
            places.append(place.long().clamp(0, number - 1))
        cut = both[:, places[0]][..., places[1]]  # (4, rows, side, columns, side)
        if not self.options.reflect:
            inside = known[0][:, :, None, None] & known[1][None, None]
            cut = torch.where(inside, cut, torch.zeros_like(cut))
        return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _brought(pixels: Tensor, side: int) -> Tensor:
    """Antialiased bicubic resizing of 8-bit pixels (..., h, w) to (..., side, side) in [0, 1]."""
    line = pixels.flatten(0, -3)[0]
    size = traced.length(line[:, 0]), traced.length(line[0])
    rows, columns = (
        traced.shrunk(n, side, a, torch.full_like(a, float(side)), "cubic")
        for n, a in zip(pixels.shape[-2:], size, strict=True)
    )
    return traced.resized(pixels.double(), rows, columns).float() / 255


def _at_least(box: Tensor, least: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``bank._at_least``."""
    x1, y1, x2, y2 = box.unbind()
    dx, dy = ((least - (b - a)).clamp(min=0.0) / 2 for a, b in ((x1, x2), (y1, y2)))
    return x1 - dx, y1 - dy, x2 + dx, y2 + dy
