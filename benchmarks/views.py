"""Views of instances: cut and resized as the original does, and in one step; how much the pixels differ."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import subject
from benchmarks.report import Figure, Report
from fewspect.data.views import cut_exactly
from fewspect.nn.views import cut, windows

SIDE, OUTPUT = 1024, 224
INSTANCES, QUICK = 40, 2


def measure(*, quick: bool) -> Report:
    """Both ways on the same instances."""
    number = QUICK if quick else INSTANCES
    images, masks = subject.pictures(number, SIDE)
    jobs = [(image, mask * 255, _box(mask)) for image, mask in zip(images, masks, strict=True)]
    fast_time, fast = subject.seconds(lambda: [_fast(*job) for job in jobs])
    exact_time, exact = subject.seconds(lambda: [_exact(*job) for job in jobs])
    gaps = [(a - b).abs() for (a, _), (b, _) in zip(fast, exact, strict=True)]
    mask_gaps = [(a - b).abs() for (_, a), (_, b) in zip(fast, exact, strict=True)]
    return Report(
        title="Views of an instance",
        what="27 windows (256, 384, 512 pixels, 3 x 3 offsets) of every instance in pictures of "
        f"{SIDE} pixels, brought to {OUTPUT} with the mask. Exact: Pillow, by way of 512 pixels, as the "
        "original. Fast: one antialiased bicubic step for all windows of a size together.",
        how=f"{number} pictures of the toy factory, one after the other, wall time.",
        figures=[
            Figure("fast", f"{number / fast_time:.1f} instances/s"),
            Figure("exact", f"{number / exact_time:.1f} instances/s"),
            Figure("exact / fast, time", f"{exact_time / fast_time:.1f}x"),
            Figure(
                "difference of pixels, mean (of 0..1)", f"{torch.stack([g.mean() for g in gaps]).mean():.5f}"
            ),
            Figure("difference of pixels, largest", f"{max(float(g.max()) for g in gaps):.3f}"),
            Figure("difference of masks, mean", f"{torch.stack([g.mean() for g in mask_gaps]).mean():.5f}"),
        ],
    )


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.numpy().any(1)), np.flatnonzero(mask.numpy().any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def _fast(
    image: torch.Tensor, mask: torch.Tensor, box: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    return cut(image, mask, windows(box), OUTPUT)


def _exact(
    image: torch.Tensor, mask: torch.Tensor, box: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return cut_exactly(picture, Image.fromarray(mask.numpy()), windows(box), OUTPUT)
