"""From noise to samples: one descending pass in which the network changes once (specification 3.4, 3.5).

``plan`` says which network answers at which timestep: the paper's pass from T-1 to 0 with the large network
down to ``switch`` and the small one below, or the two countdowns of the released program, which lose
diversity. A step turns the sample at one timestep into the one at the next; there are the original's, which
take every timestep, and two that leave some out.

Example:
    >>> calls = plan(1000, 400, count=20)
    >>> for t, x, x0 in descend(schedule, nets, noise, calls, ddim):  # doctest: +SKIP
    ...     print(t, x.std())
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.methods.defect_gen.schedule import Schedule

Stage = Literal["large", "small"]

CLEAN = -1
"""The timestep after the last one: no noise is left."""


class Call(NamedTuple):
    """One call of a network.

    Attributes:
        t: Timestep.
        stage: Which network answers.
    """

    t: int
    stage: Stage


class Move(NamedTuple):
    """One step down.

    Attributes:
        t: Timestep before it.
        after: The next timestep, or ``CLEAN``.
    """

    t: int
    after: int


class Moment(NamedTuple):
    """One point of a descent.

    Attributes:
        t: Timestep of the call.
        x: (B, C, H, W) sample after the step.
        x0: (B, C, H, W) clean sample that the network saw in it.
    """

    t: int
    x: Tensor
    x0: Tensor


class Step(Protocol):
    """Turns a sample at one timestep into one at the next."""

    def __call__(self, schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, move: Move) -> Tensor:
        """Take a step.

        Args:
            schedule: The noise.
            x: (B, C, H, W) sample at t.
            output: (B, C, H, W) clean sample by the network.
            x0: The same, clipped if clipping is on.
            move: From where to where.
        """
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """What of the samples is not to be made but kept: replacement with resampling (RePaint, Lugmayr 2022).

    Attributes:
        x0: (B, C, H, W) clean values.
        where: Bool, broadcasts to ``x0``: where they hold.
        resample: How often every step is taken, with noise added in between, so that what is made fits what
            is kept.
        noise: (step, repetition) -> (B, C, H, W) of variance 1; negative repetitions are for going back up.
    """

    x0: Tensor
    where: Tensor
    resample: int
    noise: Callable[[int, int], Tensor]


def spaced(top: int, count: int) -> list[int]:
    """``count`` timesteps from top - 1 down, evenly ("trailing": the first is the noisiest).

    Raises:
        UserError: Not between 1 and ``top``.
    """
    if not 1 <= count <= top:
        raise UserError(f"method.steps={count} of {top} timesteps.", f"Choose 1 to {top}, e.g. 20.")
    return [round(top - k * top / count) - 1 for k in range(count)]


def plan(
    steps: int, switch: int, *, released: bool = False, count: int | None = None, top: int | None = None
) -> list[Call]:
    """Every call of a sampling.

    Args:
        steps: T.
        switch: Lowest timestep of the large network.
        released: The two countdowns of the released program: the large network from T - switch - 1 to 0,
            then the small one from switch - 1 to 0.
        count: How many calls, evenly spread; None = every timestep.
        top: Begin below this timestep, with proportionally fewer calls; None = T.

    Raises:
        UserError: The hand-over lies outside 0..T, or there are more calls than timesteps.
    """
    if not 0 <= switch <= steps:
        raise UserError(f"The hand-over at {switch} is no timestep of 0..{steps}.", "Choose one, e.g. 400.")
    density = 1.0 if count is None else count / steps
    _ = spaced(steps, steps if count is None else count)  # refuses wrong counts

    def down(first: int) -> list[int]:
        return spaced(first, max(1, round(first * density))) if first else []

    if released:
        first = [Call(t, "large") for t in down(steps - switch)]
        return first + [Call(t, "small") for t in down(switch)]
    return [Call(t, "large" if t >= switch else "small") for t in down(steps if top is None else top)]


def nexts(calls: Sequence[Call]) -> list[int]:
    """The timestep after each call; ``CLEAN`` where a countdown ends."""
    later = [call.t for call in calls[1:]] + [CLEAN]
    return [after if after < call.t else CLEAN for call, after in zip(calls, later, strict=True)]


@torch.no_grad()
def descend(
    schedule: Schedule,
    nets: Mapping[Stage, nn.Module],
    x: Tensor,
    calls: Sequence[Call],
    step: Step,
    *,
    clip: bool = True,
    known: Known | None = None,
) -> Iterator[Moment]:
    """Walk through ``calls``; networks predict x0.

    Args:
        schedule: The noise.
        nets: The networks.
        x: (B, C, H, W) where to begin: noise of variance 1, or a noisy picture.
        calls: See ``plan``.
        step: How to step; one that remembers earlier steps cannot be resampled.
        clip: Clamp the clean samples to [-1, 1].
        known: What is not to be made.
    """
    for k, (call, after) in enumerate(zip(calls, nexts(calls), strict=True)):
        t = torch.full((len(x),), call.t, device=x.device)
        for again in reversed(range(known.resample if known else 1)):
            if known:
                x = torch.where(known.where, schedule.add_noise(known.x0, known.noise(k, again), t), x)
            output = nets[call.stage](x, t)
            x0 = output.clamp(-1, 1) if clip else output
            y = step(schedule, x, output, x0, Move(call.t, after))
            x = schedule.renoise(y, known.noise(k, -again), after, call.t) if known and again else y
        if known and after == CLEAN:
            x = torch.where(known.where, known.x0, x)
        yield Moment(call.t, x, x0)


def deterministic(schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, move: Move) -> Tensor:
    """The original's step: DDIM, but for what was clipped off and for t = 1 (specification 3.4 a).

    Counted from 1 there, so the step at t = 1 removes a clean sample where a noisy one is. Harmless with
    1000 steps, visible with few.
    """
    t = _only_one(move)
    where = torch.full((len(x),), t, device=x.device)
    noise = schedule.noise_of_x0(x, output, where)
    here = x0 if t == 1 else schedule.add_noise(x0, noise, where)
    there = x0 if t == 0 else schedule.add_noise(x0, noise, where - 1)
    return x - here + there


def ddim(schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, move: Move) -> Tensor:
    """DDIM with eta 0 (Song et al. 2021, eq. 12); the noise is that of the unclipped output."""
    if move.after == CLEAN:
        return x0
    where = torch.full((len(x),), move.t, device=x.device)
    return schedule.add_noise(x0, schedule.noise_of_x0(x, output, where), torch.full_like(where, move.after))


class Ancestral:
    """The step of DDPM (Ho et al. 2020): mean of the posterior plus given noise, none at t = 0.

    Not offered for drawing: what the original's numbers are compared with (parity).

    Args:
        noise: (T, B, C, H, W); entry j belongs to the j-th step from T - 1 down.
    """

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def __call__(self, schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, move: Move) -> Tensor:
        """See ``Step``."""
        del output
        t = _only_one(move)
        where = torch.full((len(x),), t, device=x.device)
        mean = schedule.posterior_mean(x0, x, where)
        if t == 0:
            return mean
        return (
            mean + (schedule.posterior_log_variance_clipped[t] / 2).exp() * self.noise[schedule.steps - 1 - t]
        )


class DpmSolver:
    """DPM-Solver++ of second order (Lu et al. 2022), by diffusers; remembers one earlier step.

    Args:
        schedule: The noise.
        calls: What it will be asked for, in this order and once; a new countdown starts anew.
    """

    def __init__(self, schedule: Schedule, calls: Sequence[Call]) -> None:
        self._solvers: list[DPMSolverMultistepScheduler] = []
        countdown: list[int] = []
        for call, after in zip(calls, nexts(calls), strict=True):
            countdown.append(call.t)
            if after == CLEAN:
                self._solvers.append(_solver(schedule, countdown))
                countdown = []

    def __call__(self, schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, move: Move) -> Tensor:
        """See ``Step``."""
        del schedule, output
        y = self._solvers[0].step(x0, move.t, x, return_dict=False)[0]
        if move.after == CLEAN:
            self._solvers.pop(0)
        return y


def _solver(schedule: Schedule, timesteps: list[int]) -> DPMSolverMultistepScheduler:
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.steps,
        trained_betas=schedule.betas.cpu().numpy(),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    solver.set_timesteps(timesteps=timesteps)
    return solver


def _only_one(move: Move) -> int:
    """The timestep of a move to the one below."""
    if move.after != move.t - 1:
        raise UserError(
            f"The original's step goes from {move.t} to {move.t - 1}, not to {move.after}.",
            "Set method.steps=1000, or method.solver=dpm.",
        )
    return move.t
