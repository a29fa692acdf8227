"""Training of the contrastive generator: five steps of the critics, one of G, each with its own optimiser.

Specification gccs, section 2.2 and 2.3. Batches are drawn here, since an item of the data is all of the seen
classes: as many samples of every class, at least two, a pure function of (seed, epoch, step).
"""

from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from fewspect import draws
from fewspect.methods import optim
from fewspect.methods.gccs import loss
from fewspect.methods.gccs.generators import Contrastive, Scaling, Space
from fewspect.methods.gccs.loss import Contrast as Rule
from fewspect.methods.gccs.net import End


@dataclass(frozen=True, slots=True)
class Contrast:
    """The contrastive generator and how it is trained.

    Attributes:
        space: See ``Contrastive``.
        scaling: See ``Contrastive``.
        end: How G ends, see ``Nets``.
        noise: Width of the noise; 0 = that of the texts.
        g_hidden: See ``Nets``.
        d_hidden: See ``Nets``.
        embed: See ``Nets``.
        proj: See ``Nets``.
        f_hidden: See ``Nets``; 0 = no comparator, as in the last figure of GCCS (it costs most of the time).
        rule: RFFC: ``joint`` (parent) or ``cross`` (figure).
        ins_weight: Weight of RFFC for G.
        cls_weight: Weight of the comparator for G.
        critics: Steps of the critics per step of G.
        batch: Samples per step, at most as many as there are.
        lr: Adam's rate, betas (0.5, 0.999).
        decay: Factor on the rate after every ``decay_steps`` steps of G.
        decay_steps: See there.
        clip: Largest length of a gradient.
        ema: Share of the old weights in the running mean of G, which makes the samples; 0 = none.
    """

    space: Space = "h"
    scaling: Scaling = "standard"
    end: End = "linear"
    noise: int = 0
    g_hidden: int = 2048
    d_hidden: int = 2048
    embed: int = 1024
    proj: int = 256
    f_hidden: int = 0
    rule: Rule = "joint"
    ins_weight: float = 0.001
    cls_weight: float = 0.001
    critics: int = 5
    batch: int = 512
    lr: float = 1e-4
    decay: float = 0.99
    decay_steps: int = 100
    clip: float = 10.0
    ema: float = 0.999

    def generator(self, seed: int) -> Contrastive:
        """An untrained generator."""
        names = ("noise", "g_hidden", "d_hidden", "embed", "proj", "f_hidden", "end")
        return Contrastive(self.space, self.scaling, seed=seed, **{k: getattr(self, k) for k in names})


def optimisers(generator: Contrastive, options: Contrast) -> tuple[list[Any], list[Any]]:
    """Of the critics and of G, with their schedules, which count steps of G."""
    nets = generator.trained()
    adam = [
        torch.optim.Adam(part, lr=options.lr, betas=(0.5, 0.999))
        for part in (nets.critics(), nets.G.parameters())
    ]
    steps = [torch.optim.lr_scheduler.StepLR(a, options.decay_steps, options.decay) for a in adam]
    return adam, steps


def step(
    method: pl.LightningModule,
    generator: Contrastive,
    options: Contrast,
    seen: tuple[Tensor, Tensor, Tensor],
    *,
    index: tuple[int, ...],
    seed: int,
) -> dict[str, Tensor]:
    """One step of G after ``critics`` steps of D, E and F.

    Args:
        method: Whose optimisers and trainer are used.
        generator: What is trained.
        options: See ``Contrast``.
        seen: Features (n, D), labels (n,) and texts (K, T) of the seen classes.
        index: Epoch, batch and rank; part of every draw.
        seed: Of all draws.

    Returns:
        All terms, detached.
    """
    nets, (feature, label, text) = generator.trained(), seen
    critic, maker = cast(list[LightningOptimizer], method.optimizers())
    scaled, parts = generator.scaled(feature), dict[str, Tensor]()
    for turn in range(options.critics + 1):
        random = draws.generator(seed, "contrast", *index, turn)
        rows = balanced(label, len(text), min(options.batch, len(label)), random)
        real, own = scaled[rows], label[rows]
        noise = torch.randn(len(rows), nets.noise, generator=random).to(scaled)
        if turn < options.critics:
            mix = torch.rand(len(rows), 1, generator=random).to(scaled)
            parts |= loss.critic_losses(nets, real, own, text, noise=noise, mix=mix)
            total = parts["critic_fake"] - parts["critic_real"] + parts["gradient_penalty"]
            optim.minimise(
                method, total + parts["ins_real"] + parts["cls_real"], critic, nets.critics(), options.clip
            )
        else:
            parts |= loss.generator_losses(nets, real, own, text, noise=noise, rule=options.rule)
            total = options.ins_weight * parts["ins_fake"] + options.cls_weight * parts["cls_fake"]
            optim.minimise(method, total - parts["g_critic"], maker, nets.G.parameters(), options.clip)
    made = method.global_step // (options.critics + 1)  # steps of G so far: a young mean forgets faster
    generator.average_in(min(options.ema, made / (made + 9)))
    parts["wasserstein"] = parts["critic_real"] - parts["critic_fake"]
    return {k: v.detach() for k, v in parts.items()}


def balanced(label: Tensor, classes: int, number: int, random: torch.Generator) -> Tensor:
    """Places of about ``number`` samples: equally many of every class, two or more, drawn with replacement.

    With fewer than two per class, so many classes take part as two of each fill.
    """
    chosen = torch.randperm(classes, generator=random)[: max(2, number // 2)]
    each = max(2, number // len(chosen))
    order = torch.argsort(label.cpu(), stable=True)
    counts = torch.bincount(label.cpu(), minlength=classes)
    starts = counts.cumsum(0) - counts
    drawn = (torch.rand(len(chosen), each, generator=random) * counts[chosen, None]).long()
    return order[(starts[chosen, None] + drawn).flatten()].to(label.device)
