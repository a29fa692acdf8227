"""``mode=inspect`` on magnetic tiles, many splits: does the promised false-alarm rate hold, are names right?

``python -m benchmarks.inspection --root ../shared/data`` draws 20 splits, whole tiles on either side, and
inspects each with ``alpha=0.05``, once with labelled defects and once with good images only; it rewrites the
table in ``docs/results.md``. Finished splits are kept in ``--out`` (JSON lines).
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import contamination, tables
from benchmarks.contamination import Sides
from benchmarks.tables import Row, Rows, Table
from fewspect.data.readers import magnetic_tile
from fewspect.draws import rng
from fewspect.engine import inspection
from fewspect.types import Sample

SPLITS, ALPHA = 20, 0.05

TRAINED = {"good": 0.8, "defect": 0.5}
"""Share of the tiles that are learned from."""

COLUMNS = {
    "false alarms, %": "false_alarm_rate",
    "found, %": "detection_rate",
    "class right, %": "class_accuracy",
    "called unknown, %": "abstained",
}
PROMISED = "promised"
TITLE = "Inspection: is the promise kept?"
ASKED = (
    "mode=inspect promises that 5 % of good tiles are called defective: what is the rate on unseen tiles, "
    "what share of defects is found, and are their names right?"
)
PUBLISHED = "Published: nothing; the promised rate is the figure to compare with."
SETS = {"tiles with labelled defects": True, "good tiles only": False}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the table."""
    options = tables.arguments("inspection", argv, _more)
    tiles = (options.root / "magnetic_tile").resolve()
    if not tiles.is_dir():
        return
    index = magnetic_tile.read(str(tiles))
    done = {(r["set"], r["split"]) for r in tables.read(options.out)}
    for split in range(options.splits):
        for name, labelled in SETS.items():
            if (name, split) in done:
                continue
            drawn = list(_drawn(index.samples, tiles, split, labelled=labelled))
            contamination.require(_sides(index.samples, tiles, drawn), f"{name}, split {split}")
            found = measure(drawn, tiles, options.method)
            row = {"set": name, "split": split, **found}
            tables.append(options.out, row, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def measure(rows: Sequence[dict[str, str]], tiles: Path, method: str) -> dict[str, float]:
    """Metrics of one inspection of a table of images below ``tiles``."""
    with tempfile.TemporaryDirectory() as place:
        root, folder = Path(place) / "tiles", Path(place) / "run"
        root.mkdir()
        for path in tiles.iterdir():
            (root / path.name).symlink_to(path)
        folder.mkdir()
        with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        told = ["mode=inspect", f"method={method}", "data=folder", f"data.root={root}", f"alpha={ALPHA}"]
        told += ["data.on_bad_file=skip", "data.reader.layout=table"]
        inspection.inspect(tables.config(*told, *tables.FIXED), folder, [])
        metrics = json.loads((folder / "run.json").read_text())["metrics"]
    return {k.removeprefix("inspect/"): v for k, v in metrics.items() if k.startswith("inspect/")}


def _drawn(samples: Sequence[Sample], tiles: Path, split: int, *, labelled: bool) -> Iterator[dict[str, str]]:
    """Rows of a table: image, mask, label, split; whole tiles on either side."""
    known: dict[str, list[Sample]] = {}
    for sample in samples:
        known.setdefault(sample.group or str(sample.image), []).append(sample)
    for kind, share in TRAINED.items():
        if kind == "defect" and not labelled:
            continue
        own = sorted(g for g, members in known.items() if (members[0].label == 0) == (kind == "good"))
        order = rng(split, f"inspection/{kind}").permutation(len(own))
        train = {own[int(i)] for i in order[: round(share * len(own))]}
        for group in own:
            for sample in known[group]:
                name = next(iter(sample.regions), "good")
                drawn = sample.regions[name][0].path if sample.regions else None
                side = "train" if group in train else "test"
                image = str(sample.image.resolve().relative_to(tiles))
                mask = str(drawn.resolve().relative_to(tiles)) if drawn else ""
                yield {"image": image, "mask": mask, "label": name, "split": side}


def sides(root: Path) -> Iterator[tuple[Row, Sides]]:
    """The splits that are used, if the data are there."""
    tiles = (root / "magnetic_tile").resolve()
    samples = magnetic_tile.read(str(tiles)).samples if tiles.is_dir() else ()
    for split in range(SPLITS) if samples else ():
        drawn = list(_drawn(samples, tiles, split, labelled=True))
        yield {"set": "magnetic_tile", "part": f"split {split}"}, _sides(samples, tiles, drawn)


def _sides(samples: Sequence[Sample], tiles: Path, rows: Sequence[dict[str, str]]) -> Sides:
    known = {str(s.image.resolve().relative_to(tiles)): s for s in samples}
    train, test = ([known[r["image"]] for r in rows if r["split"] == side] for side in ("train", "test"))
    return train, test


def made(rows: Rows) -> list[Table]:
    """Mean ± half width of the 95 % interval over splits."""
    parts = {name: [r for r in rows if r["set"] == name] for name in SETS}
    lines = [
        [name, str(len(mine)), *(tables.value(tables.of(mine, key)) for key in COLUMNS.values())]
        for name, mine in parts.items()
        if mine
    ]
    if not lines:
        return []
    title, head = "Magnetic tiles, 5 % false alarms promised", ("set", "splits", *COLUMNS)
    level = {"line": 100 * ALPHA, "line_name": PROMISED}
    return [Table("inspection", title, head, lines, chart=("false alarms, %",), **level)]


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--method", default="subspace")


if __name__ == "__main__":
    tables.started(main)
