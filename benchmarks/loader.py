"""Episodes per second of the data side, and pictures per second of the toy factory."""

import itertools
import tempfile
import time
from functools import partial

import torch

from benchmarks import subject
from benchmarks.report import THREADS, Figure, Report, at_least, true
from fewspect.data.module import DataModule
from fewspect.data.readers import toy
from fewspect.data.toy import draw
from fewspect.types import Episode

SIDE, BATCH = 128, 4
DRAWN_PER_SECOND = 100
WARM_UP = 4
"""Batches that are not counted: processes start, caches fill."""

Signature = tuple[float, ...]


def measure(*, quick: bool) -> Report:
    """Loader with 0, 1, 2 workers, then the factory."""
    with tempfile.TemporaryDirectory() as root:
        small = {"images_per_class": 4, "test_per_class": 2, "good": 6} if quick else {}
        runs = {workers: _load(_data(root, workers, small), quick) for workers in (0, 1, 2)}
    figures = []
    for workers, (episodes, images, _) in runs.items():
        figures.append(Figure(f"{workers} workers", f"{episodes:.0f} episodes/s, {images:.0f} images read/s"))
    same = len({signature for _, _, signature in runs.values()}) == 1
    figures += [
        true("same episodes for any number of workers", same),
        Figure("2 workers / 0 workers, episodes/s", f"{runs[2][0] / runs[0][0]:.2f}x"),
        at_least("toy factory, one core", _drawing(200 if quick else 1000), DRAWN_PER_SECOND, " images/s"),
    ]
    return Report(
        title="Data",
        what=f"Training episodes (1-shot, 4 views per support, augmented) of the toy data at {SIDE} px from "
        "files to batches; drawing toy pictures.",
        how=f"Batches of {BATCH}, one pass over the training episodes without the first {WARM_UP} batches. "
        "An episode reads two images with their masks and gives up to five augmented views. The factory "
        "draws all products and defects in turn in one process, by processor time.",
        figures=figures,
        notes=["The reader decodes PNG from the page cache; nothing consumes the batches meanwhile."],
    )


def _data(root: str, workers: int, small: dict[str, int]) -> DataModule:
    reader = partial(toy.read, side=SIDE, **small)
    return DataModule(reader, root=root, side=SIDE, batch_size=BATCH, workers=workers)


def _load(data: DataModule, quick: bool) -> tuple[float, float, Signature]:
    """Episodes per second, images per second, and what tells two runs apart."""
    batches = iter(data.train_dataloader())
    signature = [_sum(e) for batch in itertools.islice(batches, WARM_UP) for e in batch]
    kept: list[Episode] = []
    start = time.perf_counter()
    for batch in itertools.islice(batches, 20 if quick else None):
        kept += batch
    taken = time.perf_counter() - start
    images = sum(len(e.paths) for e in kept)
    return len(kept) / taken, images / taken, tuple(signature + [_sum(e) for e in kept])


def _sum(episode: Episode) -> float:
    return float(episode.query_image.double().sum() + episode.support_image.double().sum())


def _drawing(number: int) -> float:
    torch.set_num_threads(1)
    keys = subject.assortment(number)
    draw(0, *keys[0], SIDE)
    start = time.process_time()  # of this process alone: one thread, so other programs do not count
    for key in keys:
        draw(0, *key, SIDE)
    taken = time.process_time() - start
    torch.set_num_threads(THREADS)
    return number / taken
