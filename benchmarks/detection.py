"""Detection metrics of a test set as large as MVTec AD in its own pixels: time, memory, against sorting."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional import classification as peer

from benchmarks.memory import peak
from benchmarks.report import THREADS, Figure, Report, at_least, below, equal
from benchmarks.subject import seconds
from fewspect.draws import rng
from fewspect.metrics import bins, exact
from fewspect.metrics.detection import LIMITS, PixelRanking
from fewspect.metrics.suites import suite
from fewspect.nn.maps import smooth
from fewspect.types import Episode, Prediction

ROOT = Path(__file__).resolve().parents[1]
PRODUCTS, IMAGES, SIDE = 15, 1725, 1024
QUICK_IMAGES, QUICK_SIDE = 75, 256
SUBSET, QUICK_SUBSET = 24, 4
"""Maps that are also evaluated by sorting; all of them do not fit into memory that way."""

GOOD = 3
"""Of every ten test images (MVTec AD: 467 of 1,725)."""

FIELDS = 4
"""Smooth fields that all maps are shifted copies of."""

RAISED, THRESHOLD = 0.3, 0.9
"""What a defect adds to the map, and what the decisions are made at."""

TIME, MEMORY, FASTER, TOLERANCE = 120.0, 300.0, 20.0, 1e-3
"""Seconds, MB (10^6 bytes), times, and the largest difference of any value."""

Item = tuple[Prediction, Episode]


def measure(*, quick: bool) -> Report:
    """The whole set in a fresh process; then a subset by histograms and by sorting, in this one."""
    images, side, subset = (QUICK_IMAGES, QUICK_SIDE, QUICK_SUBSET) if quick else (IMAGES, SIDE, SUBSET)
    whole = _spawn(images, side)
    return Report(
        title="Detection metrics",
        what="All metrics of the `detect` suite (pixels, images, decisions, overlap, types of defect) on "
        f"{images} maps of {side} x {side} pixels of {PRODUCTS} products; and the pixel metrics (AUROC, AP, "
        f"best F1 and IoU, AUPRO at {LIMITS[0]} and {LIMITS[1]}) of {subset} such maps of one product by our "
        "histograms and by sorting all pixels.",
        how="Whole set: a fresh process; maps are made on the fly, only `update` and `compute` are timed; "
        "extra memory is the growth of the peak resident memory, first map to `compute`. "
        "Subset: (a) torchmetrics' exact `binary_auroc`, `binary_average_precision` and "
        "`binary_precision_recall_curve`, one after the other as its users call them, and AUPRO from one "
        "more sort; (b) `metrics.exact`: a single sort for all values.",
        figures=[
            below(f"{images} maps: time of all metrics", whole["seconds"], TIME, " s"),
            Figure("processor time of this, per map", f"{1000 * whole['processor'] / images:.1f} ms"),
            below(f"{images} maps: extra memory", whole["extra"] / 1e6, MEMORY, " MB"),
            *_subset(subset, side),
        ],
        notes=[
            "All three see the same arrays. Sorting all maps of the whole set would need tens of GB.",
            "The ratio to (b), which sorts no more often than it must, is reported without a requirement.",
        ],
    )


def items(images: int, side: int, products: int = PRODUCTS) -> Iterator[Item]:
    """Answers and truths of a made-up test set: smooth noise, raised where the defects are."""
    fields = [_noise(side, k) for k in range(FIELDS)]
    for k in range(images):
        mask = torch.zeros(side, side, dtype=torch.uint8)
        defective = (k // products) % 10 >= GOOD
        if defective:
            top, left = (int(x) for x in rng(0, "benchmark/defect", k).integers(0, side - side // 4, 2))
            mask[top : top + side // 5, left : left + side // 6] = 1
            mask[top // 2 : top // 2 + side // 40, left // 2 : left // 2 + side // 8] = 1
        prob = torch.roll(fields[k % FIELDS], (97 * k % side, 31 * k % side), (0, 1)) + RAISED * mask
        yield (
            Prediction(
                prob=prob[None],
                mask=(prob > THRESHOLD)[None].to(torch.uint8),
                score=prob.max()[None],
                decision=(prob.max() > THRESHOLD)[None].to(torch.uint8),
            ),
            _episode(mask, f"product_{k % products:02d}", k),
        )


def run_case(images: int, side: int) -> dict[str, float]:
    """Time and memory of the suite over the whole set, in this process."""
    torch.set_num_threads(THREADS)
    metrics, taken, spent, before = suite("detect", detect=True), 0.0, 0.0, peak()
    for prediction, episode in items(images, side):
        wall, processor = time.perf_counter(), time.process_time()
        metrics.update(prediction, episode)
        taken += time.perf_counter() - wall
        spent += time.process_time() - processor
    wall, processor = time.perf_counter(), time.process_time()
    values = metrics.compute()
    taken += time.perf_counter() - wall
    spent += time.process_time() - processor
    assert {"pixel_auroc", "aupro_0.05", "accuracy_balanced", "miou"} <= values.keys()
    return {"seconds": taken, "processor": spent, "extra": peak() - before}


def _subset(number: int, side: int) -> list[Figure]:
    pairs = list(items(number, side, products=1))
    scores, masks = ([_array(x) for x in part] for part in zip(*map(_maps, pairs), strict=True))
    ours, values = seconds(lambda: _streamed(pairs))
    library, first = seconds(lambda: _by_library(scores, masks))
    once, second = seconds(lambda: exact.exact_pixel_values(scores, masks))
    worst = max(abs(float(values[k]) - v) for other in (first, second) for k, v in other.items())
    times = " / ".join(f"{1000 * t / number:.0f}" for t in (ours, library, once))
    return [
        Figure(f"{number} maps: ours / (a) / (b), per map", f"{times} ms"),
        at_least(f"{number} maps: faster than (a) torchmetrics", library / ours, FASTER),
        Figure(f"{number} maps: faster than (b) sorting once", f"{once / ours:.1f}x"),
        equal("largest difference of any value from (a) and (b)", worst, TOLERANCE),
    ]


def _streamed(pairs: list[Item]) -> dict[str, Tensor]:
    metric = PixelRanking()
    for prediction, episode in pairs:
        metric.update(prediction, episode)
    return metric.compute()


def _by_library(scores: list[np.ndarray], masks: list[np.ndarray]) -> dict[str, float]:
    score = torch.from_numpy(np.concatenate([s.ravel() for s in scores]))
    truth = torch.from_numpy(np.concatenate([m.ravel() for m in masks])).long()
    precision, recall, _ = peer.binary_precision_recall_curve(score, truth)
    f1 = float((2 * precision * recall / (precision + recall).clamp(min=1e-12)).max())
    _, _, negative, regions = exact.pixel_histograms(scores, masks)
    return {
        "pixel_auroc": float(peer.binary_auroc(score, truth)),
        "pixel_ap": float(peer.binary_average_precision(score, truth)),
        "pixel_f1_max": f1,
        "pixel_iou_max": f1 / (2 - f1),
        **{f"aupro_{limit}": bins.aupro(regions, negative, limit) for limit in LIMITS},
    }


def _maps(item: Item) -> tuple[Tensor, Tensor]:
    prediction, episode = item
    assert prediction.prob is not None
    return prediction.prob[0], episode.query_mask[0]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.numpy()


def _noise(side: int, index: int) -> Tensor:
    """Smooth field (side, side) between 0 and 1."""
    white = torch.from_numpy(rng(0, "benchmark/field", index).random((1, side, side), dtype=np.float32))
    field = smooth(white, side / 128)[0]
    return (field - field.min()) / (field.max() - field.min())


def _episode(mask: Tensor, product: str, index: int) -> Episode:
    """Truth of one image; neither the image nor supports are there, no metric reads them."""
    nothing = torch.zeros(0, 3, 1, 1)
    defective = bool(mask.any())
    return Episode(
        support_image=nothing,
        support_mask=torch.zeros(0, 1, 1, dtype=torch.uint8),
        support_label=torch.zeros(0, dtype=torch.int64),
        support_count=torch.zeros(0),
        query_image=nothing[:, :0],
        query_mask=mask[None],
        query_label=torch.tensor([int(defective)]),
        classes=("anomaly",),
        product=product,
        index=index,
        paths=(f"{product}/{index}.png",),
        shown=(("hole", "crack", "stain")[index % 3],) if defective else (),
    )


def _spawn(images: int, side: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.detection", str(images), str(side)]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths.strip(os.pathsep)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(run_case(int(sys.argv[1]), int(sys.argv[2]))))
