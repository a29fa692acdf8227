"""Good images to learn from, all images to ask about: the protocol of unsupervised detectors.

Item i is an ``Episode`` without supports, so that metrics, panels and writers stay the same. Training items
are good images at the network's size, in a new order each epoch; evaluation items are whole images in their
own pixels. Whether an image is good is known from its label only; defect masks are read for the test alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data.crops import Change
from fewspect.data.entries import ANOMALY, Entry
from fewspect.data.episodes import position, truth
from fewspect.data.index import Index, load_image
from fewspect.data.splits import asked_and_support
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.nn.windows import squash
from fewspect.types import Episode, Sample

GOOD = "good"
"""Name of the class of training items."""


class PlainDataset(Dataset[Episode]):
    """Images of one split, one by one.

    Item ``epoch * len(self) + i`` is item i of an epoch; plain indices are those of epoch 0.

    Args:
        samples: The images.
        name: Name of the split; part of the random streams.
        side: Side of the network input in pixels.
        zoom: Training: the image is brought to this side, then a random square of ``side`` is cut out; None =
            ``side``, i.e. the whole image.
        train: Network-ready views in shuffled order; otherwise original pixels with their truth.
        augment: Training: change of (image, mask) with a generator, before resizing; None = none.
        length: Items of an epoch; None = every image once.
        seed: Seed of all draws.

    Raises:
        UserError: When there is no image.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        name: str,
        *,
        side: int,
        zoom: int | None = None,
        train: bool = False,
        augment: Change | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        if not samples:
            what = "good image to learn from" if train or name == "val" else f"image for {name}"
            raise UserError(f"The data set has no {what}.", "Run mode=check to see the data set.")
        self.samples, self.name, self.side, self.zoom = tuple(samples), name, side, zoom or side
        self.train, self.change, self.seed = train, augment if train else None, seed
        self._length = length or len(self.samples)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        epoch, i = divmod(int(item), self._length)
        if not self.train and epoch:
            raise IndexError(item)
        order = (self.seed, f"plain/{self.name}") if self.train else None
        sample = self.samples[position(epoch, i, self._length, len(self.samples), order)]
        image = load_image(sample)
        if self.train:
            view = self._view(image, rng(self.seed, f"plain/{self.name}", epoch, i))
            return _episode(sample, i, GOOD, view, torch.zeros(view.shape[1:], dtype=torch.uint8))
        entry = Entry(sample, tuple(sample.regions), ANOMALY, (), ())
        mask, label = truth(sample, entry, image.shape[1:])
        return _episode(sample, i, ANOMALY, image, mask, label=label)

    def _view(self, image: Tensor, r: np.random.Generator) -> Tensor:
        """(3, side, side) in [0, 1]: the whole image, or a random square of the zoomed one."""
        if self.change is not None:
            image, _ = self.change(image, torch.zeros(image.shape[1:], dtype=torch.uint8), r)
        view = squash(image, self.zoom)
        if self.zoom == self.side:
            return view
        top, left = r.integers(0, self.zoom - self.side, 2, endpoint=True)
        return view[:, top : top + self.side, left : left + self.side].clone()


def plain(
    index: Index,
    part: str,
    known: tuple[int | None, bool],
    *,
    side: int,
    zoom: int | None = None,
    augment: Change | None = None,
    length: int | None = None,
    seed: int = 0,
) -> PlainDataset:
    """The images of a part.

    Args:
        index: The data set.
        part: ``train``, ``val``, ``test`` or ``predict``.
        known: Good images per product to learn from (None = all), and whether others are held out, see
            ``good``.
        side: See ``PlainDataset``, as all that follow.
        zoom: Likewise.
        augment: Likewise.
        length: Likewise.
        seed: Likewise.
    """
    if part in ("train", "val"):
        samples = good(index, known[0], seed, hold_out=known[1])[part == "val"]
    else:
        samples = asked(index, part)
    train = part == "train"
    return PlainDataset(
        samples, part, side=side, zoom=zoom, train=train, augment=augment, length=length, seed=seed
    )


def asked(index: Index, part: str) -> list[Sample]:
    """Images of an evaluation: the split's; for a test every defect beside, since none was learned from.

    A folder of images without splits, say of new parts, is asked about as a whole.
    """
    split = asked_and_support(index, part)[0]
    every = index.samples
    chosen = [s for s in every if s.split == split or (part == "test" and s.label > 0)]
    if part == "predict" and not chosen:
        return [replace(s, regions={}, label=-1) for s in every]
    return chosen


def good(
    index: Index, shot: int | None, seed: int, *, hold_out: bool = True
) -> tuple[list[Sample], list[Sample]]:
    """Good images to learn from and good images to set thresholds on.

    With ``hold_out`` the ``val`` split serves for thresholds, or the training images where there is none.
    Without, training and validation images serve for both: the detector leaves an image out when it judges
    it. So do the ``shot`` images per product that are drawn from them when only so many are to be known.
    """
    train, held = index.normals("train") | index.normals("support"), index.normals("val")
    if shot is None and hold_out:
        kept = [s for p in sorted(train) for s in train[p]]
        return kept, [s for p in sorted(held) for s in held[p]] or kept
    kept = []
    for product in sorted({*train, *held}):
        pool = sorted([*train.get(product, ()), *held.get(product, ())], key=lambda s: str(s.image))
        chosen = rng(seed, f"shots/{product}").permutation(len(pool))[:shot]  # None = all
        kept += [pool[int(i)] for i in sorted(chosen)]
    return kept, kept


def _episode(sample: Sample, i: int, name: str, image: Tensor, mask: Tensor, *, label: int = 0) -> Episode:
    side = image.shape[1:]
    return Episode(
        support_image=torch.zeros(0, 3, *side),
        support_mask=torch.zeros(0, *side, dtype=torch.uint8),
        support_label=torch.zeros(0, dtype=torch.int64),
        support_count=torch.zeros(0),
        query_image=image[None],
        query_mask=mask[None],
        query_label=torch.tensor([label]),
        classes=(name,),
        product=sample.product,
        index=i,
        whole=True,
        paths=(str(sample.image),),
        shown=tuple(sample.regions) if label == 1 else (),
    )
