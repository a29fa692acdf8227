"""How many steps does Defect-Gen need? 20 and 30 calls of a fast solver against the original's 1000.

``python -m benchmarks.steps`` trains the tiny pair on the toy factory (``experiment=defect_gen_toy``; kept in
``--pair``), draws a set with every solver and three seeds of the noise, sets each beside the real images
(``mode=evaluate``), and rewrites the table in ``docs/results.md``. The spread of the slow solver over its own
seeds is what a fast one has to stay within. Finished rows are kept in ``--out`` (JSON lines).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.tables import Cell, Row, Rows, Table, Value
from fewspect.callbacks.files import folder_atomic
from fewspect.engine import folders
from fewspect.engine import main as modes

SEEDS = (0, 1, 2)
COUNT = 32
"""Samples of a set; a thousand calls for each of them is what takes the time."""

RECIPE = "experiment=defect_gen_toy"
SOLVERS: dict[str, tuple[str, int]] = {
    "`original`, 1000 steps": ("original", 1000),
    "`ddim`, 50 steps": ("ddim", 50),
    "`dpm`, 30 steps": ("dpm", 30),
    "`dpm`, 20 steps (default)": ("dpm", 20),
    "`dpm`, 10 steps": ("dpm", 10),
}
SLOW = next(iter(SOLVERS))

COLUMNS = {
    "KID x 1000, images": "kernel distance x 1000 (tiny, images)",
    "KID x 1000, defects": "kernel distance x 1000 (tiny, defects)",
    "defect area, %": "defect area, share of the image, median",
    "regions": "regions per image, median",
    "contrast": "contrast of what is marked, median",
    "near copies, %": "near copies of training images (pixels), share",
}
PERCENT = ("defect area, %", "near copies, %")
REAL = "real images that learned"

TITLE = "Defect-Gen: how many steps?"
ASKED = (
    "A thousand calls of the networks for a picture, or twenty? Distance to real images that the generator "
    "has not seen, and statistics of the masks; ± is the standard deviation over seeds of the noise."
)
PUBLISHED = "Published: 1000 steps; no measurement of fewer."


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the table."""
    options = tables.arguments("steps", argv, _more, root=False)
    done = {(r["row"], r["seed"]) for r in tables.read(options.out)}
    for seed in SEEDS[: options.seeds]:
        for name in SOLVERS:
            if (name, seed) not in done:
                found = measure(pair(options.pair, RECIPE), name, seed)
                row = {"set": "toy", "row": name, "seed": seed, **found}
                tables.append(options.out, row, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def pair(place: Path, *overrides: str) -> tuple[Path, Path]:
    """Run folders of the large and of the small network, trained where they are not there."""
    runs = place / "large", place / "small"
    for run in runs:
        if not run.is_dir():
            with folder_atomic(run) as half:
                modes.train(tables.config(*overrides, f"method.stage={run.name}", *tables.FIXED), half, [])
    return runs


def measure(runs: tuple[Path, Path], name: str, seed: int) -> Row:
    """What one solver draws, beside real images; the generator's own training images beside them, too."""
    solver, steps = SOLVERS[name]
    large, small = runs
    told = (RECIPE, f"method.small={small}", f"method.solver={solver}", f"method.steps={steps}")
    with tempfile.TemporaryDirectory() as place:
        drawn, judged = Path(place, "drawn"), Path(place, "judged")
        drawn.mkdir()
        judged.mkdir()
        asked = ("mode=generate", f"generate.count={COUNT}", f"generate.batch={COUNT}", f"method.seed={seed}")
        learned = f"checkpoint={large / folders.CHECKPOINTS / folders.BEST}"
        begin = time.perf_counter()
        modes.generate(tables.config(*told, *asked, learned, *tables.FIXED), drawn, [])
        spent = time.perf_counter() - begin
        beside = ("mode=evaluate", f"evaluate.generated={drawn / modes.GENERATED}")
        modes.evaluate(tables.config(RECIPE, *beside, *tables.FIXED), judged, [])
        found = json.loads((judged / "run.json").read_text("utf-8"))["metrics"]
    return {"calls": steps, "seconds": round(spent, 1), "count": COUNT, **found}


def made(rows: Rows) -> list[Table]:
    """Mean ± standard deviation over seeds, and what real images reach."""
    if not rows:
        return []
    parts = {name: [r for r in rows if r["row"] == name] for name in SOLVERS}
    lines = [_line(name, mine) for name, mine in parts.items() if mine]
    ideal: list[Cell] = [REAL, *(_cell(column, rows[:1], "real/") for column in COLUMNS), "", "", ""]
    head = ("solver", *COLUMNS, "calls", "s / sample", "seeds")
    costs = ("calls", "s / sample")
    charted = ("KID x 1000, images",)
    return [Table("steps", "Tiny pair on toy wood", head, [*lines, ideal], chart=charted, costs=costs)]


def _line(name: str, rows: Rows) -> list[Cell]:
    seconds = statistics.mean(r["seconds"] / r["count"] for r in rows)
    told = [str(rows[0]["calls"]), Value(seconds), str(len(rows))]
    return [name, *(_cell(column, rows) for column in COLUMNS), *told]


def _cell(column: str, rows: Rows, prefix: str = "") -> Cell:
    values = tables.of(rows, prefix + COLUMNS[column], 100 if column in PERCENT else 1)
    return tables.spread(values) if values else ""


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument(
        "--pair", type=Path, default=Path("data/defect_gen_pair"), help="the trained networks"
    )


if __name__ == "__main__":
    tables.started(main)
