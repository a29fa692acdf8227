"""Optimisers and schedules from plain values, so that checkpoints hold nothing but numbers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fewspect.errors import UserError

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def build(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    steps: int,
    *,
    name: str = "adamw",
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    groups: Mapping[str, float] | None = None,
    schedule: str = "constant",
    power: float = 0.9,
    warmup: int = 0,
    epochs: int | None = None,
    milestones: Sequence[float] = (),
    decay: float = 10.0,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 1e-6,
    **options: Any,  # noqa: ANN401 - handed to the named torch optimiser
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Make an optimiser and its per-step schedule.

    Args:
        named_parameters: Names and parameters; frozen ones are left out.
        steps: Total number of optimiser steps T.
        name: ``adamw``, ``adam`` or ``sgd``.
        lr: Base learning rate.
        weight_decay: Applied to every parameter, norms and biases included (as the five systems do).
        groups: Name prefix -> factor on ``lr``; the longest matching prefix wins, others have factor 1.
        schedule: ``constant``, ``poly`` or ``cosine``, see ``factor``; or ``steps``, see ``staircase``.
        power: Exponent of the poly schedule.
        warmup: Steps of linear warm-up; not for ``steps``.
        epochs: ``steps``: number of epochs that the T steps are counted as, so that a shorter training runs
            through the same plan; needed for it.
        milestones: ``steps``: epochs after which the rate is divided by ``decay``.
        decay: See there.
        warmup_epochs: ``steps``: epochs of its linear warm-up.
        warmup_lr: ``steps``: rate of the very first step.
        options: Further arguments of the torch optimiser, e.g. ``betas``.

    Raises:
        UserError: Unknown optimiser, schedule or option, or nothing to train.
    """
    if name not in OPTIMIZERS:
        raise UserError(
            f"method.optimizer.name={name} is not known.", f"Choose one of {', '.join(OPTIMIZERS)}."
        )
    params = _grouped(named_parameters, lr, dict(groups or {}))
    try:
        optimizer = OPTIMIZERS[name](params, lr=lr, weight_decay=weight_decay, **options)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"method.optimizer: {error}.", f"See torch.optim.{OPTIMIZERS[name].__name__}."
        ) from error
    if schedule != "steps":
        return optimizer, LambdaLR(optimizer, factor(schedule, steps, power=power, warmup=warmup))
    if not epochs:
        raise UserError("method.optimizer.schedule=steps needs epochs.", "Set method.optimizer.epochs.")
    per_epoch = steps / epochs
    marks = [m * per_epoch for m in milestones]
    start = warmup_lr / lr if lr else 0.0
    return optimizer, LambdaLR(
        optimizer, staircase(marks, decay, warmup=warmup_epochs * per_epoch, start=start)
    )


def planned_steps(trainer: pl.Trainer) -> int:
    """Steps of a whole training, which schedules are made for.

    Raises:
        UserError: It never ends.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise UserError(
            "trainer.max_epochs=-1: a training without an end has no plan for its learning rate.",
            "Set trainer.max_steps, or a number of epochs.",
        )
    return int(steps)


def factor(schedule: str, steps: int, *, power: float = 0.9, warmup: int = 0) -> Callable[[int], float]:
    """Return the factor on the learning rate before step ``s`` (0-based), i = s + 1 in 1..T.

    ``poly``: (1 - i/T)^power, so the last step has rate 0 (HDMNet, SOFS); ``cosine``: half a cosine from 1 to
    0.
    """
    decays: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "poly": lambda x: max(0.0, 1.0 - x) ** power,
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * min(1.0, x))),
    }
    if schedule not in decays:
        raise UserError(
            f"method.optimizer.schedule={schedule} is not known.",
            f"Choose one of {', '.join(decays)}, steps.",
        )

    def at(step: int) -> float:
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return ramp * decays[schedule]((step + 1) / max(1, steps))

    return at


def staircase(
    milestones: Sequence[float], decay: float, *, warmup: float = 0.0, start: float = 0.0
) -> Callable[[int], float]:
    """Return the factor on the learning rate before step ``s`` (0-based), as the DeeCamp project has it.

    A line from ``start`` at step 0 to 1 at step ``warmup``; from then on 1 / decay^k after k milestones. It
    depends on the step alone, so a resumed training continues the line and does not begin another one.

    Args:
        milestones: Steps.
        decay: Divisor at each of them.
        warmup: Length of the line in steps.
        start: Factor of the first step.
    """

    def at(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * step / warmup
        return decay ** -sum(step >= m for m in milestones)

    return at


def _grouped(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, factors: dict[str, float]
) -> list[dict[str, Any]]:
    prefixes = sorted(factors, key=len, reverse=True)
    grouped: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in [*prefixes, ""]}
    for name, parameter in named:
        if parameter.requires_grad:
            grouped[next((p for p in prefixes if name.startswith(p)), "")].append(parameter)
    out = [
        {"params": ps, "lr": lr * factors.get(k, 1.0), "name": k or "rest"} for k, ps in grouped.items() if ps
    ]
    if not out:
        raise UserError("The method has no trainable parameter.", "Use mode=test, or unfreeze something.")
    return out


def minimise(
    method: pl.LightningModule,
    loss: Tensor,
    optimizer: LightningOptimizer,
    parameters: Iterable[nn.Parameter],
    clip: float | None = None,
) -> None:
    """One step of manual optimisation by some parameters, whose gradients are averaged over all processes.

    The averaging is done here: DDP waits for gradients of all parameters, and such a step has those of one
    network only.

    Args:
        method: Whose trainer and ``manual_backward`` are used.
        loss: ().
        optimizer: Of the parameters.
        parameters: What gets gradients; frozen ones are left out.
        clip: Largest length of the gradient; None = any.
    """
    mine = [p for p in parameters if p.requires_grad]
    strategy = method.trainer.strategy
    optimizer.zero_grad()
    if isinstance(strategy, ParallelStrategy):
        with strategy.block_backward_sync():
            method.manual_backward(loss, inputs=mine)
        for p in mine:
            p.grad = cast(Tensor, strategy.reduce(cast(Tensor, p.grad), reduce_op="mean"))
    else:
        method.manual_backward(loss, inputs=mine)
    if clip is not None:
        scaler = getattr(strategy.precision_plugin, "scaler", None)  # float16: gradients come scaled
        nn.utils.clip_grad_norm_(mine, clip * (1.0 if scaler is None else scaler.get_scale()))
    optimizer.step()
