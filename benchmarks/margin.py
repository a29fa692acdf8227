"""Does training pay? SOFS on unseen toy classes against its untrained head and training-free priors.

``python -m benchmarks.margin`` trains the demo with three seeds and rewrites the table in docs/results.md.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from fewspect.data.module import DataModule
from fewspect.engine import build, folders
from fewspect.methods.sofs.method import SOFS

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
THRESHOLDS = torch.arange(0.05, 1.0, 0.025)
EPISODES = 64
START, END = "<!-- margin -->", "<!-- /margin -->"


def main() -> None:
    """Train, measure, print and write the table."""
    rows = [measure(seed) for seed in SEEDS]
    names = list(rows[0])
    mean = {n: 100 * float(np.mean([r[n] for r in rows])) for n in names}
    spread = {n: 100 * float(np.std([r[n] for r in rows], ddof=1)) for n in names}
    lines = ["| | foreground IoU, points | behind the trained head |", "|---|---|---|"]
    lines += [f"| {n} | {mean[n]:.1f} ± {spread[n]:.1f} | {mean[names[0]] - mean[n]:.1f} |" for n in names]
    table = "\n".join(lines)
    print(table)
    page = ROOT / "docs" / "results.md"
    text = page.read_text("utf-8")
    if START in text:
        before, after = text.split(START)[0], text.split(END)[1]
        page.write_text(f"{before}{START}\n{table}\n{END}{after}", "utf-8")


def measure(seed: int) -> dict[str, float]:
    """Mean IoU over (product, class) pairs of each contender, one seed."""
    with tempfile.TemporaryDirectory() as folder:
        run = [
            sys.executable,
            str(ROOT / "run.py"),
            f"seed={seed}",
            f"hydra.run.dir={folder}/run",
            "logger=none",
        ]
        subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        data, untrained = parts(seed)
        _, trained = parts(seed)
        state = torch.load(Path(folder, "run", "checkpoints", "best.ckpt"), weights_only=True)
    trained.on_load_checkpoint(state)
    trained.load_state_dict(state["state_dict"])
    counts: dict[str, dict[str, Tensor]] = {}
    for episode in data.dataset("test"):
        truth = episode.query_mask[0] == 1
        for name, mask in answers(trained.eval(), untrained.eval(), episode):
            both = torch.stack([(mask & truth).sum((-2, -1)), (mask | truth).sum((-2, -1))])
            table = counts.setdefault(name, {})
            table[episode.name] = table.get(episode.name, torch.zeros_like(both)) + both
    return {name: best(table) for name, table in counts.items()}


def parts(seed: int) -> tuple[DataModule, SOFS]:
    """Data and untrained method of the demo."""
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"seed={seed}", f"data.test_episodes={EPISODES}"])
    torch.manual_seed(seed)
    data, method = build.parts(build.resolve(cfg))
    assert isinstance(data, DataModule)
    assert isinstance(method, SOFS)
    return data, method


@torch.inference_mode()
def answers(trained: SOFS, untrained: SOFS, episode) -> list[tuple[str, Tensor]]:
    """Masks (H, W), or (T, H, W) for every threshold of a training-free map."""
    state = trained.adapt(episode.support)
    image = episode.query_image[0]
    learned = trained.segment(image, state, whole=episode.whole).mask[0] == 1
    random = untrained.segment(image, untrained.adapt(episode.support), whole=episode.whole).mask[0] == 1
    features = trained.net.features(episode.query_image[None].float() / 255)
    semantic, abnormal = trained.net.head.priors(features, state)  # (1, 1, N, L)
    maps = {"max-cosine prior": semantic[0, 0].mean(-1), "abnormality map": abnormal[0, 0].amax(-1)}
    found = [("trained head", learned), ("untrained head", random)]
    for name, values in maps.items():
        full = F.interpolate(values.view(1, 1, *features.grid), image.shape[-2:], mode="bilinear")[0, 0]
        found.append((f"{name}, best threshold", full > THRESHOLDS[:, None, None]))
    return found


def best(table: dict[str, Tensor]) -> float:
    """Mean IoU over classes, at the best threshold where there are several."""
    iou = torch.stack([both[0] / both[1].clamp(min=1) for both in table.values()])  # (K,) or (K, T)
    return float(iou.mean(0).max())


if __name__ == "__main__":
    main()
