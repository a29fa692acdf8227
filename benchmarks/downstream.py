"""What are generated images worth? A supervised segmenter on real images alone and with further ones.

``python -m benchmarks.downstream --root ../shared/data`` generates images with ``paste`` from the very images
that learn (five per product and class), trains the same segmenter for the same number of steps on real and on
real + generated images with five seeds, tests both on the same images, and rewrites the tables of
``docs/results.md``. Finished runs are kept in ``--out`` (JSON lines), so that a stopped measurement goes on
where it was. ``--generated "defect_gen=sets/{set}_{seed}"`` adds a column for folders that another generator
has written from the same split: ``mode=generate ... seed=<seed> data.shot=5``.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fewspect.callbacks.samples import write_set
from fewspect.engine import build, folders
from fewspect.engine.drawing import Shown
from fewspect.engine.session import concluded
from fewspect.methods.generator import Generator

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
SEEDS = (0, 1, 2, 3, 4)
STUDENT = {2: 12.706, 3: 4.303, 5: 2.776, 10: 2.262}
"""97.5 % points of Student's t for n - 1 degrees of freedom, by the number of seeds n."""

TOY = (
    *("data=toy", "data.side=64", "data.reader.side=64", "data.reader.images_per_class=16"),
    *("data.reader.val_per_class=0", "data.reader.test_per_class=1", "data.reader.good=24"),
    *("data.reader.folds=6", "+data.reader.products=[board,wood]"),
    "+data.reader.defects=[blob,burn,chip,dent,hole,scratch]",
)
SETS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "toy": (None, TOY),
    "magnetic_tile": ("magnetic_tile", ("data=magnetic_tile", "data.side=128")),
}
"""Name -> folder below the root (None: it writes itself), overrides."""

SHOT = ("data.shot=5", "data.normal_shot=20")
PLAN = (
    *("data.episodes=600", "data.batch_size=4", "trainer.max_epochs=2"),
    *("trainer.limit_val_batches=0", "data.workers=0"),
)
"""300 steps of four images, so that the tables can be made on a CPU; the default is 400 steps of eight."""

REAL, PASTE = "real", "real + paste"
COLUMNS = {
    "mIoU": "miou",
    "with background": "miou_with_background",
    "Dice": "dice",
    "false alarms, %": "false_alarm_rate",
}


def main() -> None:
    """Measure what is missing, then write the tables."""
    options = _arguments()
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    torch.set_num_threads(options.threads)
    further = dict(g.split("=", 1) for g in options.generated)
    for name in options.sets:
        folder, data = SETS[name]
        if folder is not None and (options.root is None or not (options.root / folder).is_dir()):
            continue
        place = [f"data.root={options.root / folder}"] if folder and options.root else []
        for seed in SEEDS[: options.seeds]:
            done = {(r["set"], r["variant"], r["seed"]) for r in _read(options.out)}
            for variant in (REAL, PASTE, *(f"real + {key}" for key in further)):
                if (name, variant, seed) not in done:
                    given = further.get(variant.removeprefix("real + "), "").format(set=name, seed=seed)
                    found = measure([*data, *place, *SHOT, f"seed={seed}"], variant, given, options.ratio)
                    row = {"set": name, "variant": variant, "seed": seed, "ratio": options.ratio, **found}
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    write(_read(options.out))


def measure(data: Sequence[str], variant: str, given: str, ratio: float) -> dict[str, float]:
    """Test metrics of the segmenter that learned from real images and those of ``variant``."""
    with tempfile.TemporaryDirectory() as place:
        if variant == PASTE:
            given = str(Path(place, "generated"))
            paste(data, Path(given), ratio)
        more = [f"data.extra_root={given}", f"data.extra_ratio={ratio}"] if given else []
        return train([*data, "method=segmenter", *SHOT, *PLAN, *more], Path(place, "run"))


def paste(data: Sequence[str], folder: Path, ratio: float) -> None:
    """Write as many generated images as are asked for, made of the real ones that learn."""
    tree = _tree([*data, "method=paste", *SHOT])
    source, method = build.parts(tree)
    assert isinstance(method, Generator)
    shown = Shown()
    for episode in source.dataset("train"):
        method.observe([episode])
        shown.add(episode)
    count = math.ceil(ratio * len(shown.names))
    write_set(folder, shown.drawn(method.generate, count), method.classes, {"seen": shown.digests})


def train(overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Train and test in this process."""
    tree = _tree(overrides)
    begin = time.perf_counter()
    with concluded(tree, folder, "test") as s:
        s.trainer.fit(s.method, datamodule=s.data, weights_only=True)
        spent = time.perf_counter() - begin
        s.trainer.test(s.method, datamodule=s.data, verbose=False)
        found = {k: float(v) for k, v in s.trainer.callback_metrics.items() if k.startswith("test/")}
        table = s.method.metrics["test_suite"].table()  # type: ignore[operator]
        classes = {f"iou {row['class']}": row["iou"] for row in table if "iou" in row}
    plain = {k.removeprefix("test/"): v for k, v in found.items()}
    kept = {k: v for k, v in plain.items() if "/" not in k}
    return {**kept, **classes, "fit_seconds": round(spent, 1)}


def _tree(overrides: Sequence[str]) -> dict[str, Any]:
    fixed = ["logger=none", "trainer=cpu"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build.resolve(compose("config", [*fixed, *overrides]))


def write(rows: list[dict[str, Any]]) -> None:
    """Put one table per set between its marks in the page; print it."""
    text = PAGE.read_text("utf-8")
    for name in SETS:
        mine = [r for r in rows if r["set"] == name]
        start, end = f"<!-- downstream {name} -->", f"<!-- /downstream {name} -->"
        if mine:
            body = table(mine)
            print(f"{name}\n{body}\n")
            if start in text:
                text = f"{text.split(start)[0]}{start}\n{body}\n{end}{text.split(end)[1]}"
    PAGE.write_text(text, "utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per training set, mean ± half width of the 95 % interval over seeds."""
    classes = sorted({k for r in rows for k in r if k.startswith("iou ")})
    heads = [*COLUMNS, "gain in mIoU, paired", *(k.removeprefix("iou ") for k in classes), "seeds"]
    lines = ["| learned from | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    real = {r["seed"]: r for r in rows if r["variant"] == REAL}
    for variant in dict.fromkeys(r["variant"] for r in rows):
        mine = [r for r in rows if r["variant"] == variant]
        cells = [_cell([100 * r[key] for r in mine if key in r]) for key in COLUMNS.values()]
        gains = [100 * (r["miou"] - real[r["seed"]]["miou"]) for r in mine if r["seed"] in real]
        cells.append("" if variant == REAL else _cell(gains, sign=True))
        cells += [_cell([100 * r[key] for r in mine if key in r], interval=False) for key in classes]
        lines.append(f"| {variant} | " + " | ".join([*cells, str(len(mine))]) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], *, sign: bool = False, interval: bool = True) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.1f}"
    if not interval or len(values) not in STUDENT:
        return mean
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.1f}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Worth of generated images")
    parser.add_argument("--root", type=Path, help="folder that holds magnetic_tile")
    parser.add_argument("--out", type=Path, default=Path("logs/downstream.jsonl"), help="finished runs")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--ratio", type=float, default=1.0, help="generated images per real one")
    parser.add_argument("--generated", nargs="*", default=[], help="name=folder with {set} and {seed}")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
