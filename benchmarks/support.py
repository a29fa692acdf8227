"""SOFS: the support encoded once against the support encoded again for every window (specification, 8.1)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import subject
from benchmarks.report import Figure, Report, at_least, at_most, equal
from fewspect.backbones.base import Features
from fewspect.methods.sofs.net import SofsNet

TOLERANCE = 1e-4
REPEATED = 2
"""Windows of each group that are answered by both procedures."""

AMORTISED = (1, 4, 8, 64)
"""Windows for which the arithmetic is given; 64 = an image of 4096 pixels."""


@dataclass(frozen=True, slots=True)
class Case:
    """One setting.

    Attributes:
        shot: Support images.
        views: Views of them, n.
        windows: Query windows that share the support.
        group: Windows that the cached procedure answers at once.
        side: Pixels.
        time: Required ratio of times.
        flops: Required ratio of operations.
    """

    shot: int
    views: int
    windows: int
    group: int
    side: int
    time: float
    flops: float


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of both procedures and the largest difference of their probabilities."""

    encode: float
    cached: float
    fresh: float
    difference: float


CASES = (Case(1, 4, 8, 4, 518, 1.7, 0.55), Case(5, 20, 8, 4, 518, 3.5, 0.25))


def measure(*, quick: bool) -> Report:
    """Both cases."""
    cases = [replace(c, windows=4, group=2, side=98) for c in CASES] if quick else CASES
    net = subject.sofs(subject.vit_small(cases[0].side)).net
    figures: list[Figure] = []
    notes: list[str] = []
    for case in cases:
        more, note = _case(net, case)
        figures += more
        notes.append(note)
    case = cases[0]
    return Report(
        title="SOFS: support encoded once",
        what="Cached: n support views are encoded once, then each window costs one backbone pass and the "
        "query half of the head. Re-encoded, as the original does: each window takes all n support views "
        "through backbone and head again, 1 + n backbone passes per window. 1-shot: n = 4 crops; 5-shot: "
        "n = 20.",
        how=f"ViT-S/14 at {case.side} px (blocks 0 to 10), random weights, default head, {case.windows} "
        "windows, toy pictures. Both procedures use our network, so only the re-encoding differs; the "
        "original's further work (block 11, two similarity products per layer, unfused attention) is left "
        f"out. The support encoding counts in the cached time. Cached windows are answered {case.group} at a "
        "time, re-encoded ones singly. After one uncounted support and window, the steps (support, group, "
        f"{REPEATED} windows again) take turns; each counts with its smallest time times how often it "
        "happens. The answers are compared for the windows that were answered twice. "
        "Operations by `torch.utils.flop_counter` on the support and on one window.",
        figures=figures,
        notes=[
            *notes,
            "Operations for W windows are exactly E + W S cached and W (E + S) re-encoded; the larger the "
            "image, the better the ratio. Each window still meets all n views in the cosine matrix, "
            "which grows with n: at 5-shot it outweighs the backbone pass of the window.",
        ],
    )


@torch.inference_mode()
def _case(net: SofsNet, case: Case) -> tuple[list[Figure], str]:
    views, mask = subject.pictures(case.views, case.side)
    images, mask = views[None].float() / 255, mask[None]  # (1, n, 3, side, side), (1, n, side, side)
    windows = subject.pictures(case.windows, case.side, first=case.views)[0].float() / 255
    support, window = _flops(net, images, mask, windows[None, :1])
    times = _times(net, case, windows, images, mask)
    share = {w: (support + w * window) / (w * (support + window)) for w in {*AMORTISED, case.windows}}
    name = f"{case.shot}-shot (n = {case.views})"
    figures = [
        at_least(f"{name}: time, re-encoded / cached", times.fresh / times.cached, case.time),
        at_most(f"{name}: operations, cached / re-encoded", share[case.windows], case.flops, digits=3),
        equal(f"{name}: largest difference of probability", times.difference, TOLERANCE),
    ]
    series = ", ".join(f"{w}: {share[w]:.3f}" for w in sorted(share))
    note = (
        f"{name}: cached {times.cached:.1f} s, of which support {times.encode:.1f} s; re-encoded "
        f"{times.fresh:.1f} s. E = {support / 1e9:.0f} GFLOP for the support, S = {window / 1e9:.0f} GFLOP "
        "per window; "
        f"cached / re-encoded operations by number of windows: {series}."
    )
    return figures, note


def _times(net: SofsNet, case: Case, windows: Tensor, images: Tensor, mask: Tensor) -> Times:
    """Smallest time of each step times how often it happens: other programs can only add."""
    encodes, groups, again, difference = [], [], [], 0.0
    for part in windows.split(case.group):
        taken, state = subject.seconds(lambda: net.encode_support(images, mask))
        encodes.append(taken)
        taken, cached = subject.seconds(lambda part=part, state=state: net(part[None], state)[0])
        groups.append(taken)
        for window, first in zip(part[:REPEATED], cached, strict=False):
            taken, second = subject.seconds(lambda window=window: reencoded(net, window, images, mask)[0])
            again.append(taken)
            difference = max(difference, float((first - second).abs().max()))
    encode, number = min(encodes), len(windows)
    return Times(encode, encode + len(groups) * min(groups), number * min(again), difference)


def reencoded(net: SofsNet, window: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Probability (1, side, side) of one window (3, side, side), its support encoded for it alone."""
    both = net.features(torch.cat([window[None, None], images], 1))  # 1 + n images
    query, views = (
        Features(tuple(t[:, s] for t in both.tokens), both.grid) for s in (slice(1), slice(1, None))
    )
    state = net.head.encode_support(views, mask)
    size = (window.shape[-2], window.shape[-1])
    return net.head.probability(net.head.segment(query, state), state, size)[0]


def _flops(net: SofsNet, images: Tensor, mask: Tensor, window: Tensor) -> tuple[int, int]:
    """Operations of the support and of one window (1, 1, 3, side, side)."""
    with FlopCounterMode(display=False) as first:
        state = net.encode_support(images, mask)
    with FlopCounterMode(display=False) as second:
        net(window, state)
    return first.get_total_flops(), second.get_total_flops()
