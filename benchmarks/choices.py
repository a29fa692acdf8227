"""Which head, on real AlphaCLIP features: every candidate scored by leave-one-out on the support, then asked.

``python -m benchmarks.choices --features features_bottle_valid.safetensors`` draws the published samplings on
the documented split (even positions of every class support, odd ones are asked) and on random halves, and
rewrites the table of ``docs/results.md``. The column "leave-one-out" knows the supports only; a choice by it
is honest, a choice by the others is not.
"""

import argparse
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fewspect.data import features, sampling
from fewspect.data.features import FeatureSet
from fewspect.metrics.classification import half_width
from fewspect.nn.adapter import Zip
from fewspect.nn.fine_tune import Recipe, TipF, ZipF
from fewspect.nn.heads import Centred, Neighbours, Prototypes
from fewspect.nn.linear_heads import Discriminant, LinearProbe, Ridge
from fewspect.nn.merging import merge
from fewspect.nn.prototype import unit
from fewspect.nn.shots import Head, Shots

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
SHOTS = (1, 3, 5)
MIDDLE = [4, 13, 22]

Candidate = tuple[str, Head, list[int] | None]
"""Tokens (``class``, ``both``), head, views (None = all)."""

CANDIDATES: dict[str, Candidate] = {
    "`zip`": ("class", Zip(), None),
    "`proto`": ("class", Prototypes(), None),
    "`knn`": ("class", Neighbours(), None),
    "`linear`": ("class", LinearProbe(), None),
    "`lda`, shrinkage .5": ("class", Discriminant(0.5), None),
    "`lda`, shrinkage .1": ("class", Discriminant(0.1), None),
    "`ridge`": ("class", Ridge(), None),
    "`ridge`, views together": ("class", Ridge(aligned=False), None),
    "aligned, not centred": ("class", Centred(centre="none"), None),
    "one centre for all views": ("class", Centred(centre="all"), None),
    "`centered`, three middle views": ("class", Centred(), MIDDLE),
    "`centered`": ("class", Centred(), None),
    "`centered`, middle views, class and patch tokens": ("both", Centred(), MIDDLE),
    "`centered`, class and patch tokens": ("both", Centred(), None),
    "`ridge`, class and patch tokens": ("both", Ridge(), None),
    "`lda` .1, class and patch tokens": ("both", Discriminant(0.1), None),
}
TUNED: dict[str, Head] = {
    "`tip_f`": TipF(),
    "`zip_f`": ZipF(),
    "`zip_f`, momentum (published behaviour)": ZipF(recipe=Recipe(key_optimizer="momentum")),
}


def main() -> None:
    """Measure, print, rewrite the table; rows that are not measured now stay."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    store = features.read(options.features)
    text, start, end = PAGE.read_text("utf-8"), "<!-- heads bottle -->", "<!-- /heads bottle -->"
    rows = _rows(text.split(start)[1].split(end)[0])
    if options.tuned:
        for name, head in TUNED.items():
            rows[name] = _row(store, ("class", head, None), options, tuned=True)
            print(name, rows[name], flush=True)
    else:
        for name, candidate in CANDIDATES.items():
            rows[name] = _row(store, candidate, options)
            print(name, rows[name], flush=True)
    body = table(rows)
    print(body)
    PAGE.write_text(f"{text.split(start)[0]}{start}\n{body}\n{end}{text.split(end)[1]}", "utf-8")


def _rows(body: str) -> dict[str, dict[str, str]]:
    """Rows of a table that was written before."""
    lines = [
        [c.strip() for c in line.strip().strip("|").split("|")] for line in body.splitlines() if "|" in line
    ]
    return {cells[0]: dict(zip(lines[0][1:], cells[1:], strict=False)) for cells in lines[2:]}


def _row(
    store: FeatureSet, candidate: Candidate, options: argparse.Namespace, *, tuned: bool = False
) -> dict[str, str]:
    """Cells of one candidate."""
    cells: dict[str, str] = {}
    tokens = _tokens(store, candidate)
    halves = range(-1, options.halves if not tuned else 0)
    for shot in SHOTS:
        found = {h: _accuracy(store, tokens, candidate[1], shot, h, options.samplings) for h in halves}
        known = 100 * found[-1]
        cells[f"{shot}, split"] = f"{known.mean():.1f} ± {half_width(known.numpy()):.1f}"
        cells[f"{shot}, first five"] = f"{known[:5].mean():.1f}"
        others = torch.cat([v for h, v in found.items() if h >= 0]) if not tuned else torch.zeros(0)
        if len(others):
            cells[f"{shot}, halves"] = f"{100 * others.mean():.1f}"
        own = shot > 1 and not tuned
        if own:
            share = left_out(store, tokens, candidate[1], shot, options.samplings)
            cells[f"{shot}, leave-one-out"] = f"{100 * share:.1f}"
    return cells


def _tokens(store: FeatureSet, candidate: Candidate) -> Tensor:
    """(N, V, D) float32."""
    which, _, views = candidate
    tokens = store.token("class").float()
    if which == "both":
        tokens = torch.cat([unit(tokens), unit(store.token("patches"))], -1)
    return tokens if views is None else tokens[:, views]


def split(store: FeatureSet, half: int) -> tuple[list[int], list[int]]:
    """Places of pool and queries: -1 the documented split, else a random half."""
    pool, asked = [], []
    for k in range(len(store.classes)):
        places = [i for i, label in enumerate(store.label.tolist()) if label == k]
        if half >= 0:
            random.Random(1000 * half + k).shuffle(places)
        pool += places[::2]
        asked += places[1::2]
    return pool, asked


def supports(
    store: FeatureSet, tokens: Tensor, shot: int, half: int, samplings: int
) -> tuple[Shots, list[int]]:
    """Supports of all samplings, and the queries."""
    pool, asked = split(store, half)
    labels = [int(store.label[i]) for i in pool]
    places = [[pool[j] for j in sampling.published(labels, shot, s)] for s in range(samplings)]
    at = torch.tensor(places)
    return Shots(tokens[at], store.label[at], torch.ones(at.shape), len(store.classes)), asked


def _accuracy(store: FeatureSet, tokens: Tensor, head: Head, shot: int, half: int, samplings: int) -> Tensor:  # noqa: PLR0917
    """Share of right answers of every sampling (samplings,)."""
    shots, asked = supports(store, tokens, shot, half, samplings)
    prob = merge(head.fit(shots)(tokens[asked][None]), head.merge)
    return (prob.argmax(-1) == store.label[asked]).float().mean(1)


def left_out(store: FeatureSet, tokens: Tensor, head: Head, shot: int, samplings: int) -> float:
    """Share of supports that the others of their sampling get right; documented split.

    One item of every class is left out at a time, so that all classes keep equally many.
    """
    shots, _ = supports(store, tokens, shot, -1, samplings)
    rank = torch.arange(shots.label.shape[1]) % shot  # supports are listed class by class
    right = []
    for fold in range(shot):
        out = (rank == fold).nonzero()[:, 0]
        rest = replace(shots, count=shots.count * (rank != fold))
        prob = merge(head.fit(rest)(shots.feature[:, out]), head.merge)
        right.append(prob.argmax(-1) == shots.label[:, out])
    return float(torch.cat(right, 1).float().mean())


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown."""
    columns = list(max(rows.values(), key=len))
    lines = ["| head | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {n} | " + " | ".join(r.get(c, "") for c in columns) + " |" for n, r in rows.items()]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Heads on real features")
    parser.add_argument("--features", type=Path, required=True, help="feature file with views and tokens")
    parser.add_argument("--samplings", type=int, default=20)
    parser.add_argument("--halves", type=int, default=4, help="random halves beside the documented split")
    parser.add_argument("--tuned", action="store_true", help="the fine-tuned heads instead (minutes)")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
