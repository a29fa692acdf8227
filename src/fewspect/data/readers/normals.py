"""Which images are good, and which of them are learned from, where a data set does not say so itself."""

import zlib
from dataclasses import replace

from fewspect.data.index import Index
from fewspect.data.problems import Problem
from fewspect.data.readers.source import TASKS_WITH_LABELS
from fewspect.data.splits import group_of
from fewspect.errors import UserError

TESTED_NORMALS = 5
"""Where a data set does not split its good images, one group in this many is tested."""


def split_normals(index: Index) -> Index:
    """Good images to ``train`` or, one group in five, to ``test``: by hash, whole groups; others stay.

    A good image whose group shows a defect elsewhere goes to neither side: the part is not known to be good.
    """
    doubtful = {s.group for s in index.samples if s.group and s.label != 0}
    normals = [s for s in index.samples if s.label == 0]
    sides = {}
    for group in {group_of(s) for s in normals} - doubtful:
        sides[group] = "train" if zlib.crc32(group.encode()) % TESTED_NORMALS else "test"
    changed = [replace(s, split=sides.get(group_of(s), "")) if s.label == 0 else s for s in index.samples]
    left_out = sum(group_of(s) in doubtful for s in normals)
    if not left_out:
        return index.with_samples(changed)
    detail = f"{left_out} good images left out: the same part is labelled defective in another image"
    return index.with_samples(changed, Problem("", "doubtful-normal", detail, "notice"))


def one_class(index: Index, normal: str) -> Index:
    """Images of class ``normal`` play the good ones, all others are defects whose pixels are not known.

    A fifth of the normal images and all others are tested.

    Raises:
        UserError: No such class, or the data set has good images of its own.
    """
    if normal not in index.classes:
        known = f"The data set has: {', '.join(index.classes)}."
        raise UserError(f"normal_class={normal}: no such class", known)
    if any(s.label == 0 for s in index.samples):
        raise UserError(
            f"normal_class={normal}: the data set has good images of its own", "Leave normal_class out."
        )
    classes = tuple(c for c in index.classes if c != normal)
    labels = {k: 0 if c == normal else classes.index(c) + 1 for k, c in enumerate(index.classes, start=1)}
    samples = tuple(
        replace(s, regions={}, label=labels.get(s.label, -1), split="" if s.label == -1 else "test")
        for s in index.samples
    )
    note = Problem("", "one-class", f"class {normal!r} plays the good images; no pixel truth", "notice")
    changed = Index(samples, classes, TASKS_WITH_LABELS, (*index.problems, note))
    return split_normals(changed)
