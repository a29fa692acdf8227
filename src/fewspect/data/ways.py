"""Episodes of N classes out of many, from cached features: who takes part is drawn for all episodes at once.

Classes fall into seen ones (training), validation classes and test classes; no class is in two parts. A
training item is everything that is known of the seen classes; an evaluation item is an N-way episode with
``shot`` supports (0 = class texts alone) and its queries.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data.features import FeatureSet, Token
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.nn import sampler
from fewspect.types import Episode

PRODUCT = "classes"
"""All episodes are draws of one task: intervals are over episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOptions:
    """How episodes are made.

    Attributes:
        way: Classes of an episode; null = all classes of the part.
        query: Queries per class.
        runs: Test episodes.
        val_runs: Validation episodes.
        sampler: ``indexed``: a pure function of (seed, run); ``legacy``: the original's draws.
        test: Classes that are tested: null = those that the reader holds out, or else a third of the classes
            (all classes, if texts and images are encoded into one space); ``all``; or a list.
        val: Share of the other classes that validate; they are not trained on.
        imbalance: Query sizes of the classes are drawn from a Dirichlet distribution with this parameter (2
            in the "realistic" benchmarks); null = all classes have ``query``.
        unknown: Further classes per test episode whose queries belong to none of the ``way`` classes.
        generalised: Test once, over seen and test classes together; see ``seen_test``.
        seen_test: ``generalised``: share of the seen classes' images that is tested and not trained on.
        texts: JSON file of descriptions: {class: [text, ...]}, or that per data set; null = class names.
        token: Which tokens of a feature file, see ``FeatureSet.token``.
        cache: Folder for features of images; null = compute them every time.
    """

    way: int | None = 5
    query: int = 15
    runs: int = 600
    val_runs: int = 100
    sampler: Literal["indexed", "legacy"] = "indexed"
    test: str | Sequence[str] | None = None
    val: float = 0.2
    imbalance: float | None = None
    unknown: int = 0
    generalised: bool = False
    seen_test: float = 0.2
    texts: str | None = None
    token: Token = "both"
    cache: str | None = None


class SeenClasses(Dataset[Episode]):
    """Training: item i is all that is known of the seen classes, the same memory every time.

    Args:
        seen: Features, labels, classes and texts.
        token: See ``FeatureSet.token``.
        length: Items per epoch: steps of a trained generator; one is enough to learn in closed form.
    """

    def __init__(self, seen: FeatureSet, *, token: Token, length: int | None = None) -> None:
        self.seen = seen
        self._length = length or 1
        self._feature = seen.token(token).float()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        s = self.seen
        none = self._feature[:0]
        return _episode(
            (self._feature, s.label),
            (none, s.label[:0]),
            s.classes,
            s.text,
            index=int(item) % self._length,
            paths=("seen",),
        )


class WayEpisodes(Dataset[Episode]):
    """Evaluation: a fixed list of N-way episodes.

    Args:
        pool: Features of the classes that are asked about, with their texts.
        name: Name of the part; part of the random streams.
        options: See ``WayOptions``.
        shot: Supports per class.
        runs: Length of the list.
        seed: Seed of the draws.

    Raises:
        UserError: There are not enough classes or images.
    """

    def __init__(
        self, pool: FeatureSet, name: str, options: WayOptions, *, shot: int, runs: int, seed: int = 0
    ) -> None:
        self.pool, self.name, self.options, self.shot, self.seed = pool, name, options, shot, seed
        self.runs = runs
        self.way = options.way or len(pool.classes) - options.unknown
        self._feature = pool.token(options.token).float()
        _ = self._drawn  # what cannot be drawn is told at once

    def __len__(self) -> int:
        return self.runs

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        i = int(item)
        if not 0 <= i < self.runs:
            raise IndexError(item)
        known = self._drawn.classes[i, : self.way].tolist()
        support, asked, labels = self.places(i)
        names = tuple(self.pool.classes[k] for k in known)
        text = None if self.pool.text is None else self.pool.text[known]
        shown = torch.arange(self.way).repeat_interleave(self.shot)
        paths = tuple(self.pool.paths[k] for k in (*asked, *support)) if self.pool.paths else (f"run {i}",)
        return _episode(
            (self._feature[support], shown), (self._feature[asked], labels), names, text, index=i, paths=paths
        )

    def places(self, run: int) -> tuple[list[int], list[int], Tensor]:
        """Places of supports and queries in the pool, and the queries' positions among the known classes.

        Queries of further, unknown classes have position -1.
        """
        drawn, supports, asked, labels = self._drawn, [], [], []
        sizes = self._sizes(run)
        for way, k in enumerate(drawn.classes[run]):
            members = self._members[int(k)][drawn.real[run, way]]
            number = int(sizes[way])
            supports += members[: self.shot].tolist() if way < self.way else []
            asked += members[self.shot : self.shot + number].tolist()
            labels += [way if way < self.way else -1] * number
        return supports, asked, torch.tensor(labels)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """Places of every class."""
        return [np.flatnonzero(self.pool.label.numpy() == k) for k in range(len(self.pool.classes))]

    @cached_property
    def _drawn(self) -> sampler.Runs:
        o, sizes = self.options, [len(m) for m in self._members]
        ways = {"runs": self.runs, "ways": self.way + o.unknown, "shot": self.shot}
        if o.sampler == "legacy":
            return sampler.legacy(len(sizes), min(sizes), **ways, query=o.query, seed=self.seed)
        groups = None
        if any(self.pool.groups):
            alone = [g or f"#{i}" for i, g in enumerate(self.pool.groups)]
            groups = [np.array(alone)[m] for m in self._members]
        names = self.pool.classes
        query = self._largest
        return sampler.indexed(
            sizes, **ways, query=query, seed=self.seed, stream=self.name, groups=groups, names=names
        )

    @cached_property
    def _largest(self) -> int:
        """Queries that are drawn per class: with imbalance, so many as the largest class may take."""
        if self.options.imbalance is None:
            return self.options.query
        size = min(len(m) for m in self._members)
        least = size // 2 if any(self.pool.groups) else size - self.shot  # groups must be left for supports
        return max(self.options.query, min(least, self.options.query * self.way))

    def _sizes(self, run: int) -> np.ndarray:
        """Queries per class of one episode."""
        o, number = self.options, self.way + self.options.unknown
        if o.imbalance is None:
            return np.full(number, o.query)
        share = rng(self.seed, f"{self.name}/sizes", run).dirichlet([o.imbalance] * number)
        return np.minimum(np.round(share * o.query * number).astype(int), self._largest)


class Everything(Dataset[Episode]):
    """Generalised zero-shot: one episode over seen and test classes, asked about held-back and unseen images.

    Args:
        seen: Training images of the seen classes: the supports.
        asked: All images to ask about; classes are those of ``seen`` and then the others.
        options: See ``WayOptions``.
        shot: Supports per seen class; null and 0 = all. Zero shots are those of the unseen classes, which
            never have any; a class that is seen has its training images.
        seed: Seed of the draws.
    """

    def __init__(
        self, seen: FeatureSet, asked: FeatureSet, options: WayOptions, *, shot: int | None, seed: int = 0
    ) -> None:
        self.seen, self.asked = seen, asked
        order = rng(seed, "generalised").permutation(len(seen))
        taken: list[int] = []
        for k in range(len(seen.classes)):
            taken += [int(i) for i in order if int(seen.label[i]) == k][: shot or None]
        self._support = (seen.token(options.token).float()[taken], seen.label[taken])
        self._query = (asked.token(options.token).float(), asked.label)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, item: int) -> Episode:
        if int(item):
            raise IndexError(item)
        return _episode(
            self._support, self._query, self.asked.classes, self.asked.text, paths=("all classes",)
        )


def _episode(
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    classes: Sequence[str],
    text: Tensor | None,
    *,
    index: int = 0,
    paths: Sequence[str],
) -> Episode:
    """An episode without pictures; labels are positions among the classes, -1 = none of them."""
    nothing = torch.zeros(0, 3, 0, 0)
    return Episode(
        support_image=nothing,
        support_mask=torch.zeros(0, 0, 0, dtype=torch.uint8),
        support_label=support[1] + 1,  # (S,)
        support_count=torch.ones(len(support[1])),
        query_image=torch.zeros(len(query[1]), 3, 0, 0, dtype=torch.uint8),
        query_mask=torch.zeros(len(query[1]), 0, 0, dtype=torch.uint8),
        query_label=query[1] + 1,  # (Q,)
        classes=tuple(classes),
        product=PRODUCT,
        index=index,
        whole=True,
        paths=tuple(paths),
        support_feature=support[0],  # (S, V, D)
        query_feature=query[0],  # (Q, V, D)
        text=text,
    )


def described(classes: Sequence[str], path: str | None) -> list[list[str]]:
    """Descriptions of classes named ``class`` or ``product/class``; a readable name where there is none.

    Raises:
        UserError: The file is missing, is not JSON, or describes none of the classes.
    """
    table = _table(path) if path else {}
    found = [table.get(c) or table.get(c.rpartition("/")[2]) for c in classes]
    if path and not any(found):
        raise UserError(
            f"{path} describes none of the classes {', '.join(classes[:5])}.",
            'Expected: {"class": ["description", ...]}, or that per data set.',
        )
    return [f or [readable(c)] for f, c in zip(found, classes, strict=True)]


def readable(name: str) -> str:
    """A class name as words: codes such as ``MT_`` in front and underscores say nothing to a text encoder."""
    last = name.rpartition("/")[2]
    return last.removeprefix("MT_").replace("_", " ").replace("-", " ").strip() or name


def _table(path: str) -> dict[str, list[str]]:
    """Class (and ``product/class``) -> descriptions."""
    try:
        content: Any = json.loads(Path(path).expanduser().read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no such file of class texts.", "Set data.text to a JSON file.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).", "Mend it.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a table of class texts.", 'Expected: {"class": ["text", ...]}.')
    table: dict[str, list[str]] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            table |= {f"{key}/{c}": _list(v) for c, v in value.items()}
            table |= {str(c): _list(v) for c, v in value.items() if str(c) not in table}
        elif not str(key).startswith("_"):
            table[str(key)] = _list(value)
    return table


def _list(value: Any) -> list[str]:  # noqa: ANN401 - from JSON
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]
