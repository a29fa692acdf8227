"""What an episode is about: the list of (class, query image) pairs of a split and who may support them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fewspect.data.index import Index
from fewspect.data.problems import Problem
from fewspect.types import Sample

ANOMALY = "anomaly"
"""Name of the class when episodes ask for any defect."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One possible query.

    Attributes:
        query: The image asked about.
        classes: Classes whose union is asked for.
        name: What the answer is called.
        supports: Defective images that may support it (the query itself may be among them).
        normals: Good images that may support it (likewise).
    """

    query: Sample
    classes: tuple[str, ...]
    name: str
    supports: Sequence[Sample]
    normals: Sequence[Sample]


@dataclass(slots=True)
class EntryTable:
    """All entries of a split, and why some are missing."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def notice(self, kind: str, detail: str) -> None:
        """Record what the user should know about these episodes."""
        self.problems.append(Problem("", kind, detail, "warning"))


def candidates(samples: Sequence[Sample], query: Sample, *, same_group: bool = False) -> list[Sample]:
    """Those of ``samples`` that may support ``query``: not its file and, unless allowed, not its group."""
    group = "" if same_group else query.group
    return [s for s in samples if s.image != query.image and not (group and s.group == group)]


def pick(r: np.random.Generator, samples: Sequence[Sample], number: int) -> list[Sample]:
    """Draw uniformly, without replacement unless there are too few."""
    if number == 0:
        return []
    chosen = r.choice(len(samples), number, replace=number > len(samples))
    return [samples[int(i)] for i in chosen]


def class_entries(
    index: Index, split: str, support_split: str, shot: int, normal_shot: int, *, same_group: bool = False
) -> EntryTable:
    """Entries of few-shot segmentation: every class and every image of ``split`` that shows it.

    With another ``support_split``, images of ``split`` that are good or not labelled are asked for every
    supported class of their product.
    """
    table = EntryTable()
    supports = index.by_class(support_split)
    normals = normal_pool(index, split)
    queries = index.by_class(split)
    for key in sorted({*queries, *supports} if support_split != split else queries):
        product, name = key
        if key not in supports:
            table.notice("no-support", f"{product}/{name}: skipped, no support image in '{support_split}'")
            continue
        if normal_shot and not normals.get(product):
            table.notice("no-normal", f"{product}/{name}: skipped, {product} has no normal image")
            continue
        asked = queries.get(key, [])
        if support_split != split:
            asked = _asked(index, split, product, name)
        found = [Entry(s, (name,), name, supports[key], normals.get(product, ())) for s in asked]
        table.entries += _usable(table, found, shot, normal_shot, same_group=same_group)
    return table


def normal_entries(index: Index, split: str, normal_shot: int, *, same_group: bool = False) -> EntryTable:
    """Entries of few-shot anomaly detection: every image of ``split``, supported by good images only."""
    table = EntryTable()
    normals = normal_pool(index, split)
    for product in index.products:
        asked = [s for s in index.samples if s.product == product and s.split == split]
        if asked and not normals.get(product):
            table.notice("no-normal", f"{product}: skipped, no normal image")
            continue
        found = [Entry(s, tuple(s.regions), ANOMALY, (), normals[product]) for s in asked]
        table.entries += _usable(table, found, 0, normal_shot, same_group=same_group)
    return table


def normal_pool(index: Index, split: str) -> dict[str, list[Sample]]:
    """Product -> good images for supports: of ``support`` or ``train`` if any, else of ``split``."""
    pool: dict[str, list[Sample]] = {}
    for source in (split, "train", "support"):  # later ones win
        pool |= index.normals(source)
    return pool


def _asked(index: Index, split: str, product: str, name: str) -> list[Sample]:
    """Images of ``split`` that show the class, are good, or whose content is not known."""
    chosen = [s for s in index.samples if s.split == split and s.product == product]
    return [s for s in chosen if name in s.regions or s.label == 0 or not s.regions]


def _usable(
    table: EntryTable, found: list[Entry], shot: int, normal_shot: int, *, same_group: bool
) -> list[Entry]:
    """Drop entries that nothing can support; say so once per class, and where draws repeat."""
    usable, short, normals_short = [], 0, 0
    for entry in found:
        defects = _available(entry.supports, entry.query, same_group=same_group)
        goods = _available(entry.normals, entry.query, same_group=same_group)
        if (shot and not defects) or (normal_shot and not goods):
            continue
        usable.append(entry)
        short += defects < shot
        normals_short += goods < normal_shot
    if not found:
        return usable
    name, total = f"{found[0].query.product}/{found[0].name}", len(found)
    if len(usable) < total:
        lost = total - len(usable)
        table.notice("alone", f"{name}: {lost} of {total} images skipped, no other image can support them")
    if short:
        table.notice(
            "few-images", f"{name}: fewer than shot={shot} other images, {short} draws repeat images"
        )
    if normals_short:
        table.notice(
            "few-normals", f"{name}: fewer than normal_shot={normal_shot} normal images, draws repeat"
        )
    return usable


def _available(samples: Sequence[Sample], query: Sample, *, same_group: bool) -> int:
    return len(candidates(samples, query, same_group=same_group))
