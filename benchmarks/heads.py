"""Classification heads: the grid of a whole benchmark at once, the fine-tuned cache batched or one by one."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import subject
from benchmarks.report import Figure, Report, at_least, below, equal
from fewspect.data import sampling
from fewspect.nn.adapter import Zip
from fewspect.nn.fine_tune import Recipe, ZipF
from fewspect.nn.heads import Centred, Neighbours, Prototypes, Text
from fewspect.nn.linear_heads import Discriminant, LinearProbe, Ridge
from fewspect.nn.merging import merge
from fewspect.nn.shots import Head, Shots

OBJECTS = {
    "carpet": ((11, 9, 9, 9, 12), 44), "grid": ((14, 16, 6, 7, 6), 49), "leather": ((10, 11, 9, 12, 9), 44),
    "tile": ((9, 9, 8, 9, 9), 42), "wood": ((18, 26, 12, 28), 70), "bottle": ((10, 13, 11), 32),
    "cable": ((9, 9, 7, 7, 9, 8, 8), 57), "capsule": ((10, 12, 11, 11, 12), 53),
    "hazelnut": ((11, 11, 10, 9), 35), "metal_nut": ((18, 11, 12, 19), 50),
    "pill": ((20, 18, 13, 5, 16, 13), 81), "screw": ((12, 12, 16, 17, 12), 60),
    "transistor": ((5, 6, 6, 5), 21), "zipper": ((16, 14, 17, 12, 19, 14), 82),
}  # fmt: skip
"""Object -> instances per class of the training side, queries (specification mvrec, 1.3)."""

VIEWS, WIDTH = 27, 768
SHOTS, SAMPLINGS = (1, 3, 5), 20
HEADS: dict[str, Head] = {
    "zip": Zip(),
    "proto": Prototypes(),
    "euclid": Prototypes("euclidean"),
    "knn": Neighbours(),
    "ridge": Ridge(),
    "lda": Discriminant(),
    "linear": LinearProbe(),
    "text": Text(),
    "centered": Centred(),
    "centered, views mixed": Centred(aligned=False),
}
BUDGET = 60.0
TUNED, QUICK_STEPS = 5, 5
TRAININGS = ((1, 500), (5, 25))
"""Shots, steps; a step costs the same from first to last."""

CLASSES = 3
RATIO = 5.0


def measure(*, quick: bool) -> Report:
    """The grid, then the fine-tuned cache."""
    objects = dict(list(OBJECTS.items())[:2]) if quick else OBJECTS
    with torch.inference_mode():
        grid = {name: 0.0 for name in HEADS}
        total, _ = subject.seconds(lambda: [_object(*sizes, grid) for sizes in objects.values()])
    slowest = ", ".join(f"{n} {s:.1f} s" for n, s in sorted(grid.items(), key=lambda p: -p[1])[:4])
    label = f"{len(HEADS)} heads x {len(SHOTS)} shots x {SAMPLINGS} samplings x {len(objects)} objects"
    figures = [below(label, total, BUDGET, " s")]
    for shot, steps in TRAININGS:
        figures += _tuned(shot, QUICK_STEPS if quick else steps)
    return Report(
        title="Classification heads",
        what=f"Grid: random features of the benchmark's sizes ({VIEWS} views, width {WIDTH}), supports drawn "
        "as published, every query of the object asked; all samplings of a shot count are one batch. "
        f"Fine-tuned: Zip-Adapter-F, {TUNED} samplings of {CLASSES} classes, trained as one batch and one "
        "after the other by the same code, and by a plain loop (a loader that collates all views in every "
        "step, torch's linear layer and AdamW).",
        how="Wall time, once each.",
        figures=figures,
        notes=[
            f"Slowest heads of the grid: {slowest}. All ten are training-free or convex; the two that are "
            "trained by 500 steps (`zip_f`, `tip_f`) are not in it.",
            "A fine-tuning step is two products of 768 x 768 with all views and a pass of AdamW over 590,000 "
            "numbers per sampling: arithmetic that a batch cannot save, only the overhead around it.",
        ],
    )


def _object(counts: tuple[int, ...], queries: int, grid: dict[str, float]) -> None:
    """All heads, shots and samplings of one object."""
    random = torch.Generator().manual_seed(len(counts) * queries)
    label = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    pool = torch.randn(len(label), VIEWS, WIDTH, generator=random)
    asked = torch.randn(1, queries, VIEWS, WIDTH, generator=random)
    text = torch.randn(1, len(counts), WIDTH, generator=random)
    for shot in SHOTS:
        places = torch.tensor([sampling.published(label.tolist(), shot, s) for s in range(SAMPLINGS)])
        shots = Shots(pool[places], label[places], torch.ones(places.shape), len(counts), text)
        for name, head in HEADS.items():
            taken, _ = subject.seconds(lambda h=head, s=shots: merge(h.fit(s)(asked), h.merge).argmax(-1))
            grid[name] += taken


def _tuned(shot: int, steps: int) -> list[Figure]:
    shots = _shots(shot)
    head = ZipF(recipe=Recipe(steps=steps))
    together, batched = subject.seconds(lambda: head.fit(shots))
    apart, alone = subject.seconds(lambda: [head.fit(_one(shots, i)) for i in range(TUNED)])
    plain, loop = subject.seconds(lambda: [plain_loop(_one(shots, i), steps) for i in range(TUNED)])
    gap = max(float((batched.keys[i] - alone[i].keys[0]).abs().max()) for i in range(TUNED))
    loop_gap = max(float((batched.keys[i] - loop[i]).abs().max()) for i in range(TUNED))
    name = f"Zip-F, {shot}-shot, {TUNED} x {steps} steps"
    return [
        Figure(f"{name}: batched", f"{together:.1f} s"),
        at_least(f"{name}: one by one / batched", apart / together, RATIO),
        at_least(f"{name}: plain loop / batched", plain / together, RATIO),
        equal(f"{name}: largest difference of a key, one by one", gap, 1e-4),
        equal(f"{name}: largest difference of a key, plain loop", loop_gap, 1e-4),
    ]


def _shots(shot: int) -> Shots:
    """Features with a common part and classes, at the length of real ones."""
    random = torch.Generator().manual_seed(shot)
    label = torch.arange(CLASSES).repeat_interleave(shot).expand(TUNED, -1)
    common, kinds = (torch.randn(*s, WIDTH, generator=random) for s in ((1,), (CLASSES,)))
    noise = torch.randn(TUNED, CLASSES * shot, VIEWS, WIDTH, generator=random)
    feature = 0.7 * common + 0.2 * kinds[label][:, :, None] + 0.2 * noise
    return Shots(feature, label, torch.ones(label.shape), CLASSES)


def _one(shots: Shots, i: int) -> Shots:
    part = slice(i, i + 1)
    return replace(shots, feature=shots.feature[part], label=shots.label[part], count=shots.count[part])


def plain_loop(shots: Shots, steps: int) -> Tensor:
    """Zip-Adapter-F of one sampling in the usual way; the trained keys (S, D)."""
    layer = torch.nn.Linear(WIDTH, WIDTH)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    keys = torch.nn.Parameter(shots.keys[0].clone())
    hot = shots.hot[0]
    views = shots.feature[0].flatten(0, 1)
    items = torch.utils.data.TensorDataset(views, shots.label[0].repeat_interleave(VIEWS))
    recipe = Recipe(steps=steps)
    options = {"lr": recipe.lr, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.AdamW([*layer.parameters(), keys], **options)
    project: Callable[[Tensor], Tensor] = lambda x: x + torch.nn.functional.silu(layer(x))  # noqa: E731
    for rate in recipe.rates():
        optimizer.param_groups[0]["lr"] = rate
        for x, y in torch.utils.data.DataLoader(items, batch_size=len(items), shuffle=True):
            unit = torch.nn.functional.normalize
            affinity = torch.exp(-(1 - unit(project(x), dim=-1) @ unit(project(keys), dim=-1).T))
            loss = torch.nn.functional.cross_entropy(affinity @ hot / 0.11, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return keys.detach()
