"""Instances: what a classifier of defects is asked about: one region of one class in an image, or all of it.

Every polygon, box or run-length code is an instance of its own; a mask file is one instance per class, or one
per connected region. An image that is labelled but not drawn is one instance: all of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fewspect.data.facts import is_upright, mask_options
from fewspect.data.index import Index, load_image
from fewspect.data.masks import rasterise
from fewspect.types import Region, Sample

FULL = 255


@dataclass(frozen=True, slots=True)
class Instance:
    """Where one instance is; no pixels.

    Attributes:
        sample: Its image.
        cls: Its class; empty = not known.
        regions: Where it is; none = the whole image.
        name: Identity, unique within the data set.
        component: Number of its connected region (from 1, in reading order), or 0: all of the regions.
    """

    sample: Sample
    cls: str
    regions: tuple[Region, ...] = ()
    name: str = ""
    component: int = 0

    @property
    def group(self) -> str:
        """What an episode must not tear apart: the sample's group, else its file."""
        return self.sample.group or str(self.sample.image)


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels of one instance.

    Attributes:
        image: (3, H, W) uint8.
        mask: (H, W) uint8, 0 to 255; other instances of the image are not in it.
        box: x1, y1, x2, y2 in pixels, by the polygon's corners (not truncated) or the mask's outermost
            pixels.
        drawn: A mask was there; otherwise the whole image is the instance.
    """

    image: Tensor
    mask: Tensor
    box: tuple[float, float, float, float]
    drawn: bool


def find(index: Index, split: str, *, components: bool = False, least: int = 1) -> list[Instance]:
    """Instances of a split, in the index's order.

    Args:
        index: The data set; good images are no instances.
        split: Which split.
        components: Every connected region of a mask is an instance of its own.
        least: Components: regions with fewer pixels are left out.
    """
    found: list[Instance] = []
    for sample in index.samples:
        if sample.split == split:
            found += _of_sample(sample, index.classes, components=components, least=least)
    return found


def _of_sample(
    sample: Sample, classes: tuple[str, ...], *, components: bool, least: int
) -> Iterator[Instance]:
    place = str(sample.meta.get("instance", ""))
    path = f"{sample.image}#{place}" if place else str(sample.image)
    if not sample.regions:
        if sample.label != 0:
            yield Instance(sample, classes[sample.label - 1] if sample.label > 0 else "", (), path)
        return
    for cls, regions in sample.regions.items():
        drawn = [r for r in regions if r.kind != "file"]
        files = tuple(r for r in regions if r.kind == "file")
        for k, region in enumerate(drawn):
            yield Instance(sample, cls, (region,), f"{path}#{cls}{k}" if len(drawn) > 1 or files else path)
        if files:
            yield from _of_files(Instance(sample, cls, files, path), components=components, least=least)


def _of_files(whole: Instance, *, components: bool, least: int) -> Iterator[Instance]:
    """A drawn mask: nothing if it is empty, itself, or its connected regions."""
    image = load_image(whole.sample)
    mask = _mask(whole, image.shape[-2], image.shape[-1])
    if not mask.any():
        return
    if not components:
        yield whole
        return
    label, count = _regions(mask)
    for k in range(1, count + 1):
        if int((label == k).sum()) >= least:
            yield Instance(whole.sample, whole.cls, whole.regions, f"{whole.name}#{k}", k)


def _mask(instance: Instance, height: int, width: int) -> np.ndarray:
    sample = instance.sample
    mask = rasterise(instance.regions, height, width, is_upright(sample), **mask_options(sample)).numpy()
    if instance.component:
        mask = (_regions(mask)[0] == instance.component).astype(np.uint8)
    return mask


def _regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected regions (8 neighbours), numbered from 1."""
    label = np.zeros(mask.shape, dtype=np.int32)
    return label, int(ndimage.label(mask, structure=np.ones((3, 3)), output=label))  # type: ignore[arg-type]


def undrawn(instance: Instance) -> Instance:
    """The same without what was drawn: its whole image."""
    return replace(instance, regions=(), component=0)


def whole(found: Iterable[Instance]) -> list[Instance]:
    """The images of instances as instances of their own: one per image and class, nothing drawn."""
    kept: dict[str, Instance] = {}
    for i in found:
        name = f"{i.sample.image}#{i.cls}"
        kept.setdefault(name, replace(undrawn(i), name=name))
    return list(kept.values())


def undrawn_classes(found: Iterable[Instance]) -> list[str]:
    """Classes with no region in any instance, where others have some; sorted, empty where all are alike."""
    every = list(found)
    drawn = {i.cls for i in every if i.regions}
    return sorted({i.cls for i in every if i.cls} - drawn) if drawn else []


def load(instance: Instance, image: Tensor | None = None, soft: Tensor | None = None) -> Picture:
    """Pixels of an instance.

    Args:
        instance: The instance.
        image: Its image (3, H, W) uint8 where it is at hand.
        soft: A mask (H, W) uint8 from elsewhere, 0 to 255, that counts instead of its own regions.

    Raises:
        UserError: An unreadable file.
    """
    image = load_image(instance.sample) if image is None else image
    height, width = image.shape[-2:]
    whole = Picture(image, torch.full((height, width), FULL, dtype=torch.uint8), (0, 0, width, height), False)
    if soft is not None:
        box = _box_of(soft.numpy() >= 128) or _box_of(soft.numpy() > 0)
        return Picture(image, soft, box, True) if box else whole
    if not instance.regions:
        return whole
    mask = _mask(instance, height, width)
    box = _box_of_points(instance.regions) or _box_of(mask > 0)
    if box is None or not mask.any():
        return whole
    return Picture(image, torch.from_numpy(mask) * FULL, box, True)


def _box_of_points(regions: Iterable[Region]) -> tuple[float, float, float, float] | None:
    """Smallest and largest corner coordinates of polygons; None for other kinds."""
    points = [p for r in regions if r.kind == "polygon" for p in r.points]
    if not points:
        return None
    flat = np.concatenate([np.asarray(p, dtype=float)[: len(p) // 2 * 2] for p in points]).reshape(-1, 2)
    (x1, y1), (x2, y2) = flat.min(0), flat.max(0)
    return float(x1), float(y1), float(x2), float(y2)


def _box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Outermost pixels of a mask; None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])
