"""Finished runs of MVREC in the layout of its published table: one row per object, multi and single view.

``python -m benchmarks.published --runs logs/sweeps/<sweep>`` reads ``run.json`` and ``episodes.csv`` of every
run below the folder. As published: every sampling rounded to four digits, mean over samplings rounded to
four, then the mean over objects.
"""

import argparse
import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

SHOTS = (1, 3, 5)
WAYS = {"all": "mv", "first": "sv"}

Values = Mapping[tuple[str, int, str], float]
"""(object, shots, mv or sv) -> accuracy."""


def collect(folder: Path) -> dict[str, dict[tuple[str, int, str], float]]:
    """Head -> values of all finished runs below a folder; the newest run of a setting counts."""
    found: dict[str, dict[tuple[str, int, str], float]] = defaultdict(dict)
    for path in sorted(folder.rglob("run.json"), key=lambda p: p.stat().st_mtime):
        record = json.loads(path.read_text("utf-8"))
        episodes = path.parent / "samplings.csv"
        if record.get("status") != "done" or not episodes.is_file():
            continue
        method, shot = record["config"]["method"], record["config"]["data"]["shot"]
        way = WAYS.get(str(method.get("query_views", "all")))
        products: dict[str, list[float]] = defaultdict(list)
        with episodes.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                products[row["product"]].append(round(float(row["accuracy"]), 4))
        for product, values in products.items() if way else ():
            found[method["head"]][product, shot, way] = round(statistics.mean(values), 4)
    return found


def table(values: Values) -> str:
    """Markdown in the published layout."""
    columns = [(s, w) for s in SHOTS for w in ("mv", "sv") if any(k[1:] == (s, w) for k in values)]
    lines = [
        "| object | " + " | ".join(f"{s} {w}" for s, w in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    objects = list(dict.fromkeys(k[0] for k in values))
    for name in objects:
        cells = [f"{values[name, s, w]:.4f}" if (name, s, w) in values else "" for s, w in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = []
    for s, w in columns:
        known = [values[o, s, w] for o in objects if (o, s, w) in values]
        means.append(f"**{statistics.mean(known):.4f}**")
    return "\n".join([*lines, f"| **average of {len(objects)}** | " + " | ".join(means) + " |"])


def main() -> None:
    """Print one table per head."""
    parser = argparse.ArgumentParser(description="Runs of MVREC in the published layout")
    parser.add_argument("--runs", type=Path, required=True, help="folder with finished runs")
    for head, values in collect(parser.parse_args().runs).items():
        print(f"{head}\n{table(values)}\n")


if __name__ == "__main__":
    main()
