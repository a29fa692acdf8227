"""Structural similarity with the window that was asked for (Wang et al. 2004).

SSIM(x, y) = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), moments under a Gaussian
window of k pixels; as a loss: Bergmann et al., arXiv 1807.02011, eq. 4. The width of the Gaussian does not
follow k: sigma is 1.5 for every k unless said otherwise (common libraries derive k from sigma and ignore the
k they are given).

Images are (B, C, H, W) in [0, 1]; maps are in [-1, 1], 1 = alike. All moments are float32 (or float64 for
float64 images) whatever autocast says: E[x^2] - E[x]^2 cancels.

Example:
    >>> similarity = SSIM(window=7)(images, reconstructions)
    >>> loss, residual = -similarity.mean, 1 - similarity.map
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.errors import UserError

Padding = Literal["zeros", "reflect", "valid"]
Colour = Literal["mean", "grey", "min"]

SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""Stabilisers for a dynamic range of 1."""

GREY = (0.299, 0.587, 0.114)
"""Weights of R, G, B (ITU-R BT.601)."""

BANDED = 512
"""Two matrix products beat a depthwise convolution while H + W <= 512 k (measured on the CPU, forward and
backward: 1.9 to 8 times faster at 256 x 256, about equal at 768 x 768 with k = 3)."""


class Similarity(NamedTuple):
    """A map (B, C', H', W') and its mean, a scalar; C' = C for ``colour="mean"``, else 1."""

    map: Tensor
    mean: Tensor


class SSIM(nn.Module):
    """SSIM of two batches of images; holds options, no tensors.

    Args:
        window: Side k of the window in pixels, odd.
        sigma: Standard deviation of the Gaussian in pixels; ``"k/6"`` = a sixth of the window.
        padding: See ``ssim``.
        colour: See ``ssim``.
    """

    def __init__(
        self,
        window: int = 11,
        sigma: float | Literal["k/6"] = SIGMA,
        padding: Padding = "zeros",
        colour: Colour = "mean",
    ) -> None:
        super().__init__()
        self.window = window
        self.sigma = window / 6 if sigma == "k/6" else float(sigma)
        self.padding: Padding = padding
        self.colour: Colour = colour
        gaussian(window, self.sigma)  # refuses an impossible window now

    def forward(self, x: Tensor, y: Tensor) -> Similarity:
        """Compare (B, C, H, W) with (B, C, H, W)."""
        found = ssim(x, y, window=self.window, sigma=self.sigma, padding=self.padding, colour=self.colour)
        return Similarity(found, found.mean())

    def extra_repr(self) -> str:
        """The options."""
        return f"{self.window}, sigma={self.sigma:g}, padding={self.padding}, colour={self.colour}"


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    window: int = 11,
    sigma: float = SIGMA,
    padding: Padding = "zeros",
    colour: Colour = "mean",
) -> Tensor:
    """Similarity map in [-1, 1].

    Differentiable in both arguments; costs four filters (x, y, x^2 + y^2, x y), and three more on the way
    back when only one image has a gradient.

    Args:
        x: (B, C, H, W) in [0, 1].
        y: (B, C, H, W).
        window: Side k of the window in pixels, odd.
        sigma: Standard deviation of the Gaussian in pixels.
        padding: ``zeros`` (the published loss: similarity rises towards the border), ``reflect`` (without
            the edge pixel) or ``valid`` (map smaller by k - 1).
        colour: ``mean`` = every channel for itself; ``grey`` = of the grey images, blind to hue; ``min`` =
            the least similar channel at each pixel.

    Returns:
        (B, C, H', W'), or (B, 1, H', W') for ``grey`` and ``min``.

    Raises:
        UserError: The window is even, or larger than the image allows.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
        if colour == "grey":
            x, y = grey(x), grey(y)
        mean_x, mean_y, square, product = (
            blur(t, window=window, sigma=sigma, padding=padding) for t in (x, y, x * x + y * y, x * y)
        )
        both, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        above = (2 * both + C1) * (2 * (product - both) + C2)
        found = above / ((squares + C1) * (square - squares + C2))
        return found.amin(1, keepdim=True) if colour == "min" else found


def blur(x: Tensor, *, window: int, sigma: float = SIGMA, padding: Padding = "zeros") -> Tensor:
    """Filter every channel of (B, C, H, W) with the Gaussian window; the faster way for this size."""
    height, width = x.shape[-2:]
    if height + width > BANDED * window:
        return blur_plain(x, window=window, sigma=sigma, padding=padding)
    rows, columns = (
        banded(size, window, sigma, padding=padding, dtype=x.dtype, device=x.device)
        for size in (height, width)
    )
    return rows @ (x @ columns.mT)


def blur_plain(x: Tensor, *, window: int, sigma: float = SIGMA, padding: Padding = "zeros") -> Tensor:
    """``blur`` as a depthwise convolution with the two-dimensional window."""
    line = gaussian(window, sigma).to(x)
    kernel = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)
    if padding == "reflect":
        x = F.pad(x, (window // 2,) * 4, mode="reflect")
    return F.conv2d(x, kernel, padding=window // 2 if padding == "zeros" else 0, groups=x.shape[1])


def gaussian(window: int, sigma: float = SIGMA) -> Tensor:
    """One-dimensional window (k,), float64, of sum 1.

    Raises:
        UserError: The window has no centre.
    """
    if window < 1 or window % 2 == 0:
        raise UserError(f"An SSIM window of {window} pixels has no centre.", "Choose an odd number, e.g. 11.")
    at = torch.arange(window, dtype=torch.float64) - window // 2
    line = torch.exp(-at.square() / (2 * sigma**2))
    return line / line.sum()


@lru_cache(maxsize=64)
def banded(
    size: int, window: int, sigma: float, *, padding: Padding, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Matrix (size', size) whose product with a line of pixels is its filtered line, border included.

    Raises:
        UserError: The line is too short for the window.
    """
    radius = window // 2
    if size < {"zeros": 1, "reflect": radius + 1, "valid": window}[padding]:
        raise UserError(
            f"An image side of {size} pixels is too short for an SSIM window of {window} ({padding}).",
            "Choose a smaller window.",
        )
    line = gaussian(window, sigma)
    with torch.inference_mode(mode=False):  # a cached inference tensor could not be trained with later
        padded = torch.zeros(size, size + 2 * radius, dtype=torch.float64)
        for offset, weight in enumerate(line.tolist()):
            padded.diagonal(offset).fill_(weight)
        matrix = padded[:, radius : radius + size].clone()
        if padding == "reflect" and radius:
            matrix[:, 1 : radius + 1] += padded[:, :radius].flip(1)
            matrix[:, size - 1 - radius : size - 1] += padded[:, size + radius :].flip(1)
        if padding == "valid":
            matrix = matrix[radius : size - radius]
        return matrix.to(device, dtype)


def grey(image: Tensor) -> Tensor:
    """Grey image (B, 1, H, W) of (B, 3, H, W) in the order R, G, B; one channel stays as it is."""
    if image.shape[1] == 1:
        return image
    weights = image.new_tensor(GREY)[:, None, None]
    return (image * weights).sum(1, keepdim=True)
