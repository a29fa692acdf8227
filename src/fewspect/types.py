"""The vocabulary of the framework: what a data set gives, what a method takes and what it returns.

Letters in shape comments, everywhere in the code: B batch (episodes), S support views, Q query images, K
classes, L backbone layers, N tokens, D width, H x W pixels, h x w feature cells.

Conventions: an ``image`` is uint8 in 0..255 as read from disk, or float32 in [0, 1] once it has the network's
size (normalisation belongs to the backbone); a ``mask`` is uint8, 1 = the class in question, 0 = not, 255 =
ignore; a ``label`` is an int, 0 = good, k >= 1 = ``classes[k - 1]``, -1 = unknown; ``prob`` and ``score`` are
floats, ``prob`` in [0, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

IGNORE = 255
"""Mask value of pixels that take part in no loss and no metric."""

State = Any
"""What ``Method.adapt`` returns: a dataclass or dict of tensors, opaque to everyone but the method."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where the pixels of one class in one image come from; rasterised lazily by ``data.masks``.

    Attributes:
        kind: ``file`` (a mask image), ``polygon``, ``rle`` or ``box``.
        path: The mask image (``file`` only).
        values: ``file`` only: index values that mean this class; empty = binary mask by the decoding rules.
        invert: ``file`` only: the mask marks the good pixels.
        points: ``polygon``: one flat ``(x, y, x, y, ...)`` per polygon; ``box``: one ``(x, y, width,
            height)``.
        counts: ``rle``: run lengths, column-major, first run is background.
    """

    kind: Literal["file", "polygon", "rle", "box"]
    path: Path | None = None
    values: tuple[int, ...] = ()
    invert: bool = False
    points: tuple[tuple[float, ...], ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set, never its pixels.

    Attributes:
        image: Path of the image.
        regions: Class name -> sources whose union is the mask of that class; empty when no pixel labels
            exist.
        label: Image-level label: 0 good, k >= 1 ``Index.classes[k - 1]``, -1 unknown.
        product: The inspected object; few-shot classes are pairs (product, class).
        split: ``train``, ``val``, ``test``, ``support``, ``query`` or empty.
        group: What a split or an episode must not tear apart (same tile, same part); empty = alone.
        meta: Plain values for reports.
    """

    image: Path
    regions: Mapping[str, tuple[Region, ...]] = field(default_factory=dict[str, tuple[Region, ...]])
    label: int = -1
    product: str = ""
    split: str = ""
    group: str = ""
    meta: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])


@dataclass(frozen=True, slots=True)
class DataInfo:
    """What a method may know about the data; plain values, stored in every checkpoint.

    Attributes:
        classes: Defect class names in label order (label k is ``classes[k - 1]``).
        products: Product names.
        tasks: What the annotations allow: subset of ``segment, classify, detect, reconstruct``.
        detect: True when the method sees good images only (few-shot or unsupervised anomaly detection).
        side: Side of the square network input in pixels.
        protocol: What a batch holds, see ``DataModule``.
    """

    classes: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    tasks: frozenset[str] = frozenset()
    detect: bool = False
    side: int = 0
    protocol: str = "episodic"


class _Movable:
    """``to`` and ``pin_memory`` over tensor fields (Lightning refuses a frozen batch without ``to``)."""

    __slots__ = ()

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{k: change(v) for k, v in values.items() if isinstance(v, Tensor)})  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy whose tensors live on ``device``."""
        return self._each(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy whose tensors are page-locked."""
        return self._each(lambda t: t.pin_memory())


@dataclass(frozen=True, slots=True)
class Support(_Movable):
    """What a method adapts to: a few labelled views.

    Attributes:
        image: (S, 3, H, W) float32 in [0, 1] at the network's side.
        mask: (S, H, W) uint8; all zero = a normal view.
        label: (S,) int64, position + 1 in ``classes``; 0 = normal.
        count: (S,) float32 multiplicity: a view that stands for k identical ones has count k (encoded once,
            weighted k times).
        classes: Names in label order.
        feature: (S, V, D) cached features of V views each, for methods that work on features; ``image`` is
            empty then.
        product: The inspected object.
        text: (K, D) features of a description of every class, in label order, or None.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    count: Tensor
    classes: tuple[str, ...] = ()
    feature: Tensor | None = None
    product: str = ""
    text: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Episode(_Movable):
    """One few-shot task: adapt to the support, answer the queries. Item i of an ``EpisodeDataset``.

    Attributes:
        support_image: (S, 3, h, w) float32 in [0, 1], network side.
        support_mask: (S, h, w) uint8 in {0, 1}.
        support_label: (S,) int64.
        support_count: (S,) float32, see ``Support.count``.
        query_image: training: (Q, 3, h, w) float32 in [0, 1], network side; evaluation: (1, 3, H, W) uint8,
            original pixels.
        query_mask: (Q, h, w) or (1, H, W) uint8 in {0, 1, 255}; for generators class labels, 0 = background.
        query_label: (Q,) int64: 1 when the query shows the class, 0 when it is normal. Classification:
            position + 1 in ``classes``, 0 = none of them, -1 = not known.
        classes: Names of the classes asked for, in label order.
        product: The inspected object.
        index: Position in the episode list.
        whole: Evaluation: look at the query in one piece (resized) instead of through sliding windows.
        paths: Query files, then support files.
        support_feature: (S, V, D) or None, see ``Support.feature``.
        query_feature: (Q, V, D) or None.
        shown: Names of the defect types that the query shows (evaluation, where they are known).
        text: (K, D) features of class descriptions or None, see ``Support.text``.
    """

    support_image: Tensor
    support_mask: Tensor
    support_label: Tensor
    support_count: Tensor
    query_image: Tensor
    query_mask: Tensor
    query_label: Tensor
    classes: tuple[str, ...]
    product: str = ""
    index: int = 0
    whole: bool = False
    paths: tuple[str, ...] = ()
    support_feature: Tensor | None = None
    query_feature: Tensor | None = None
    shown: tuple[str, ...] = ()
    text: Tensor | None = None

    @property
    def support(self) -> Support:
        """The support half."""
        return Support(
            self.support_image,
            self.support_mask,
            self.support_label,
            self.support_count,
            self.classes,
            self.support_feature,
            self.product,
            self.text,
        )

    @property
    def name(self) -> str:
        """The few-shot class: ``product/class``."""
        return f"{self.product}/{'+'.join(self.classes)}"


@dataclass(frozen=True, slots=True)
class Prediction(_Movable):
    """What every method answers; metrics, panels, writers and demos read nothing else.

    Attributes:
        prob: (Q, H, W) float: foreground probability in [0, 1], or a raw anomaly map (higher = more
            anomalous, never clamped, see ``scale``).
        mask: (Q, H, W) uint8: the decision per pixel.
        score: (Q,) float: raw image score, never clamped.
        decision: (Q,) uint8: the decision per image, 1 = defective.
        scale: Values of ``prob`` that pictures show as 0 and 1.
        logits: (Q, K) class scores; column k - 1 belongs to label k. ``extra["label"]`` (Q,) is the decision
            where it is not simply the largest: -1 = none of the classes.
        image: (Q, 3, H, W) float: reconstruction or sample.
        extra: Named tensors for panels.
    """

    prob: Tensor | None = None
    mask: Tensor | None = None
    score: Tensor | None = None
    decision: Tensor | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    logits: Tensor | None = None
    image: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, slots=True)
class Generated:
    """A picture that a generator has made, with its mask.

    Attributes:
        image: (3, H, W) uint8.
        mask: (H, W) uint8 class labels: 0 background, k ``Generator.classes[k - 1]``.
        product: The inspected object.
        origin: What it was made of, for the manifest; values are plain.
        group: The real image that it derives from: samples of one group are not torn apart; empty = alone.
        ground: (3, H, W) uint8: the picture that a defect was put onto, if there was one.
    """

    image: Tensor
    mask: Tensor
    product: str = ""
    origin: Mapping[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    group: str = ""
    ground: Tensor | None = None
