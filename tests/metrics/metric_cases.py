"""Random predictions with truth, shared by the metric tests."""

import torch

from fewspect.metrics import bins
from fewspect.types import Episode, Prediction


def episode(mask, *, product="part", classes=("scratch",), index=0, label=None, paths=None, image=None):
    mask = torch.as_tensor(mask, dtype=torch.uint8)
    mask = mask[None] if mask.ndim == 2 else mask
    height, width = mask.shape[-2:]
    known = int((mask == 1).any()) if label is None else label
    return Episode(
        support_image=torch.full((1, 3, 8, 8), 0.5),
        support_mask=torch.zeros(1, 8, 8, dtype=torch.uint8),
        support_label=torch.ones(1, dtype=torch.int64),
        support_count=torch.ones(1),
        query_image=torch.zeros(1, 3, height, width, dtype=torch.uint8) if image is None else image,
        query_mask=mask,
        query_label=torch.full((len(mask),), known),
        classes=classes,
        product=product,
        index=index,
        paths=(f"/data/{product}/{index:03d}.png",) if paths is None else paths,
    )


def cases(number, seed=0, products=("a", "b", "ö/ü")):
    """Pairs of several sizes: defects of all strata, normal, empty and ignored queries."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for i in range(number):
        height, width = 12 + i % 5, 70 + i % 7
        mask = torch.zeros(height, width, dtype=torch.uint8)
        if i % 4:
            mask[2 : 3 + i % 3, 5 : 6 + (i % 4) ** 2] = 1
        mask[0, : i % 6] = 255
        if i % 11 == 10:
            mask[:] = 255
        prob = torch.rand(height, width, generator=generator) * 0.6 + 0.35 * (mask == 1)
        product = products[i % len(products)]
        classes = (("hole", "scratch")[(i // 3) % 2],)
        paths = (f"/data/{product}/{i // 2:03d}.png",)
        result.append(
            (
                Prediction(
                    prob=prob[None], mask=(prob > 0.5)[None].to(torch.uint8), score=prob.max()[None] * 3
                ),
                episode(mask, product=product, classes=classes, index=i, paths=paths),
            )
        )
    return result


def histogram(score):
    """(M,) array of the bins of a tensor."""
    result = torch.zeros(bins.NUM_BINS, dtype=torch.int64)
    bins.count(result, score)
    return result


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
