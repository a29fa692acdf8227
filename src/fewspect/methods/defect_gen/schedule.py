"""The noise of the diffusion: schedule, forward process, posterior and conversions (specification 3.1, 3.2).

Everything is computed in float64 and cast once. By the cosine schedule the last step is noise and nothing
else (mean abar 2e-9), so networks predict x0 or velocity: noise says nothing there.

Letters: T steps, abar the share of signal power, x0 a clean sample, x_t a noisy one.

Example:
    >>> schedule = Schedule(1000)
    >>> x_t = schedule.add_noise(x0, noise, t)  # doctest: +SKIP
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["cosine", "linear", "sqrt_linear", "sqrt", "inverse_proportion"]

LOG_FLOOR = 1e-20
"""The posterior variance of the last step is 0; its logarithm is that of this."""


def betas(
    kind: Kind = "cosine",
    steps: int = 1000,
    *,
    cosine_s: float = 0.008,
    max_beta: float = 0.999,
    start: float = 1e-4,
    end: float = 2e-2,
) -> Tensor:
    """Variances added per step, (steps,) float64.

    Args:
        kind: ``cosine`` (Nichol and Dhariwal 2021); the others under the names of the original: ``linear``
            is what others call scaled-linear, ``sqrt_linear`` the plain line, ``sqrt`` its root. The method
            uses ``cosine`` alone; the others are there for parity, as is the posterior.
        steps: T.
        cosine_s: Offset of the cosine.
        max_beta: Upper limit of the cosine schedule.
        start: First value of the lines.
        end: Last value.
    """
    count = torch.arange(steps + 1, dtype=torch.float64)
    if kind == "cosine":
        signal = torch.cos((count / steps + cosine_s) / (1 + cosine_s) * math.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(0, max_beta)
    if kind == "inverse_proportion":
        return 1 / (steps - count[:-1] + 1)
    if kind == "linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    line = torch.linspace(start, end, steps, dtype=torch.float64)
    return line if kind == "sqrt_linear" else line.sqrt()


class Schedule(nn.Module):
    """What follows from the betas, as float32 buffers of T values that no checkpoint holds.

    Args:
        steps: T.
        kind: See ``betas``.
        options: Further arguments of ``betas``.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, steps: int = 1000, kind: Kind = "cosine", **options: float) -> None:
        super().__init__()
        self.steps = steps
        beta = betas(kind, steps, **options)
        abar = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        variance = beta * (1 - before) / (1 - abar)
        values = {
            "betas": beta,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": abar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - abar).log(),
            "sqrt_recip_alphas_cumprod": abar.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": variance.clamp(min=LOG_FLOOR).log(),
            "posterior_mean_coef1": beta * before.sqrt() / (1 - abar),
            "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - abar),
        }
        for name, value in values.items():
            self.register_buffer(name, value.float(), persistent=False)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar) x0 + sqrt(1 - abar) noise; samples (B, ...), timesteps (B,)."""
        return at(self.sqrt_alphas_cumprod, t, x0) * x0 + self.noise_level(t, x0) * noise

    def noise_level(self, t: Tensor, like: Tensor) -> Tensor:
        """sqrt(1 - abar), shaped to multiply ``like``."""
        return at(self.sqrt_one_minus_alphas_cumprod, t, like)

    def x0_of_noise(self, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean sample, if ``noise`` is what was added."""
        scale, level = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return at(scale, t, x_t) * x_t - at(level, t, x_t) * noise

    def noise_of_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise, if ``x0`` is the clean sample."""
        scale, level = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return (at(scale, t, x_t) * x_t - x0) / at(level, t, x_t)

    def renoise(self, x: Tensor, noise: Tensor, t: int, above: int) -> Tensor:
        """Bring samples at ``t`` (-1 = clean) up to ``above``: q(x_above | x_t)."""
        share = self.alphas_cumprod[above] / (1 if t < 0 else self.alphas_cumprod[t])
        return share.sqrt() * x + (1 - share).sqrt() * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What changes with the angle: sqrt(abar) noise - sqrt(1 - abar) x0 (Salimans and Ho 2022)."""
        return at(self.sqrt_alphas_cumprod, t, x0) * noise - self.noise_level(t, x0) * x0

    def x0_of_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The clean sample of a velocity."""
        return at(self.sqrt_alphas_cumprod, t, x_t) * x_t - self.noise_level(t, x_t) * velocity

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x0); its variance is ``posterior_variance``."""
        return at(self.posterior_mean_coef1, t, x_t) * x0 + at(self.posterior_mean_coef2, t, x_t) * x_t

    def snr(self, t: Tensor) -> Tensor:
        """Signal to noise abar / (1 - abar), (B,)."""
        return self.alphas_cumprod[t] / self.sqrt_one_minus_alphas_cumprod[t] ** 2


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries ``t`` (B,) of ``values`` (T,), shaped to multiply ``like`` (B, ...)."""
    return values[t].reshape(-1, *[1] * (like.ndim - 1))
