"""Which classes and samples take part in episodes: all draws are made at once, as tables of indices.

``indexed`` is a pure function of (seed, run): run 17 is the same whether ten runs are drawn or ten thousand.
``legacy`` draws what the original draws with NumPy's old generator (specification gccs, 1.4), for parity.

Letters: R runs, N classes of an episode, C classes in all, S synthetic samples, T = shot + query.

Example:
    >>> found = indexed([30, 20, 25], runs=100, ways=2, shot=1, query=15)
    >>> found.classes.shape, found.real.shape
    ((100, 2), (100, 2, 16))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewspect.draws import rng
from fewspect.errors import UserError


@dataclass(frozen=True, slots=True)
class Runs:
    """Who takes part.

    Attributes:
        classes: (R, N) positions of classes.
        real: (R, N, T) positions inside each class: supports first, then queries.
        synthetic: (R, N, S) positions among the synthetic samples of each class.
    """

    classes: np.ndarray
    real: np.ndarray
    synthetic: np.ndarray


def legacy(
    classes: int,
    per_class: int,
    *,
    runs: int,
    ways: int,
    shot: int,
    query: int,
    synthetic: int = 0,
    pool: int = 0,
    seed: int = 0,
) -> Runs:
    """The original's draws: within a run the index arrays stay shuffled from one class to the next.

    Args:
        classes: C.
        per_class: Samples of every class: the original cuts all classes to the smallest.
        runs: R.
        ways: N.
        shot: Supports per class.
        query: Queries per class.
        synthetic: S.
        pool: Synthetic samples per class to choose from.
        seed: Of the generator; the original's is 0.

    Raises:
        UserError: See ``check``.
    """
    check([per_class] * classes, ways, shot, query)
    old = np.random.RandomState(seed)  # the generator to be matched
    found = Runs(
        np.zeros((runs, ways), np.int64),
        np.zeros((runs, ways, shot + query), np.int64),
        np.zeros((runs, ways, synthetic), np.int64),
    )
    for run in range(runs):
        found.classes[run] = old.permutation(classes)[:ways]
        real, made = np.arange(per_class), np.arange(pool)
        for way in range(ways):
            real, made = old.permutation(real), old.permutation(made)
            found.real[run, way] = real[: shot + query]
            found.synthetic[run, way] = made[:synthetic]
    return found


def indexed(
    sizes: Sequence[int],
    *,
    runs: int,
    ways: int,
    shot: int,
    query: int,
    synthetic: int = 0,
    pool: int = 0,
    seed: int = 0,
    stream: str = "episodes",
    groups: Sequence[np.ndarray] | None = None,
    names: Sequence[str] = (),
) -> Runs:
    """Draw episodes; classes keep all their samples, whatever their size.

    Supports of fewer shots are the first ones of more shots, and the queries of a run do not depend on the
    number of shots as long as no group comes in between: shots are compared on equal queries.

    Args:
        sizes: Samples of every class.
        runs: R.
        ways: N.
        shot: Supports per class.
        query: Queries per class.
        synthetic: S.
        pool: Synthetic samples per class to choose from.
        seed: Of the run.
        stream: Name of the draws.
        groups: Per class, what sample belongs together (n,): a query never shows what a support shows.
        names: Of the classes, for messages.

    Raises:
        UserError: See ``check``; or the groups leave too few queries.
    """
    check(sizes, ways, shot, query, names)
    classes = np.zeros((runs, ways), np.int64)
    real = np.zeros((runs, ways, shot + query), np.int64)
    made = np.zeros((runs, ways, synthetic), np.int64)
    for run in range(runs):
        source = rng(seed, stream, run)
        classes[run] = source.permutation(len(sizes))[:ways]
        for way, k in enumerate(classes[run]):
            order = source.permutation(int(sizes[k]))
            if groups is None:
                asked, shown = order[:query], order[query:][::-1]
            else:
                asked, shown = _apart(order, groups[k], query)
            if len(shown) < shot:
                name = names[k] if names else k
                raise UserError(
                    f"Class {name}: its groups leave no {shot} supports beside {query} queries.",
                    "Lower data.ways.query or data.shot.",
                )
            real[run, way] = np.concatenate([shown[:shot], asked])
        made[run] = np.stack([source.permutation(pool)[:synthetic] for _ in range(ways)])
    return Runs(classes, real, made)


def _apart(order: np.ndarray, group: np.ndarray, query: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries that fill one group after the other, and all samples of the other groups.

    Queries from everywhere would leave a class of few groups without a support.
    """
    first = {name: place for place, name in reversed(list(enumerate(group[order])))}
    rank = np.array([first[name] for name in group[order]])
    asked = order[np.argsort(rank, kind="stable")][:query]
    return asked, order[~np.isin(group[order], group[asked])][::-1]


def check(sizes: Sequence[int], ways: int, shot: int, query: int, names: Sequence[str] = ()) -> None:
    """Refuse episodes that the classes do not have enough samples for.

    Raises:
        UserError: Fewer than two ways, more ways than classes, or a class with too few samples.
    """
    if ways < 2:
        raise UserError(f"{ways} class cannot be told from another.", "Set data.ways.way to 2 or more.")
    if ways > len(sizes):
        raise UserError(
            f"Episodes of {ways} classes were asked for, there are {len(sizes)}.",
            f"Set data.ways.way={len(sizes)}, or give more classes.",
        )
    if shot < 0 or query < 1:
        raise UserError(f"data.shot={shot} and data.ways.query={query}: at least 0 and 1.", "Mend them.")
    small = [
        f"{names[k] if names else f'class {k}'} has {n}" for k, n in enumerate(sizes) if n < shot + query
    ]
    if small:
        raise UserError(
            f"Episodes need {shot + query} samples of every class (shot + query): {', '.join(small[:5])}.",
            f"Set data.ways.query to at most {min(sizes) - shot}.",
        )
