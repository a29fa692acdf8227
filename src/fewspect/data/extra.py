"""Further training images from a second folder, say a generated set: real pictures stay what is asked."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from fewspect.data.readers import folder
from fewspect.data.readers.generated import MANIFEST
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.types import Sample

log = logging.getLogger(__name__)

DIGITS = 16
"""Hexadecimal digits that stand for the content of a file."""


@dataclass(frozen=True, slots=True)
class Extra:
    """A second data set in any layout of ``data=folder``, whose classes are known by name.

    Attributes:
        root: The folder.
        ratio: Its images per image of the data set; None = all.
    """

    root: str
    ratio: float | None = None

    def samples(self, classes: Sequence[str], real: int, tested: Sequence[Sample], seed: int) -> list[Sample]:
        """So many of its images, in its order.

        Args:
            classes: Names of the data set's classes.
            real: Number of its training images.
            tested: Images that will be asked about.
            seed: Of the choice.

        Raises:
            UserError: A ratio that is not positive, a class that the data set does not have, or a generator
                has seen an image that is tested.
        """
        if self.ratio is not None and self.ratio <= 0:
            raise UserError(
                f"data.extra_ratio={self.ratio}: no number of images.",
                "Give a positive number, or null for all; leave data.extra_root out for none.",
            )
        index = folder.read(self.root).refuse()
        if strange := sorted({c for s in index.samples for c in s.regions} - set(classes)):
            raise UserError(
                f"{self.root} shows classes that the data set has not: {', '.join(strange)}.",
                f"Known are: {', '.join(classes)}. Name them alike, or leave them out when generating.",
            )
        self._refuse_leak(tested)
        pool = [s for s in index.samples if s.label == 0 or s.regions]
        wanted = len(pool) if self.ratio is None else round(self.ratio * real)
        if wanted > len(pool):
            log.warning(
                "data.extra_ratio asks for %d further images, %s has %d.", wanted, self.root, len(pool)
            )
        order = rng(seed, "labelled/extra").permutation(len(pool))[:wanted]
        place = {name: k for k, name in enumerate(classes, 1)}
        return [
            replace(s, label=min((place[c] for c in s.regions), default=0), split="train")
            for s in (pool[int(i)] for i in sorted(order))
        ]

    def _refuse_leak(self, tested: Sequence[Sample]) -> None:
        """What a generator has seen can't be a test of what learned from it."""
        known = seen(Path(self.root))
        leaked = [s.image for s in tested if known and content(s.image) in known]
        if leaked:
            raise UserError(
                f"{len(leaked)} images of the test were shown to the generator of {self.root}: {leaked[0]}.",
                "Generate with the same data.seed (seed), data.shot and data set as this training.",
            )


def content(path: PurePath) -> str:
    """What stands for the bytes of a file, wherever it lies."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:DIGITS]


def seen(root: Path) -> frozenset[str]:
    """What the generator of a set was shown, as ``content`` tells it; empty where nothing says so."""
    try:
        manifest = json.loads((root / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return frozenset()
    listed = manifest.get("seen") if isinstance(manifest, dict) else None
    return frozenset(str(d) for d in listed) if isinstance(listed, list) else frozenset()
