"""Does training pay? SOFS on unseen toy classes against its untrained head and training-free priors.

``python -m benchmarks.margin`` trains the demo with three seeds and rewrites the table in docs/results.md.
Finished rows are kept in ``--out`` (JSON lines).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import tables
from benchmarks.tables import ROOT, Cell, Rows, Table, Value
from fewspect.data.module import DataModule
from fewspect.engine import build
from fewspect.methods.sofs.method import SOFS

SEEDS = (0, 1, 2)
THRESHOLDS = torch.arange(0.05, 1.0, 0.025)
EPISODES = 64
TITLE = "Toy factory: does training pay?"
ASKED = (
    "The demo's head is trained on toy classes and asked about four others: is it better than the same head "
    "untrained, and than maps that need no training?"
)
PUBLISHED = "Published: nothing; the toy factory is our own."
NAMES = (
    *("trained head", "untrained head"),
    *("max-cosine prior, best threshold", "abnormality map, best threshold"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the table."""
    options = tables.arguments("margin", argv, _more, root=False)
    done = {(r["row"], r["seed"]) for r in tables.read(options.out)}
    for seed in SEEDS[: options.seeds]:
        if not {(name, seed) for name in NAMES} <= done:
            for name, iou in measure(seed).items():
                if (name, seed) not in done:
                    tables.append(options.out, {"set": "toy", "row": name, "seed": seed, "miou": iou})
    tables.write(made(tables.read(options.out)), options.page)


def made(rows: Rows) -> list[Table]:
    """Mean ± standard deviation over seeds, and the distance to the trained head."""
    found = {n: tables.of([r for r in rows if r["row"] == n], "miou") for n in NAMES}
    if not all(found.values()):
        return []
    lines = [_line(name, values, statistics.mean(found[NAMES[0]])) for name, values in found.items()]
    head, best = ("", "foreground IoU, points", "behind the trained head"), {"foreground IoU, points": "max"}
    title = "Unseen toy classes; ± is the standard deviation over seeds"
    return [Table("margin", title, head, lines, best=best, chart=("foreground IoU, points",))]


def _line(name: str, values: list[float], trained: float) -> list[Cell]:
    return [name, tables.spread(values), Value(trained - statistics.mean(values))]


def measure(seed: int) -> dict[str, float]:
    """Mean IoU over (product, class) pairs of each contender, one seed."""
    with tempfile.TemporaryDirectory() as folder:
        run = [
            sys.executable,
            str(ROOT / "run.py"),
            f"seed={seed}",
            f"hydra.run.dir={folder}/run",
            "logger=none",
        ]
        subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        data, untrained = parts(seed)
        _, trained = parts(seed)
        state = torch.load(Path(folder, "run", "checkpoints", "best.ckpt"), weights_only=True)
    trained.on_load_checkpoint(state)
    trained.load_state_dict(state["state_dict"])
    counts: dict[str, dict[str, Tensor]] = {}
    for episode in data.dataset("test"):
        truth = episode.query_mask[0] == 1
        for name, mask in answers(trained.eval(), untrained.eval(), episode):
            both = torch.stack([(mask & truth).sum((-2, -1)), (mask | truth).sum((-2, -1))])
            table = counts.setdefault(name, {})
            table[episode.name] = table.get(episode.name, torch.zeros_like(both)) + both
    return {name: best(table) for name, table in counts.items()}


def parts(seed: int) -> tuple[DataModule, SOFS]:
    """Data and untrained method of the demo."""
    torch.manual_seed(seed)
    data, method = build.parts(tables.tree(f"seed={seed}", f"data.test_episodes={EPISODES}"))
    assert isinstance(data, DataModule)
    assert isinstance(method, SOFS)
    return data, method


@torch.inference_mode()
def answers(trained: SOFS, untrained: SOFS, episode) -> list[tuple[str, Tensor]]:
    """Masks (H, W), or (T, H, W) for every threshold of a training-free map."""
    state = trained.adapt(episode.support)
    image = episode.query_image[0]
    learned = trained.segment(image, state, whole=episode.whole).mask[0] == 1
    random = untrained.segment(image, untrained.adapt(episode.support), whole=episode.whole).mask[0] == 1
    features = trained.net.features(episode.query_image[None].float() / 255)
    semantic, abnormal = trained.net.head.priors(features, state)  # (1, 1, N, L)
    maps = {"max-cosine prior": semantic[0, 0].mean(-1), "abnormality map": abnormal[0, 0].amax(-1)}
    found = [("trained head", learned), ("untrained head", random)]
    for name, values in maps.items():
        full = F.interpolate(values.view(1, 1, *features.grid), image.shape[-2:], mode="bilinear")[0, 0]
        found.append((f"{name}, best threshold", full > THRESHOLDS[:, None, None]))
    return found


def best(table: dict[str, Tensor]) -> float:
    """Mean IoU over classes, at the best threshold where there are several."""
    iou = torch.stack([both[0] / both[1].clamp(min=1) for both in table.values()])  # (K,) or (K, T)
    return float(iou.mean(0).max())


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=len(SEEDS))


if __name__ == "__main__":
    tables.started(main)
