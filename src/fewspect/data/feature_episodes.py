"""Few-shot tasks of cached features: item i is one sampling of supports, asked about every query.

Pictures, where the store has small ones, travel as ``query_image`` and ``query_mask`` for the panels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data import sampling
from fewspect.data.features import FeatureSet, Token, require_alike
from fewspect.errors import UserError
from fewspect.types import Episode


@dataclass(frozen=True, slots=True)
class Task:
    """The pool of supports and the queries of one product.

    Attributes:
        support: Labelled items; their class list is that of the answers.
        query: Items that are asked about.
        label: (Q,) int64 of the queries: position + 1 in the support's class list, 0 = none of these classes,
            -1 = not known.
    """

    support: FeatureSet
    query: FeatureSet
    label: Tensor


def make_task(
    support: FeatureSet,
    query: FeatureSet,
    *,
    unknown: Sequence[str] = (),
    where: tuple[str, str] = ("The support", "the queries"),
) -> Task:
    """Bring pool and queries to one class list.

    Args:
        support: Labelled items; those of unknown class are left out.
        query: Items to ask about.
        unknown: Classes that are taken out of the support: a query of them is none of the known.
        where: How messages call the two.

    Raises:
        UserError: The features cannot be compared, or a query's class is neither supported nor in
            ``unknown``.
    """
    require_alike(support, query, where)
    every = {*support.classes, *query.classes}
    if wrong := sorted(set(unknown) - every):
        raise UserError(
            f"data.features.unknown: no class {', '.join(wrong)}.", f"There are: {', '.join(sorted(every))}."
        )
    pool = support.only([c for c in support.classes if c not in unknown])
    used = {query.classes[k] for k in query.label.unique().tolist() if k >= 0}
    if extra := sorted(used - {*pool.classes, *unknown}):
        absent = ", ".join(sorted(set(pool.classes) - used)) or "none"
        raise UserError(
            f"{where[1]} have classes that {where[0].lower()} lacks: {', '.join(extra)}"
            f" (of its own absent there: {absent}).",
            "Use one class list for both, or name them in data.features.unknown.",
        )
    place = {name: k + 1 for k, name in enumerate(pool.classes)}
    table = torch.tensor([place.get(name, 0) for name in query.classes] + [-1])
    return Task(pool, query, table[query.label])


class FeatureEpisodes(Dataset[Episode]):
    """``samplings`` episodes per task: K classes, ``shot`` supports each, all queries.

    Labels of an episode count from 1 (position + 1 in its class list); 0 = none of the classes, -1 = not
    known.

    Args:
        tasks: One per product.
        shot: Supports per class; 0 = none (zero-shot), None = the whole pool, once.
        samplings: Episodes per task.
        rule: ``drawn`` (from the seed, groups apart) or ``published`` (see ``sampling``; the seed has no
            effect).
        token: Which tokens of the store, see ``FeatureSet.token``.
        seed: Seed of all draws.

    Raises:
        UserError: A class has fewer items than shots; names every one.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        shot: int | None,
        samplings: int = 30,
        rule: sampling.Rule = "drawn",
        token: Token = "class",
        seed: int = 0,
    ) -> None:
        self.tasks = tuple(tasks)
        self.shot, self.rule, self.seed = shot, rule, seed
        self.samplings = 1 if not shot else samplings  # without a draw all would be the same
        self._refuse()
        self._features = [(t.support.token(token).float(), t.query.token(token).float()) for t in self.tasks]

    def __len__(self) -> int:
        return len(self.tasks) * self.samplings

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        if not 0 <= int(item) < len(self):
            raise IndexError(item)
        number, sample = divmod(int(item), self.samplings)
        task, (pool, asked) = self.tasks[number], self._features[number]
        places = self.places(number, sample)
        support = task.support.take(places)
        image, mask = _pictures(support)
        query_image, query_mask = _pictures(task.query)
        return Episode(
            support_image=image.float() / 255,
            support_mask=mask,
            support_label=support.label + 1,  # (S,)
            support_count=torch.ones(len(support)),
            query_image=query_image,
            query_mask=query_mask,
            query_label=task.label,
            classes=task.support.classes,
            product=task.support.product,
            index=int(item),
            whole=True,
            paths=(*_names(task.query), *_names(support)),
            support_feature=pool[places],  # (S, V, D)
            query_feature=asked,  # (Q, V, D), the same memory in every episode
            text=support.text,
        )

    def places(self, task: int, sample: int) -> list[int]:
        """Places in the pool of a task that support its episode number ``sample``."""
        pool = self.tasks[task].support
        labels = pool.label.tolist()
        if self.shot is None:
            return [i for i, k in enumerate(labels) if k >= 0]
        if self.rule == "published":
            return sampling.published(labels, self.shot, sample)
        return sampling.drawn(labels, self.shot, sample, seed=self.seed, groups=pool.groups)

    def _refuse(self) -> None:
        if not self.tasks or not all(len(t.query) for t in self.tasks):
            raise UserError("There is nothing to ask about.", "Run mode=check to see the data set.")
        short = [
            f"{t.support.product or 'data'}/{name} has {count}"
            for t in self.tasks
            for name, count in t.support.counts.items()
            if count < (1 if self.shot is None else self.shot)
        ]
        if short:
            raise UserError(
                f"data.shot={self.shot}, but there are fewer instances in the support: {', '.join(short)}.",
                "Lower data.shot, add instances, or leave these classes out.",
            )


def _pictures(made: FeatureSet) -> tuple[Tensor, Tensor]:
    """Small pictures (N, 3, h, w) uint8 and masks (N, h, w) uint8 in {0, 1}; without any, of no pixels."""
    if made.thumb is None:
        return torch.zeros(len(made), 3, 0, 0, dtype=torch.uint8), torch.zeros(
            len(made), 0, 0, dtype=torch.uint8
        )
    return made.thumb[:, :3], (made.thumb[:, 3] >= 128).to(torch.uint8)


def _names(made: FeatureSet) -> tuple[str, ...]:
    """Identity of every item: two instances of one image differ."""
    if made.ids:
        return made.ids
    return made.paths or tuple(f"{made.product}#{i}" for i in range(len(made)))
