"""Generalised zero-shot recognition: seen and unseen classes compete for the same queries.

* ``unseen`` U and ``seen`` S: mean over unseen (seen) classes of the share of their queries that is right.
* ``harmonic``: 2 U S / (U + S).
* ``ausuc``: area under the curve of S over U when a constant is taken off the scores of seen classes
  (calibrated stacking, Chao et al., arXiv 1605.04253), from "all unseen" to "all seen".

Letters: Q queries, K classes.
"""

import numpy as np


def generalised(truth: np.ndarray, scores: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """All four values.

    Args:
        truth: (Q,) 0..K - 1.
        scores: (Q, K), more is better.
        seen: (K,) bool; both kinds occur, among classes and among queries.

    Returns:
        Shares in 0..1; empty where one kind is missing.
    """
    if seen.all() or not seen.any() or len(np.unique(seen[truth])) < 2:
        return {}
    best_seen, best_unseen = (np.where(mask, scores, -np.inf) for mask in (seen, ~seen))
    gap = best_seen.max(1) - best_unseen.max(1)
    right = np.where(seen[truth], best_seen.argmax(1) == truth, best_unseen.argmax(1) == truth)
    weight = _weights(truth, seen)
    order = np.argsort(gap, kind="stable")  # a growing constant turns queries into unseen ones in this order
    of_seen, value = seen[truth][order], (weight * right)[order]
    lost, won = np.cumsum(np.where(of_seen, value, 0)), np.cumsum(np.where(of_seen, 0, value))
    s_curve, u_curve = np.r_[lost[-1], lost[-1] - lost], np.r_[0.0, won]
    at = int(np.searchsorted(gap[order], 0.0, side="right"))  # so many are unseen without a constant
    s, u = float(s_curve[at]), float(u_curve[at])
    area = float(np.sum(np.diff(u_curve) * (s_curve[1:] + s_curve[:-1]) / 2))
    return {
        "unseen": u,
        "seen": s,
        "harmonic": 2 * u * s / (u + s) if u + s else 0.0,
        "ausuc": area,
    }


def _weights(truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(Q,) so that the queries of seen classes, and those of unseen ones, add up to a mean over classes."""
    counts = np.bincount(truth, minlength=len(seen))
    occurring = counts > 0
    classes = {kind: (occurring & (seen == kind)).sum() for kind in (True, False)}
    return 1.0 / (counts[truth] * np.where(seen[truth], classes[True], classes[False]))
