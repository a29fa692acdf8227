"""Zip-Adapter and Tip-Adapter: a cache of support features, read by affinity (spec mvrec, 4.1 to 4.3).

A view x votes for the class of every key s_m with exp(-beta (1 - cos(z(x), z(s_m)))), where z is the identity
(training-free: Zip = Tip) or a zero-initialised residual layer, z(x) = x + SiLU(A x + b). The votes of a
class are summed and divided by tau. How A, b and the keys are trained is in ``nn.fine_tune``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fewspect.nn.prototype import unit
from fewspect.nn.shots import Fitted, Head, Shots, inner

TAU = 0.11
"""Published temperature: logits are divided by it."""


class _Rounded(torch.autograd.Function):
    """Half precision by hand: values and gradients are rounded, the arithmetic between stays float32."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        return x.half().float()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return grad.half().float()


def rounded(x: Tensor) -> Tensor:
    """``x`` rounded to half precision, and its gradient likewise."""
    return _Rounded.apply(x)  # type: ignore[return-value]


def project(x: Tensor, weight: Tensor, bias: Tensor, *, half: bool = False) -> Tensor:
    """z(x) = x + SiLU(A x + b).

    Args:
        x: (E or 1, M, D).
        weight: (E, D, D), A.
        bias: (E, D), b.
        half: Round where the original's half precision does (4.6).

    Returns:
        (E, M, D).
    """
    if not half:
        return x + F.silu(torch.matmul(x, weight.mT) + bias[:, None])
    x, weight, bias = rounded(x), rounded(weight), rounded(bias)
    return rounded(rounded(F.silu(rounded(torch.matmul(x, weight.mT) + bias[:, None]))) + x)


def cache_logits(cosine: Tensor, hot: Tensor, beta: float, tau: float, *, half: bool = False) -> Tensor:
    """Votes of the keys (4.2).

    Args:
        cosine: (E, ..., S).
        hot: (E, S, K) one-hot labels times counts.
        beta: Sharpness of the affinity.
        tau: Temperature.
        half: Round where the original's half precision does.

    Returns:
        (E, ..., K).
    """
    if not half:
        affinity = torch.exp(-beta * (1 - cosine))
        return torch.einsum("e...s,esk->e...k", affinity, hot) / tau
    cosine = rounded(cosine)
    affinity = rounded(torch.exp(-rounded(beta - rounded(beta * cosine))))
    return rounded(rounded(torch.einsum("e...s,esk->e...k", affinity, hot)) / tau)


@dataclass(frozen=True, slots=True)
class Cache(Fitted):
    """Keys with labels, and the projection if there is one.

    Attributes:
        keys: (E, S, D); already at length 1 when ``normal``.
        hot: (E, S, K).
        beta: See ``cache_logits``.
        tau: See ``cache_logits``.
        weight: (E, D, D) or None: no projection.
        bias: (E, D) or None.
        half: Emulate half precision.
        normal: The keys are used as they are (Tip-Adapter-F trains normalised keys).
    """

    keys: Tensor
    hot: Tensor
    beta: float
    tau: float = TAU
    weight: Tensor | None = None
    bias: Tensor | None = None
    half: bool = False
    normal: bool = False

    def __call__(self, query: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Logits (E, Q, V, K)."""
        del views  # every view is compared with the same keys
        keys = self.keys
        if self.weight is not None and self.bias is not None:
            flat = project(query.flatten(1, 2), self.weight, self.bias, half=self.half)  # (E, Q V, D)
            query = flat.unflatten(1, query.shape[1:3])
            keys = project(keys, self.weight, self.bias, half=self.half)
        query, keys = unit(query), keys if self.normal else unit(keys)
        if self.half:
            query, keys = rounded(query), rounded(keys)
        return cache_logits(inner(query, keys), self.hot, self.beta, self.tau, half=self.half)


@dataclass(frozen=True, slots=True)
class Zip(Head):
    """Zip-Adapter without training; equals Tip-Adapter's cache term.

    Attributes:
        beta: Sharpness of the affinity; published 32.
        tau: Temperature.
        half: Half precision as in the original (30 of 30 published values; float32: 27).
    """

    beta: float = 32.0
    tau: float = TAU
    half: bool = False

    def fit(self, shots: Shots) -> Cache:
        """Keep the mean of every item's views."""
        keys = shots.keys.half().float() if self.half else shots.keys
        return Cache(keys, shots.hot, self.beta, self.tau, half=self.half)
