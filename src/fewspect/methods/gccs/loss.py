"""Losses of the contrastive generator.

Specification gccs, section 2.2, after CE-GZSL (arXiv 2103.16173), whose 0 / 0 for labels that occur once is
not repeated: an anchor without a positive is left out.

Letters: B samples, A anchors, C candidates, K classes.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.methods.gccs.net import Nets

Contrast = Literal["joint", "cross"]

GP_WEIGHT = 10.0
"""Factor of the gradient penalty (Gulrajani et al. 2017), part of ``penalty``."""

TEMPERATURE = 0.1
"""Of both contrastive terms (parent)."""


def penalty(
    judge: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor, text: Tensor, mix: Tensor
) -> Tensor:
    """10 * mean (|grad_v D(v, t)| - 1)^2 at v = mix * real + (1 - mix) * fake; the texts are not varied.

    Args:
        judge: D.
        real: (B, D).
        fake: (B, D), without gradient.
        text: (B, T).
        mix: (B, 1) in [0, 1].
    """
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    judged = judge(between, text)
    (slope,) = torch.autograd.grad(judged.sum(), between, create_graph=True)
    return GP_WEIGHT * (slope.norm(dim=-1) - 1).square().mean()


def contrast(
    anchors: Tensor,
    labels: Tensor,
    candidates: Tensor | None = None,
    candidate_labels: Tensor | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Supervised contrast of unit vectors, mean over the anchors that have a positive; 0 when none has.

    Args:
        anchors: (A, d).
        labels: (A,).
        candidates: (C, d); None = the other anchors.
        candidate_labels: (C,).
        temperature: tau.
    """
    itself = candidates is None
    others = anchors if candidates is None else candidates
    other_labels = labels if candidate_labels is None else candidate_labels
    similar = anchors @ others.T / temperature  # (A, C)
    positive = labels[:, None] == other_labels[None]
    if itself:
        own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        similar, positive = similar.masked_fill(own, -torch.inf), positive & ~own
    number = positive.sum(1)
    if not bool((number > 0).any()):
        return anchors.sum() * 0
    log_prob = (similar - similar.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    return -(log_prob.sum(1) / number.clamp(min=1))[number > 0].mean()


def classes(nets: Nets, h: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """Cross-entropy of the comparator over all seen classes; 0 without one.

    Args:
        nets: Has the comparator F.
        h: (B, embed).
        labels: (B,) positions among the texts.
        text: (K, T) of the seen classes.
    """
    if nets.F is None:
        return h.sum() * 0
    return F.cross_entropy(nets.compare(h, text) / TEMPERATURE, labels)


def critic_losses(
    nets: Nets, real: Tensor, labels: Tensor, text: Tensor, *, noise: Tensor, mix: Tensor
) -> dict[str, Tensor]:
    """Terms of the critic's step; D, E and F are trained by their sum (``critic_real`` counts -1).

    Args:
        nets: All networks.
        real: (B, D) scaled features.
        labels: (B,).
        text: (K, T) of the seen classes.
        noise: (B, Z).
        mix: (B, 1) in [0, 1].
    """
    own = text[labels]
    with torch.no_grad():
        fake = nets.G(noise, own)
    h, q = nets.E(real)
    return {
        "critic_real": nets.D(real, own).mean(),
        "critic_fake": nets.D(fake, own).mean(),
        "gradient_penalty": penalty(nets.D, real, fake, own, mix),
        "ins_real": contrast(q, labels),
        "cls_real": classes(nets, h, labels, text),
    }


def generator_losses(
    nets: Nets, real: Tensor, labels: Tensor, text: Tensor, *, noise: Tensor, rule: Contrast = "joint"
) -> dict[str, Tensor]:
    """Terms of the generator's step; only G is trained by their weighted sum (``g_critic`` counts -1).

    Args:
        nets: All networks.
        real: (B, D) scaled features.
        labels: (B,).
        text: (K, T) of the seen classes.
        noise: (B, Z).
        rule: ``joint``: fakes and reals are anchors and candidates (parent); ``cross``: fakes are anchors
            among reals (the figure of GCCS).
    """
    own = text[labels]
    fake = nets.G(noise, own)
    h, q = nets.E(fake)
    with torch.no_grad():
        others = nets.E(real)[1]
    if rule == "cross":
        instance = contrast(q, labels, others, labels)
    else:
        instance = contrast(torch.cat([q, others]), torch.cat([labels, labels]))
    return {
        "g_critic": nets.D(fake, own).mean(),
        "ins_fake": instance,
        "cls_fake": classes(nets, h, labels, text),
    }
