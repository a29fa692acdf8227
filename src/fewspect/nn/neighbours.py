"""Exact nearest neighbours in a memory bank by matrix products, coresets, and what both will cost.

Distances are found by a product of blocks whose size is bounded, never by a full matrix and never by
``cdist``; the few best are then computed again directly in float32, so that neither half precision nor the
cancellation in ``|q|^2 + |b|^2 - 2 q b`` reaches a result. Memory banks: PatchCore (arXiv 2106.08265),
AnomalyDINO (arXiv 2405.14529).

Letters: Q query rows, M bank rows, D width, k neighbours.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewspect import draws
from fewspect.nn.pieces import exporting, pieces

Metric = Literal["cosine", "euclidean"]

EXTRA = 8
"""So many more candidates are computed again when the products were in half precision."""

ROWS = 2048
"""Largest number of query rows of one block."""

FLOAT = 4
"""Bytes."""


def nearest(
    query: Tensor,
    bank: Tensor,
    k: int = 1,
    *,
    metric: Metric = "cosine",
    exclude: int | None = None,
    owners: Tensor | None = None,
    chunk_mb: float = 64.0,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the k nearest bank rows of every query row.

    Args:
        query: (Q, D) float; rows of length 1 for ``cosine``.
        bank: (M, D) float; rows of length 1 for ``cosine``.
        k: Number of neighbours; at most M are returned.
        metric: ``cosine``: ``1 - <q, b>`` in [0, 2]; ``euclidean``: ``|q - b|``.
        exclude: Rows of this owner are not eligible (leave-one-image-out).
        owners: (M,) int64: whose a bank row is; needed with ``exclude``.
        chunk_mb: Bound on the memory of all intermediate results in MiB.
        half: ``cosine`` only: candidates by half-precision products. Values of a distance are float32 anyway.

    Returns:
        Distances (Q, k) float32 in ascending order and bank indices (Q, k); where fewer than k rows are
        eligible, the distance is infinite and the index means nothing.
    """
    count = min(k + (EXTRA if half else 0), len(bank))
    rows, columns = query.shape[0], bank.shape[0]  # not len(): a graph keeps them open
    if not exporting():
        rows, columns = blocks(rows, columns, bank.shape[1] * count, chunk_mb)
    with torch.autocast(query.device.type, enabled=False):
        query, bank = query.float(), bank.float()
        bias = _bias(bank, metric, exclude, owners)
        found = []
        for part in pieces(query, rows):
            best, index = _candidates(part, bank, bias, count, columns, half)
            distance = _direct(part, bank[index], metric).masked_fill_(best == -torch.inf, torch.inf)
            if exporting():  # ONNX knows no stable order
                distance, order = distance.topk(count, 1, largest=False)
            else:
                distance, order = distance.sort(dim=1, stable=True)
            found.append((distance[:, :k], index.gather(1, order[:, :k])))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def blocks(queries: int, bank: int, gathered: int, chunk_mb: float) -> tuple[int, int]:
    """Rows and columns of a block of the distance matrix.

    Args:
        queries: Q.
        bank: M.
        gathered: Elements per query row that are computed again.
        chunk_mb: Half of it is for a block, half for what is gathered; a single row may exceed it.
    """
    budget = int(chunk_mb * 2**20) // FLOAT // 2
    rows = max(1, min(queries, ROWS, budget // max(1, gathered)))
    return rows, max(1, min(bank, budget // rows))


def _bias(bank: Tensor, metric: Metric, exclude: int | None, owners: Tensor | None) -> Tensor:
    """What is added to the products with every bank row (M,); -inf = not eligible."""
    # argmin |q - b| = argmax q b - |b|^2 / 2
    bias = bank.square().sum(1) / -2 if metric == "euclidean" else bank.new_zeros(len(bank))
    if exclude is None:
        return bias
    assert owners is not None, "exclude without owners"
    return bias.masked_fill_(owners == exclude, -torch.inf)


def _candidates(  # noqa: PLR0917
    query: Tensor, bank: Tensor, bias: Tensor, count: int, columns: int, half: bool
) -> tuple[Tensor, Tensor]:
    """Largest biased products (rows, count) and their bank indices, block by block."""
    dtype = torch.float32 if not half else torch.bfloat16 if query.device.type == "cpu" else torch.float16
    left = query.to(dtype)
    best = query.new_zeros(query.shape[0], 0)
    index = torch.zeros(query.shape[0], 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(bank), columns):
        part = slice(start, start + columns)
        score = (left @ bank[part].to(dtype).T).float().add_(bias[part])  # (rows, columns)
        value, place = score.max(1, keepdim=True) if count == 1 else score.topk(min(count, score.shape[1]))
        best, index = torch.cat([best, value], 1), torch.cat([index, place + start], 1)
        if best.shape[1] > count:
            best, order = best.topk(count)
            index = index.gather(1, order)
    return best, index


def _direct(query: Tensor, rows: Tensor, metric: Metric) -> Tensor:
    """Distances (Q, count) of rows (Q, D) and their own candidates (Q, count, D), which are overwritten."""
    if metric == "cosine":
        return (1 - rows.mul_(query[:, None]).sum(-1)).clamp_(0, 2)
    return torch.linalg.vector_norm(rows.sub_(query[:, None]), dim=-1)


def weight(
    query: Tensor,
    nearest_row: Tensor,
    bank: Tensor,
    neighbours: int,
    *,
    exclude: int | None = None,
    owners: Tensor | None = None,
) -> Tensor:
    """Factor of PatchCore on the score of an image (arXiv 2106.08265, eq. 7), Euclidean.

    ``1 - exp|q - m| / sum over the b nearest rows n of m (m among them) of exp|q - n|``: the farthest patch q
    counts less when its nearest row m lies in a dense part of the bank.

    Args:
        query: (I, D): the patch with the largest distance of each of I images.
        nearest_row: (I,) bank index of its nearest row.
        bank: (M, D).
        neighbours: b; 1 switches the factor off.
        exclude: See ``nearest``.
        owners: See ``nearest``.

    Returns:
        (I,) float32 in [0, 1].
    """
    if neighbours <= 1:
        return torch.ones(len(query), device=query.device)
    _, index = nearest(
        bank[nearest_row], bank, neighbours, metric="euclidean", exclude=exclude, owners=owners
    )  # (I, b)
    distance = torch.linalg.vector_norm(bank[index].float() - query[:, None].float(), dim=-1)
    return 1 - distance.softmax(1)[:, 0]


def k_centre(
    rows: Tensor,
    number: int,
    *,
    start: int = 0,
    width: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Choose rows greedily, each time the one that is farthest from all that are chosen.

    Args:
        rows: (M, D).
        number: How many, 1..M.
        start: The first one.
        width: Distances after a Gaussian random projection to this width (Johnson and Lindenstrauss); None =
            exact.
        seed: Of the projection.
        progress: Called about ten times with (chosen, number).

    Returns:
        (number,) distinct indices in the order of choice; the first of equally far rows is taken.
    """
    points = _projected(rows.float(), width, seed)
    points = points - points.mean(0)  # small norms: less cancellation below
    norms = points.square().sum(1)
    gap, far = torch.full_like(norms, torch.inf), torch.empty_like(norms)
    chosen = torch.empty(number, dtype=torch.int64, device=rows.device)
    current = torch.tensor(start, device=rows.device)
    for step in range(1, number + 1):
        chosen[step - 1] = current  # one tensor: thousands of small ones split the heap into gigabytes
        torch.mv(points, points[current], out=far).mul_(-2).add_(norms).add_(norms[current])
        torch.minimum(gap, far, out=gap)
        gap[current] = -torch.inf  # never again, even among equal rows
        current = gap.argmax()
        if progress is not None and (step % max(1, number // 10) == 0 or step == number):
            progress(step, number)
    return chosen


def _projected(rows: Tensor, width: int | None, seed: int) -> Tensor:
    if width is None or width >= rows.shape[1]:
        return rows
    random = torch.randn(rows.shape[1], width, generator=draws.generator(seed, "projection"))
    return rows @ (random.to(rows.device) / width**0.5)


# -- what it will cost ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate, made before anything is computed.

    Attributes:
        bank_mb: The bank that is kept, MiB.
        peak_mb: Largest memory while it is made, MiB.
        coreset_s: Seconds to choose the coreset.
        search_ms: Milliseconds to search one image.
    """

    bank_mb: float
    peak_mb: float
    coreset_s: float
    search_ms: float

    def __str__(self) -> str:
        """One line for the log."""
        coreset = f", about {_duration(self.coreset_s)} to choose the coreset" if self.coreset_s else ""
        return (
            f"bank {self.bank_mb:,.1f} MB, at most {self.peak_mb:,.0f} MB while it is made{coreset}, "
            f"search about {self.search_ms:,.1f} ms per image"
        )


def cost(
    images: int,
    patches: int,
    dim: int,
    *,
    keep: int | None = None,
    width: int | None = None,
    device: torch.device | str = "cpu",
) -> Cost:
    """Estimate memory and time from two small timings on the device.

    Args:
        images: Images that are put into the bank, rotated copies included.
        patches: Patches per image.
        dim: Width D.
        keep: Rows that a coreset keeps; None = all.
        width: Width of the projection of the coreset.
        device: Where it will run.
    """
    total = images * patches
    kept = total if keep is None else keep
    flops, bandwidth = _speed(torch.device(device), dim)
    full, bank = total * dim * FLOAT, kept * dim * FLOAT
    projected = total * min(width or dim, dim) * FLOAT
    return Cost(
        bank_mb=bank / 2**20,
        peak_mb=max(2 * full, full + (0 if keep is None else 2 * projected)) / 2**20,
        coreset_s=0.0 if keep is None else kept * projected / bandwidth,
        search_ms=1e3 * 2 * patches * kept * dim / flops,
    )


def _speed(device: torch.device, dim: int) -> tuple[float, float]:
    """Operations per second of a product, bytes per second of a product with a vector."""
    block = torch.ones(2**22 // dim, dim, device=device)  # 16 MB
    product = _seconds(lambda: block[:256] @ block.T)
    vector = _seconds(lambda: block @ block[0])
    return 2 * 256 * block.numel() / product, block.numel() * FLOAT / vector


def _seconds(work: Callable[[], Tensor], repeats: int = 3) -> float:
    """Shortest time of a few calls, results awaited."""
    work().sum().item()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()[0].sum().item()
        times.append(time.perf_counter() - start)
    return min(times)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
