"""Training of the cache heads: Zip-Adapter-F in all its configurations, Tip-Adapter-F (spec mvrec, 4.3).

All support views are shown in every step, with their item's label; nothing is drawn but the start of a layer
that does not start at zero. All episodes are trained at once: their losses are added up, their parameters are
separate, the optimisers work element by element, so the result is that of training one by one.

``key_optimizer="momentum"`` is what the original does in effect: its keys are float16, where AdamW's second
moment underflows, and the step becomes rate / eps times the mean gradient (4.6).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect import draws
from fewspect.errors import UserError
from fewspect.nn.adapter import TAU, Cache, cache_logits, project, rounded
from fewspect.nn.prototype import unit
from fewspect.nn.shots import Head, Shots

CONFIGS: dict[int, tuple[frozenset[str], bool, bool]] = {
    0: (frozenset({"projection"}), False, False),
    1: (frozenset({"keys", "projection"}), False, False),
    2: (frozenset({"projection"}), True, False),
    3: (frozenset({"projection"}), False, True),
    4: (frozenset({"projection"}), True, True),
    5: (frozenset({"keys", "projection"}), False, True),
    6: (frozenset({"keys", "projection"}), True, False),
    7: (frozenset({"keys", "projection"}), True, True),
    8: (frozenset({"keys"}), True, False),
}
"""``zip_config`` -> what is trained, whether A and b start at zero, whether the triplet loss acts."""

BETAS = (0.9, 0.999)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the cache is trained; the defaults are the published ones.

    Attributes:
        steps: Full-batch steps.
        lr: First learning rate; a cosine leads to ``lr_min``.
        lr_min: Last learning rate.
        eps: AdamW's epsilon; with ``momentum`` the keys move at the rate lr / eps.
        weight_decay: AdamW's.
        triplet_weight: Factor of the triplet loss where the configuration has one.
        triplet_margin: Its margin, in units of the projected features.
        key_optimizer: ``adamw``, or ``momentum`` (the original's behaviour, in float32).
        own_key: A view may vote with the key of its own item (published: yes).
        seed: Of layers that do not start at zero.
    """

    steps: int = 500
    lr: float = 1e-4
    lr_min: float = 1e-5
    eps: float = 1e-6
    weight_decay: float = 0.01
    triplet_weight: float = 4.0
    triplet_margin: float = 0.5
    key_optimizer: Literal["adamw", "momentum"] = "adamw"
    own_key: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(
                f"method.training.steps={self.steps} trains nothing.",
                "Give 1 or more; method.head=zip or tip need no training.",
            )

    def rates(self) -> Iterator[float]:
        """Learning rate of every step."""
        for t in range(self.steps):
            yield self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * t / self.steps)) / 2


@dataclass(frozen=True, slots=True)
class ZipF(Head):
    """Zip-Adapter-F.

    Attributes:
        config: ``zip_config``, see ``CONFIGS``; published 6.
        beta: Sharpness of the affinity; published 1.
        tau: Temperature.
        half: Emulate the original's half precision in every step (slow; for parity).
        recipe: How it is trained.
    """

    config: int = 6
    beta: float = 1.0
    tau: float = TAU
    half: bool = False
    recipe: Recipe = field(default_factory=Recipe)

    def fit(self, shots: Shots) -> Cache:
        """Train a copy of the cache for every episode."""
        return train(self, shots)[0]


@dataclass(frozen=True, slots=True)
class TipF(Head):
    """Tip-Adapter-F: normalised keys are trained, and not normalised again.

    Attributes:
        beta: Sharpness of the affinity.
        tau: Temperature.
        recipe: How it is trained.
    """

    beta: float = 1.0
    tau: float = TAU
    recipe: Recipe = field(default_factory=Recipe)

    def fit(self, shots: Shots) -> Cache:
        """Train a copy of the keys for every episode."""
        return train(self, shots)[0]


def train(head: ZipF | TipF, shots: Shots) -> tuple[Cache, Tensor]:
    """Train a cache for every episode.

    Returns:
        The cache, and the cross-entropy before every step (steps, E).
    """
    if isinstance(head, TipF):
        start = Cache(unit(shots.keys), shots.hot, head.beta, head.tau, normal=True)
        return _descend(start, frozenset({"keys"}), shots, head.recipe, triplet=False)
    trained, zero, triplet = CONFIGS[head.config]
    episodes, width = len(shots.feature), shots.feature.shape[-1]
    weight, bias = _layer(episodes, width, None if zero else head.recipe.seed, shots.feature.device)
    keys = shots.keys.half().float() if head.half else shots.keys
    cache = Cache(keys, shots.hot, head.beta, head.tau, weight, bias, head.half)
    return _descend(cache, trained, shots, head.recipe, triplet=triplet)


def _layer(episodes: int, width: int, seed: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """A and b of every episode: zero, or uniform as torch's linear layers start (the same for all)."""
    if seed is None:
        weight, bias = torch.zeros(width, width), torch.zeros(width)
    else:
        random, bound = draws.generator(seed, "zip_adapter"), 1 / math.sqrt(width)
        weight, bias = ((torch.rand(s, generator=random) * 2 - 1) * bound for s in ((width, width), (width,)))
    return weight.to(device).repeat(episodes, 1, 1), bias.to(device).repeat(episodes, 1)


@torch.inference_mode(False)
@torch.enable_grad()
def _descend(
    cache: Cache, trained: frozenset[str], shots: Shots, recipe: Recipe, *, triplet: bool
) -> tuple[Cache, Tensor]:
    """Full-batch descent on all views of all supports."""
    views = shots.feature.flatten(1, 2).clone()  # (E, S V, D); clones: nothing made in inference mode
    number = shots.feature.shape[2]
    batch = _Batch(
        views,
        shots.label.repeat_interleave(number, 1),
        shots.count.repeat_interleave(number, 1),
        shots.hot.clone(),
        number,
    )
    keys, weight, bias = (None if t is None else t.clone() for t in (cache.keys, cache.weight, cache.bias))
    moving = {"keys": {"keys": keys}, "projection": {"weight": weight, "bias": bias}}
    parameters = {k: v for part in trained for k, v in moving[part].items() if v is not None}
    for value in parameters.values():
        value.requires_grad_(True)
    optimizers = _optimizers(parameters, recipe, half=cache.half)
    past: list[Tensor] = []
    for rate in recipe.rates():
        entropy, total = batch.loss(cache, keys, weight, bias, recipe, triplet=triplet)
        past.append(entropy.detach())
        gradients = torch.autograd.grad(total, list(parameters.values()))
        for value, gradient in zip(parameters.values(), gradients, strict=True):
            value.grad = gradient.contiguous()  # the fused step reads memory as if it were
        for optimizer in optimizers:
            optimizer.step(rate)
    done = [None if t is None else t.detach() for t in (keys, weight, bias)]
    assert done[0] is not None
    result = Cache(done[0], cache.hot, cache.beta, cache.tau, done[1], done[2], cache.half, cache.normal)
    return result, torch.stack(past)


@dataclass(frozen=True, slots=True)
class _Batch:
    """All support views (E, N, D) with labels and counts (E, N), one-hot labels of the keys (E, S, K)."""

    views: Tensor
    label: Tensor
    count: Tensor
    hot: Tensor
    number: int

    def loss(
        self,
        cache: Cache,
        keys: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        recipe: Recipe,
        *,
        triplet: bool,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every episode (E,), and the sum that is minimised."""
        assert keys is not None
        x = self.views
        if weight is not None and bias is not None:
            x = project(x, weight, bias, half=cache.half)
            keys = project(keys, weight, bias, half=cache.half)
        query, key = unit(x), keys if cache.normal else unit(keys)
        if cache.half:
            query, key = rounded(query), rounded(key)
        cosine = torch.matmul(query, key.mT)  # (E, N, S)
        if not recipe.own_key:
            cosine = cosine.masked_fill(self._own(cosine), -math.inf)
        logits = cache_logits(cosine, self.hot, cache.beta, cache.tau, half=cache.half)
        each = F.cross_entropy(logits.flatten(0, 1), self.label.flatten(), reduction="none")
        each = each.view_as(self.count)
        entropy = (each * self.count).sum(1) / self.count.sum(1).clamp(min=1)  # (E,)
        total = entropy.sum()
        if triplet:
            there = self.count > 0  # padding is nobody's neighbour
            trios = zip(x, self.label, there, strict=True)
            margins = [hardest_triplets(a[c], b[c], recipe.triplet_margin) for a, b, c in trios]
            total = total + recipe.triplet_weight * torch.stack(margins).sum()
        return entropy, total

    def _own(self, cosine: Tensor) -> Tensor:
        """(N, S): the key of the view's own item."""
        n, s = torch.arange(cosine.shape[1]) // self.number, torch.arange(cosine.shape[2])
        return (n[:, None] == s).to(cosine.device)


def hardest_triplets(x: Tensor, label: Tensor, margin: float) -> Tensor:
    """Mean of relu(farthest of the class - nearest of another class + margin), Euclidean.

    Args:
        x: (N, D) features.
        label: (N,) classes.
        margin: In the units of the features.
    """
    with torch.no_grad():  # which pairs: by products; how far: exactly, below
        flat = x.detach()
        square = flat.square().sum(1)
        distance = square[:, None] + square - 2 * flat @ flat.T
        same = label[:, None] == label
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        far = distance.masked_fill(~same | itself, -math.inf)
        near = distance.masked_fill(same, math.inf)
        (most, farthest), (least, nearest) = far.max(1), near.min(1)
    positive = torch.where(most > -math.inf, _length(x - x[farthest]), 0.0)
    negative = torch.where(least < math.inf, _length(x - x[nearest]), math.inf)
    return F.relu(positive - negative + margin).mean()


def _length(difference: Tensor) -> Tensor:
    """Euclidean norm (N,) whose gradient at zero is zero."""
    square = difference.square().sum(1)
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)


class _AdamW:
    """AdamW for several tensors, in one fused pass where torch has one."""

    def __init__(self, parameters: list[Tensor], recipe: Recipe) -> None:
        self.inner = torch.optim.AdamW(
            parameters,
            lr=recipe.lr,
            betas=BETAS,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=parameters[0].device.type in ("cpu", "cuda"),
        )

    def step(self, rate: float) -> None:
        """One step at this learning rate."""
        self.inner.param_groups[0]["lr"] = rate
        self.inner.step()


class _Momentum:
    """key -= rate / eps * m, m = bias-corrected moving average of the gradient (4.6); no decay."""

    def __init__(self, parameter: Tensor, recipe: Recipe) -> None:
        self.parameter, self.eps = parameter, recipe.eps
        self.average, self.steps = torch.zeros_like(parameter), 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at this learning rate."""
        assert self.parameter.grad is not None
        self.steps += 1
        self.average.lerp_(self.parameter.grad, 1 - BETAS[0])
        self.parameter -= rate / self.eps / (1 - BETAS[0] ** self.steps) * self.average


class _HalfAdamW:
    """AdamW on a float16 copy, every elementary operation rounded, as the original's keys are trained."""

    def __init__(self, parameter: Tensor, recipe: Recipe) -> None:
        self.parameter, self.recipe = parameter, recipe
        self.value = parameter.detach().half()
        self.average, self.square = torch.zeros_like(self.value), torch.zeros_like(self.value)
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at this learning rate."""
        assert self.parameter.grad is not None
        gradient = self.parameter.grad.half()
        self.steps += 1
        self.value.mul_(1 - rate * self.recipe.weight_decay)
        self.average.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        corrected = math.sqrt(1 - BETAS[1] ** self.steps)
        bottom = (self.square.sqrt() / corrected).add_(self.recipe.eps)
        self.value.addcdiv_(self.average, bottom, value=-rate / (1 - BETAS[0] ** self.steps))
        self.parameter.copy_(self.value)


def _optimizers(
    parameters: dict[str, Tensor], recipe: Recipe, *, half: bool
) -> list[_AdamW | _Momentum | _HalfAdamW]:
    """One for the layer, one for the keys where these go by another rule."""
    special = half or recipe.key_optimizer == "momentum"
    others = [v for k, v in parameters.items() if not (special and k == "keys")]
    found: list[_AdamW | _Momentum | _HalfAdamW] = [_AdamW(others, recipe)] if others else []
    if special and "keys" in parameters:
        kind = _HalfAdamW if half else _Momentum
        found.append(kind(parameters["keys"], recipe))
    return found
