"""``mode=check``: what the folder holds, whether the config fits, and one batch through it on the CPU."""

import functools
import inspect
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console

from fewspect.callbacks.record import peak_memory
from fewspect.data.check import explain as explain_folder
from fewspect.data.module import DataModule
from fewspect.engine import build
from fewspect.methods.base import Method
from fewspect.types import Episode


def explain(node: dict[str, Any]) -> None:
    """Print what is found below ``data.root``.

    Args:
        node: The resolved ``data`` group; without a reader (features from files) there is no folder.

    Raises:
        UserError: The folder is missing or empty.
    """
    if node.get("reader") is None:
        return
    reader = build.make(node["reader"])
    options = dict(reader.keywords) if isinstance(reader, functools.partial) else {}
    read = reader.func if isinstance(reader, functools.partial) else reader
    taken = inspect.signature(read).parameters
    asked = {"fold": node.get("fold"), "category": node.get("category") or node.get("object")}
    if asked["category"] == "all":
        asked["category"] = None
    options |= {k: v for k, v in asked.items() if v is not None and k in taken}
    root = node.get("root") or taken["root"].default
    if root is not None:
        Console(width=None if Console().is_terminal else 120, highlight=False).print(
            explain_folder(str(root), read, **options)
        )


def one_batch(tree: dict[str, Any]) -> None:
    """Build data and method, learn from one batch, answer one test episode; print shapes and memory."""
    data, method = build.parts(tree)
    print(f"data    {data.info}")
    batch = next(iter(data.train_dataloader()))
    print(f"batch   {len(batch)} x {shapes(batch[0])}")
    count = sum(p.numel() for p in method.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    print(f"method  {type(method).__name__}: {count:,} parameters, {trained:,} of them trained")
    learn(method, batch)
    by_hand = method.fit_kind == "gradient" and not method.automatic_optimization
    if by_hand:
        print("answer  not tried: it learns in steps of its own")
    elif method.task != "generate" and data.tests:  # a generator is asked by its mode, about nothing
        one_answer(data, method)
    print(f"memory  {peak_memory()['rss']} MiB at most")


def learn(method: Method, batch: list[Episode]) -> None:
    """Learn from one batch, as far as that is possible without a Trainer, and print losses."""
    if method.fit_kind == "single_pass":
        one = [e for e in batch if e.product == batch[0].product]  # a single product answers for any
        method.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        with torch.no_grad():
            method.observe(one)
            method.finish()
    elif method.automatic_optimization:
        losses = method.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        print("losses  " + "  ".join(f"{name} {float(value.detach()):.4f}" for name, value in losses.items()))


def one_answer(data: DataModule, method: Method) -> None:
    """Answer a test episode and print shapes."""
    episode = next(iter(data.test_dataloader()))[0]
    with torch.inference_mode():
        prediction = method.eval().predict_step([episode], 0)["predictions"][0]
    shown = {k: v for k in ("prob", "mask", "score", "logits") if (v := getattr(prediction, k)) is not None}
    print(f"test    {shapes(episode)}")
    print("answer  " + "  ".join(f"{k} {tuple(v.shape)}" for k, v in shown.items()))


def shapes(episode: Episode) -> str:
    """Sizes of what matters in an episode."""
    names = ("support_image", "support_mask", "query_image", "query_mask")
    if episode.support_feature is not None:
        names = ("support_feature", "support_label", "query_feature", "query_label")
    return "  ".join(f"{name} {tuple(getattr(episode, name).shape)}" for name in names)
