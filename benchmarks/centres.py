"""Graph and class centres of 10,000 episodes at once, against one episode at a time; PT-MAP; peak memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks import subject
from benchmarks.memory import peak
from benchmarks.report import THREADS, Figure, Report, at_least, below
from fewspect.nn.centres import CHUNK_MB, Centres, per_chunk, recognise
from fewspect.nn.graph import Graph
from fewspect.nn.transport import Transport

ROOT = Path(__file__).resolve().parents[1]
WAYS, SUPPORTS, QUERIES, WIDTH = 5, 11, 15, 512
"""Six synthetic and five real supports per class."""

EPISODES, QUICK = 10_000, 200
LOOPED, QUICK_LOOPED = 100, 5
"""Episodes that are also answered one by one."""

PTMAP_EPISODES = 1000
TIME, PTMAP_TIME, FASTER = 60.0, 10.0, 20.0
POOL = 500
"""So many different episodes go round: the inputs alone would take gigabytes."""


def measure(*, quick: bool) -> Report:
    """Time in fresh processes, and the comparison in one."""
    episodes, looped = (QUICK, QUICK_LOOPED) if quick else (EPISODES, LOOPED)
    found = _spawn("graph", episodes, looped)
    ptmap = _spawn("ptmap", min(episodes, PTMAP_EPISODES), 0)
    nodes = WAYS * (SUPPORTS + QUERIES)
    each = 1e3 * found["seconds"] / episodes
    return Report(
        title="Class centres",
        what=f"{WAYS}-way episodes of 6 synthetic and 5 real supports and {QUERIES} queries per class "
        f"({nodes} nodes, width {WIDTH}): similarity graph (k 4, kappa 2, cross_k 4), 20 updates of the "
        "centres, labels.",
        how=f"Chunks of {per_chunk(nodes, WIDTH, CHUNK_MB)} episodes ({CHUNK_MB:g} MB), each case in a fresh "
        f"process; {POOL} random episodes go round. In the same run {looped} of them one by one: (a) the "
        "formulas of the specification in plain PyTorch, centres in full width, with the same number of "
        "scalings; (b) the same function as for the batch; (c) as (a) with the original's transport, up to "
        "1,000 scalings until rows move by less than 1e-6. Extra memory is the growth of the peak after the "
        "inputs were made.",
        figures=[
            below(f"{episodes:,} episodes", found["seconds"], TIME * episodes / EPISODES, " s"),
            Figure("per episode", f"{each:.2f} ms"),
            at_least("faster than (a) one by one", found["plain"] / found["seconds"] * episodes, FASTER),
            Figure(
                "faster than (b) the same function one by one",
                f"{found['own'] * episodes / found['seconds']:.1f}x",
            ),
            Figure(
                "faster than (c) the original's transport",
                f"{found['exact'] * episodes / found['seconds']:.0f}x",
            ),
            at_least("labels equal to (a)", 100 * found["equal"], 100.0, " %"),
            Figure("labels equal to (c)", f"{100 * found['equal_exact']:.2f} %"),
            Figure("extra memory", f"{found['extra'] / 1e6:.0f} MB"),
            below(f"PT-MAP, {min(episodes, PTMAP_EPISODES):,} episodes", ptmap["seconds"], PTMAP_TIME, " s"),
            Figure("PT-MAP: extra memory", f"{ptmap['extra'] / 1e6:.0f} MB"),
        ],
        notes=[
            "What others do on the machine counts: on two busy cores two threads are hardly faster than one. "
            "Half of the time is the graph (cosines in full width, nearest neighbours), which the loop does "
            "too.",
        ],
    )


def plain(x: torch.Tensor, labels: torch.Tensor, options: Graph, settings: Centres) -> torch.Tensor:
    """One episode (m, D) by the formulas, in plain PyTorch: plan (Q, K)."""
    m, first = len(x), len(labels)
    x = x / x.norm(dim=1, keepdim=True)
    cosine = x @ x.T
    cosine.fill_diagonal_(0)
    near = torch.zeros(m, m, dtype=torch.bool)
    for one in (slice(0, first), slice(first, m)):
        for other in (slice(0, first), slice(first, m)):
            number = options.k if one == other else options.cross_k
            block = cosine[one, other]
            near[one, other] = torch.zeros_like(block, dtype=torch.bool).scatter(
                1, block.topk(number).indices, True
            )
    edges = cosine * (near | near.T)
    root = edges.sum(0) ** -0.5
    spread = torch.linalg.matrix_power(
        options.self_weight * torch.eye(m) + root[:, None] * edges * root, options.kappa
    )
    z = spread.softmax(1)
    z = z / z.norm(dim=1, keepdim=True)
    z = torch.cat([z[:first] - z[:first].mean(0), z[first:] - z[first:].mean(0)])
    z = z / z.norm(dim=1, keepdim=True)
    hot = torch.eye(WAYS)[labels]
    mu, query = hot.T @ z[:first] / hot.sum(0)[:, None], z[first:]
    v = torch.ones(WAYS)
    for update in range(settings.updates + 1):
        distance = (query[:, None] - mu[None]).square().sum(-1)
        kernel = torch.exp(-settings.sharpness * (distance - distance.amin(1, keepdim=True)))
        plan, v = _scaled(kernel, v, settings.transport, last=update == settings.updates)
        if update < settings.updates:
            full = torch.cat([hot, plan])
            mu = mu + settings.step * (full.T @ z / full.sum(0)[:, None] - mu)
    return plan


def _scaled(
    kernel: torch.Tensor, v: torch.Tensor, options: Transport, *, last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plan (Q, K) by rows and columns in turn, and the column scaling."""
    v = v if options.warm else torch.ones_like(v)
    u, before = torch.ones(len(kernel)), torch.zeros(len(kernel))
    for _ in range(options.final_passes if last else options.passes):
        rows = u * (kernel @ v)
        if options.tolerance is not None and (rows - before).abs().max() <= options.tolerance:
            break
        before, u = rows, 1 / (kernel @ v)
        v = len(kernel) / WAYS / (kernel.T @ u)
    return u[:, None] * kernel * v, v


def run_case(case: str, episodes: int, looped: int) -> dict[str, float]:
    """Time and memory of one case, in this process."""
    torch.set_num_threads(THREADS)
    random = torch.Generator().manual_seed(0)
    means = torch.randn(POOL, 1, WAYS, WIDTH, generator=random)
    noise = torch.randn(POOL, SUPPORTS + QUERIES, WAYS, WIDTH, generator=random)
    x = (means + 4 * noise).flatten(1, 2)
    labels = torch.arange(WAYS).repeat(SUPPORTS).expand(POOL, -1)
    options = Graph() if case == "graph" else Graph(node="none")
    recognise(x[:20], labels[:20], WAYS, options, Centres())  # libraries are loaded, threads are there
    before = peak()
    turns = -(-episodes // POOL)
    size = min(episodes, POOL)

    def whole() -> torch.Tensor:
        for _ in range(turns):
            plan = recognise(x[:size], labels[:size], WAYS, options, Centres()).plan
        return plan

    taken, plan = subject.seconds(whole)
    found = {"seconds": taken * episodes / (turns * size), "extra": float(peak() - before)}
    if not looped:
        return found
    exact = Centres(transport=Transport(passes=1000, final_passes=1000, tolerance=1e-6, warm=False))
    routes = {
        "plain": lambda i: plain(x[i], labels[i], options, Centres()),
        "own": lambda i: recognise(x[i : i + 1], labels[i : i + 1], WAYS, options, Centres()).plan[0],
        "exact": lambda i: plain(x[i], labels[i], options, exact),
    }
    answers = {}
    for name, route in routes.items():
        number = looped if name != "exact" else max(2, looped // 10)
        spent, answers[name] = subject.seconds(
            lambda r=route, n=number: [r(i).argmax(-1).numpy() for i in range(n)]
        )
        found[name] = spent / number
    mine = plan.argmax(-1).numpy()
    for key, name in (("equal", "plain"), ("equal_exact", "exact")):
        found[key] = float(np.mean(np.stack(answers[name]) == mine[: len(answers[name])]))
    return found


def _spawn(case: str, episodes: int, looped: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.centres", case, str(episodes), str(looped)]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths.strip(os.pathsep)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(run_case(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
