"""Every unsupervised detector on real good images: one table per data set in ``docs/results.md``.

``python -m benchmarks.detectors --root ../shared/data`` trains and tests all methods with three seeds on the
sets found below the root (magnetic tiles, the small MVTec screw, NEU) and rewrites the tables. Finished runs
are kept in ``--out`` (JSON lines), so that a stopped measurement goes on where it was.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fewspect.engine import build, folders
from fewspect.engine.session import Session, concluded

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
SEEDS = (0, 1, 2)
STUDENT = {2: 12.706, 3: 4.303, 5: 2.776}
"""97.5 % points of Student's t for n - 1 degrees of freedom, by the number of seeds n."""

SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "magnetic_tile": ("magnetic_tile", ("data=magnetic_tile",)),
    "screw": ("mvtec_screw_mini", ("data=mvtec",)),
    "neu": ("neu", ("data=neu", "data.reader.normal_class=patches", "data.test_episodes=200")),
}
"""Name -> folder below the root, overrides."""

TRAINED = (
    *("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3"),
    *("data.episodes=200", "data.batch_size=2", "data.side=128"),
)
"""A small budget, 300 steps, so that the table can be made on a CPU; the recipes train 120 to 200 epochs."""
METHODS: dict[str, tuple[str, ...]] = {
    "patch_nn": ("method=patch_nn",),
    "subspace": ("method=subspace",),
    "dino_recon": ("method=dino_recon", *TRAINED),
    "ssim_ae": ("method=ssim_ae", *TRAINED),
    "red_net": ("method=red_net", *TRAINED),
    "vae": ("method=vae", *TRAINED),
    "srgan": ("method=srgan", *TRAINED),
    "bergmann_ae": ("method=bergmann_ae", *TRAINED),
}
COLUMNS = {
    "image AUROC": ("image_auroc", 100),
    "pixel AUROC": ("pixel_auroc", 100),
    "pixel AP": ("pixel_ap", 100),
    "AUPRO 0.3": ("aupro_0.3", 100),
    "IoU": ("miou", 100),
    "false alarms, %": ("false_alarm_rate", 100),
    "found, %": ("accuracy_defective", 100),
    "ms / image": ("milliseconds", 1),
    "state, MB": ("megabytes", 1),
}
TIMED = 20
"""Test images whose answers are timed, after two uncounted ones."""


def main() -> None:
    """Measure what is missing, then write the tables."""
    options = _arguments()
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    torch.set_num_threads(options.threads)
    done = {(r["set"], r["method"], r["seed"]) for r in _read(options.out)}
    for name in options.sets:
        folder, data = SETS[name]
        for seed in SEEDS:
            for method in options.methods:
                if (options.root / folder).is_dir() and (name, method, seed) not in done:
                    place = [f"data.root={options.root / folder}", f"seed={seed}"]
                    found = measure([*data, *METHODS[method], *place])
                    row = {"set": name, "method": method, "seed": seed, **found}
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row))
    write(_read(options.out))


def measure(overrides: list[str]) -> dict[str, float]:
    """Train and test one method; metrics of the test, time per image and size of the checkpoint."""
    fixed = ["logger=none", "trainer=cpu", "data.workers=0"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tree = build.resolve(compose("config", [*fixed, *overrides]))
    with tempfile.TemporaryDirectory() as place, concluded(tree, Path(place), "test") as session:
        return _run(session, Path(place))


def _run(session: Session, place: Path) -> dict[str, float]:
    s, begin = session, time.perf_counter()
    s.trainer.fit(s.method, datamodule=s.data, weights_only=True)
    spent = time.perf_counter() - begin
    best = next(p for n in (folders.BEST, folders.LAST) if (p := place / folders.CHECKPOINTS / n).is_file())
    s.trainer.test(s.method, datamodule=s.data, ckpt_path=best, verbose=False, weights_only=True)
    found = {k.removeprefix("test/"): float(v) for k, v in s.trainer.callback_metrics.items() if "test/" in k}
    return {**found, "fit_seconds": spent, **_speed(session), "megabytes": _size(best)}


def _size(checkpoint: Path) -> float:
    """Megabytes of what the answers need beside the backbone."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return sum(v.numel() * v.element_size() for v in state.values() if isinstance(v, torch.Tensor)) / 1e6


def _speed(session: Session) -> dict[str, float]:
    """Median time of one answer at the image's own size, decision included, batch 1."""
    asked = session.data.dataset("test")
    method, taken = session.method.eval(), []
    for k in range(min(len(asked), TIMED + 2)):
        episode = asked[k]
        begin = time.perf_counter()
        method.answers([episode])
        taken.append(1000 * (time.perf_counter() - begin))
    return {"milliseconds": statistics.median(taken[2:] or taken)}


def write(rows: list[dict[str, Any]]) -> None:
    """Put one table per set between its marks in the page; print it."""
    text = PAGE.read_text("utf-8")
    for name in SETS:
        mine = [r for r in rows if r["set"] == name]
        start, end = f"<!-- detectors {name} -->", f"<!-- /detectors {name} -->"
        if mine:
            body = table(mine)
            print(f"{name}\n{body}\n")
            if start in text:
                text = f"{text.split(start)[0]}{start}\n{body}\n{end}{text.split(end)[1]}"
    PAGE.write_text(text, "utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per method, mean ± half width of the 95 % interval over seeds."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method in METHODS:
        mine = [r for r in rows if r["method"] == method]
        if mine:
            cells = [_cell(mine, key, factor) for key, factor in COLUMNS.values()]
            lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: Iterable[Mapping[str, Any]], key: str, factor: float) -> str:
    values = [factor * r[key] for r in rows if key in r]
    if not values:
        return ""
    mean = statistics.mean(values)
    if key in ("milliseconds", "megabytes") or len(values) not in STUDENT:
        return f"{mean:.1f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} ± {half:.1f}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Detectors on real images")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("logs/detectors.jsonl"), help="finished runs")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
