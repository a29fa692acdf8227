"""Few-shot classification of real pictures: every head on identical samplings, beside simple baselines.

``python -m benchmarks.classifiers --root ../shared/data`` describes the instances of the sets found below the
root with the embedded backbone (once, kept in ``--cache``), draws the samplings, and rewrites the tables of
``docs/results.md``; finished rows are kept in ``--out`` (JSON lines). Baselines on the same supports and
queries: nearest neighbour on raw pixels, nearest class mean of histograms of colour and gradient.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import contamination, tables
from benchmarks.contamination import Sides
from benchmarks.tables import Cell, Row, Rows, Table, Value
from fewspect.data.feature_episodes import FeatureEpisodes
from fewspect.data.features import FeatureSet
from fewspect.data.module import DataModule
from fewspect.engine import build
from fewspect.methods.mvrec.method import MVREC
from fewspect.metrics.classification import half_width

TITLE = "Few-shot classification of defects"
ASKED = "One, three or five examples of every class: which head names the defects of unseen pictures best?"
PUBLISHED = (
    "Published on MVTec-FS with AlphaCLIP ViT-L, 1 / 3 / 5 shots: Zip-Adapter 71.7 / 79.5 / 82.9 %, "
    "Zip-Adapter-F 73.7 / 86.1 / 89.7 %. Not reproduced here: other data, and features of 0.3 M parameters."
)
TITLES = {
    "neu": "NEU, six textures: accuracy",
    "x_sdd": "X-SDD, seven classes: accuracy",
    "magnetic_tile": "Magnetic tiles, five classes: accuracy",
}
SHOTS = (1, 3, 5)
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "neu": ("neu", ("data=neu",)),
    "x_sdd": ("x_sdd", ("data=x_sdd",)),
    "magnetic_tile": (
        "magnetic_tile",
        ("data=magnetic_tile", "+data.features.views.sizes=[80,120,160]"),
    ),
}
"""Name -> folder below the root, overrides."""

HEADS = ("zip", "zip_f", "tip_f", "proto", "knn", "ridge", "lda", "linear", "centered")
TRAINED = {"zip_f", "tip_f"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the tables."""
    options = tables.arguments("classifiers", argv, _more)
    wanted = {(s, name) for s in SHOTS for name in (*options.heads, *BASELINES)}
    for name in options.sets:
        folder, overrides = SETS[name]
        done = {(r["shot"], r["method"]) for r in tables.read(options.out) if r["set"] == name}
        if (options.root / folder).is_dir() and wanted - done:
            data = _data([*overrides, f"data.root={options.root / folder}"], options)
            contamination.require(_sides(data), name)
            for shot, method in sorted(wanted - done):
                right = measure(data, method, shot)
                row = {"set": name, "method": method, "shot": shot, **_told(right, options)}
                tables.append(options.out, row, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def _data(overrides: list[str], options: argparse.Namespace) -> DataModule:
    fixed = [
        "method=mvrec",
        f"data.features.cache={options.cache}",
        f"data.features.samplings={options.samplings}",
    ]
    return _single(build.make(tables.tree(*fixed, *overrides, *options.overrides)["data"]))


def _single(data: DataModule) -> DataModule:
    """Every picture once: X-SDD holds copies, which its halves would show on both sides."""
    data._index = contamination.without_copies(data.index)
    return data


def measure(data: DataModule, name: str, shot: int) -> Tensor:
    """Accuracy of every sampling (samplings,) of a head or a baseline."""
    episodes = data.source.episodes("test", lambda: data.index, shot, data.seed)
    if name not in BASELINES:
        return accuracy(MVREC(head=name), episodes, 2 if name in TRAINED else 10)
    made = BASELINES[name]
    tasks = data.source.tasks(lambda: data.index)
    plain = [replace(t, support=made(t.support), query=made(t.query)) for t in tasks]
    same = FeatureEpisodes(plain, shot=shot, samplings=episodes.samplings, seed=data.seed)
    return accuracy(MVREC(head="knn", knn={"k": 1}) if made is pixels else MVREC(head="proto"), same, 10)


def _told(right: Tensor, options: argparse.Namespace) -> Row:
    """Mean, half width and every sampling, for paired differences."""
    values = right.double().numpy()
    told = {"accuracy": float(values.mean()), "accuracy_ci95": half_width(values)}
    more = {"overrides": options.overrides} if options.overrides else {}
    return {**told, "samplings": [round(float(v), 6) for v in values], **more}


def accuracy(method: MVREC, episodes: FeatureEpisodes, together: int) -> Tensor:
    """Share of right answers of every episode."""
    every, found = list(episodes), []
    for start in range(0, len(every), together):
        batch = every[start : start + together]
        for episode, answer in zip(batch, method.answers(batch), strict=True):
            assert answer.logits is not None
            right = answer.logits.argmax(-1) + 1 == episode.query_label
            found.append(right[episode.query_label > 0].float().mean())
    return torch.stack(found)


def pixels(made: FeatureSet) -> FeatureSet:
    """Grey values of the small pictures, 32 x 32, without their mean."""
    assert made.thumb is not None
    grey = made.thumb[:, :3].float().mean(1, keepdim=True) / 255
    small = torch.nn.functional.adaptive_avg_pool2d(grey, 32).flatten(1)
    return replace(made, feature=(small - small.mean(1, keepdim=True))[:, None, None])


def histograms(made: FeatureSet) -> FeatureSet:
    """Histograms of every channel (16 bins), of gradient directions and strengths (8 bins), side by side."""
    assert made.thumb is not None
    rows = []
    for picture in made.thumb[:, :3].numpy():
        colour = np.concatenate([np.histogram(c, 16, (0, 256))[0] / c.size for c in picture])
        down, right = np.gradient(picture.mean(0).astype(float))
        angle, strength = np.arctan2(down, right), np.hypot(down, right)
        turn = np.histogram(angle, 8, (-math.pi, math.pi), weights=strength)[0] / (strength.sum() + 1e-9)
        level = np.histogram(strength, 8, (0, 64))[0] / strength.size
        rows.append(np.concatenate([colour, turn, level]))
    return replace(made, feature=torch.from_numpy(np.sqrt(np.stack(rows))).float()[:, None, None])


BASELINES = {"raw pixels, nearest neighbour": pixels, "histograms, nearest mean": histograms}
"""What the features have to beat."""


def sides(root: Path) -> Iterator[tuple[Row, Sides]]:
    """The splits that are used and whose data are there."""
    for name, (folder, data) in SETS.items():
        if (root / folder).is_dir():
            tree = tables.tree("method=mvrec", *data, f"data.root={root / folder}")
            yield {"set": name, "part": "supports, queries"}, _sides(_single(build.make(tree["data"])))


def _sides(data: DataModule) -> Sides:
    """The pictures of supports and queries, product by product as the source of features divides them."""
    parts = [data.source.sides(data.index.filter(product=p)) for p in data.index.products]
    pool, asked = ([i.sample for part in parts for i in part[side]] for side in (0, 1))
    return pool, asked


def made(rows: Rows) -> list[Table]:
    """One table per set that has rows: accuracy in points ± half width, paired against the best head."""
    return [_table(name, mine) for name in SETS if (mine := [r for r in rows if r["set"] == name])]


def _table(name: str, rows: Rows) -> Table:
    cells = {(r["method"], r["shot"]): r for r in rows}
    methods = [m for m in (*HEADS, *BASELINES) if any(r["method"] == m for r in rows)]
    best = {s: _best(rows, s) for s in SHOTS}
    lines = [
        [m if m in BASELINES else f"`{m}`", *(_cell(cells.get((m, s)), best[s]) for s in SHOTS)]
        for m in methods
    ]
    heads = [f"{s}-shot" for s in SHOTS]
    return Table(f"classes {name}", TITLES[name], ("head", *heads), lines, chart=("1-shot", "5-shot"))


def _best(rows: Rows, shot: int) -> Row | None:
    heads = [r for r in rows if r["shot"] == shot and r["method"] not in BASELINES]
    return max(heads, key=lambda r: r["accuracy"], default=None)


def _cell(row: Row | None, best: Row | None) -> Cell:
    """A cell; marked where it is the best head's or, over the same samplings, no worse."""
    if row is None:
        return ""
    mark = "best" if row is best else ""
    if best is not None and row is not best:
        gap = np.asarray(row["samplings"]) - np.asarray(best["samplings"])
        mark = "tie" if abs(gap.mean()) <= half_width(gap) else ""
    return Value(100 * row["accuracy"], 100 * row["accuracy_ci95"], mark=mark)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, default=Path("data/features"), help="feature files")
    parser.add_argument("--samplings", type=int, default=30)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="further options, e.g. data.features.views.kind=ms"
    )


if __name__ == "__main__":
    tables.started(main)
