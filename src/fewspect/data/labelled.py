"""Images with class labels per pixel, one by one: the protocol of generators and supervised segmenters.

Item i is an ``Episode`` without supports whose mask holds labels: 0 background, k the k-th class of the data
set. Images are squashed to the network's side, masks by their nearest pixel.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data.index import Index, load_image, load_mask
from fewspect.data.problems import Problem
from fewspect.data.splits import asked_and_support
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.nn.windows import squash, squash_labels
from fewspect.types import Episode, Sample


class LabelledDataset(Dataset[Episode]):
    """Every image of a list, in its order, at the network's size; from item ``len`` on they come again.

    Args:
        samples: The images.
        classes: Names in label order.
        side: Side of the network input in pixels.

    Raises:
        UserError: There is no image, or a defective one has no mask: names it.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str], *, side: int) -> None:
        if not samples:
            raise UserError("The data set has no image to learn from.", "Run mode=check to see the data set.")
        for sample in samples:
            if sample.label != 0 and not sample.regions:
                raise UserError(
                    f"{sample.image} shows a defect and has no mask.",
                    "Draw one, or leave the image out: a generator learns masks from masks.",
                )
        self.samples, self.classes, self.side = tuple(samples), tuple(classes), side
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        sample, side = self.samples[int(item) % len(self)], self.side
        image, mask = load_image(sample), labels(sample, self.classes)
        mask = torch.zeros(image.shape[1:], dtype=torch.uint8) if mask is None else mask
        return Episode(
            support_image=torch.zeros(0, 3, side, side),
            support_mask=torch.zeros(0, side, side, dtype=torch.uint8),
            support_label=torch.zeros(0, dtype=torch.int64),
            support_count=torch.zeros(0),
            query_image=squash(image, side)[None],
            query_mask=squash_labels(mask, side)[None],
            query_label=torch.tensor([int(bool(mask.any()))]),
            classes=self.classes,
            product=sample.product,
            index=int(item),
            whole=True,
            paths=(str(sample.image),),
            shown=tuple(sample.regions),
        )


def labelled(index: Index, part: str, shots: tuple[int | None, int], side: int, seed: int) -> LabelledDataset:
    """The images of a part, ``shots`` = (defective ones per class, good ones per product); see ``chosen``."""
    split = asked_and_support(index, part)[0]
    return LabelledDataset(chosen(index, split, *shots, seed), index.classes, side=side)


def labels(sample: Sample, classes: Sequence[str]) -> Tensor | None:
    """Class labels (H, W) uint8 of a sample, the later class where two overlap; None without any mask."""
    mask = None
    for label, name in enumerate(classes, start=1):
        if name in sample.regions:
            found = load_mask(sample, name)
            mask = torch.zeros_like(found) if mask is None else mask
            mask[found == 1] = label
    return mask


def chosen(index: Index, split: str, shot: int | None, normal_shot: int, seed: int) -> list[Sample]:
    """Defective images of a split, then good ones of the same products.

    Args:
        index: The data set.
        split: ``train`` or ``val``.
        shot: Images per product and class; None = all. An image of several classes counts for the first.
        normal_shot: Good images per product.
        seed: Of the choice.
    """
    kept: list[Sample] = []
    for (product, name), pool in index.by_class(split).items():
        own = [s for s in pool if next(iter(s.regions)) == name]
        order = rng(seed, f"labelled/{split}/{product}/{name}").permutation(len(own))[:shot]
        kept += [own[int(i)] for i in sorted(order)]
    without = [s for s in index.samples if s.split == split and s.label > 0 and not s.regions]
    kept += without  # the data set refuses them by name
    products = {s.product for s in kept}
    for product, pool in index.normals(split).items():
        order = rng(seed, f"labelled/{split}/{product}").permutation(len(pool))[:normal_shot]
        kept += [pool[int(i)] for i in sorted(order)] if product in products or not products else []
    return kept
