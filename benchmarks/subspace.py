"""The subspace detector: time per image beyond the backbone, memory while many images stream by."""

import gc
import tempfile
from pathlib import Path

import torch

from benchmarks import subject
from benchmarks.report import Figure, Report, at_most, below
from fewspect.methods.subspace.method import FOLDS
from fewspect.nn.patches import joined
from fewspect.nn.subspace import Moments, Subspace

WIDTH, GRID = 384, (37, 37)
CELLS = 37 * 37
IMAGES, QUICK_IMAGES = 10_000, 100
POOL = 16
"""So many different feature maps go round."""

SCORED = 100
LIMIT_MS, LIMIT_MB = 3.0, 50.0
VARIANCES = (0.9, 0.99)


@torch.inference_mode()
def measure(*, quick: bool) -> Report:
    """Stream, fit, score."""
    images = QUICK_IMAGES if quick else IMAGES
    pool = _features()
    parts = [Moments(WIDTH) for _ in range(FOLDS)]
    parts[0].add(pool[0])  # buffers of the library exist
    gc.collect()
    before = resident()
    taken, grown = subject.seconds(lambda: _stream(parts, pool, images))
    whole = Moments.sum(parts)
    figures = [
        Figure(f"{images:,} images streamed: time per image", f"{1e3 * taken / images:.1f} ms"),
        below(f"{images:,} images streamed: memory grows by", (grown - before) / 2**20, LIMIT_MB, " MB"),
        Figure("moments of all parts", f"{FOLDS * (WIDTH + 1) * WIDTH * 8 / 2**20:.1f} MB"),
    ]
    for variance in VARIANCES:
        figures += _scored(Subspace.of(whole, variance), pool, variance)
    return Report(
        title="Subspace detector",
        what=f"Feature maps of {CELLS} patches and width {WIDTH} (ViT-S/14 at 518 px, one layer): second "
        f"moments in {FOLDS} parts, then the residual of a principal subspace.",
        how=f"{POOL} random maps with decaying spectrum go round; resident memory from `/proc/self/statm`, "
        f"largest value while streaming; {SCORED} scorings, features brought to length 1 included.",
        figures=figures,
    )


def _features() -> torch.Tensor:
    """Correlated random features (POOL, CELLS, WIDTH)."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(WIDTH, WIDTH, generator=random) * torch.logspace(0, -2, WIDTH)[:, None]
    return torch.randn(POOL, CELLS, WIDTH, generator=random) @ mix + 1


def _stream(parts: list[Moments], pool: torch.Tensor, images: int) -> int:
    """Add so many images; the largest resident memory meanwhile."""
    largest = 0
    for k in range(images):
        parts[k % FOLDS].add(pool[k % POOL])
        if k % 50 == 0:
            largest = max(largest, resident())
    return max(largest, resident())


def _scored(subspace: Subspace, pool: torch.Tensor, variance: float) -> list[Figure]:
    times = sorted(subject.seconds(lambda k=k: _score(subspace, pool[k % POOL]))[0] for k in range(SCORED))
    name = f"{100 * variance:g} % of the variance, {subspace.rank} directions"
    return [
        at_most(f"{name}: scoring, best", 1e3 * times[0], LIMIT_MS, " ms"),
        Figure(f"{name}: scoring, median", f"{1e3 * times[SCORED // 2]:.2f} ms"),
        Figure(f"{name}: state with the parts left out", f"{_state_mb(subspace):.1f} MB"),
    ]


def _score(subspace: Subspace, tokens: torch.Tensor) -> torch.Tensor:
    """All that the method does between the backbone and the map."""
    return subspace.residual(joined([tokens[None]], GRID))


def _state_mb(subspace: Subspace) -> float:
    """Size of what a checkpoint holds: FOLDS + 1 subspaces."""
    tensors = {"mean": subspace.mean, "basis": subspace.basis}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        torch.save({k: v.expand(FOLDS + 1, *v.shape).clone() for k, v in tensors.items()}, path)
        return path.stat().st_size / 2**20


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
