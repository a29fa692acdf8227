"""Item i *is* an episode: who takes part and every crop are drawn from a generator made of (seed, epoch, i).

So the episodes are the same for any number of workers, ranks and prefetched batches, and a run that stops
resumes exactly. Training shows all (class, image) entries in a new order each epoch;
evaluation has a fixed list.
"""

import filecmp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data.crops import Change, Cropper, View
from fewspect.data.entries import ANOMALY, Entry, EntryTable, candidates, pick
from fewspect.data.index import load_image, load_mask
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.types import IGNORE, Episode, Sample


@dataclass(frozen=True, slots=True)
class Recipe:
    """How many images an episode has.

    Attributes:
        shot: Defective support images.
        normal_shot: Good support images.
        query: Query images in training; evaluation always asks one.
        same_group: Allow supports from the query's group (same part, same tile).
        normal_query_prob: Training: how often the query is replaced by a good image of the product.
        whole: Look at normal supports, and queries of episodes without defective supports, in one piece.
    """

    shot: int = 1
    normal_shot: int = 0
    query: int = 1
    same_group: bool = False
    normal_query_prob: float = 0.0
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Roles:
    """Who takes part in an episode.

    Attributes:
        entry: What is asked.
        queries: Query images.
        supports: Defective supports.
        normals: Good supports.
    """

    entry: Entry
    queries: list[Sample]
    supports: list[Sample]
    normals: list[Sample]

    @property
    def paths(self) -> tuple[str, ...]:
        """Query files, then support files."""
        return tuple(str(s.image) for s in (*self.queries, *self.supports, *self.normals))


class EpisodeDataset(Dataset[Episode]):
    """Few-shot episodes of one split.

    Item ``epoch * len(self) + i`` is episode i of an epoch; plain indices are those of epoch 0. Evaluation
    (``train=False``) has one epoch only.

    Args:
        table: The entries (``class_entries`` or ``normal_entries``).
        name: Name of the split; part of the random streams.
        recipe: Numbers of images.
        cropper: How images become views.
        train: Queries as shuffled views of the network's size; otherwise a fixed list in original pixels.
        augment: Training augmentation, None = none.
        episodes: Length of an epoch; None = every entry once (times ``repeats``).
        repeats: Evaluation: how often every entry is asked, each time with other supports.
        seed: Seed of all draws.
        shared: All episodes of a class have the very same support, so that it need be encoded once only.

    Raises:
        UserError: When there is no entry.
    """

    def __init__(
        self,
        table: EntryTable,
        name: str,
        recipe: Recipe,
        cropper: Cropper,
        *,
        train: bool,
        augment: Change | None = None,
        episodes: int | None = None,
        repeats: int = 1,
        seed: int = 0,
        shared: bool = False,
    ) -> None:
        if not table.entries:
            reasons = "; ".join(p.detail for p in table.problems[:10]) or "no image of this split fits"
            raise UserError(
                f"No {name} episode can be made: {reasons}.", "Run mode=check to see the data set."
            )
        self.entries, self.problems = table.entries, table.problems
        self.name, self.recipe, self.cropper, self.train = name, recipe, cropper, train
        self.change = (augment or _unchanged) if train else None
        self.seed, self.shared = seed, shared
        self._length = episodes or len(self.entries) * (1 if train else repeats)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        epoch, i = divmod(int(item), self._length)
        if not self.train and epoch:
            raise IndexError(item)
        roles = self.roles(item)
        r = self._source("views", roles.entry, epoch, i)
        views, labels, large = self._support_views(roles, r)
        image, mask, label = self._queries(roles, r)
        return Episode(
            support_image=torch.stack([v.image for v in views]),  # (S, 3, side, side)
            support_mask=torch.stack([v.mask for v in views]),  # (S, side, side)
            support_label=torch.tensor(labels),  # (S,)
            support_count=torch.tensor([v.count for v in views]),  # (S,)
            query_image=image,
            query_mask=mask,
            query_label=label,
            classes=(roles.entry.name,),
            product=roles.entry.query.product,
            index=i,
            whole=large,
            paths=roles.paths,
        )

    def roles(self, item: int) -> Roles:
        """Draw who takes part in an episode, without opening a file."""
        epoch, i = divmod(int(item), self._length)
        order = (self.seed, self.name) if self.train else None
        entry = self.entries[position(epoch, i, self._length, len(self.entries), order)]
        r = self._source("episode", entry, epoch, i)
        rule, query = self.recipe, entry.query
        possible = candidates(entry.supports, query, same_group=rule.same_group)
        normals = candidates(entry.normals, query, same_group=rule.same_group)
        supports = pick(r, possible, rule.shot)
        goods = pick(r, normals, rule.normal_shot)
        queries = [query]
        if self.train:
            queries += self._more_queries(r, query, possible, supports)
            others = [s for s in normals if s not in goods]
            if others and r.random() < rule.normal_query_prob:
                queries[0] = pick(r, others, 1)[0]
        return Roles(entry, queries, supports, goods)

    def _source(self, what: str, entry: Entry, epoch: int, i: int) -> np.random.Generator:
        """Generator of an episode, or of all episodes of a class when they share their support."""
        stream = f"{what}/{self.name}"
        if self.shared:
            return rng(self.seed, f"{stream}/{entry.query.product}/{entry.name}")
        return rng(self.seed, stream, epoch, i)

    def _more_queries(
        self, r: np.random.Generator, query: Sample, possible: list[Sample], supports: list[Sample]
    ) -> list[Sample]:
        """Further training queries of the class: images that do not support, else the query once more."""
        left = [s for s in possible if s not in supports] or [query]
        return pick(r, left, self.recipe.query - 1)

    def _support_views(self, roles: Roles, r: np.random.Generator) -> tuple[list[View], list[int], bool]:
        """Views, their labels, and whether the query is to be looked at in one piece."""
        views: list[View] = []
        large = []
        apart = self.cropper.parity
        for sample, count in _counted(roles.supports, roles.entry.classes, apart=apart):
            mask = _union(sample, roles.entry.classes)
            large.append(self.cropper.is_large(mask))
            views += _times(count, self.cropper.support(load_image(sample), mask, r, self.change))
        labels = [1] * len(views)
        whole = all(large) if large else self.recipe.whole
        for sample, count in _counted(roles.normals, (), apart=apart):
            views += _times(count, self.cropper.normal(load_image(sample), r, self.change, whole=whole))
        return views, labels + [0] * (len(views) - len(labels)), whole

    def _queries(self, roles: Roles, r: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Query images, masks and labels."""
        if not self.train:
            image = load_image(roles.queries[0])
            mask, label = truth(roles.queries[0], roles.entry, image.shape[1:])
            return image[None], mask[None], torch.tensor([label])
        views = []
        for sample in roles.queries:
            image = load_image(sample)
            mask, _ = truth(sample, roles.entry, image.shape[1:])
            views.append(self.cropper.query(image, mask, r, self.change))
        masks = torch.stack([v.mask for v in views])  # (Q, side, side)
        return torch.stack([v.image for v in views]), masks, (masks == 1).flatten(1).any(1).long()


def _unchanged(image: Tensor, mask: Tensor, _r: np.random.Generator) -> tuple[Tensor, Tensor]:
    return image, mask


def _counted(samples: Sequence[Sample], classes: Sequence[str], *, apart: bool) -> list[tuple[Sample, int]]:
    """Every picture once, with its number: copies of a file (with the same mask) show the same crops.

    ``apart``: one by one all the same, as the original does.
    """
    if apart:
        return [(sample, 1) for sample in samples]
    counts: dict[int, int] = {}  # place of a picture's first copy -> number of copies
    for i, sample in enumerate(samples):
        first = next((k for k in counts if _same(samples[k], sample, classes)), i)
        counts[first] = counts.get(first, 0) + 1
    return [(samples[i], count) for i, count in counts.items()]


def _same(one: Sample, other: Sample, classes: Sequence[str]) -> bool:
    """Equal files (contents are compared when sizes are equal, and remembered) and equal masks."""
    if one == other:
        return True
    if not filecmp.cmp(one.image, other.image, shallow=False):
        return False
    return not classes or torch.equal(_union(one, classes), _union(other, classes))


def _times(count: int, views: list[View]) -> list[View]:
    return [replace(v, count=v.count * count) for v in views]


def _union(sample: Sample, classes: Sequence[str]) -> Tensor:
    """Union of class masks (H, W)."""
    mask = load_mask(sample, classes[0])
    for name in classes[1:]:
        mask = mask | load_mask(sample, name)
    return mask


def truth(sample: Sample, entry: Entry, size: torch.Size) -> tuple[Tensor, int]:
    """Mask (H, W) and label of a query; all ``IGNORE`` when the pixels are not known, -1 when nothing is."""
    classes = [c for c in (entry.classes or tuple(sample.regions)) if c in sample.regions]
    if classes:
        mask = _union(sample, classes)
        if entry.name == ANOMALY and sample.label > 0 and not mask.any():  # labelled, not drawn
            return torch.full(size, IGNORE, dtype=torch.uint8), 1
        return mask, int(mask.any())
    if sample.label == 0 or sample.regions:
        return torch.zeros(size, dtype=torch.uint8), 0
    return torch.full(size, IGNORE, dtype=torch.uint8), 1 if sample.label > 0 else -1


def position(epoch: int, i: int, length: int, number: int, order: tuple[int, str] | None) -> int:
    """Which of ``number`` things item i of ``length`` is.

    With ``order`` (seed and name of the passes): shuffled passes, for training; without: a fixed list.
    """
    return spread(i, length, number) if order is None else shuffled(*order, epoch, i, number)


def shuffled(seed: int, name: str, epoch: int, i: int, number: int) -> int:
    """Which of ``number`` things item i of a training epoch is: passes over all, each in a new order."""
    return int(_order(seed, name, epoch, i // number, number)[i % number])


def spread(i: int, length: int, number: int) -> int:
    """Which of ``number`` things item i of a fixed list of ``length`` is: evenly spread, or all in turn."""
    return i * number // length if length < number else i % number


@lru_cache(maxsize=8)
def _order(seed: int, name: str, epoch: int, turn: int, number: int) -> np.ndarray:
    """Order of one pass over the entries, a pure function of its arguments."""
    return rng(seed, f"order/{name}", epoch, turn).permutation(number)
