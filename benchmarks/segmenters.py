"""Few-shot segmentation: trained against not trained, one and five shots; tables in ``docs/results.md``.

``python -m benchmarks.segmenters --root ../shared/data`` asks ``sofs``, ``incontext`` and ``ridge`` about the
sets found below the root with three seeds and rewrites the tables. SOFS learns magnetic tiles from four
classes and is asked about the fifth; elsewhere its head comes from the toy factory, as it is. One training
with one shot serves both numbers of shots. Finished rows are kept in ``--out`` (JSON lines), so that a
stopped measurement goes on where it was.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import contamination, tables
from benchmarks.contamination import Sides
from benchmarks.tables import Cell, Row, Rows, Table
from fewspect.data.module import DataModule
from fewspect.engine import build, folders
from fewspect.engine.session import concluded

SEEDS = (0, 1, 2)
SHOTS = (1, 5)
METHODS = ("sofs", "incontext", "ridge")
TRAINED = ("sofs",)

TITLE = "Few-shot segmentation"
ASKED = (
    "One or five marked pictures of a defect class that was never trained on: how much of it is found in "
    "other pictures, and does training pay against closed-form and training-free baselines? Found: share of "
    "the defect pixels, by the share of the picture that the defect covers."
)
PUBLISHED = (
    "Published: SOFS reaches 22.5 ± 1.8 mIoU on VISION V1, 1-shot, with DINOv2 ViT-B/14 trained for 2700 "
    "steps of 28 episodes. Not reproduced here: other pictures, a backbone of 0.3 M parameters, two epochs "
    "on a processor."
)

ASK = ("+data.val_episodes=16", "+data.test_episodes=60")
VISION = (
    *("data=vision", "data.fold=null", "data.reader.objects=[]", "data.reader.test_objects=[LPBF,Wagon]"),
    "data.on_bad_file=skip",
)
SETS: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    "magnetic_tile": ("magnetic_tile", ("data=magnetic_tile",), (0, 1, 2, 3, 4)),
    "neu_seg": ("neu_seg", ("data=folder", "data.reader.mask_type=index"), ()),
    "vision": ("vision_layout", VISION, ()),
}
"""Name -> folder below the root, overrides, folds (none: nothing of the set is learned from)."""

TITLES = {
    "magnetic_tile": "Magnetic tiles, leave one class out",
    "neu_seg": "NEU, three classes, nothing trained on them",
    "vision": "LPBF and Wagon, nothing trained on them",
}
OWN = ("trainer.max_epochs=2",)
TOY = ("trainer.max_epochs=4",)
"""What SOFS is trained with: on the other folds of the set, or on the toy factory."""

COLUMNS = {
    "mIoU": ("miou", 100.0),
    "FB-IoU": ("fb_iou", 100.0),
    "Dice": ("dice", 100.0),
    "found, < 0.03 %": ("recall/lt_0.03", 100.0),
    "found, < 0.1 %": ("recall/lt_0.1", 100.0),
    "found, < 1 %": ("recall/lt_1", 100.0),
    "found, 1 % up": ("recall/ge_1", 100.0),
}
"""Found: share of the defect pixels, by the share of the picture that the defect covers."""

COSTS = {
    "ms / image": ("milliseconds", 1.0),
    "GFLOP / image": ("flops", 1e-9),
    "fit, s": ("fit_seconds", 1.0),
    "parameters, M": ("parameters", 1e-6),
    "trained, M": ("trained", 1e-6),
    "peak memory, MiB": ("peak_mib", 1.0),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the tables."""
    options = tables.arguments("segmenters", argv, _more)
    done = {_key(r) for r in tables.read(options.out)}
    for name in options.sets:
        folder, data, folds = SETS[name]
        place = (*data, *ASK, f"data.root={options.root / folder}")
        for fold in (folds or (None,)) if (options.root / folder).is_dir() else ():
            if fold is None or fold in (options.folds or folds):
                part = place if fold is None else (*place, f"data.fold={fold}")
                for seed in options.seeds:
                    for method in options.methods:
                        asked = [(name, fold, method, shot, seed) for shot in options.shots]
                        missing = [key for key in asked if key not in done]
                        for key, found in measure(missing, part) if missing else ():
                            row = dict(zip(("set", "fold", "method", "shot", "seed"), key, strict=True))
                            tables.append(options.out, {**row, **found}, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


Key = tuple[str, int | None, str, int, int]
"""Set, fold, method, shots, seed."""


def _key(row: Row) -> Key:
    return row["set"], row["fold"], row["method"], row["shot"], row["seed"]


def measure(keys: Sequence[Key], data: Sequence[str]) -> Iterator[tuple[Key, Row]]:
    """Rows of some cells of one method and seed; what is trained is trained once for all of them."""
    _, fold, method, _, seed = keys[0]
    told = (f"method={method}", f"seed={seed}")
    with tempfile.TemporaryDirectory() as place:
        start, spent = None, 0.0
        for key in keys:
            asked = (*data, *told, f"data.shot={key[3]}")
            module: DataModule = build.make(tables.tree(*asked)["data"])
            contamination.require(_sides(module, fold), f"{key[0]}, fold {fold}")
            if reason := short_of(module):
                yield key, {"skipped": reason}
                continue
            if method in TRAINED and start is None:
                learned = (*data, *OWN) if fold is not None else TOY
                start, spent = train((*learned, *told), Path(place, "fit"))
            yield key, {"fit_seconds": round(spent, 1), **test(asked, Path(place, f"test{key[3]}"), start)}


def short_of(data: DataModule) -> str:
    """Why the wanted number of supports cannot be drawn; empty when it can."""
    return "; ".join(p.detail for p in data.dataset("test").problems if p.kind == "few-images")


def train(overrides: Sequence[str], folder: Path) -> tuple[Path, float]:
    """The best checkpoint of a training, and its seconds."""
    begin = time.perf_counter()
    with concluded(tables.tree(*overrides), folder, "test") as s:
        s.trainer.fit(s.method, datamodule=s.data, weights_only=True)
    spent = time.perf_counter() - begin
    return next(
        p for n in (folders.BEST, folders.LAST) if (p := folder / folders.CHECKPOINTS / n).is_file()
    ), spent


def test(overrides: Sequence[str], folder: Path, start: Path | None) -> Row:
    """Metrics per set and class, and what they cost."""
    with concluded(tables.tree(*overrides), folder, "test") as s:
        s.trainer.test(s.method, datamodule=s.data, ckpt_path=start, verbose=False, weights_only=True)
        found = tables.metrics(s.trainer.callback_metrics)
        table = s.method.metrics["test_suite"].table()  # type: ignore[operator]
        record: dict[str, Any] = s.record.record
    classes = {f"iou {row['class']}": row["iou"] for row in table if "iou" in row}
    return {
        **found,
        **classes,
        "milliseconds": record.get("milliseconds_per_image"),
        "flops": record.get("flops_per_image"),
        "parameters": record["parameters"]["all"],
        "trained": record["parameters"]["trained"],
        "peak_mib": record["peak_memory_mib"].get("rss"),
    }


def sides(root: Path) -> Iterator[tuple[Row, Sides]]:
    """The splits that are used and whose data are there."""
    for name, (folder, data, folds) in SETS.items():
        for fold in (folds or (None,)) if (root / folder).is_dir() else ():
            more = () if fold is None else (f"data.fold={fold}",)
            tree = tables.tree("method=ridge", *data, *more, f"data.root={root / folder}")
            part = "nothing of it is learned from" if fold is None else f"fold {fold}"
            yield {"set": name, "part": part}, _sides(build.make(tree["data"]), fold)


def _sides(data: DataModule, fold: int | None) -> Sides:
    learned, asked = contamination.of(data)
    return learned if fold is not None else (), asked


def made(rows: Rows) -> list[Table]:
    """One table per set and shots that has rows: a line per method, mean ± half width over seeds."""
    return [
        _table(name, shot, mine)
        for name in SETS
        for shot in SHOTS
        if (mine := [r for r in rows if (r["set"], r["shot"]) == (name, shot)])
    ]


def _table(name: str, shot: int, rows: Rows) -> Table:
    measured = [r for r in rows if "skipped" not in r]
    keys = [k for k in {**COLUMNS, **COSTS} if any((COLUMNS | COSTS)[k][0] in r for r in measured)]
    classes = sorted({k for r in measured for k in r if k.startswith("iou ")})
    plain = tuple(k.removeprefix("iou ").rpartition("/")[2] for k in classes)
    parts = {m: [r for r in measured if r["method"] == m] for m in METHODS}
    ways = {**dict.fromkeys(COLUMNS, "max"), **dict.fromkeys(COSTS, "min")}
    costs = tuple(k for k in keys if k in COSTS)
    return Table(
        f"segmenters {name}",
        f"{TITLES[name]}, {shot}-shot",
        (f"{shot}-shot", *(k for k in keys if k in COLUMNS), *plain, *costs, "cells"),
        [_line(f"`{method}`", part, keys, classes) for method, part in parts.items() if part],
        best={k: ways[k] for k in keys},
        chart=tuple(k for k in ("mIoU", "Dice") if k in keys),
        costs=costs,
        details={"Per class": plain},
        notes=_notes(rows),
    )


def _line(name: str, rows: Rows, keys: Sequence[str], classes: Sequence[str]) -> list[Cell]:
    seeds = _whole(rows)
    cells = [tables.value(_means(seeds, *COLUMNS[k])) for k in keys if k in COLUMNS]
    cells += [tables.value(_means(seeds, c, 100), interval=False) for c in classes]
    cells += [tables.value(_means(seeds, *COSTS[k]), interval=False) for k in keys if k in COSTS]
    return [name, *cells, " + ".join(str(len(part)) for part in seeds)]


def _whole(rows: Rows) -> list[list[Row]]:
    """Rows by seed; only seeds that have as many folds as any, so that all of them ask for the same."""
    seeds = [[r for r in rows if r["seed"] == seed] for seed in sorted({r["seed"] for r in rows})]
    most = max(map(len, seeds))
    return [part for part in seeds if len(part) == most]


def _means(seeds: Sequence[Rows], key: str, factor: float) -> list[float]:
    """Mean over the folds of every seed that has the value."""
    found = (tables.of(rows, key, factor) for rows in seeds)
    return [sum(values) / len(values) for values in found if values]


def _notes(rows: Rows) -> tuple[str, ...]:
    """Cells that cannot be asked, each reason once."""
    told = {f"{r['method']}: {r['skipped']}" for r in rows if "skipped" in r}
    return tuple(f"Not asked: {t}." for t in sorted(told))


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folds", nargs="+", type=int, help="of the sets that have folds")
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=list(SHOTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))


if __name__ == "__main__":
    tables.started(main)
