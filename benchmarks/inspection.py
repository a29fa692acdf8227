"""``mode=inspect`` on magnetic tiles, many splits: does the promised false-alarm rate hold, are names right?

``python -m benchmarks.inspection --root ../shared/data`` draws 20 splits, whole tiles on either side, and
inspects each with ``alpha=0.05``, once with labelled defects and once with good images only; it rewrites the
table in ``docs/results.md``. Finished splits are kept in ``--out`` (JSON lines).
"""

import argparse
import csv
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fewspect.data.readers import magnetic_tile
from fewspect.draws import rng
from fewspect.engine import folders, inspection
from fewspect.types import Sample

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
START, END = "<!-- inspection -->", "<!-- /inspection -->"
SPLITS, ALPHA = 20, 0.05
STUDENT = 2.093
"""97.5 % point of Student's t with 19 degrees of freedom."""

TRAINED = {"good": 0.8, "defect": 0.5}
"""Share of the tiles that are learned from."""

COLUMNS = {
    "false alarms, %": "false_alarm_rate",
    "found, %": "detection_rate",
    "class right, %": "class_accuracy",
    "called unknown, %": "abstained",
}
SETS = {"tiles with labelled defects": True, "good tiles only": False}


def main() -> None:
    """Measure what is missing, then write the table."""
    options = _arguments()
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    torch.set_num_threads(1)
    tiles = (options.root / "magnetic_tile").resolve()
    index = magnetic_tile.read(str(tiles))
    done = {(r["set"], r["split"]) for r in _read(options.out)}
    for split in range(options.splits):
        for name, labelled in SETS.items():
            if (name, split) in done:
                continue
            drawn = list(_drawn(index.samples, tiles, split, labelled=labelled))
            found = measure(drawn, tiles, options.method)
            row = {"set": name, "split": split, **found}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    write(_read(options.out))


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
        told += ["logger=none", "trainer=cpu", "data.workers=0"]
        told += ["data.on_bad_file=skip", "data.reader.layout=table"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            inspection.inspect(compose("config", told), folder, [])
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


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Put the table between its marks in the page; print it."""
    lines = [f"| set | splits | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in SETS:
        mine = [r for r in rows if r["set"] == name]
        if mine:
            cells = (_cell([100 * r[key] for r in mine if key in r]) for key in COLUMNS.values())
            lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    body = "\n".join(lines)
    print(body)
    text = PAGE.read_text("utf-8")
    if START in text:
        PAGE.write_text(f"{text.split(START)[0]}{START}\n{body}\n{END}{text.split(END)[1]}", "utf-8")


def _cell(values: Sequence[float]) -> str:
    """Mean ± half width of the 95 % interval over splits."""
    if not values:
        return ""
    half = STUDENT * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds magnetic_tile")
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "inspection.jsonl")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--method", default="subspace")
    return parser.parse_args()


if __name__ == "__main__":
    main()
