"""Images with class labels per pixel, one by one: the protocol of generators and supervised segmenters.

Item i is an ``Episode`` without supports whose mask holds labels: 0 background, k the k-th class of the data
set. Training items are squashed to the network's side, masks by their nearest pixel, in a new order every
epoch; evaluation items are whole images in their own pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data.crops import Change
from fewspect.data.episodes import position
from fewspect.data.extra import Extra
from fewspect.data.index import Index, load_image, load_mask
from fewspect.data.plain import asked
from fewspect.data.splits import asked_and_support
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.nn.windows import squash, squash_labels
from fewspect.types import IGNORE, Episode, Sample

KEPT_BYTES = 1 << 28
"""Decoded training images are kept up to this size: few shots are read once, not once per epoch."""

Pixels = tuple[Tensor, Tensor]


class LabelledDataset(Dataset[Episode]):
    """Images of a list.

    Item ``epoch * len(self) + i`` is item i of an epoch: a pure function of (seed, epoch, i). Iterating gives
    every image once in the list's order, as it is: what a generator looks at.

    Args:
        samples: The images.
        classes: Names in label order.
        side: Side of the network input in pixels.
        name: Name of the part; part of the random streams.
        train: Items of the network's size in a new order each epoch; otherwise original pixels.
        augment: Training: change of (image, mask) with a generator, before resizing; None = none.
        length: Items of an epoch; None = every image once.
        seed: Seed of all draws.

    Raises:
        UserError: There is no image, or a defective one to learn from has no mask: names it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        *,
        side: int,
        name: str = "train",
        train: bool = True,
        augment: Change | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if not samples:
            what = "to learn from" if train else f"for {name}"
            raise UserError(f"The data set has no image {what}.", "Run mode=check to see the data set.")
        for sample in samples if train else ():
            if sample.label != 0 and not sample.regions:
                raise UserError(
                    f"{sample.image} shows a defect and has no mask.",
                    "Draw one, or leave the image out: masks are learned from masks.",
                )
        self.samples, self.classes, self.side = tuple(samples), tuple(classes), side
        self.name, self.train, self.seed = name, train, seed
        self.change = augment if train else None
        self._length = length or len(self.samples)
        self._kept: dict[int, Pixels] = {}
        self._room = KEPT_BYTES if train else 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Episode]:
        if not self.train:
            return (self[i] for i in range(len(self)))
        return (self._item(k, k, *self._pixels(k)) for k in range(len(self.samples)))

    def __getitem__(self, item: int) -> Episode:
        epoch, i = divmod(int(item), self._length)
        number, stream = len(self.samples), f"labelled/{self.name}"
        if not self.train and epoch:
            raise IndexError(item)
        at = position(epoch, i, self._length, number, (self.seed, stream) if self.train else None)
        image, mask = self._pixels(at)
        if not self.train:
            return self._item(at, i, image, mask)
        if self.change is not None:
            image, mask = self.change(image, mask, rng(self.seed, f"augment/{stream}", epoch, i))
        return self._item(at, int(item), image, mask)

    def _pixels(self, at: int) -> Pixels:
        """Image (3, H, W) and labels (H, W) of a sample in its own pixels."""
        if at in self._kept:
            return self._kept[at]
        sample = self.samples[at]
        image = load_image(sample)
        pair = image, truth(sample, self.classes, image.shape[1:])
        self._room -= 4 * image[0].numel()
        if self._room >= 0:
            self._kept[at] = pair
        return pair

    def _item(self, at: int, index: int, image: Tensor, mask: Tensor) -> Episode:
        sample = self.samples[at]
        if self.train:
            image, mask = squash(image, self.side), squash_labels(mask, self.side)
        size = image.shape[1:]
        known = sample.label >= 0 or bool(sample.regions)
        return Episode(
            support_image=torch.zeros(0, 3, *size),
            support_mask=torch.zeros(0, *size, dtype=torch.uint8),
            support_label=torch.zeros(0, dtype=torch.int64),
            support_count=torch.zeros(0),
            query_image=image[None],
            query_mask=mask[None],
            query_label=torch.tensor([int(sample.label > 0 or bool(mask.any())) if known else -1]),
            classes=self.classes,
            product=sample.product,
            index=index,
            whole=True,
            paths=(str(sample.image),),
            shown=tuple(sample.regions),
        )


@dataclass(frozen=True, slots=True)
class Labelled:
    """Who learns and who is asked.

    ``shot=None``: the data set's own splits. ``shot=k``: k images of every product and class learn and all
    others are asked (the protocol of Defect Spectrum); of the classes of the training split, or of all where
    it has none (MVTec layout). No further label is used: the training images validate.

    Attributes:
        shot: Defective training images per product and class; None = all.
        normal_shot: Good training images per product.
        seed: Of the choice.
        extra: Further training images, or None.
    """

    shot: int | None
    normal_shot: int
    seed: int
    extra: Extra | None = None

    def samples(self, index: Index, part: str) -> list[Sample]:
        """Images of ``train`` (without further ones), ``val``, ``test`` or ``predict``.

        Where no class that is learned is left to ask about, ``test`` is the data set's own split.
        """
        if part == "predict":
            return asked(index, part)
        train = chosen(index, "train", self.shot, self.normal_shot, self.seed)
        if part == "train":
            return train
        if part == "val":
            if self.shot is None and (own := chosen(index, "val", None, self.normal_shot, self.seed)):
                return own
            return train
        split = asked_and_support(index, part)[0]
        return self._tested(index, train) or [s for s in index.samples if s.split == split]

    def dataset(
        self, index: Index, part: str, side: int, augment: Change | None, length: int | None
    ) -> LabelledDataset:
        """The items of a part."""
        train, samples = part == "train", self.samples(index, part)
        if train and self.extra is not None:
            tested = self._tested(index, samples)
            samples = [*samples, *self.extra.samples(index.classes, len(samples), tested, self.seed)]
        return LabelledDataset(
            samples,
            index.classes,
            side=side,
            name=part,
            train=train,
            augment=augment,
            length=length,
            seed=self.seed,
        )

    def _tested(self, index: Index, train: list[Sample]) -> list[Sample]:
        """Images that show what is learned, and good ones of the test split; none without the first."""
        split = asked_and_support(index, "test")[0]
        learned = {(s.product, name) for s in train for name in s.regions}
        seen, groups = {s.image for s in train}, {s.group for s in train if s.group}
        left = [s for s in index.samples if s.image not in seen and s.group not in groups]
        if self.shot is None:
            left = [s for s in left if s.split == split]
        defects = [s for s in left if any((s.product, name) in learned for name in s.regions)]
        goods = [s for s in left if s.label == 0 and s.split == split]
        return [*defects, *goods] if defects else []

    def require_test(self, index: Index) -> None:
        """Refuse a training whose classes nobody asks about.

        Raises:
            UserError: Nothing can be learned, or no image of the test shows a class that is learned.
        """
        train = self.samples(index, "train")
        if not any(s.regions for s in train):
            raise UserError(
                "No image to learn from has a mask of a defect.",
                "Draw masks (images/ + masks/), or choose a method without; mode=check shows the data.",
            )
        if not self._tested(index, train):
            raise UserError(
                "No image is left to ask about that shows a class which is learned.",
                "data.shot=5: five images per class learn, the others are asked; mode=check shows the data.",
            )


def labels(sample: Sample, classes: Sequence[str]) -> Tensor | None:
    """Class labels (H, W) uint8 of a sample, the later class where two overlap; None without any mask."""
    mask = None
    for label, name in enumerate(classes, start=1):
        if name in sample.regions:
            found = load_mask(sample, name)
            mask = torch.zeros_like(found) if mask is None else mask
            mask[found == 1] = label
    return mask


def truth(sample: Sample, classes: Sequence[str], size: torch.Size) -> Tensor:
    """Labels (H, W) uint8: zero for good images, ``IGNORE`` where nothing is known."""
    mask = labels(sample, classes)
    if mask is not None:
        return mask
    return torch.full(size, 0 if sample.label == 0 or sample.regions else IGNORE, dtype=torch.uint8)


def chosen(index: Index, split: str, shot: int | None, normal_shot: int, seed: int) -> list[Sample]:
    """Defective images of a split, then good ones of the same products.

    Args:
        index: The data set.
        split: ``train`` or ``val``; with ``shot``, all splits where this one shows no class.
        shot: Images per product and class; None = all. An image of several classes counts for the first.
        normal_shot: Good images per product.
        seed: Of the choice.
    """
    kept: list[Sample] = []
    pools = index.by_class(split)
    if shot is not None and not pools:
        pools = index.by_class()
    for (product, name), pool in pools.items():
        own = [s for s in pool if _first(index, s) == name]
        kept += _some(own, shot, seed, f"labelled/{split}/{product}/{name}")
    without = [s for s in index.samples if s.split == split and s.label > 0 and not s.regions]
    kept += without  # the data set refuses them by name
    products = {s.product for s in kept}
    for product, pool in index.normals(split).items():
        if product in products or not products:
            kept += _some(pool, normal_shot, seed, f"labelled/{split}/{product}")
    return kept


def _first(index: Index, sample: Sample) -> str:
    """The first class whose mask in this sample is not empty; ``by_class`` gives none without."""
    area = index.facts(sample).area
    return next(name for name in sample.regions if area.get(name))


def _some(pool: Sequence[Sample], number: int | None, seed: int, stream: str) -> list[Sample]:
    """So many of a list, in its order."""
    order: np.ndarray = rng(seed, stream).permutation(len(pool))[:number]
    return [pool[int(i)] for i in sorted(order)]
