"""Samples of a generator with what is known of them: number, nearest training image, near copies left out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

import torch
from torch import Tensor

from fewspect.callbacks.samples import lacking
from fewspect.data.extra import content
from fewspect.errors import UserError
from fewspect.metrics.memorisation import nearest, thumbnails, usual
from fewspect.types import Episode, Generated

log = logging.getLogger(__name__)

TRIES = 20
"""Samples drawn per sample wanted before a rejection gives up."""


class Shown:
    """What a generator was shown: thumbnails, names and digests of its training images."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.digests: list[str] = []
        self._small: list[Tensor] = []

    def add(self, episode: Episode) -> None:
        """Take down one training image (1, 3, side, side) in [0, 1]."""
        image = (episode.query_image[0] * 255).round().to(torch.uint8)
        self._small.append(thumbnails([image]))
        path = PurePath(episode.paths[0])
        self.names.append("/".join(path.parts[-2:]))
        self.digests.append(content(path))

    def drawn(
        self,
        draw: Callable[[Sequence[int]], list[Generated]],
        count: int,
        *,
        batch: int = 1,
        reject: float | None = None,
        needed: Sequence[str] = (),
    ) -> Iterator[Generated]:
        """Draw ``count`` samples, numbers from 0 on, and say of each what its nearest training image is.

        Args:
            draw: The generator: numbers to samples.
            count: Samples wanted.
            batch: Numbers handed over at once.
            reject: Samples with a smaller ratio (see ``metrics.memorisation``) are left out; None = none.
            needed: Names of the labels: samples that lack a class that was asked for are left out; empty =
                none.

        Raises:
            UserError: Nearly all samples are left out.
        """
        known = torch.cat(self._small) if self._small else torch.zeros(0, 1)
        scale = usual(known)
        given, number, copies, bare = 0, 0, 0, 0
        limit = count if reject is None and not needed else TRIES * count
        while given < count:
            if number >= limit:
                raise _given_up(number, copies, bare, reject)
            numbers = range(number, min(number + batch, limit))
            for k, sample in zip(numbers, draw(numbers), strict=True):
                facts = {"number": k, **self._facts(sample, known, scale)}
                near = facts.get("nearest_ratio")
                if reject is not None and isinstance(near, float) and near < reject:
                    copies += 1
                elif lacking(sample, needed):
                    bare += 1
                elif given < count:
                    given += 1
                    yield replace(sample, origin={**sample.origin, **facts})
            number += len(numbers)
        if number > count:
            log.info("%d samples drawn for %d", number, count)

    def _facts(self, sample: Generated, known: Tensor, scale: float) -> dict[str, str | float]:
        if not scale > 0:
            return {}
        away, which = nearest(thumbnails([sample.image]), known)
        return {"nearest": self.names[int(which[0])], "nearest_ratio": round(float(away[0]) / scale, 4)}


def _given_up(number: int, copies: int, bare: int, reject: float | None) -> UserError:
    if copies >= bare:
        return UserError(
            f"{number} samples drawn, {copies} are closer to a training image than "
            f"generate.reject={reject} allows.",
            "The generator copies: lower generate.reject, or train with more images or less long.",
        )
    return UserError(
        f"{number} samples drawn, {bare} lack a defect type that was asked for (generate.complete=true).",
        "Ask for others with generate.classes=[...], say method.guidance=2, or train longer.",
    )
