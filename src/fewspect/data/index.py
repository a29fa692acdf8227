"""The index: a data set read once into a table of samples that says what its annotations allow.

Pixels are loaded by ``load_image`` and ``load_mask``; the index keeps measured facts (size, area per class)
so that episodes can be drawn without opening a file twice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from fewspect.data.facts import (
    Facts,
    decode_problems,
    duplicates,
    is_upright,
    look,
    mask_options,
    pixel_cap,
    white_level,
)
from fewspect.data.images import image_size, read_image
from fewspect.data.masks import rasterise
from fewspect.data.problems import Problem
from fewspect.errors import UserError
from fewspect.types import Region, Sample

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_PROBLEMS = 10
THREADS = 4
TINY, MINUTE = 1e-3, 3e-4
"""Area fractions below which defects are called small in the literature (0.1 % and 0.03 %)."""

Key = tuple[Path, tuple[tuple[str, tuple[Region, ...]], ...]]


def load_image(sample: Sample) -> Tensor:
    """Pixels of a sample, (3, H, W) uint8, turned as its masks need it.

    Raises:
        UserError: The file is unreadable; names it.
    """
    return read_image(
        sample.image,
        max_pixels=pixel_cap(sample),
        white_level=white_level(sample),
        upright=is_upright(sample),
    )


def load_mask(sample: Sample, cls: str) -> Tensor:
    """Mask of one class in a sample, (H, W) uint8 in {0, 1}; all zero when the class is absent.

    Raises:
        UserError: A mask is unreadable, or has another size than the image and may not be resized.
    """
    upright = is_upright(sample)
    height, width = image_size(sample.image, max_pixels=pixel_cap(sample), upright=upright)
    return rasterise(sample.regions.get(cls, ()), height, width, upright, **mask_options(sample))


@dataclass(frozen=True)
class Index:
    """Table of samples.

    Attributes:
        samples: In a deterministic order.
        classes: Defect classes; label k is ``classes[k - 1]``.
        tasks: What the annotations allow: subset of ``segment, classify, detect, reconstruct``.
        problems: What the reader found wrong.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ()
    tasks: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()
    _facts: dict[Key, Facts] = field(default_factory=dict["Key", "Facts"], compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(self.samples))
        object.__setattr__(self, "problems", tuple(self.problems))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def products(self) -> tuple[str, ...]:
        """Inspected objects, sorted."""
        return tuple(sorted({s.product for s in self.samples}))

    @property
    def splits(self) -> dict[str, int]:
        """Number of samples per split."""
        return dict(sorted(Counter(s.split for s in self.samples).items()))

    def filter(self, **equal: str | int) -> "Index":
        """Samples whose attributes have these values, e.g. ``filter(product="screw", split="test")``."""
        kept = (s for s in self.samples if all(getattr(s, k) == v for k, v in equal.items()))
        return self.with_samples(kept)

    def with_samples(self, samples: Iterable[Sample], *problems: Problem) -> "Index":
        """The same data set with other samples; measured facts are shared."""
        return replace(self, samples=tuple(samples), problems=(*self.problems, *problems))

    def facts(self, sample: Sample) -> Facts:
        """Size and areas of a sample, measured at first use."""
        key = (sample.image, tuple(sample.regions.items()))
        if key not in self._facts:
            self._facts[key] = look(sample)
        return self._facts[key]

    def measure(self, samples: Iterable[Sample]) -> list[Facts]:
        """``facts`` of many samples, read in parallel."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self.facts, samples))

    def by_class(self, split: str | None = None) -> dict[tuple[str, str], list[Sample]]:
        """(product, class) -> samples of ``split`` (None = all) with a usable, non-empty mask of it."""
        chosen = [s for s in self.samples if s.regions and split in (None, s.split)]
        table: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for sample, facts in zip(chosen, self.measure(chosen), strict=True):
            for cls in sample.regions:
                if facts.area.get(cls, 0) > 0:
                    table[sample.product, cls].append(sample)
        return dict(sorted(table.items()))

    def normals(self, split: str | None = None) -> dict[str, list[Sample]]:
        """Product -> readable samples of ``split`` (None = all) that are labelled good."""
        chosen = [s for s in self.samples if s.label == 0 and split in (None, s.split)]
        table: dict[str, list[Sample]] = defaultdict(list)
        for sample, facts in zip(chosen, self.measure(chosen), strict=True):
            if facts.height and not any(facts.area.values()):
                table[sample.product].append(sample)
        return dict(sorted(table.items()))

    def check(self, *, decode: bool = False) -> list[Problem]:
        """Every problem of the reader, the files, the masks and the splits.

        Args:
            decode: Decode every image too (finds damaged pixels, notices); otherwise headers, ends and masks.
        """
        found = [p for facts in self.measure(self.samples) for p in facts.problems]
        if decode:
            with ThreadPoolExecutor(THREADS) as pool:
                found += [p for problems in pool.map(decode_problems, self.samples) for p in problems]
        found += [*_inverted(self), *duplicates(self.samples)]
        return list(dict.fromkeys([*self.problems, *found]))

    def refuse(self, on_bad_file: Literal["strict", "skip"] = "strict") -> "Index":
        """Apply the policy for bad files.

        Returns:
            Without the samples that have errors; their number is in ``problems`` (kind ``skipped``), beside
            everything else that ``check`` finds.

        Raises:
            UserError: ``strict`` and there are errors (the first ten are listed), or nothing is left.
        """
        found = self.check()
        errors = [p for p in found if p.level == "error"]
        if not errors:
            return replace(self, problems=tuple(found))
        if on_bad_file == "strict":
            lines = "\n".join(f"  {p}" for p in errors[:SHOWN_PROBLEMS])
            more = f"\n  ... and {len(errors) - SHOWN_PROBLEMS} more" if len(errors) > SHOWN_PROBLEMS else ""
            hint = "Mend or remove them (mode=check lists all), or set data.on_bad_file=skip."
            raise UserError(f"{len(errors)} files cannot be used:\n{lines}{more}", hint)
        bad = {p.path for p in errors}
        kept = [s for s in self.samples if str(s.image) not in bad]
        if not kept:
            raise UserError(
                f"none of the {len(self)} images can be used; first: {errors[0]}", "Run mode=check."
            )
        note = f"{len(self) - len(kept)} of {len(self)} images skipped"
        return replace(self, samples=tuple(kept), problems=(*found, Problem("", "skipped", note, "notice")))

    def describe(self) -> "Table":
        """Table of the few-shot classes: counts per split and defect areas in percent of the image."""
        from rich.table import Table  # noqa: PLC0415 - not needed for training

        splits = list(self.splits)
        table = Table(title=f"{len(self)} images, {len(self.products)} products, {len(self.classes)} classes")
        for name in ("product", "class", *(s or "(no split)" for s in splits), "min %", "median %", "max %"):
            table.add_column(name, justify="left" if name in ("product", "class") else "right")
        table.add_column("< 0.1 %", justify="right")
        table.add_column("< 0.03 %", justify="right")
        for (product, cls), samples in self.by_class().items():
            counts = Counter(s.split for s in samples)
            areas = [self.facts(s).fraction(cls) for s in samples]
            spread = [f"{100 * value:.3g}" for value in (min(areas), median(areas), max(areas))]
            small = [f"{sum(a < limit for a in areas) / len(areas):.0%}" for limit in (TINY, MINUTE)]
            table.add_row(product, cls, *(str(counts[s]) for s in splits), *spread, *small)
        for product, count in self._without_mask().items():
            table.add_row(*product, *(str(count[s]) for s in splits), *["-"] * 5)
        return table

    def _without_mask(self) -> dict[tuple[str, str], Counter[str]]:
        """(product, name of the label) -> counts per split of samples that have no defect mask."""
        rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for sample in self.samples:
            if not any(self.facts(sample).area.values()):
                named = {0: "(good)", -1: "(unlabelled)"}
                name = named.get(sample.label) or f"{self.classes[sample.label - 1]} (no mask)"
                rows[sample.product, name][sample.split] += 1
        return dict(sorted(rows.items()))


def _inverted(index: Index) -> list[Problem]:
    """One warning when most mask files mark more than half of their image."""
    masked = [s for s in index.samples if any(r.kind == "file" for rs in s.regions.values() for r in rs)]
    large = [s for s in masked if max(map(index.facts(s).fraction, s.regions), default=0) > 0.5]
    if len(large) * 2 <= len(masked):
        return []
    share = f"{len(large)} of {len(masked)} masks"
    detail = f"{share} cover more than half of the image; inverted? data.reader.mask_invert=true"
    return [Problem(str(large[0].image), "inverted", detail, "warning")]
