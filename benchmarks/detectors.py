"""Every unsupervised detector on real good images: one table per data set in ``docs/results.md``.

``python -m benchmarks.detectors --root ../shared/data`` trains and tests all methods with three seeds on the
sets found below the root (magnetic tiles, the small MVTec screw, NEU) and rewrites the tables. Finished runs
are kept in ``--out`` (JSON lines), so that a stopped measurement goes on where it was.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import contamination, tables
from benchmarks.contamination import Sides
from benchmarks.tables import Cell, Row, Rows, Table
from fewspect.data.module import DataModule
from fewspect.data.plain import asked, good
from fewspect.engine import build, folders
from fewspect.engine.session import Session, concluded

SEEDS = (0, 1, 2)

SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "magnetic_tile": ("magnetic_tile", ("data=magnetic_tile",)),
    "screw": ("mvtec_screw_mini", ("data=mvtec",)),
    "neu": ("neu", ("data=neu", "data.reader.normal_class=patches", "data.test_episodes=200")),
}
"""Name -> folder below the root, overrides."""

TRAINED = (
    *("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3"),
    *("data.episodes=200", "data.batch_size=2", "data.side=128"),
)
"""A small budget, 300 steps, so that the table can be made on a CPU; the recipes train 120 to 200 epochs."""
METHODS: dict[str, tuple[str, ...]] = {
    "patch_nn": ("method=patch_nn",),
    "subspace": ("method=subspace",),
    "dino_recon": ("method=dino_recon", *TRAINED),
    "ssim_ae": ("method=ssim_ae", *TRAINED),
    "red_net": ("method=red_net", *TRAINED),
    "vae": ("method=vae", *TRAINED),
    "srgan": ("method=srgan", *TRAINED),
    "bergmann_ae": ("method=bergmann_ae", *TRAINED),
}
TITLE = "Unsupervised detectors"
ASKED = "Trained on good images only: how well do a score per image and a map per pixel tell defects apart?"
PUBLISHED = (
    "Published on MVTec AD, 15 categories: PatchCore image AUROC 99.0, pixel AUROC 98.0 (Wide ResNet-50); "
    "AnomalyDINO 99.5 and PRO 95.0 with all good images (ViT-S); Dinomaly 99.7 and 98.4 (ViT-B); the SSIM "
    "autoencoder pixel AUROC 86.9, PRO 69.4. None of these is reproduced here: other pictures, a backbone of "
    "0.3 M parameters, and 300 steps of training."
)
TITLES = {
    "magnetic_tile": "Magnetic tiles",
    "screw": "MVTec screw, the small sample",
    "neu": "NEU, patches play the good images",
}
COLUMNS = {
    "image AUROC": ("image_auroc", 100),
    "pixel AUROC": ("pixel_auroc", 100),
    "pixel AP": ("pixel_ap", 100),
    "AUPRO 0.3": ("aupro_0.3", 100),
    "IoU": ("miou", 100),
    "false alarms, %": ("false_alarm_rate", 100),
    "found, %": ("accuracy_defective", 100),
    "ms / image": ("milliseconds", 1),
    "state, MB": ("megabytes", 1),
}
TIMED = 20
"""Test images whose answers are timed, after two uncounted ones."""
BY_SIZE = {
    "found, < 0.03 %": "recall/lt_0.03",
    "found, < 0.1 %": "recall/lt_0.1",
    "found, < 1 %": "recall/lt_1",
    "found, 1 % up": "recall/ge_1",
}
"""Share of the defect pixels, by the share of the picture that the defect covers."""

COSTS = ("fit, s", "ms / image", "state, MB")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the tables."""
    options = tables.arguments("detectors", argv, _more)
    done = {(r["set"], r["method"], r["seed"]) for r in tables.read(options.out)}
    for name in options.sets:
        folder, data = SETS[name]
        for seed in SEEDS:
            for method in options.methods:
                if (options.root / folder).is_dir() and (name, method, seed) not in done:
                    place = [f"data.root={options.root / folder}", f"seed={seed}"]
                    found = measure([*data, *METHODS[method], *place])
                    row = {"set": name, "method": method, "seed": seed, **found}
                    tables.append(options.out, row, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def measure(overrides: list[str]) -> dict[str, float]:
    """Train and test one method; metrics of the test, time per image and size of the checkpoint."""
    tree = tables.tree(*overrides)
    with tempfile.TemporaryDirectory() as place, concluded(tree, Path(place), "test") as session:
        contamination.require(_sides(session.data), " ".join(overrides[:2]))
        return _run(session, Path(place))


def _run(session: Session, place: Path) -> dict[str, float]:
    s, begin = session, time.perf_counter()
    s.trainer.fit(s.method, datamodule=s.data, weights_only=True)
    spent = time.perf_counter() - begin
    best = next(p for n in (folders.BEST, folders.LAST) if (p := place / folders.CHECKPOINTS / n).is_file())
    s.trainer.test(s.method, datamodule=s.data, ckpt_path=best, verbose=False, weights_only=True)
    found = tables.metrics(s.trainer.callback_metrics)
    return {**found, "fit_seconds": spent, **_speed(session), "megabytes": _size(best)}


def _size(checkpoint: Path) -> float:
    """Megabytes of what the answers need beside the backbone."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return sum(v.numel() * v.element_size() for v in state.values() if isinstance(v, torch.Tensor)) / 1e6


def _speed(session: Session) -> dict[str, float]:
    """Median time of one answer at the image's own size, decision included, batch 1."""
    asked = session.data.dataset("test")
    method, taken = session.method.eval(), []
    for k in range(min(len(asked), TIMED + 2)):
        episode = asked[k]
        begin = time.perf_counter()
        method.answers([episode])
        taken.append(1000 * (time.perf_counter() - begin))
    return {"milliseconds": statistics.median(taken[2:] or taken)}


def sides(root: Path) -> Iterator[tuple[Row, Sides]]:
    """The splits that are used and whose data are there."""
    for name, (folder, data) in SETS.items():
        if (root / folder).is_dir():
            tree = tables.tree("method=subspace", *data, f"data.root={root / folder}")
            yield {"set": name, "part": "good ones learn"}, _sides(build.make(tree["data"]))


def _sides(data: DataModule) -> Sides:
    learned = [s for part in good(data.index, data.shot, data.seed, hold_out=data.hold_out) for s in part]
    return learned, asked(data.index, "test")


def made(rows: Rows) -> list[Table]:
    """One table per set that has rows: a line per method, mean ± half width over seeds."""
    found = {name: [r for r in rows if r["set"] == name] for name in SETS}
    best = {c: "max" for c in ("image AUROC", "pixel AUROC", "pixel AP", "AUPRO 0.3", "IoU", "found, %")}
    return [
        Table(
            f"detectors {name}",
            TITLES[name],
            ("method", *COLUMNS, *BY_SIZE, "fit, s"),
            [_line(m, part) for m in METHODS if (part := [r for r in mine if r["method"] == m])],
            best={**best, "ms / image": "min", "state, MB": "min", "fit, s": "min"},
            chart=("image AUROC", "pixel AUROC"),
            costs=COSTS,
            details={
                "Defect pixels found, by the share of the picture that the defect covers": tuple(BY_SIZE)
            },
            extra=(*BY_SIZE, "fit, s"),
            line=50,
        )
        for name, mine in found.items()
        if mine
    ]


def _line(method: str, rows: Rows) -> list[Cell]:
    cells = (
        tables.value(tables.of(rows, key, factor), interval=key not in ("milliseconds", "megabytes"))
        for key, factor in COLUMNS.values()
    )
    by_size = (tables.value(tables.of(rows, key)) for key in BY_SIZE.values())
    return [f"`{method}`", *cells, *by_size, tables.value(tables.of(rows, "fit_seconds", 1), interval=False)]


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))


if __name__ == "__main__":
    tables.started(main)
