"""From noise to samples: one descending pass in which the network changes once (specification 3.4, 3.5).

``plan`` says which network answers at which timestep: the paper's pass T-1..0 with the large network down to
``switch`` and the small one below, or the two countdowns of the released program, which lose diversity. A
step turns the output at t into the sample at the next timestep.

Example:
    >>> calls = plan(1000, 400)
    >>> for t, x, x0 in descend(schedule, nets, noise, calls, ddim):  # doctest: +SKIP
    ...     print(t, x.std())
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.methods.defect_gen.schedule import Schedule

Stage = Literal["large", "small"]


class Call(NamedTuple):
    """One call of a network.

    Attributes:
        t: Timestep.
        stage: Which network answers.
    """

    t: int
    stage: Stage


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
    """Turns a sample at t into one at t - 1."""

    def __call__(self, schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, t: int) -> Tensor:
        """Take a step.

        Args:
            schedule: The noise.
            x: (B, C, H, W) sample at t.
            output: (B, C, H, W) clean sample by the network.
            x0: The same, clipped if clipping is on.
            t: Timestep.
        """
        ...


def plan(steps: int, switch: int, *, released: bool = False) -> list[Call]:
    """Every call of a full sampling.

    Args:
        steps: T.
        switch: Lowest timestep of the large network.
        released: The two countdowns of the released program: the large network from T - switch - 1 to 0,
            then the small one from switch - 1 to 0.

    Raises:
        UserError: The hand-over lies outside 0..T.
    """
    if not 0 <= switch <= steps:
        raise UserError(f"The hand-over at {switch} is no timestep of 0..{steps}.", "Choose one, e.g. 400.")
    if released:
        first = [Call(t, "large") for t in reversed(range(steps - switch))]
        return first + [Call(t, "small") for t in reversed(range(switch))]
    return [Call(t, "large" if t >= switch else "small") for t in reversed(range(steps))]


@torch.no_grad()
def descend(
    schedule: Schedule,
    nets: Mapping[Stage, nn.Module],
    x: Tensor,
    calls: Sequence[Call],
    step: Step,
    *,
    clip: bool = True,
) -> Iterator[Moment]:
    """Walk through ``calls``; networks predict x0.

    Args:
        schedule: The noise.
        nets: The networks.
        x: (B, C, H, W) where to begin: noise of variance 1.
        calls: See ``plan``.
        step: How to step.
        clip: Clamp the clean samples to [-1, 1].
    """
    for call in calls:
        t = torch.full((len(x),), call.t, device=x.device)
        output = nets[call.stage](x, t)
        x0 = output.clamp(-1, 1) if clip else output
        x = step(schedule, x, output, x0, call.t)
        yield Moment(call.t, x, x0)


def deterministic(schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, t: int) -> Tensor:
    """The original's step: DDIM, but for what was clipped off and for t = 1 (specification 3.4 a).

    Counted from 1 there, so the step at t = 1 removes a clean sample where a noisy one is. Harmless with
    1000 steps, visible with few.
    """
    where = torch.full((len(x),), t, device=x.device)
    noise = schedule.noise_of_x0(x, output, where)
    here = x0 if t == 1 else schedule.add_noise(x0, noise, where)
    there = x0 if t == 0 else schedule.add_noise(x0, noise, where - 1)
    return x - here + there


def ddim(schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, t: int) -> Tensor:
    """DDIM with eta 0 (Song et al. 2021, eq. 12); the noise is that of the unclipped output."""
    where = torch.full((len(x),), t, device=x.device)
    return x0 if t == 0 else schedule.add_noise(x0, schedule.noise_of_x0(x, output, where), where - 1)


class Ancestral:
    """The step of DDPM (Ho et al. 2020): mean of the posterior plus given noise, none at t = 0.

    Args:
        noise: (T, B, C, H, W); entry j belongs to the j-th step from T - 1 down.
    """

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def __call__(self, schedule: Schedule, x: Tensor, output: Tensor, x0: Tensor, t: int) -> Tensor:
        """See ``Step``."""
        del output
        where = torch.full((len(x),), t, device=x.device)
        mean = schedule.posterior_mean(x0, x, where)
        if t == 0:
            return mean
        return (
            mean + (schedule.posterior_log_variance_clipped[t] / 2).exp() * self.noise[schedule.steps - 1 - t]
        )
