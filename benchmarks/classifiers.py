"""Few-shot classification of real pictures: every head on identical samplings, beside simple baselines.

``python -m benchmarks.classifiers --root ../shared/data`` describes the instances of the sets found below the
root with the embedded backbone (once, kept in ``--cache``), draws the samplings, and rewrites the tables of
``docs/results.md``. Baselines on the same supports and queries: nearest neighbour on raw pixels, nearest
class mean of histograms of colour and gradient.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from fewspect.data.feature_episodes import FeatureEpisodes
from fewspect.data.features import FeatureSet
from fewspect.data.module import DataModule
from fewspect.engine import build, folders
from fewspect.methods.mvrec.method import MVREC
from fewspect.metrics.classification import half_width

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
SHOTS = (1, 3, 5)
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "neu": ("neu", ("data=neu",)),
    "x_sdd": ("x_sdd", ("data=x_sdd",)),
    "magnetic_tile": ("magnetic_tile", ("data=magnetic_tile",)),
}
"""Name -> folder below the root, overrides."""

HEADS = ("zip", "zip_f", "tip_f", "proto", "knn", "ridge", "lda", "linear", "centered")
TRAINED = {"zip_f", "tip_f"}
BASELINES = ("raw pixels, nearest neighbour", "histograms, nearest mean")


def main() -> None:
    """Measure every set, then write its table."""
    options = _arguments()
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    torch.set_num_threads(options.threads)
    for name in options.sets:
        folder, overrides = SETS[name]
        if (options.root / folder).is_dir():
            data = _data([*overrides, f"data.root={options.root / folder}"], options)
            rows = measure(data, options.heads)
            text = table(rows)
            print(f"{name}\n{text}\n", flush=True)
            _write(name, text)


def _data(overrides: list[str], options: argparse.Namespace) -> DataModule:
    fixed = [
        "method=mvrec",
        "data.workers=0",
        f"data.features.cache={options.cache}",
        f"+data.features.samplings={options.samplings}",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tree = build.resolve(compose("config", [*fixed, *overrides, *options.overrides]))
    data = build.make(tree["data"])
    data.setup()
    return data


def measure(data: DataModule, heads: tuple[str, ...] | list[str]) -> dict[str, dict[int, Tensor]]:
    """Accuracy of every sampling: name -> shots -> (samplings,)."""
    tasks = data.source.tasks(lambda: data.index)
    rows: dict[str, dict[int, Tensor]] = {}
    for shot in SHOTS:
        episodes = data.source.episodes("test", lambda: data.index, shot, data.seed)
        for head in heads:
            together = 2 if head in TRAINED else 10
            rows.setdefault(head, {})[shot] = accuracy(MVREC(head=head), episodes, together)
        for name, made in zip(BASELINES, (pixels, histograms), strict=True):
            plain = [replace(t, support=made(t.support), query=made(t.query)) for t in tasks]
            same = FeatureEpisodes(plain, shot=shot, samplings=episodes.samplings, seed=data.seed)
            method = MVREC(head="knn", knn={"k": 1}) if made is pixels else MVREC(head="proto")
            rows.setdefault(name, {})[shot] = accuracy(method, same, 10)
    return rows


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


def table(rows: Mapping[str, Mapping[int, Tensor]]) -> str:
    """Markdown: accuracy in points ± half width of the 95 % interval, and against the best head, paired."""
    heads = [n for n in rows if n not in BASELINES]
    best = {s: max(heads, key=lambda n: float(rows[n][s].mean())) for s in SHOTS}
    lines = ["| head | " + " | ".join(f"{s}-shot" for s in SHOTS) + " |", "|---" * (len(SHOTS) + 1) + "|"]
    for name, found in rows.items():
        cells = []
        for s in SHOTS:
            gap = (found[s] - rows[best[s]][s]).numpy()
            mark = " *" if name != best[s] and abs(gap.mean()) <= half_width(gap) else ""
            mean = f"{100 * found[s].mean():.1f} ± {100 * half_width(found[s].numpy()):.1f}"
            cells.append(f"**{mean}**" if name == best[s] else f"{mean}{mark}")
        lines.append(f"| {name if name in BASELINES else f'`{name}`'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _write(name: str, body: str) -> None:
    """Put a table between its marks in the page."""
    text, start, end = PAGE.read_text("utf-8"), f"<!-- classes {name} -->", f"<!-- /classes {name} -->"
    if start in text:
        PAGE.write_text(f"{text.split(start)[0]}{start}\n{body}\n{end}{text.split(end)[1]}", "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Few-shot classification of real pictures")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--cache", type=Path, default=Path("data/features"), help="feature files")
    parser.add_argument("--samplings", type=int, default=30)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="further options, e.g. data.features.views.kind=ms"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
