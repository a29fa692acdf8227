"""Several rows of a table about one image, as one sample."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewspect.data.problems import Problem
from fewspect.types import Region, Sample

Row = tuple[Sample, list[str] | None]


def merged(rows: Sequence[Row], problems: list[Problem]) -> list[Row]:
    """One sample per image and product, however many rows it has: a split must not run through an image."""
    same: dict[tuple[Path, str], list[Row]] = defaultdict(list)
    for row in rows:
        same[row[0].image, row[0].product].append(row)
    return [_union(group, problems) for group in same.values()]


def _union(rows: Sequence[Row], problems: list[Problem]) -> Row:
    """What all rows of one image say together."""
    if len(rows) == 1:
        return rows[0]
    path, samples = str(rows[0][0].image), [s for s, _ in rows]
    regions: dict[str, tuple[Region, ...]] = {}
    for sample in samples:
        for cls, found in sample.regions.items():
            regions[cls] = tuple(dict.fromkeys((*regions.get(cls, ()), *found)))
    known = [shown for _, shown in rows if shown is not None]
    names = list(dict.fromkeys(name for shown in known for name in shown))
    if len(names) > 1 and not regions:
        detail = f"labelled {', '.join(names)}: counts as the first in class order"
        problems.append(Problem(path, "several-labels", detail, "warning"))
    splits = list(dict.fromkeys(s.split for s in samples if s.split))
    if len(splits) > 1:
        problems.append(Problem(path, "two-splits", f"rows put it into {' and '.join(splits)}"))
    by_mask = all(s.meta.get("label_from") == "mask" for s in samples)
    whole = replace(
        samples[0],
        regions=regions,
        split=splits[0] if splits else "",
        group=next((s.group for s in samples if s.group), ""),
        meta=samples[0].meta if by_mask else {},
    )
    return whole, names if known else None
