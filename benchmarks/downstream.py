"""What are generated images worth? A supervised segmenter on real images alone and with further ones.

``python -m benchmarks.downstream --root ../shared/data`` generates images with ``paste`` and with Defect-Gen
(a pair of networks per seed, kept in ``--pairs``) from the very images that learn (five per product and
class), trains the same segmenter for the same number of steps on real and on real + generated images with
five seeds, tests all on the same images, and rewrites the tables of ``docs/results.md``. Finished runs are
kept in ``--out`` (JSON lines), so that a stopped measurement goes on where it was.
``--generated "mine=sets/{set}_{seed}"`` adds a line for folders that another generator has written from the
same split: ``mode=generate ... seed=<seed> data.shot=5``.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import copytree

from benchmarks import contamination, crops, steps, tables
from benchmarks.contamination import Sides
from benchmarks.tables import Cell, Row, Rows, Table
from fewspect.callbacks.files import folder_atomic
from fewspect.callbacks.samples import write_set
from fewspect.data.labelled import LabelledDataset
from fewspect.data.module import DataModule
from fewspect.engine import build, folders
from fewspect.engine import main as modes
from fewspect.engine.drawing import Shown
from fewspect.engine.session import concluded
from fewspect.methods.generator import Generator

SEEDS = (0, 1, 2, 3, 4)

TOY = (
    *("data=toy", "data.side=64", "data.reader.side=64", "data.reader.images_per_class=16"),
    *("data.reader.val_per_class=0", "data.reader.test_per_class=1", "data.reader.good=24"),
    *("data.reader.folds=6", "+data.reader.products=[wood]"),
    "+data.reader.defects=[blob,burn,chip,dent,hole,scratch]",
)
SETS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "toy": (None, TOY),
    "magnetic_tile": ("magnetic_tile", ("data.side=64",)),
}
"""Name -> folder below the root (None: it writes itself), overrides."""

SQUARES = Path("data/magnetic_tile_squares")
"""Defects of whole tiles are too small for a network that learns from five of them on a CPU."""

SHOT = ("data.shot=5", "data.normal_shot=20")
PLAN = (
    *("data.episodes=600", "data.batch_size=4", "trainer.max_epochs=2"),
    *("trainer.limit_val_batches=0", "data.workers=0"),
)
"""300 steps of four images, so that the tables can be made on a CPU; the default is 400 steps of eight."""
TURN = {"toy": "mirror", "magnetic_tile": "any"}
"""How Defect-Gen's training pictures may be turned: wood has a grain, a tile has not."""

Maker = Callable[[Path], object]
"""Writes generated images into a new folder."""

TITLE = "What generated images are worth"
ASKED = (
    "A supervised segmenter learns from five real images per class, alone or with as many generated images "
    "made from these very images: what does it gain?"
)
PUBLISHED = (
    "Published: Defect Spectrum reports up to 9.85 points of mIoU (cotton) from Defect-Gen's pictures, with "
    "another segmenter, other data and all real images; not comparable and not reproduced here."
)
TITLES = {
    "toy": "Toy wood, five classes, 64 pixels",
    "magnetic_tile": "Magnetic tiles, squares of 64 pixels around three defect types",
}
REAL, PASTE = "real", "real + paste"
DRAWN = {
    "real + Defect-Gen": ("generate.complete=true",),
    "real + Defect-Gen, variations": ("generate.start=0.4",),
}
"""What Defect-Gen is asked for: pictures from noise, or its training pictures with another texture."""

COLUMNS = {
    "mIoU": "miou",
    "with background": "miou_with_background",
    "Dice": "dice",
    "false alarms, %": "false_alarm_rate",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the tables."""
    options = tables.arguments("downstream", argv, _more, root=False)
    further = dict(g.split("=", 1) for g in options.generated)
    for name in options.sets:
        folder, data = SETS[name]
        if folder is not None and (options.root is None or not (options.root / folder).is_dir()):
            continue
        place = squares(options.root / folder) if folder and options.root else ()
        for seed in SEEDS[: options.seeds]:
            done = {(r["set"], r["variant"], r["seed"]) for r in tables.read(options.out)}
            asked = (*data, *place, *SHOT, f"seed={seed}")
            pair = options.pairs / f"{name}_{seed}"
            makers: dict[str, Maker | None] = {
                REAL: None,
                PASTE: partial(paste, asked, options.ratio),
                **{
                    k: partial(defect_gen, asked, options.ratio, pair, (f"method.turn={TURN[name]}", *v))
                    for k, v in DRAWN.items()
                },
                **{
                    f"real + {k}": partial(copytree, v.format(set=name, seed=seed))
                    for k, v in further.items()
                },
            }
            for variant, make in makers.items():
                if (name, variant, seed) not in done and variant not in options.without:
                    found = measure(asked, options.ratio, make)
                    row = {"set": name, "variant": variant, "seed": seed, "ratio": options.ratio, **found}
                    tables.append(options.out, row, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def squares(root: Path) -> tuple[str, ...]:
    """Overrides that read the squares of the tiles; cut where they are not there."""
    if not SQUARES.is_dir():
        with folder_atomic(SQUARES) as place:
            crops.cut(str(root), place, side=64)
    return crops.overrides(SQUARES)


def measure(data: Sequence[str], ratio: float, make: Maker | None) -> dict[str, float]:
    """Test metrics of the segmenter that learned from real images and, if there is a maker, from its own."""
    with tempfile.TemporaryDirectory() as place:
        more = []
        if make is not None:
            make(Path(place, "generated"))
            more = [f"data.extra_root={place}/generated", f"data.extra_ratio={ratio}"]
        return train([*data, "method=segmenter", *PLAN, *more], Path(place, "run"))


def number(data: Sequence[str], ratio: float) -> int:
    """Images to generate: so many per real one that the segmenter learns from, good ones among them."""
    source = build.make(tables.tree(*data, "method=segmenter")["data"])
    return math.ceil(ratio * len(source.dataset("train").samples))


def paste(data: Sequence[str], ratio: float, folder: Path) -> None:
    """Write so many generated images per real one, made of those that learn."""
    tree = tables.tree(*data, "method=paste")
    source, method = build.parts(tree)
    assert isinstance(method, Generator)
    shown = Shown()
    for episode in source.dataset("train"):
        method.observe([episode])
        shown.add(episode)
    made = shown.drawn(method.generate, number(data, ratio))
    write_set(folder, made, method.classes, {"seen": shown.digests})


def defect_gen(data: Sequence[str], ratio: float, place: Path, how: Sequence[str], folder: Path) -> None:
    """The same with a pair of networks that learned from these images, trained where it is not there."""
    turn, *wish = how
    asked = (*data, "method=defect_gen", "data.normal_shot=0", turn, "trainer.limit_val_batches=0")
    large, small = steps.pair(place, *asked)
    draw = ("mode=generate", f"generate.count={number(data, ratio)}", f"generate.folder={folder}", *wish)
    nets = (f"method.small={small}", f"checkpoint={large / folders.CHECKPOINTS / folders.LAST}")
    with tempfile.TemporaryDirectory() as run:
        modes.generate(tables.config(*asked, *draw, *nets, *tables.FIXED), Path(run), [])


def train(overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Train and test in this process."""
    tree = tables.tree(*overrides)
    begin = time.perf_counter()
    with concluded(tree, folder, "test") as s:
        contamination.require(_sides(s.data), " ".join(overrides[:2]))
        s.trainer.fit(s.method, datamodule=s.data, weights_only=True)
        spent = time.perf_counter() - begin
        s.trainer.test(s.method, datamodule=s.data, verbose=False)
        found = tables.metrics(s.trainer.callback_metrics)
        table = s.method.metrics["test_suite"].table()  # type: ignore[operator]
        classes = {f"iou {row['class']}": row["iou"] for row in table if "iou" in row}
    kept = {k: v for k, v in found.items() if "/" not in k}
    return {**kept, **classes, "fit_seconds": round(spent, 1)}


def sides(root: Path) -> Iterator[tuple[Row, Sides]]:
    """The splits that are used and whose data are there, first seed."""
    for name, (folder, data) in SETS.items():
        if folder is None or (root / folder).is_dir():
            place = squares(root / folder) if folder else ()
            tree = tables.tree(*data, *place, *SHOT, "method=segmenter")
            yield {"set": name, "part": "five per class learn, seed 0"}, _sides(build.make(tree["data"]))


def _sides(data: DataModule) -> Sides:
    """Real images only: generated ones of an asked image are refused by ``data.extra_root`` itself."""
    learned, asked = data.dataset("train"), data.dataset("test")
    assert isinstance(learned, LabelledDataset)
    assert isinstance(asked, LabelledDataset)
    return learned.samples, asked.samples


def made(rows: Rows) -> list[Table]:
    """One table per set that has rows: a line per training set, mean ± half width over seeds."""
    return [_table(name, mine) for name in SETS if (mine := [r for r in rows if r["set"] == name])]


def _table(name: str, rows: Rows) -> Table:
    classes = sorted({k for r in rows for k in r if k.startswith("iou ")})
    real = {r["seed"]: r for r in rows if r["variant"] == REAL}
    plain = tuple(k.removeprefix("iou ") for k in classes)
    variants = dict.fromkeys(r["variant"] for r in rows)
    parts = {v: [r for r in rows if r["variant"] == v] for v in variants}
    return Table(
        f"downstream {name}",
        TITLES[name],
        ("learned from", *COLUMNS, "gain in mIoU, paired", *plain, "seeds"),
        [_line(variant, mine, real, classes) for variant, mine in parts.items()],
        best={"mIoU": "max", "with background": "max", "Dice": "max", "false alarms, %": "min"},
        chart=("mIoU",),
        details={"Per class": plain},
    )


def _line(variant: str, rows: Rows, real: dict[int, Row], classes: Sequence[str]) -> list[Cell]:
    gains = [100 * (r["miou"] - real[r["seed"]]["miou"]) for r in rows if r["seed"] in real]
    gain = "" if variant == REAL else tables.value(gains, sign=True)
    cells = [tables.value(tables.of(rows, key)) for key in COLUMNS.values()]
    return [
        variant,
        *cells,
        gain,
        *(tables.value(tables.of(rows, k), interval=False) for k in classes),
        str(len(rows)),
    ]


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--ratio", type=float, default=1.0, help="generated images per real one")
    parser.add_argument("--without", nargs="*", default=[], choices=(PASTE, *DRAWN))
    parser.add_argument(
        "--pairs", type=Path, default=Path("data/defect_gen_pairs"), help="the trained networks"
    )
    parser.add_argument("--generated", nargs="*", default=[], help="name=folder with {set} and {seed}")


if __name__ == "__main__":
    tables.started(main)
