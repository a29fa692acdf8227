"""Is anything on both sides? The same picture, or the same tile, learned from and asked about.

``python -m benchmarks.contamination --root ../shared/data`` counts it for every split that the table
benchmarks use and rewrites the table of ``docs/results.md``. Pictures are compared by a hash of their decoded
pixels, so that another name, format or header hides nothing; groups (a tile, a part) by name. Every benchmark
calls ``require`` before it measures. Copies of a picture that are all asked about teach nothing, but a
few-shot episode may show one as support and ask about the other: they are counted apart.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.tables import Row, Rows, Table
from fewspect.data.index import Index, load_image
from fewspect.data.module import DataModule
from fewspect.errors import UserError
from fewspect.types import Sample

BOTH, COPIES = ("pictures on both", "groups on both"), "copies among the asked"
"""Columns that have to be zero, and one that should be."""

SIZES, FINDS = ("learned", "asked", "groups"), ("same_picture", "same_group", "copies")
MANY = 5

Sides = tuple[Sequence[Sample], Sequence[Sample]]
"""What is learned from, what is asked about."""


def main(argv: Sequence[str] | None = None) -> None:
    """Count every split below the root, then write the table."""
    options = tables.arguments("contamination", argv, None)
    options.out.unlink(missing_ok=True)  # counted in seconds: nothing to go on with
    for told, sides in splits(options.root):
        tables.append(options.out, {**told, **count(*sides)}, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def splits(root: Path) -> Iterator[tuple[Row, Sides]]:
    """Every split of every table benchmark whose data are there."""
    from benchmarks import classifiers, detectors, downstream, inspection, segmenters, surfaces  # noqa: PLC0415

    for module in (segmenters, classifiers, surfaces, detectors, inspection, downstream):
        name = module.__name__.rpartition(".")[2]
        for told, sides in module.sides(root):
            yield {"task": name, **told}, sides


def require(sides: Sides, where: str) -> None:
    """Refuse to measure where something is on both sides.

    Raises:
        UserError: Names one file of either side.
    """
    for (one, other), what in ((_pictures(*sides), "the same picture"), (_groups(*sides), "the same part")):
        if one is not None and other is not None:
            raise UserError(
                f"{where}: {one.image} is learned from and shows {what} as {other.image}, which is asked.",
                "Remove one of them, or give both the same group: a score on it would be worth nothing.",
            )


def count(learned: Sequence[Sample], asked: Sequence[Sample]) -> Row:
    """How many of the asked pictures, and how many groups, are learned from as well."""
    known, groups = {_hash(s) for s in learned}, {s.group for s in learned if s.group}
    images = {s.image: s for s in asked}
    return {
        "learned": len({s.image for s in learned}),
        "asked": len(images),
        "groups": len(groups | {s.group for s in asked if s.group}),
        "same_picture": sum(_hash(s) in known for s in images.values()),
        "same_group": len({s.group for s in asked if s.group} & groups),
        "copies": sum(len(paths) - 1 for paths in _twins(asked).values()),
    }


def _twins(samples: Iterable[Sample]) -> dict[str, dict[Path, str]]:
    """Hash -> the files with these pixels and their groups, those of one group counted once."""
    found: dict[str, dict[Path, str]] = defaultdict(dict)
    for s in samples:
        if not (s.group and s.group in found[_hash(s)].values()):
            found[_hash(s)][s.image] = s.group
    return found


def without_copies(index: Index) -> Index:
    """The data set with the first of all pictures that have the same pixels and the same label."""
    first: dict[tuple[str, int], Path] = {}
    kept = (s for s in index.samples if first.setdefault((_hash(s), s.label), s.image) == s.image)
    return index.with_samples(kept)


Pair = tuple[Sample, Sample] | tuple[None, None]


def _pictures(learned: Iterable[Sample], asked: Iterable[Sample]) -> Pair:
    known = {_hash(s): s for s in learned}
    return next(((known[h], s) for s in asked if (h := _hash(s)) in known), (None, None))


def _groups(learned: Iterable[Sample], asked: Iterable[Sample]) -> Pair:
    known = {s.group: s for s in learned if s.group}
    return next(((known[s.group], s) for s in asked if s.group in known), (None, None))


def _hash(sample: Sample) -> str:
    """Of the decoded pixels; files are read once."""
    path = sample.image.resolve()
    if path not in _HASHES:
        image = load_image(sample)
        _HASHES[path] = hashlib.sha256(
            repr(tuple(image.shape)).encode() + image.numpy().tobytes()
        ).hexdigest()
    return _HASHES[path]


_HASHES: dict[Path, str] = {}


def of(data: DataModule) -> Sides:
    """The two sides of a data set whose split is in its index: everything but the test, and the test."""
    every = data.index.samples
    return [s for s in every if s.split not in ("test", "query")], [
        s for s in every if s.split in ("test", "query")
    ]


def made(rows: Rows) -> list[Table]:
    """One line per task, set and split."""
    head = ("task", "data", "split", "learned from", "asked", "groups", *BOTH, COPIES)
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        parts.setdefault((row["task"], row["set"]), []).append(row)
    lines = [line for part in parts.values() for line in _lines(part)]
    return [Table("contamination", "On both sides", head, lines)] if rows else []


def _lines(rows: Rows) -> list[list[str]]:
    """A line per split; many of them in one line, with ranges of the sizes and sums of the finds."""
    if len(rows) > MANY:
        spans = {k: sorted(r[k] for r in rows) for k in SIZES}
        sizes = {k: f"{v[0]} to {v[-1]}" if v[0] != v[-1] else v[0] for k, v in spans.items()}
        finds = {k: sum(r[k] for r in rows) for k in FINDS}
        rows = [{**rows[0], **sizes, **finds, "part": f"{len(rows)} splits"}]
    return [[str(r[k]) for k in ("task", "set", "part", *SIZES, *FINDS)] for r in rows]


if __name__ == "__main__":
    tables.started(main)
