"""SSIM as a loss, forward and backward, against torchmetrics at an equal result."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks import subject
from benchmarks.report import Figure, Report, at_least, equal
from fewspect.nn.ssim import SIGMA, blur, blur_plain, ssim

WINDOW = 11
"""The one window that torchmetrics has for sigma 1.5, whatever size it is asked for."""

OTHERS = (3, 7, 15)
BATCH, CHANNELS, SIDE, QUICK_SIDE = 4, 3, 256, 64
ROUNDS, QUICK_ROUNDS = 9, 2
TOLERANCE = 1e-4


def measure(*, quick: bool) -> Report:
    """Values, gradients and times."""
    side, rounds = (QUICK_SIDE, QUICK_ROUNDS) if quick else (SIDE, ROUNDS)
    target, image = _pair(side)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "torchmetrics": lambda x: _theirs(x, target),
        "reflect": lambda x: -ssim(x, target, window=WINDOW, padding="reflect").mean(),
        "zeros": lambda x: -ssim(x, target, window=WINDOW).mean(),
        **{f"window {k}": lambda x, k=k: -ssim(x, target, window=k).mean() for k in OTHERS},
    }
    values, times = {}, dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):  # in turn: what else the machine does meets all of them
        for name, loss in ways.items():
            taken, values[name] = subject.seconds(lambda loss=loss: _step(loss, image))
            times[name] = min(times[name], taken)
    (value, grad), (their_value, their_grad) = values["reflect"], values["torchmetrics"]
    figures = [
        equal("loss: ours (reflect) against torchmetrics", abs(value - their_value), TOLERANCE),
        equal("gradient: largest difference, share of its maximum", _gap(grad, their_grad), TOLERANCE),
        at_least(
            "time: torchmetrics / ours (reflect, equal result)", times["torchmetrics"] / times["reflect"], 1
        ),
        at_least(
            "time: torchmetrics / ours (zeros, the loss in use)", times["torchmetrics"] / times["zeros"], 1
        ),
        *(Figure(f"ours: {name}", f"{1e3 * times[name]:.1f} ms") for name in list(ways)[1:]),
        Figure("torchmetrics", f"{1e3 * times['torchmetrics']:.1f} ms"),
        *_filters(image, rounds),
    ]
    return Report(
        title="SSIM as a loss",
        what=f"Mean SSIM of a batch with a Gaussian window of {WINDOW} pixels and sigma {SIGMA}, forward and "
        "backward into one image. torchmetrics mirrors the border; so does ours with `padding=reflect`, "
        "which is the equal result. The losses in use pad with zeros.",
        how=f"{BATCH} x {CHANNELS} x {side} x {side} pixels of toy pictures and a noisy copy, all ways in "
        f"turn, smallest of {rounds} times. One filter: forward only.",
        figures=figures,
        notes=[
            "torchmetrics derives its window from sigma and ignores the `kernel_size` it is given, so the "
            "other windows have no counterpart."
        ],
    )


def _pair(side: int) -> tuple[Tensor, Tensor]:
    target = subject.pictures(BATCH, side)[0].float() / 255  # (4, 3, side, side)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return target, (target + 0.1 * noise).clamp(0, 1)


def _theirs(image: Tensor, target: Tensor) -> Tensor:
    found = structural_similarity_index_measure(image, target, sigma=SIGMA, data_range=1.0)
    assert isinstance(found, Tensor)
    return -found


def _step(loss: Callable[[Tensor], Tensor], image: Tensor) -> tuple[float, Tensor]:
    leaf = image.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@torch.no_grad()
def _filters(image: Tensor, rounds: int) -> list[Figure]:
    """One filter as two matrix products and as a depthwise convolution."""
    figures = []
    for window in (*OTHERS, WINDOW):
        best = [
            min(subject.seconds(lambda f=f, k=window: f(image, window=k))[0] for _ in range(rounds))
            for f in (blur, blur_plain)
        ]
        figures.append(
            Figure(f"one filter, window {window}: convolution / ours", f"{best[1] / best[0]:.1f}x")
        )
    return figures
