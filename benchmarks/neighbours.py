"""Nearest neighbours by blocks of products against ``torch.cdist``, and the memory that each needs."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import subject
from benchmarks.report import Figure, Report, at_least, equal
from fewspect.nn import neighbours
from fewspect.nn.prototype import unit

WIDTH = 384
QUERIES, BANK = 1369, 60_000
QUICK_QUERIES, QUICK_BANK = 256, 4_000
CORESET, QUICK_CORESET = 2_000, 100
REPEATS = 5
CHUNK_MB = 64.0

Find = Callable[[], tuple[Tensor, Tensor]]


@torch.inference_mode()
def measure(*, quick: bool) -> Report:
    """One image against a bank, both distances; a greedy coreset against its estimate."""
    queries, rows = (QUICK_QUERIES, QUICK_BANK) if quick else (QUERIES, BANK)
    random = torch.Generator().manual_seed(0)
    query, bank = (torch.randn(n, WIDTH, generator=random) for n in (queries, rows))
    figures = _euclidean(query, bank) + _cosine(unit(query), unit(bank)) + _coreset(bank, quick=quick)
    return Report(
        title="Nearest neighbours",
        what=f"The nearest of {rows:,} bank rows for {queries:,} patches of width {WIDTH} (one image), "
        f"search bounded to {CHUNK_MB:g} MB, against `torch.cdist` and a minimum.",
        how=f"Best of {REPEATS} calls, in turn. By default `cdist` goes through a product, too, and rounds; "
        "the exact one is its mode `donot_use_mm_for_euclid_dist`. Random features.",
        figures=figures,
        notes=[
            "A full matrix takes queries x rows x 4 bytes, for `cdist` as for a plain product; ours does not "
            "grow with the bank.",
        ],
    )


def _euclidean(query: Tensor, bank: Tensor) -> list[Figure]:
    exact, default = (
        lambda mode=mode: torch.cdist(query, bank, compute_mode=mode).min(1)
        for mode in ("donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist")
    )
    mine = _squeezed(lambda: neighbours.nearest(query, bank, metric="euclidean", chunk_mb=CHUNK_MB))
    times, found = _race({"ours": mine, "exact": exact, "default": default})
    return [
        Figure("Euclidean: time of ours", f"{1e3 * times['ours']:.0f} ms"),
        at_least("Euclidean: cdist, exact / ours", times["exact"] / times["ours"], 1.0),
        Figure("Euclidean: cdist, default / ours", f"{times['default'] / times['ours']:.2f}x"),
        equal("Euclidean: difference from exact cdist", _gap(found["ours"], found["exact"]), 1e-4),
        Figure("Euclidean: difference of default cdist", f"{_gap(found['default'], found['exact']):.1e}"),
        Figure("largest matrix: ours", f"{CHUNK_MB / 2:.0f} MB"),
        Figure("largest matrix: cdist", f"{len(query) * len(bank) / 2**18:.0f} MB"),
    ]


def _cosine(query: Tensor, bank: Tensor) -> list[Figure]:
    full: Find = lambda: (1 - query @ bank.T).min(1)  # noqa: E731
    mine = _squeezed(lambda: neighbours.nearest(query, bank, chunk_mb=CHUNK_MB))
    three = lambda: neighbours.nearest(query, bank, 3, chunk_mb=CHUNK_MB)  # noqa: E731
    times, found = _race({"ours": mine, "full": full, "three": three})
    return [
        Figure("cosine: time of ours, k = 1", f"{1e3 * times['ours']:.0f} ms"),
        Figure("cosine: time of ours, k = 3", f"{1e3 * times['three']:.0f} ms"),
        Figure("cosine: full matrix / ours", f"{times['full'] / times['ours']:.2f}x"),
        equal("cosine: difference from the full matrix", _gap(found["ours"], found["full"]), 1e-5),
    ]


def _coreset(bank: Tensor, *, quick: bool) -> list[Figure]:
    number = QUICK_CORESET if quick else CORESET
    estimate = neighbours.cost(1, len(bank), WIDTH, keep=number, width=64)
    taken, _ = subject.seconds(lambda: neighbours.k_centre(bank, number, width=64))
    return [
        Figure(f"coreset of {number:,} rows: time", f"{taken:.1f} s"),
        Figure("coreset: estimate printed before / time", f"{estimate.coreset_s / taken:.2f}x"),
    ]


def _squeezed(find: Find) -> Find:
    def call() -> tuple[Tensor, Tensor]:
        distance, index = find()
        return distance[:, 0], index[:, 0]

    return call


def _race(finders: dict[str, Find]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Shortest time of every finder, called in turn, and its distances."""
    times, found = dict.fromkeys(finders, float("inf")), {}
    for _ in range(REPEATS):
        for name, find in finders.items():
            taken, result = subject.seconds(find)
            times[name], found[name] = min(times[name], taken), result[0]
    return times, found


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())
