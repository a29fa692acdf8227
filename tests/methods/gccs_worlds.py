"""Two worlds whose accuracies are known: digits, and a toy zero-shot world (specification gccs, 8.2)."""

import functools
from types import SimpleNamespace

import numpy as np
import torch

from fewspect.methods.gccs import filtering
from fewspect.types import Episode


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data, [np.flatnonzero(found.target == k) for k in range(10)]


def digit_episodes(shot, runs, query=15, ways=5):
    """T1: features (R, m, 64), slot-major, supports first."""
    pixels, members = digits()
    rng = np.random.default_rng(7)
    episodes = []
    for _ in range(runs):
        chosen = rng.choice(10, ways, replace=False)
        rows = [rng.choice(members[k], shot + query, replace=False) for k in chosen]
        episodes.append(pixels[np.stack(rows)])
    x = torch.from_numpy(np.stack(episodes)).float()  # (R, N, T, D)
    return filtering.slots(x), filtering.order(ways, shot).expand(runs, -1)


@functools.cache
def toy():
    """T2: texts (50, 64) and features (50, 40, 128) of 50 classes, of which 40 are seen."""
    r = np.random.default_rng(0)

    def normal(*shape):
        return r.standard_normal(shape)

    u = normal(50, 10)
    a, b1, b2 = normal(10, 64) / 10**0.5, normal(10, 96) / 10**0.5, normal(96, 128) / 96**0.5
    t = u @ a + 0.1 * normal(50, 64)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    v = 2 * np.tanh(1.5 * u @ b1) @ b2 + 1.0 * normal(50, 128)
    spread = normal(24, 128) / 24**0.5
    x = v[:, None] + 3.2 * (normal(50, 40, 24) @ spread + 0.7 * normal(50, 40, 128))
    x += 2 * normal(128)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    text, feature = torch.from_numpy(t).float(), torch.from_numpy(x).float()
    return SimpleNamespace(text=text, feature=feature, seen=40, label=torch.arange(40).repeat_interleave(40))


def seen_episode(world, feature=None):
    """All that is known of the seen classes, as a training item."""
    rows = world.feature[: world.seen].flatten(0, 1) if feature is None else feature
    return episode(rows, world.label[: len(rows)], rows[:0], world.label[:0], world.text[: world.seen])


def unseen_episodes(world, shot=0, runs=300, ways=5, *, query=15, seed=1):
    from fewspect.nn import sampler

    left = len(world.text) - world.seen
    drawn = sampler.indexed([40] * left, runs=runs, ways=ways, shot=shot, query=query, seed=seed)
    found = []
    for i in range(runs):
        classes = torch.from_numpy(drawn.classes[i]) + world.seen
        rows = world.feature[classes[:, None], torch.from_numpy(drawn.real[i])]  # (N, T, D)
        shown, asked = rows[:, :shot].flatten(0, 1), rows[:, shot:].flatten(0, 1)
        labels = [torch.arange(ways).repeat_interleave(n) for n in (shot, query)]
        found.append(episode(shown, labels[0], asked, labels[1], world.text[classes], index=i))
    return found


def episode(support, label, asked, truth, text, *, index=0):
    nothing = torch.zeros(0, 3, 0, 0)
    return Episode(
        support_image=nothing,
        support_mask=torch.zeros(0, 0, 0, dtype=torch.uint8),
        support_label=label + 1,
        support_count=torch.ones(len(label)),
        query_image=nothing,
        query_mask=torch.zeros(0, 0, 0, dtype=torch.uint8),
        query_label=truth + 1,
        classes=tuple(f"c{k}" for k in range(len(text))),
        product="toy",
        index=index,
        paths=(f"run {index}",),
        support_feature=support[:, None],
        query_feature=asked[:, None],
        text=text,
    )


def accuracies(predictions, episodes):
    pairs = zip(predictions, episodes, strict=True)
    return torch.stack([(p.logits.argmax(-1) + 1 == e.query_label).float().mean() for p, e in pairs])


def percent(values):
    return 100 * float(values.mean())
