"""Train WRN-28-10 by S2M2_R: ``python -m fewspect.engine.s2m2 --root FOLDER --out FILE``, a folder per class.

Specification gccs, section 5; Mangla et al., arXiv 1907.12087. Stage 1 learns classes and rotations from
every
image in four rotations; stage 2 adds manifold mixup. The file fits ``backbones.wide.Wide`` and the original.
Augmentation is on, as in the paper; the published code leaves it off unless told, which costs 6 to 9 points.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from fewspect import draws
from fewspect.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from fewspect.backbones.wide import GROUPS, WideResNet
from fewspect.data.index import load_image
from fewspect.data.readers import folder
from fewspect.types import Sample

log = logging.getLogger(__name__)

SIDE, RESIZED = 84, 96
EPOCHS, BATCH = 200, 16
BETA = 2.0
"""Both parameters of the distribution of mixup's share."""

TURNS = 4
SHARE = 4
"""One in so many images of a batch is also shown in four rotations (stage 2)."""


def rotated(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (4 B, 3, H, W) in four rotations, and the quarter turns (4 B,), counter-clockwise."""
    turned = torch.cat([torch.rot90(images, k, (2, 3)) for k in range(TURNS)])
    return turned, torch.arange(TURNS, device=images.device).repeat_interleave(len(images))


def stage_one(net: WideResNet, head: nn.Linear, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes and of rotations, over all four rotations of every image.

    Args:
        net: The network with its class head.
        head: Of the rotations.
        images: (B, 3, H, W) normalised.
        labels: (B,).
    """
    turned, turns = rotated(images)
    features, logits = net(turned)
    return F.cross_entropy(logits, labels.repeat(TURNS)) + F.cross_entropy(head(features), turns)


def stage_two(
    net: WideResNet, head: nn.Linear, images: Tensor, labels: Tensor, r: np.random.Generator
) -> Tensor:
    """Manifold mixup at a depth that is drawn, plus half of ``stage_one`` on a quarter of the batch.

    Args:
        net: As in ``stage_one``.
        head: As in ``stage_one``.
        images: As in ``stage_one``.
        labels: As in ``stage_one``.
        r: Draws share, depth, partners and quarter.
    """
    lam, depth = float(r.beta(BETA, BETA)), int(r.integers(GROUPS + 1))
    perm = torch.from_numpy(r.permutation(len(images)))
    logits = net(images, depth, lam, perm)[1]
    mixed = lam * F.cross_entropy(logits, labels) + (1 - lam) * F.cross_entropy(logits, labels[perm])
    some = torch.from_numpy(r.permutation(len(images))[: max(1, len(images) // SHARE)])
    return mixed + stage_one(net, head, images[some], labels[some]) / 2


def view(sample: Sample, r: np.random.Generator | None) -> Tensor:
    """Normalised image (3, SIDE, SIDE): random crop, colours and flip, or the centre without a generator."""
    image = load_image(sample).float() / 255
    if r is None:
        image = V.center_crop(V.resize(image, [RESIZED, RESIZED], antialias=True), [SIDE, SIDE])
    else:
        height, width = image.shape[1:]
        area, ratio = r.uniform(0.08, 1) * height * width, np.exp(r.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = min(height, round((area / ratio) ** 0.5)), min(width, round((area * ratio) ** 0.5))
        h, w = max(1, h), max(1, w)
        top, left = int(r.integers(height - h + 1)), int(r.integers(width - w + 1))
        image = V.resized_crop(image, top, left, h, w, [SIDE, SIDE], antialias=True)
        for change in (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation):
            image = change(image, float(r.uniform(0.6, 1.4)))
        image = V.horizontal_flip(image) if r.random() < 0.5 else image
    return V.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))


def train(samples: list[Sample], net: WideResNet, epochs: int, *, seed: int = 0, batch: int = BATCH) -> None:
    """Both stages, each of so many epochs; Adam with its own rate, as published.

    Args:
        samples: Labelled 1..K.
        net: Is changed.
        epochs: Per stage.
        seed: Of all draws.
        batch: Images per step.
    """
    for stage in (1, 2):
        head = nn.Linear(net.width, TURNS)  # the rotation head begins anew in stage 2
        optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()])
        for epoch in range(epochs):
            order = draws.rng(seed, f"s2m2/order/{stage}", epoch).permutation(len(samples))
            torch.manual_seed(draws.key(seed, f"s2m2/noise/{stage}", epoch))  # dropout
            for start in range(0, len(order), batch):
                r = draws.rng(seed, f"s2m2/batch/{stage}", epoch, start)
                chosen = [samples[int(i)] for i in order[start : start + batch]]
                images = torch.stack([view(s, r) for s in chosen])
                labels = torch.tensor([s.label - 1 for s in chosen])
                net.train()
                one = stage == 1
                value = (
                    stage_one(net, head, images, labels) if one else stage_two(net, head, images, labels, r)
                )
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            log.info("stage %d, epoch %d/%d  loss %.3f", stage, epoch + 1, epochs, float(value.detach()))


def main() -> None:
    """Parse the command line, train, and write the state dict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="one folder per class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="per stage")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--widen", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    index = folder.read(str(options.root), layout="classes")
    torch.manual_seed(draws.key(options.seed, "s2m2/weights"))
    net = WideResNet(options.depth, options.widen, len(index.classes))
    train([s for s in index.samples if s.label > 0], net, options.epochs, seed=options.seed)
    part = options.out.with_suffix(".part")
    torch.save(net.state_dict(), part)
    part.replace(options.out)


if __name__ == "__main__":
    main()
