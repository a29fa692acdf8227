"""Zero- and few-shot recognition of metal surfaces, whole sources held out: tables in ``docs/results.md``.

``python -m benchmarks.surfaces --root ../shared/data`` reads NEU, X-SDD and the magnetic tiles below the
root, tests each source with generators that have seen the two others, and rewrites the tables. All rows of a
table answer the very same episodes. Finished rows are kept in ``--out`` (JSON lines), so that a stopped
measurement goes on where it was.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contamination, tables
from benchmarks.contamination import Sides
from benchmarks.tables import Cell, Row, Rows, Table, Value
from fewspect.data.module import DataModule
from fewspect.engine import build
from fewspect.engine.session import concluded
from fewspect.methods.gccs.method import Gccs
from fewspect.metrics.classification import auroc, half_width
from fewspect.types import Episode

FOLDS = ("neu", "x_sdd", "magnetic_tile")
TEXTS = "class_descriptions.json"
SHOTS = (0, 1, 3, 5)

PTMAP = {"graph": {"node": "none"}}
README = {"graph": {"k": 10, "kappa": 9, "self_weight": 0.4, "cross_k": 0}}
CODED = {"graph": {"k": 4, "kappa": 1, "self_weight": 0.75, "cross_k": 0}}
SMALL = {"g_hidden": 512, "d_hidden": 512, "embed": 256, "batch": 256}
"""Sizes of the trained generator that a CPU trains in minutes."""

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ridge, graph": ("both", {"generator": "ridge", "samples": 6}),
    "ridge, no graph (PT-MAP)": ("both", {"generator": "ridge", "samples": 6, **PTMAP}),
    "ridge, nearest class mean": ("both", {"generator": "ridge", "samples": 6, "recogniser": "nearest"}),
    "ridge, LaplacianShot": ("both", {"generator": "ridge", "samples": 6, "recogniser": "laplacian"}),
    "ridge, TIM": ("both", {"generator": "ridge", "samples": 6, "recogniser": "tim"}),
    "trained generator (h), graph": ("both", {"generator": "gan", "samples": 6}),
    "trained generator (h), no graph": ("both", {"generator": "gan", "samples": 6, **PTMAP}),
    "trained generator (h), nearest class mean": (
        "both",
        {"generator": "gan", "samples": 6, "recogniser": "nearest"},
    ),
    "real only, graph (4, 2, 0.75)": ("few", {"generator": "none"}),
    "real only, graph as in the README (10, 9, 0.4)": ("few", {"generator": "none", **README}),
    "real only, graph as coded (4, 1, 0.75)": ("few", {"generator": "none", **CODED}),
    "real only, no graph (PT-MAP)": ("few", {"generator": "none", **PTMAP}),
    "real only, nearest class mean": ("few", {"generator": "none", "recogniser": "nearest"}),
    "real only, LaplacianShot": ("few", {"generator": "none", "recogniser": "laplacian"}),
    "real only, TIM": ("few", {"generator": "none", "recogniser": "tim"}),
}
"""Name -> whether it needs real supports, options of the method."""

FREE = {"transport": {"allocation": "softmax"}, "graph": {"node": "rows", "centring": "support"}}
UNEVEN: dict[str, dict[str, Any]] = {
    "graph, balanced transport": {"generator": "none"},
    "graph rows, softmax allocation, mean of the supports": {"generator": "none", **FREE},
    "graph, KL-relaxed transport": {"generator": "none", "transport": {"allocation": "kl"}},
    "nearest class mean": {"generator": "none", "recogniser": "nearest"},
}
REJECT: dict[str, dict[str, Any]] = {
    "dustbin (share 0.25)": {"generator": "none", "transport": {"allocation": "dustbin"}},
    "largest probability of the balanced plan": {"generator": "none"},
    "largest probability, nearest class mean": {"generator": "none", "recogniser": "nearest"},
}

TITLE = "Zero- and few-shot recognition of unseen surfaces"
ASKED = (
    "The method has seen images and texts of two sources; what does it recognise of the third, with no, one, "
    "three or five examples per class (5-way)?"
)
PUBLISHED = (
    "Published: GCCS, MSD-Cls, 5-way: 79.8 % with one example, on data and features that were not released; "
    "its card says why the figures cannot be compared."
)
TITLES = {
    "main": ": accuracy",
    "uneven": ", unequal numbers of queries: accuracy",
    "reject": ", queries of unknown classes among them",
}
ORDER = (*ROWS, *UNEVEN, *REJECT)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the tables."""
    options = tables.arguments("surfaces", argv, _more)
    done = {(r["table"], r["fold"], r["shot"], r["row"]) for r in tables.read(options.out)}
    for fold in FOLDS if _there(options.root) else ():
        place = _place(options.root, fold, options.runs)
        data: DataModule = build.make(tables.tree(*place)["data"])
        contamination.require(contamination.of(data), f"{fold} against the others")
        learned: dict[str, dict[str, Any]] = {}
        for table, shot, name, kwargs in _wanted():
            trained = kwargs.get("generator") == "gan"
            if (table, fold, shot, name) in done or (trained and options.closed):
                continue
            method = _learned(kwargs, data, learned, place, options.steps)
            found = measure(method, _episodes(data, table, shot, place))
            row = {"table": table, "fold": fold, "shot": shot, "row": name, **found}
            tables.append(options.out, row, threads=options.threads)
    tables.write(made(tables.read(options.out)), options.page)


def _wanted() -> list[tuple[str, int, str, dict[str, Any]]]:
    main_rows = [
        ("main", shot, name, kwargs)
        for shot in SHOTS
        for name, (kind, kwargs) in ROWS.items()
        if shot or kind == "both"
    ]
    more = [
        (t, s, n, k)
        for t, rows in (("uneven", UNEVEN), ("reject", REJECT))
        for s in (1, 5)
        for n, k in rows.items()
    ]
    return main_rows + more


def _place(root: Path, fold: str, runs: int) -> list[str]:
    return [
        "data=steel",
        "method=gccs",
        f"data.root={root}",
        f"data.fold={fold}",
        f"data.text={root / TEXTS}",
        f"data.ways.runs={runs}",
        "data.ways.val=0.0",
        "data.ways.query=11" if fold == "magnetic_tile" else "data.ways.query=15",
    ]


def _episodes(data: DataModule, table: str, shot: int, place: list[str]) -> list[Episode]:
    """The fixed list of episodes of one table."""
    more = {"uneven": ["data.ways.imbalance=2.0"], "reject": ["data.ways.way=3", "data.ways.unknown=2"]}
    if table in more:
        other: DataModule = build.make(tables.tree(*place, *more[table])["data"])
        other.ways.pool = data.ways.pool  # read once
        data = other
    return list(data.ways.dataset("test", shot))


def _learned(
    kwargs: dict[str, Any],
    data: DataModule,
    learned: dict[str, dict[str, Any]],
    place: list[str],
    steps: int,
) -> Gccs:
    """A method whose generator has seen the other sources; a trained one is trained once per fold."""
    kind = kwargs.get("generator", "ridge")
    more = {"contrast": SMALL} if kind == "gan" else {}
    method = Gccs(**kwargs, **more).eval()
    if kind == "gan":
        learned[kind] = learned.get(kind) or train(place, steps)
        method.generator.load_state_dict(learned[kind])
    elif kind == "ridge":
        method.observe([data.dataset("train")[0]])
    return method


def train(place: list[str], steps: int) -> dict[str, Any]:
    """State of the contrastive generator after so many steps, by the engine."""
    sizes = [f"+method.contrast.{k}={v}" for k, v in SMALL.items()]
    plan = [f"data.episodes={steps}", "trainer.max_epochs=1", "data.ways.val_runs=20", "data.shot=0"]
    tree = tables.tree(*place, "method.generator=gan", *sizes, *plan)
    with tempfile.TemporaryDirectory() as folder, concluded(tree, Path(folder), "test") as s:
        s.trainer.fit(s.method, datamodule=s.data)
        return s.method.generator.state_dict()


def measure(method: Gccs, episodes: list[Episode]) -> dict[str, float]:
    """Accuracy over queries of known classes per episode, mean and half width; AUROC where some are not."""
    found = method.answers(episodes)
    hits, areas = [], []
    for prediction, episode in zip(found, episodes, strict=True):
        known = episode.query_label > 0
        best = prediction.logits.argmax(-1) + 1
        hits.append(float((best == episode.query_label)[known].float().mean()))
        if not bool(known.all()):
            areas.append(auroc(known.numpy(), prediction.score.numpy()))
    values = {"accuracy": hits} | ({"auroc": areas} if areas else {})
    out: dict[str, float] = {}
    for name, numbers in values.items():
        array = np.asarray(numbers)
        out |= {name: float(array.mean()), f"{name}_ci95": half_width(array)}
    return out | {"episodes": len(hits)}


def sides(root: Path) -> Iterator[tuple[Row, Sides]]:
    """The splits that are used, if the data are there: a source against the two others."""
    for fold in FOLDS if _there(root) else ():
        data = build.make(tables.tree(*_place(root, fold, 1))["data"])
        yield {"set": fold, "part": "new source"}, contamination.of(data)


def _there(root: Path) -> bool:
    return all((root / name).exists() for name in (*FOLDS, TEXTS))


def made(rows: Rows) -> list[Table]:
    """One table per kind of episodes and tested source that has rows."""
    return [
        _table(name, fold, mine)
        for name in TITLES
        for fold in FOLDS
        if (mine := [r for r in rows if (r["table"], r["fold"]) == (name, fold)])
    ]


def _table(name: str, fold: str, rows: Rows) -> Table:
    """One line per row, one column per number of shots; percent ± half width."""
    shots = sorted({r["shot"] for r in rows})
    keys = ("auroc", "accuracy") if name == "reject" else ("accuracy",)
    heads = {f"{s}-shot" + (f", {k}" if len(keys) > 1 else ""): (s, k) for s in shots for k in keys}
    measured = {(r["row"], r["shot"]): r for r in rows}
    known = {row for row, _ in measured}
    return Table(
        f"surfaces {name}",
        f"{fold} is new{TITLES[name]}",
        (fold, *heads),
        [
            [row, *(_cell(measured.get((row, s)), k) for s, k in heads.values())]
            for row in ORDER
            if row in known
        ],
        best=dict.fromkeys(heads, "max"),
        chart=tuple(h for h, (s, k) in heads.items() if s == 1 and k == keys[0]),
        line={"main": 20.0, "uneven": 20.0, "reject": 50.0}[name],
    )


def _cell(row: Row | None, key: str) -> Cell:
    return "" if row is None else Value(100 * row[key], 100 * row[f"{key}_ci95"])


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=600, help="episodes per cell")
    parser.add_argument("--steps", type=int, default=400, help="of the trained generator")
    parser.add_argument("--closed", action="store_true", help="without the trained generator")


if __name__ == "__main__":
    tables.started(main)
