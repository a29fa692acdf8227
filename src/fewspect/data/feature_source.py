"""Where the features of an experiment come from: two feature files, or the instances of a data set.

A data set's instances are described by a frozen backbone. The pool of supports are those of ``train`` (and
``val``, ``support``), asked are those of ``test`` (``query``). Where the tested classes are not in the pool,
as in few-shot folds over classes, or where one side has no instance, half of the other side's groups become
the pool.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from fewspect.data import features, instances
from fewspect.data.bank import Backbone, FeatureBank, ViewOptions
from fewspect.data.feature_episodes import FeatureEpisodes, Task, make_task
from fewspect.data.features import Token
from fewspect.data.index import Index
from fewspect.data.instances import Instance
from fewspect.data.mask_source import MaskSource
from fewspect.data.sampling import Rule
from fewspect.data.splits import split_by_group
from fewspect.errors import UserError

log = logging.getLogger(__name__)

POOL, ASKED = ("train", "val", "support"), ("test", "query")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """How features are made, and episodes of them.

    Attributes:
        samplings: Episodes per product: so many draws of supports, all asked about every query.
        sampling: ``drawn`` (from the seed, groups apart) or ``published`` (MVREC's rule; its samplings are 0
            to 4).
        token: ``class``, ``patches``, ``both`` or ``all`` tokens of the store.
        unknown: Classes that are not supported: the right answer for them is "unknown".
        cache: Folder of feature files; None = they are made anew every time.
        views: Fields of ``bank.ViewOptions``.
        components: Every connected region of a mask file is an instance of its own.
        least: Components: regions with fewer pixels are left out.
        masks: ``own``: instances are where they were drawn, whole images where nothing was; ``none``: all are
            whole images; ``auto``: ``own``, but ``none`` where only some classes were drawn: whether an image
            was drawn would give its class away.
        query_masks: ``own``: as drawn; ``none``: queries come without a mask, from ``mask_from`` or not at
            all.
        mask_from: Run folder whose predictions are the masks of instances without one.
    """

    samplings: int = 30
    sampling: Rule = "drawn"
    token: Token = "class"
    unknown: Sequence[str] = ()
    cache: str | None = "data/features"
    views: Mapping[str, Any] = field(default_factory=dict[str, Any])
    components: bool = False
    least: int = 10
    masks: Literal["auto", "own", "none"] = "auto"
    query_masks: Literal["own", "none"] = "own"
    mask_from: str | None = None
    schema: ClassVar[dict[str, Any]] = {"views": ViewOptions}


class FeatureSource:
    """Tasks of feature files or of a data set, made once.

    Args:
        files: Paths of the support's and the queries' file; None where they are not given. With the first
            alone, all instances of the data set are asked about.
        options: See ``FeatureOptions``.
        backbone: What describes the instances of a data set.
    """

    def __init__(
        self, files: tuple[str | None, str | None], options: FeatureOptions, backbone: Backbone | None = None
    ) -> None:
        self.files, self.options, self.backbone = files, options, backbone
        self._tasks: list[Task] = []
        self._shown: list[tuple[str, Instance, FeatureBank]] = []
        self._asked: list[tuple[str, list[Instance], FeatureBank]] = []

    def examples(self, most: int = 8) -> list[tuple[str, Tensor, Tensor]]:
        """What the backbone saw of a support of each class: name, views (V, 3, s, s), masks (V, 1, s, s).

        Empty where the features came from files.
        """
        return [(name, *bank.look(instances.load(instance))) for name, instance, bank in self._shown[:most]]

    def instances(self, product: str) -> tuple[list[Instance], FeatureBank] | None:
        """What is asked about a product and what describes it; None where the features came from files."""
        found = [(asked, bank) for name, asked, bank in self._asked if name == product]
        return found[0] if found else None

    def tasks(self, index: Callable[[], Index]) -> list[Task]:
        """One task per product.

        Raises:
            UserError: A file is missing, damaged, or does not belong to the other; there are no instances.
        """
        if not self._tasks:
            self._tasks = self._made(index)
        return self._tasks

    def episodes(self, part: str, index: Callable[[], Index], shot: int | None, seed: int) -> FeatureEpisodes:
        """Episodes of one part: for ``train`` and ``val`` the whole pool, asked about itself.

        For ``predict`` one sampling (``shot`` None: the whole pool).
        """
        tasks, o = self.tasks(index), self.options
        if part in ("train", "val"):
            pools = [Task(t.support, t.support, t.support.label + 1) for t in tasks]
            return FeatureEpisodes(pools, shot=None, token=o.token)
        number = 1 if part == "predict" else o.samplings
        return FeatureEpisodes(tasks, shot=shot, samplings=number, rule=o.sampling, token=o.token, seed=seed)

    def _made(self, index: Callable[[], Index]) -> list[Task]:
        support, query = self.files
        unknown = self.options.unknown
        if support is not None and query is not None:
            known, asked = features.read(support), features.read(query)
            return [make_task(known, asked, unknown=unknown, where=(support, query))]
        table = index()
        if support is not None:
            known, every = features.read(support), self._instances(table, sorted(table.splits))
            asked = self._bank().get(self._undrawn(every), known.classes, known.product)
            return [make_task(known, asked, unknown=unknown, where=(support, "the data set"))]
        return [self._task(part) for part in _by_product(table)]

    def _task(self, index: Index) -> Task:
        """Pool and queries of one product."""
        pool, asked = self._seen(*self.sides(index), index.products[0])
        names = {i.cls for i in (*pool, *asked)}
        classes = [c for c in index.classes if c in names]
        product, bank = index.products[0], self._bank(any(i.regions for i in (*pool, *asked)))
        where = (f"The support of {product}", f"the queries of {product}")
        asked = self._undrawn(asked)
        self._asked.append((product, asked, bank))
        known, queries = (bank.get(part, classes, product) for part in (pool, asked))
        supported = [c for c in classes if any(i.cls == c for i in pool)]
        first = {i.cls: i for i in reversed(pool)}
        self._shown += [(f"{product}/{c}", first[c], bank) for c in supported]
        return make_task(known.only(supported), queries, unknown=self.options.unknown, where=where)

    def sides(self, index: Index) -> tuple[list[Instance], list[Instance]]:
        """Instances of one product: those that may support, and those that are asked about."""
        pool, asked = (self._instances(index, splits) for splits in (POOL, ASKED))
        if pool and asked and {i.cls for i in pool} & {i.cls for i in asked if i.cls}:
            return pool, asked
        chosen = ASKED if asked else POOL  # nothing in common: one side plays both
        part = split_by_group(index.with_samples(s for s in index.samples if s.split in chosen))
        return self._instances(part, ["train"]), self._instances(part, ["test"])

    def _instances(self, index: Index, splits: Sequence[str]) -> list[Instance]:
        o = self.options
        return [
            i
            for split in splits
            for i in instances.find(index, split, components=o.components, least=o.least)
        ]

    def _seen(
        self, pool: list[Instance], asked: list[Instance], product: str
    ) -> tuple[list[Instance], list[Instance]]:
        """Both sides as ``masks`` says; ``auto`` is decided for them together."""
        o = self.options
        judged = o.masks == "auto" and o.query_masks == "own" and o.mask_from is None
        bare = instances.undrawn_classes((*pool, *asked)) if judged else []
        if bare:
            log.warning(
                "%s: no mask or box for %s, but for other classes. So that masks do not give the class away, "
                "whole images are compared (data.features.masks=own: as they are).",
                product or "the data set",
                ", ".join(bare),
            )
        if bare or o.masks == "none":
            return instances.whole(pool), instances.whole(asked)
        return pool, asked

    def _undrawn(self, asked: list[Instance]) -> list[Instance]:
        """Queries without their masks where that is asked for."""
        if self.options.query_masks == "own":
            return asked
        return [instances.undrawn(i) for i in asked]

    def _bank(self, drawn: bool = True) -> FeatureBank:
        o = self.options
        if self.backbone is None:
            raise UserError(
                "Features of images were asked for, but there is no backbone to make them.",
                "Set data.backbone, or data.support and data.query to feature files.",
            )
        masks = None if o.mask_from is None else MaskSource(o.mask_from)
        folder = None if o.cache is None else Path(o.cache)
        return FeatureBank(
            self.backbone, ViewOptions(**o.views), folder, masks, drawn=drawn or masks is not None
        )


def _by_product(index: Index) -> list[Index]:
    """One index per product that has anything but good images."""
    found = [index.filter(product=p) for p in index.products]
    found = [part for part in found if any(s.label != 0 for s in part.samples)]
    if not found:
        raise UserError("There is no defective image to tell apart.", "Run mode=check to see the data set.")
    return found
