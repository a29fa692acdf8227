"""Who may be trained on and who is asked: splits over classes and over groups, all deterministic."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fewspect.data.index import Index
from fewspect.data.problems import Problem
from fewspect.draws import key
from fewspect.errors import UserError
from fewspect.types import Sample

VAL_SHARE = 0.2
"""Share of the training groups that is held back where the reader makes no ``val`` split."""


def fold_classes(classes: Sequence[str], fold: int, folds: int) -> tuple[str, ...]:
    """Test classes of one fold: every ``folds``-th of the sorted names, starting at ``fold``.

    Raises:
        UserError: No such fold, or more folds than classes.
    """
    if not isinstance(fold, int) or not 0 <= fold < folds:  # "all" and the like are for other readers
        known = f"Choose 0 to {folds - 1} (data.reader.folds={folds})."
        raise UserError(f"data.fold={fold} does not exist", known)
    if folds < 2 or folds > len(classes):
        raise UserError(
            f"data.reader.folds={folds} does not fit {len(classes)} classes: {', '.join(classes)}",
            f"Choose 2 to {len(classes)}.",
        )
    return tuple(sorted(classes)[fold::folds])


def hold_out(index: Index, classes: Sequence[str]) -> Index:
    """Images that show one of ``classes`` become ``test`` (with these classes only), all others ``train``.

    The label of a tested image is the first of the held classes that it shows.

    Good images go to either side by group; a training image of a group that is tested is dropped and
    reported.

    Raises:
        UserError: A name is not a class of this data set.
    """
    known = {*index.classes, *(c for s in index.samples for c in s.regions)}
    if unknown := sorted(set(classes) - known):
        names = ", ".join(sorted(known))
        raise UserError(f"unknown test classes: {', '.join(unknown)}", f"The data set has: {names}.")
    held = set(classes)
    sides = _sides_of_normals(index, held)
    changed = []
    for sample in index.samples:
        if held & _shown(sample, index):
            changed.append(_narrowed(sample, index, held))
        else:
            split = sides[group_of(sample)] if sample.label == 0 else "train"
            changed.append(replace(sample, split=split))
    return drop_shared_groups(index.with_samples(changed))


def _narrowed(sample: Sample, index: Index, held: set[str]) -> Sample:
    """A tested sample with its held classes alone; good and unknown stay what they are."""
    shown = held & _shown(sample, index)
    labels = [k for k, name in enumerate(index.classes, start=1) if name in shown]
    label = labels[0] if sample.label > 0 and labels else sample.label
    regions = {c: r for c, r in sample.regions.items() if c in held}
    return replace(sample, regions=regions, label=label, split="test")


def split_by_group(index: Index) -> Index:
    """Every class on both sides: whole groups go to ``train`` or ``test``, half of each class to either."""
    sides = _balanced_sides(index.samples, index)
    return index.with_samples(replace(s, split=sides[group_of(s)]) for s in index.samples)


def drop_shared_groups(index: Index) -> Index:
    """Remove training samples whose group is tested as well; one problem says how many."""
    tested = {s.group for s in index.samples if s.split == "test" and s.group}
    kept = [s for s in index.samples if s.split != "train" or s.group not in tested]
    dropped = len(index) - len(kept)
    if not dropped:
        return index
    gone = sorted({s.group for s in index.samples if s.split == "train"} & tested)
    detail = f"{dropped} training images dropped: their groups are tested too ({', '.join(gone[:10])})"
    return index.with_samples(kept, Problem("", "shared-group", detail, "notice"))


def _sides_of_normals(index: Index, held: set[str]) -> dict[str, str]:
    """Group -> side for good images: with the defects of their group, the free ones halved."""
    normals = [s for s in index.samples if s.label == 0 and not held & _shown(s, index)]
    sides = _balanced_sides(normals, index)
    defects = [s for s in index.samples if s.group and s.label != 0]
    sides |= {s.group: "train" for s in defects if not held & _shown(s, index)}
    return sides | {s.group: "test" for s in defects if held & _shown(s, index)}


def group_of(sample: Sample) -> str:
    """The group, or product, label and stem: a name that does not depend on where the data lie.

    Images of one name (the same stem in another folder) go together.
    """
    return sample.group or f"{sample.product}/{sample.label}/{sample.image.stem}"


def _shown(sample: Sample, index: Index) -> set[str]:
    """Classes in the image: those with regions, and its label."""
    return {*sample.regions, *(index.classes[sample.label - 1 : sample.label] if sample.label > 0 else ())}


def _balanced_sides(samples: Iterable[Sample], index: Index) -> dict[str, str]:
    """Group -> ``train`` or ``test``: in hashed order, each to the side that has less of its classes."""
    content: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for sample in samples:
        content[group_of(sample)].update((sample.product, c) for c in _shown(sample, index) or {"good"})
    load = {"train": Counter(), "test": Counter()}
    sides = {}
    for group in sorted(content, key=lambda name: (key(0, f"split/{name}"), name)):
        weight = {side: sum(load[side][c] for c in content[group]) for side in load}
        sides[group] = min(load, key=lambda side: weight[side])
        load[sides[group]].update(content[group])
    return sides


def with_val(index: Index, seed: int = 0, share: float = VAL_SHARE) -> Index:
    """Move about ``share`` of the training groups to a ``val`` split, by hash: the same for every run.

    Something of every product and label stays: the group with the largest hash where all were drawn.
    """
    kinds: dict[tuple[str, int], set[str]] = defaultdict(set)
    for sample in index.samples:
        if sample.split == "train":
            kinds[sample.product, sample.label].add(group_of(sample))
    hashes = {group: key(seed, f"val/{group}") for groups in kinds.values() for group in groups}
    held = {group for group, value in hashes.items() if value < share * 2**63}
    for _, groups in sorted(kinds.items()):
        if groups <= held:
            held.discard(max(groups, key=lambda name: (hashes[name], name)))
    samples = (
        replace(s, split="val") if s.split == "train" and group_of(s) in held else s for s in index.samples
    )
    return index.with_samples(samples)


def asked_and_support(index: Index, part: str) -> tuple[str, str]:
    """(query split, support split) of a part; ``query`` and ``support`` where a data set has them."""
    present = index.splits
    asked = "query" if part == "predict" and "query" in present else "test" if part == "predict" else part
    if asked == "test" and "test" not in present and "query" in present:
        asked = "query"
    return asked, "support" if asked == "query" and "support" in present else asked
