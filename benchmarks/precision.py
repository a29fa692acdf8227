"""bfloat16 autocast against float32: time, and what it does to the answers."""

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import subject
from benchmarks.report import Figure, Report, below
from fewspect.data.module import DataModule
from fewspect.data.readers import toy
from fewspect.methods import optim
from fewspect.methods.sofs.method import SOFS
from fewspect.metrics.suites import Suite, suite
from fewspect.types import Prediction

LIMIT = 0.5
"""Points of IoU."""

STEPS, QUICK_STEPS, BATCH = 60, 5, 4
LEARNING = {"name": "adamw", "lr": 1e-3, "schedule": "poly"}
PRECISIONS = ("float32", "bfloat16")


def measure(*, quick: bool) -> Report:
    """Toy test set with a briefly trained head, then ViT-S."""
    steps, side = (QUICK_STEPS, 98) if quick else (STEPS, 518)
    with tempfile.TemporaryDirectory() as root:
        small = {"images_per_class": 4, "test_per_class": 2, "good": 6} if quick else {}
        limit = 8 if quick else None
        data = DataModule(partial(toy.read, **small), root=root, batch_size=BATCH, test_episodes=limit)
        method = subject.sofs(subject.tiny())
        train(method, data, steps)
        figures = _toy(method, data) + _vit(side)
        episodes = len(data.dataset("test"))
    return Report(
        title="bfloat16 autocast",
        what="The same method under `torch.autocast(bfloat16)` and in float32. Normalisation, cosines and "
        "fusion stay in float32 in both.",
        how=f"Toy test set ({episodes} episodes of unseen defect classes, 128 px): tiny with "
        f"{subject.tiny_weights()}, head trained for {steps} steps; the precisions in turn on every "
        f"episode. ViT-S/14 at {side} px: random weights, untrained head, two windows, support of 4 views "
        "cached.",
        figures=figures,
        notes=[
            f"This processor {'has' if _native() else 'lacks'} bfloat16 instructions; without them the time "
            "ratio says what such a machine gives, not what a GPU gives."
        ],
    )


def train(method: SOFS, data: DataModule, steps: int) -> None:
    """Train the head, one step per batch of ``data``."""
    optimizer, schedule = optim.build(method.named_parameters(), steps, **LEARNING)
    method.train()
    done = 0
    while done < steps:
        for batch in data.train_dataloader():
            parts = method.losses(batch)
            loss = torch.stack([method.loss_weights.get(k, 1.0) * v for k, v in parts.items()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    method.eval()


def _toy(method: SOFS, data: DataModule) -> list[Figure]:
    suites: dict[str, Suite] = {name: suite("segment", detect=False) for name in PRECISIONS}
    times = dict.fromkeys(PRECISIONS, 0.0)
    worst = flipped = pixels = 0.0
    method.evaluate_episode(data.dataset("test")[0])
    for episode in data.dataset("test"):
        found: dict[str, Prediction] = {}
        for name in PRECISIONS:
            with _precision(name):
                taken, found[name] = subject.seconds(lambda e=episode: method.evaluate_episode(e))
            times[name] += taken
            suites[name].update(found[name], episode)
        full, half = (found[name] for name in PRECISIONS)
        assert full.prob is not None and half.prob is not None
        worst = max(worst, _difference(full.prob, half.prob))
        flipped += float(((full.prob > 0.5) != (half.prob > 0.5)).sum())
        pixels += full.prob.numel()
    full, half = (100 * float(suites[name].compute()["miou"]) for name in PRECISIONS)
    return [
        Figure("toy: mIoU, float32 / bfloat16", f"{full:.2f} / {half:.2f}"),
        below("toy: change of mIoU", abs(full - half), LIMIT, " points"),
        Figure("toy: largest difference of probability", f"{worst:.3f}"),
        Figure("toy: pixels decided otherwise", f"{flipped / pixels:.1e}"),
        Figure("toy: time, float32 / bfloat16", f"{times['float32'] / times['bfloat16']:.2f}x"),
    ]


@torch.inference_mode()
def _vit(side: int) -> list[Figure]:
    net = subject.sofs(subject.vit_small(side)).net
    images, mask = subject.pictures(4, side)
    windows = subject.pictures(2, side, first=4)[0][None].float() / 255
    times, found = {}, {}
    for name in PRECISIONS:
        with _precision(name):
            state = net.encode_support(images[None].float() / 255, mask[None])
            net(windows[:, :1], state)
            times[name], found[name] = subject.seconds(lambda state=state: net(windows, state))
    ratio = times["float32"] / times["bfloat16"]
    difference = _difference(found["float32"], found["bfloat16"])
    return [
        Figure(f"ViT-S at {side} px: time, float32 / bfloat16", f"{ratio:.2f}x"),
        Figure(f"ViT-S at {side} px: largest difference of probability", f"{difference:.3f}"),
    ]


def _precision(name: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bfloat16")


def _difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def _native() -> bool:
    """Whether the processor computes in bfloat16 (Linux tells)."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "avx512_bf16" in info.read_text()
