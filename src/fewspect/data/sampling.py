"""Which items of a pool support an episode: the published rule of MVTec-FS, and ours.

Both are nested: the supports of k shots are among those of k + 1 shots of the same sampling.
"""

import random
from collections.abc import Sequence
from typing import Literal

from fewspect.draws import rng

Rule = Literal["drawn", "published"]


def published(labels: Sequence[int], shot: int, number: int) -> list[int]:
    """Supports of sampling ``number`` by the rule of MVREC (specification 1.4).

    Python's generator is seeded with ``number`` before *every* class; the shuffled list of a class, whose
    items stay in their order before, gives its first ``shot``. The result depends on the sizes of the classes
    only.

    Args:
        labels: Class of every item of the pool, in the file's order; negative = not to be drawn.
        shot: Items per class; fewer where a class has no more.
        number: The published samplings are 0 to 4.

    Returns:
        Places in the pool, classes in order of first appearance.
    """
    chosen: list[int] = []
    for name in dict.fromkeys(k for k in labels if k >= 0):
        places = [i for i, k in enumerate(labels) if k == name]
        random.Random(number).shuffle(places)
        chosen += places[:shot]
    return chosen


def drawn(
    labels: Sequence[int], shot: int, number: int, *, seed: int = 0, groups: Sequence[str] = ()
) -> list[int]:
    """Supports of sampling ``number``, a pure function of (seed, number): from as many groups as possible.

    Args:
        labels: Class of every item; negative = not to be drawn.
        shot: Items per class; fewer where a class has no more.
        number: Index of the sampling.
        seed: Seed of the draws.
        groups: Group of every item, empty text = alone; two exposures of one tile are drawn last.

    Returns:
        Places in the pool, classes in ascending order.
    """
    chosen: list[int] = []
    for name in sorted({k for k in labels if k >= 0}):
        places = [i for i, k in enumerate(labels) if k == name]
        order = [places[int(j)] for j in rng(seed, f"shots/{name}", number).permutation(len(places))]
        chosen += _spread(order, groups)[:shot]
    return chosen


def _spread(order: list[int], groups: Sequence[str]) -> list[int]:
    """The same items, those of a group that was met before moved back."""
    seen: dict[str, int] = {}
    rank = []
    for i in order:
        group = groups[i] if groups else ""
        rank.append(seen.get(group, 0) if group else 0)
        seen[group] = seen.get(group, 0) + 1
    return [i for _, i in sorted(zip(rank, order, strict=True), key=lambda pair: pair[0])]
