"""Matching a query against masked support features: prototypes, cosine priors, parameter-free fusion.

Equations are those of specification sofs, section 2. Letters: B episodes, S support views, Q queries, N cells
per view, J support cells that matter, D width. Everything here is float32 whatever autocast says: the priors
are later multiplied by 10, and half precision near a cosine of 1 would cost 0.04.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.nn.pieces import exporting, pieces

PROTOTYPE_EPS = 5e-4
"""Added to the mask area of an average; an empty mask gives exactly 0."""

CELLS = 1 << 24
"""Elements of one piece of a similarity matrix: 64 MB in float32."""


def masked_mean(tokens: Tensor, weight: Tensor, eps: float = PROTOTYPE_EPS) -> Tensor:
    """Masked average pooling (2.3).

    Args:
        tokens: (..., N, D).
        weight: (..., N) in [0, 1].
        eps: Added to the sum of the weights.

    Returns:
        (..., D), exactly 0 for an empty mask.
    """
    total = torch.einsum("...nd,...n->...d", tokens, weight)
    return total / (weight.sum(-1, keepdim=True) + eps)


def intensity(mask: Tensor, grid: tuple[int, int], mode: str = "area") -> Tensor:
    """Foreground share of every feature cell (2.2).

    Args:
        mask: (..., H, W); 1 = foreground, anything else is background.
        grid: Cells (h, w).
        mode: ``area`` = exact share; ``bilinear`` = interpolated, only full cells count (ablation).

    Returns:
        (..., h, w) float32 in [0, 1].
    """
    flat = (mask == 1).float().reshape(-1, 1, *mask.shape[-2:])  # (M, 1, H, W)
    if mode == "area":
        share = F.adaptive_avg_pool2d(flat, grid)
    else:
        share = F.interpolate(flat, grid, mode="bilinear", align_corners=False)
    return share.reshape(*mask.shape[:-2], *grid)


def unit(tokens: Tensor) -> Tensor:
    """Tokens (..., D) at length 1, float32."""
    return F.normalize(tokens.float(), dim=-1)


def cosine_priors(
    query: Tensor, support: Tensor, mask: Tensor, count: Tensor, share: Tensor, *, cells: int = CELLS
) -> tuple[Tensor, Tensor]:
    """Semantic (2.4) and abnormal prior (2.5) of one layer; of the one cosine matrix only maxima are kept.

    ``semantic_i = sum_k share_k max_j [m_kj > 0] cos(q_i, s_kj)`` and
    ``abnormal_i = 1 - max_{k: count_k > 0, j} (1 - m_kj) cos(q_i, s_kj)``.

    Args:
        query: (B or 1, M, D) unit features of M query cells.
        support: (B, S, N, D) unit features.
        mask: (B, S, N) foreground shares.
        count: (B, S) multiplicity; 0 = padding, takes part in nothing.
        share: (B, S) weight of a view in the mean of the semantic maxima.
        cells: Largest number of matrix elements held at once.

    Returns:
        Two maps (B, M), float32.
    """
    with torch.autocast(query.device.type, enabled=False):
        rows = max(1, cells // max(1, query.shape[0] * support.shape[2]))
        front = _foreground(support, mask)
        normal = support * (1 - mask)[..., None]  # (1 - m) cos is linear in s: no product per pair of cells
        parts = [(_semantic(q, *front, share), _nearest(q, normal, count)) for q in pieces(query, rows, 1)]
        semantic, nearest = zip(*parts, strict=True)
        return torch.cat(semantic, 1), 1 - torch.cat(nearest, 1)


def _foreground(support: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Foreground cells (B, S, J, D) of every view, which are real (B, S, J), and full views (B, S)."""
    index = foreground_cells(mask.flatten(0, 1))  # (B * S, J)
    cells = gather(support.flatten(0, 1), index).unflatten(0, mask.shape[:2])
    real = (gather(mask.flatten(0, 1), index) > 0).unflatten(0, mask.shape[:2])
    return cells, real, (mask > 0).all(-1)


def _semantic(query: Tensor, cells: Tensor, real: Tensor, full: Tensor, share: Tensor) -> Tensor:
    """Mean over views of the largest cosine with a foreground cell; a background cell counts as 0."""
    total = query.new_zeros(query.shape[:2])  # (B, M)
    for k in range(cells.shape[1] if cells.shape[2] else 0):
        cosine = query @ cells[:, k].transpose(1, 2)  # (B, M, J)
        found = cosine.masked_fill(~real[:, k, None], -1.0).amax(-1)  # (B, M)
        total = total + share[:, k, None] * torch.where(full[:, k, None], found, found.clamp(min=0))
    return total


def _nearest(query: Tensor, normal: Tensor, count: Tensor) -> Tensor:
    """Largest cosine with a normal cell of any view that is no padding."""
    nearest = query.new_full(query.shape[:2], -1.0)  # (B, M), below every cosine
    for k in range(normal.shape[1]):
        found = (query @ normal[:, k].transpose(1, 2)).amax(-1)  # (B, M)
        nearest = torch.where(count[:, k, None] > 0, torch.maximum(nearest, found), nearest)
    return nearest


def fuse(
    query: Tensor, key: Tensor, mask: Tensor, value: Tensor, temperature: float, *, cells: int = CELLS
) -> Tensor:
    """Parameter-free fusion (2.7): every support cell hands its value out over the query's positions.

    ``a_ij = softmax over i of cos(q_i, s_j) m_j / temperature``; ``u_i = q_i + sum_j a_ij value_j``.

    Args:
        query: (B, Q, N, D).
        key: (B, J, D) unit support features.
        mask: (B, J) foreground shares m.
        value: (B, J, D) weighted support features, 0 for padding.
        temperature: Softness of the assignment.
        cells: Largest number of matrix elements held at once.

    Returns:
        (B, Q, N, D) float32.
    """
    with torch.autocast(query.device.type, enabled=False):
        result = query.float()
        direction = unit(query)
        step = max(1, key.shape[1]) if exporting() else max(1, cells // max(1, query.shape[:3].numel()))
        for j in range(0, key.shape[1], step):
            part = slice(j, j + step)
            match = torch.einsum("bqnd,bjd->bqnj", direction, key[:, part] * mask[:, part, None])
            assigned = (match / temperature).softmax(dim=2)  # (B, Q, N, J), over the query's positions
            result = result + torch.einsum("bqnj,bjd->bqnd", assigned, value[:, part])
        return result


def foreground_cells(mask: Tensor) -> Tensor:
    """Indices (B, J) of the cells with any foreground, J = the largest number in the batch.

    Args:
        mask: (B, S * N) foreground shares, 0 where a cell takes no part. Rows with fewer foreground cells are
            filled up with cells of share 0, which do nothing in ``fuse``.
    """
    if exporting():  # their number must be known beforehand: all take part
        return torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    most = int((mask > 0).sum(-1).max())
    return (mask > 0).to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick cells: tokens (B, M, D) or (B, M), index (B, J)."""
    if tokens.ndim == 2:
        return tokens.gather(1, index)
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def channel_dropout(tokens: Tensor, rate: float, *, training: bool) -> Tensor:
    """Drop whole channels of each map: tokens (..., N, D) or constant maps (..., 1, D)."""
    if not training or rate == 0:
        return tokens
    keep = F.dropout(torch.ones_like(tokens[..., :1, :]), rate, training=True)  # (..., 1, D)
    return tokens * keep
