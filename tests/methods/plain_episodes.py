"""Episodes and supports of good images, as the plain protocol gives them, and how a detector is used."""

import torch

from fewspect.methods.detector import Fitted
from fewspect.types import Episode, Support

SIDE = 64


def images(number, seed=0):
    """Smooth random pictures (number, 3, SIDE, SIDE); picture k is the same for any number."""
    parts = [torch.rand(1, 3, 8, 8, generator=torch.manual_seed(1000 * seed + k)) for k in range(number)]
    small = torch.cat(parts) if parts else torch.zeros(0, 3, 8, 8)
    return torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear") if number else small


def episodes(number, product="board", seed=0):
    """Training episodes of good images."""
    return [
        Episode(
            support_image=torch.zeros(0, 3, SIDE, SIDE),
            support_mask=torch.zeros(0, SIDE, SIDE, dtype=torch.uint8),
            support_label=torch.zeros(0, dtype=torch.int64),
            support_count=torch.zeros(0),
            query_image=image[None],
            query_mask=torch.zeros(1, SIDE, SIDE, dtype=torch.uint8),
            query_label=torch.zeros(1, dtype=torch.int64),
            classes=("good",),
            product=product,
            index=k,
            paths=(f"{product}/{seed}/{k}.png",),
        )
        for k, image in enumerate(images(number, seed))
    ]


def support(views, product="board", label=None):
    """Support views (S, 3, SIDE, SIDE) without masks."""
    number = len(views)
    return Support(
        image=views,
        mask=torch.zeros(number, SIDE, SIDE, dtype=torch.uint8),
        label=torch.tensor(label or [0] * number, dtype=torch.int64),
        count=torch.ones(number),
        product=product,
    )


def learned(method, batch):
    """A single pass over ``batch``, two at a time."""
    for k in range(0, len(batch), 2):
        method.observe(batch[k : k + 2])
    method.finish()
    return method


def ask(method, queries, product="board", owner=None):
    """The raw map (Q, h, w) of what was learned about a product."""
    with torch.inference_mode():
        return method.predict(queries, Fitted(product, owner)).prob
