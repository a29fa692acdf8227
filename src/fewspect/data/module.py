"""The one LightningDataModule: the same episodes for any number of workers, ranks and restarts."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Sampler

from fewspect.data import classic
from fewspect.data.bank import Backbone
from fewspect.data.crops import Change, Cropper
from fewspect.data.entries import EntryTable, class_entries, normal_entries
from fewspect.data.episodes import EpisodeDataset, Recipe
from fewspect.data.extra import Extra
from fewspect.data.feature_episodes import FeatureEpisodes
from fewspect.data.feature_source import FeatureOptions, FeatureSource
from fewspect.data.index import Index
from fewspect.data.labelled import Labelled, LabelledDataset
from fewspect.data.plain import PlainDataset, asked, plain
from fewspect.data.problems import Problem, summary
from fewspect.data.reading import reading
from fewspect.data.sharding import Numbers, ResumableSampler, ShardSampler
from fewspect.data.splits import asked_and_support, with_val
from fewspect.data.transforms import Augment
from fewspect.data.way_source import WayDatasets, WaySource
from fewspect.data.ways import WayOptions
from fewspect.errors import UserError
from fewspect.types import DataInfo, Episode

log = logging.getLogger(__name__)

Part = Literal["train", "val", "test", "predict"]
Datasets = EpisodeDataset | PlainDataset | LabelledDataset | FeatureEpisodes | WayDatasets


class DataModule(pl.LightningDataModule):
    """Few-shot episodes of a data set; every batch is a ``list[Episode]``.

    ``protocol=episodic``: few-shot tasks with supports. ``shot=0`` with ``normal_shot > 0`` means few-shot
    anomaly detection: good supports, every image is asked.
    ``protocol=plain``: good images to learn from and every image to ask about, for unsupervised detectors;
    the options about supports and crops have no effect.
    ``protocol=features``: few-shot classification of features, from two feature files or of the instances of
    the data set, which ``backbone`` sees in several views.
    ``protocol=ways``: episodes of N classes that were not trained on, from features of images and of class
    texts; ``shot=0`` leaves the texts alone (but for the seen classes of ``ways.generalised``).
    ``protocol=labelled``: images with class labels per pixel, for generators and supervised segmenters; with
    ``shot`` so many images per product and class learn and all others are asked.

    Args:
        reader: Function that returns an ``Index``; given ``root``, ``fold``, ``category`` if it takes them.
            None where the features come from files.
        protocol: What an item is, see above.
        root: Folder of the data set; None = the reader's default.
        fold: Fold of the data set; None = the reader's default.
        category: Product or products to read; None or ``all`` = every one.
        object: Another word for ``category`` (MVTec-FS).
        support: ``features``: file of the labelled features, see ``data.features``.
        query: ``features``: file of the features to ask about. Otherwise the number of query images per
            training episode.
        backbone: ``features`` and ``ways`` from a data set: the frozen network that describes its images.
        features: ``features``: fields of ``FeatureOptions``.
        ways: ``ways``: fields of ``WayOptions``.
        extra_root: ``labelled``: a folder of further training images, say a generated set; classes by name.
        extra_ratio: ``labelled``: how many of them per image of the data set; None = all.
        text: ``ways``: class descriptions (JSON) or text features (safetensors); None = class names.
        encoder: ``ways``: encodes texts.
        side: Side of the network input in pixels.
        zoom: ``plain``: side to which a training image is brought before a square of ``side`` is cut out of
            it; None = ``side``.
        crop_size: Side of a crop in image pixels; None = ``side``.
        shot: ``episodic``: defective support images per episode. ``plain``: good training images per product;
            None = all. ``labelled``: defective training images per product and class; None = all.
        hold_out: ``plain``: thresholds are set on good images that were not learned from; false for detectors
            that leave an image out when they judge it, which then learn from all.
        normal_shot: Good support images per episode. ``labelled``: good training images per product.
        crops_per_support: Views per support image.
        crop_ratio: Training: factor on the crop side, drawn from this interval.
        large_ratio: Foreground fraction above which an image is shown whole.
        background_query_prob: Training: how often a query crop is centred on the background.
        normal_query_prob: Training: how often the query is a good image.
        same_group: Allow supports from the query's group.
        whole: Show good supports, and the queries of episodes without defective ones, in one piece.
        parity: Crop draws of the original SOFS code.
        episodes: Training episodes per epoch; None = one pass over all (class, image) entries.
        val_episodes: Validation episodes; None = every entry once.
        test_episodes: Test episodes; None = every entry once.
        repeats: Test: how often every entry is asked, with other supports each time.
        batch_size: Training episodes per step and process.
        workers: Loader processes; at most the number of cores.
        augment: Training views: false = as they are; true = the protocol's default; ``plain``: or one of
            ``classic.PRESETS``.
        seed: Seed of all draws.
        on_bad_file: ``strict`` = refuse the data set, ``skip`` = leave bad files out.
    """

    schema: ClassVar[dict[str, Any]] = {"features": FeatureOptions, "ways": WayOptions}

    def __init__(
        self,
        reader: Callable[..., Index] | None = None,
        *,
        protocol: Literal["episodic", "plain", "labelled", "features", "ways"] = "episodic",
        root: str | None = None,
        fold: int | str | None = None,
        category: str | Sequence[str] | None = None,
        object: str | Sequence[str] | None = None,
        support: str | None = None,
        backbone: Backbone | None = None,
        features: Mapping[str, Any] | None = None,
        ways: Mapping[str, Any] | None = None,
        extra_root: str | None = None,
        extra_ratio: float | None = None,
        text: str | None = None,
        encoder: Any = None,  # noqa: ANN401 - a text encoder; only bank.py may know backbones
        side: int = 128,
        zoom: int | None = None,
        crop_size: int | None = None,
        shot: int | None = 1,
        hold_out: bool = True,
        normal_shot: int = 0,
        query: int | str | None = 1,
        crops_per_support: int = 4,
        crop_ratio: Sequence[float] = (1.0, 1.0),
        large_ratio: float = 0.01,
        background_query_prob: float = 0.3,
        normal_query_prob: float = 0.0,
        same_group: bool = False,
        whole: bool = True,
        parity: bool = False,
        episodes: int | None = None,
        val_episodes: int | None = None,
        test_episodes: int | None = None,
        repeats: int = 1,
        batch_size: int = 1,
        workers: int = 0,
        augment: bool | str = True,
        seed: int = 0,
        on_bad_file: Literal["strict", "skip"] = "strict",
    ) -> None:
        super().__init__()
        self.protocol, self.shot, self.hold_out, self.zoom = protocol, shot, hold_out, zoom
        extra = Extra(extra_root, extra_ratio) if extra_root else None
        self.labelled = Labelled(shot, normal_shot, seed, extra)
        self._refuse(normal_shot)
        self._read = reading(reader, root=root, fold=fold, category=category or object)
        files = (support, query if isinstance(query, str) else None)
        self.source = FeatureSource(files, FeatureOptions(**(features or {})), backbone)
        self.ways = WaySource(
            lambda: self.index,
            files,
            text,
            WayOptions(**(ways or {})),
            backbone=backbone,
            encoder=encoder,
            side=side,
            seed=seed,
        )
        number = query if isinstance(query, int) else 1
        self.recipe = Recipe(shot or 0, normal_shot, number, same_group, normal_query_prob, whole)
        low, high = crop_ratio
        self.cropper = Cropper(
            side,
            crop_size or side,
            crops_per_support,
            (low, high),
            large_ratio,
            background_query_prob,
            parity,
        )
        self.limits = {"train": episodes, "val": val_episodes, "test": test_episodes, "predict": None}
        self.repeats, self.batch_size, self.seed = repeats, batch_size, seed
        self.on_bad_file: Literal["strict", "skip"] = on_bad_file
        self.augment = _augmentation(protocol, augment)
        self.workers = _capped(workers)
        self._index: Index | None = None
        self._sets: dict[str, Datasets] = {}
        self._resumed = (0, 0)

    @property
    def index(self) -> Index:
        """The table of samples, read at first use; bad files treated by ``on_bad_file``."""
        if self._index is None:
            index = self._read().refuse(self.on_bad_file)
            _tell_all(index.problems, "mode=check lists them")
            self._index = index if "val" in index.splits else with_val(index, self.seed)
        return self._index

    @property
    def info(self) -> DataInfo:
        """What a method may know."""
        if self.protocol == "features":
            pools = [task.support for task in self.source.tasks(lambda: self.index)]
            names = tuple(dict.fromkeys(name for pool in pools for name in pool.classes))
            products = tuple(pool.product for pool in pools)
            return DataInfo(names, products, frozenset({"classify"}), False, self.cropper.side, self.protocol)
        if self.protocol == "ways":
            names = self.ways.pool.classes
            return DataInfo(names, (), frozenset({"classify"}), False, self.cropper.side, self.protocol)
        index = self.index
        detect = self.protocol == "plain" or (self.protocol == "episodic" and self.recipe.shot == 0)
        return DataInfo(index.classes, index.products, index.tasks, detect, self.cropper.side, self.protocol)

    def setup(self, stage: str | None = None) -> None:
        """Read the index, so that a bad folder is reported before anything else happens."""
        del stage  # every stage needs the same
        if self.protocol == "ways":
            _ = self.ways.pool
        else:
            _ = self.source.tasks(lambda: self.index) if self.protocol == "features" else self.index

    def dataset(self, part: Part) -> Datasets:
        """The episodes of one part; made once."""
        if part not in self._sets:
            made = self._makers[self.protocol](part)
            if isinstance(made, EpisodeDataset):
                _tell_all(made.problems, f"{part} episodes")
            self._sets[part] = made
        return self._sets[part]

    @property
    def tests(self) -> bool:
        """Whether there is anything to test on; a folder of good parts has nothing."""
        return self.protocol != "plain" or bool(asked(self.index, "test"))

    def require_test(self) -> None:
        """Make the test, so that one that cannot be made is told before the training."""
        self.dataset("test")
        if self.protocol == "labelled":
            self.labelled.require_test(self.index)

    def resume(self, epoch: int, start: int) -> None:
        """Begin training at batch ``start`` of ``epoch`` (counted per process)."""
        self._resumed = (epoch, start * self._per_step)

    def train_dataloader(self) -> DataLoader:
        """Batches of ``batch_size`` episodes in a new order every epoch.

        A method that sees the data in a single pass gets every item once, in order, in every process; one
        that keeps the data gets numbers.
        """
        episodes = self.dataset("train")
        learner = self.trainer.lightning_module if self.trainer else None
        if getattr(learner, "keep", False):
            episodes = Numbers(self.limits["train"] or len(episodes))
        if getattr(learner, "fit_kind", "") == "single_pass":
            return self._loader(episodes, ShardSampler(len(episodes)), self._per_step)
        sampler = ResumableSampler(len(episodes), *self._place, self._per_step)
        sampler.resume(*self._resumed)
        return self._loader(episodes, sampler, self._per_step)

    def val_dataloader(self) -> DataLoader:
        """The fixed validation episodes, one by one."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        """The fixed test episodes, one by one."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        """The images of the query split, or of the test split; a batch encodes a common support once."""
        return self._evaluation("predict", self.batch_size)

    @property
    def _per_step(self) -> int:
        """Training items per step; with ``ways`` one item is everything."""
        return 1 if self.protocol == "ways" else self.batch_size

    @property
    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _evaluation(self, part: Part, batch_size: int = 1) -> DataLoader:
        episodes = self.dataset(part)
        many = self.protocol in ("features", "ways")  # one answer for many
        together = self.batch_size if many else batch_size
        return self._loader(episodes, ShardSampler(len(episodes), *self._place), together)

    def _loader(self, episodes: Datasets | Numbers, sampler: Sampler[int], batch_size: int) -> DataLoader:
        return DataLoader(
            episodes,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=as_list,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def _makers(self) -> dict[str, Callable[[Part], Datasets]]:
        return {
            "episodic": self._make,
            "plain": self._make_plain,
            "labelled": self._make_labelled,
            "features": self._make_features,
            "ways": lambda part: self.ways.dataset(part, self.shot, length=self.limits["train"]),
        }

    def _make_labelled(self, part: Part) -> LabelledDataset:
        return self.labelled.dataset(self.index, part, self.cropper.side, self.augment, self.limits[part])

    def _make_features(self, part: Part) -> FeatureEpisodes:
        return self.source.episodes(part, lambda: self.index, self.shot, self.seed)

    def _make(self, part: Part) -> EpisodeDataset:
        split, support = asked_and_support(self.index, part)
        if part == "val" and not self._table("val", "val").entries:
            log.warning("No validation episode can be made: the training images validate.")
            split = support = "train"
        table = self._table(split, support)
        for problem in table.problems:
            log.warning("%s episodes: %s", part, problem.detail)
        return EpisodeDataset(
            table,
            part,
            self.recipe,
            self.cropper,
            train=part == "train",
            augment=self.augment,
            episodes=self.limits[part],
            repeats=self.repeats if part == "test" else 1,
            seed=self.seed,
            shared=part == "predict" and split != support,
        )

    def _make_plain(self, part: Part) -> PlainDataset:
        return plain(
            self.index,
            part,
            (self.shot, self.hold_out),
            side=self.cropper.side,
            zoom=self.zoom,
            augment=self.augment,
            length=self.limits[part],
            seed=self.seed,
        )

    def _refuse(self, normal_shot: int) -> None:
        if self.protocol in ("features", "ways") and self.shot is not None and self.shot < 0:
            raise UserError(f"data.shot={self.shot}: no number of supports.", "Set 0 for none, null for all.")
        if self.protocol == "plain" and self.shot is not None and self.shot < 1:
            raise UserError(
                f"data.shot={self.shot}: a detector learns from good images.", "Set data.shot=null for all."
            )
        if self.protocol == "episodic" and (self.shot or 0) + normal_shot < 1:
            raise UserError(
                "An episode without supports was asked for.", "Set data.shot or data.normal_shot."
            )

    def _table(self, split: str, support: str) -> EntryTable:
        shot, normal_shot, same = self.recipe.shot, self.recipe.normal_shot, self.recipe.same_group
        if shot == 0:
            return normal_entries(self.index, split, normal_shot, same_group=same)
        return class_entries(self.index, split, support, shot, normal_shot, same_group=same)


def as_list(batch: list[Episode]) -> list[Episode]:
    """Episodes differ in size: a batch is their list."""
    return batch


def _tell_all(problems: Sequence[Problem], where: str) -> None:
    """Log one line per kind of finding."""
    for level, line in summary(problems, where):
        _tell(logging.INFO if level == "notice" else logging.WARNING, line)


@lru_cache(maxsize=1024)
@rank_zero_only
def _tell(level: int, line: str) -> None:
    """Log what is wrong with a data set: once per process, though it may be read by several modules."""
    log.log(level, line)


def _augmentation(protocol: str, augment: bool | str) -> Change | None:
    if not augment or protocol == "features":
        return None
    if protocol in ("episodic", "labelled"):
        return Augment()
    return classic.preset("upright" if augment is True else augment)


def _capped(workers: int) -> int:
    """At most one worker per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores:
        log.warning("data.workers=%d lowered to %d: no more cores.", workers, cores)
    return min(workers, cores)
