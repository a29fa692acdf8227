"""Train the embedded backbone: ``python -m fewspect.engine.pretrain --out FILE``, 40 minutes on one core.

Backbone and a small few-shot head learn together to segment endless synthetic classes (``data.pretext``) from
one shot; the head is thrown away. No data set and no class of the toy factory takes part, so all of them stay
unseen.
"""

import argparse
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fewspect.backbones.tiny import STRIDE, Tiny
from fewspect.data.pretext import Pretext
from fewspect.nn.prototype import masked_mean, unit

log = logging.getLogger(__name__)

SIDE, BATCH, STEPS = 96, 8, 2200
RATE, DECAY, WARMUP, CLIP = 1.5e-3, 0.02, 100, 1.0
PRIOR_SCALE, TEMPERATURE, FUSION = 10.0, 0.1, 5.0
CROSS_ENTROPY = 2.0
DATA_SEED = 77


class PretextHead(nn.Module):
    """The idea of the SOFS head (priors, prototype, attention, fusion) in its shortest form.

    Args:
        layers: Backbone layers.
        width: Their width D.
        dim: Width R of the head.
    """

    def __init__(self, layers: int = 3, width: int = 64, dim: int = 48) -> None:
        super().__init__()
        self.query, self.support, self.prototype = (
            nn.Linear(layers * width, dim, bias=False) for _ in range(3)
        )
        self.merge_support = nn.Linear(2 * dim, dim, bias=False)
        self.merge_query = nn.Linear(2 * dim + 2 * layers, dim, bias=False)
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.classifier = nn.Linear(dim, dim)

    def forward(self, query: list[Tensor], support: list[Tensor], mask: Tensor) -> Tensor:
        """Logits (B, N) from layers of query and support tokens (B, N, D) and foreground shares (B, N)."""
        semantic, abnormal, prototypes = [], [], []
        for q, s in zip(query, support, strict=True):
            cosine = unit(q) @ unit(s).transpose(1, 2)  # (B, N, N)
            semantic.append((cosine * (mask > 0)[:, None]).amax(2))
            abnormal.append(1 - (cosine * (1 - mask)[:, None]).amax(2))
            prototypes.append(masked_mean(s, mask))
        g = F.relu(self.prototype(torch.cat(prototypes, -1)))[:, None].expand(
            -1, mask.shape[1], -1
        )  # (B, N, R)
        priors = PRIOR_SCALE * torch.stack([*semantic, *abnormal], -1)  # (B, N, 2L)
        s = F.relu(self.merge_support(torch.cat([F.relu(self.support(torch.cat(support, -1))), g], -1)))
        q = F.relu(self.merge_query(torch.cat([F.relu(self.query(torch.cat(query, -1))), g, priors], -1)))
        q, s = self._attend(q), self._attend(s)
        z = masked_mean(self.classifier(s), mask)  # (B, R)
        match = unit(q) @ unit(s).transpose(1, 2) * mask[:, None]  # (B, N, N)
        votes = ((match / TEMPERATURE).softmax(1) * mask[:, None]) @ s
        fused = q + votes / (mask.sum(1)[:, None, None] + 1) * FUSION
        return (fused @ z[..., None])[..., 0]

    def _attend(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        for block in self.blocks:
            x = block(x)
            x = x + self.position(x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        return x


def loss(logits: Tensor, share: Tensor) -> Tensor:
    """Dice on cells with over a tenth of foreground, plus cross-entropy with the share as soft target."""
    prob, target = logits.sigmoid(), (share > 0.1).float()
    dice = 1 - (2 * (prob * target).sum(1) + 1) / (prob.sum(1) + target.sum(1) + 1)
    return dice.mean() + CROSS_ENTROPY * F.binary_cross_entropy_with_logits(logits, share)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to 0."""
    return RATE * min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def train(steps: int, seed: int = 0) -> Tiny:
    """Train and return the backbone.

    Args:
        steps: Optimiser steps.
        seed: Seed of the head's initial weights; the data have ``DATA_SEED``.
    """
    torch.manual_seed(seed)
    net = Tiny(weights=None, side=SIDE, frozen=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = PretextHead(len(net.layers), net.dim)
    params = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, RATE, weight_decay=DECAY)
    batches = DataLoader(Pretext(steps * BATCH, DATA_SEED, SIDE), batch_size=BATCH, num_workers=1)
    for step, (images, masks) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        tokens = net(images.flatten(0, 1).float() / 255).tokens  # L x (B * 2, N, D)
        pairs = [t.unflatten(0, (len(images), 2)) for t in tokens]
        share = F.avg_pool2d(masks.float(), STRIDE).flatten(2)  # (B, 2, N)
        logits = head([p[:, 0] for p in pairs], [p[:, 1] for p in pairs], share[:, 1])
        value = loss(logits, share[:, 0])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        if step % 50 == 0:
            log.info("step %d/%d  loss %.3f", step, steps, float(value.detach()))
    return net


def main() -> None:
    """Parse the command line, train, and write the weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    net = train(options.steps)
    part = options.out.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, part)
    part.replace(options.out)


if __name__ == "__main__":
    main()
