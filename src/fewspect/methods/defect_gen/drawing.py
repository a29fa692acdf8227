"""Samples of two networks, free or controlled (specification 11.4): classes, masks, regions, variations."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from scipy import ndimage
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.methods.defect_gen import loss
from fewspect.methods.defect_gen.codec import RGB, Codec
from fewspect.methods.defect_gen.sampler import (
    Call,
    DpmSolver,
    Known,
    Stage,
    Step,
    ddim,
    descend,
    deterministic,
    plan,
)
from fewspect.methods.defect_gen.schedule import Schedule
from fewspect.methods.generator import Wish

log = logging.getLogger(__name__)

Solver = Literal["dpm", "ddim", "original"]

Noise = Callable[..., Tensor]
"""(stream, index, ...) -> (B, C, H, W) of variance 1, of each sample by its number."""

FEATHER = 3
"""Pixels inside a region over which what was made passes into what was there."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How samples are drawn; see ``DefectGen`` for the fields.

    Raises:
        UserError: A number that makes no sense.
    """

    switch: float = 0.4
    steps: int = 20
    solver: Solver = "dpm"
    released: bool = False
    clip: bool = True
    guidance: float = 1.0
    resample: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.switch <= 1:
            raise UserError(
                f"method.switch={self.switch}: the hand-over is a time in [0, 1].", "Set 0.4, say."
            )
        if self.resample < 1:
            raise UserError(f"method.resample={self.resample}: at least 1.", "Set 1 for no repetition.")

    def at(self, steps: int) -> int:
        """The lowest of ``steps`` timesteps that belongs to the large network."""
        return round(self.switch * steps)

    def calls(self, steps: int, start: float) -> list[Call]:
        """Every call of a sampling that begins at time ``start``."""
        top = round(start * steps)
        if not 1 <= top <= steps:
            raise UserError(f"A start at {start} is no time in (0, 1].", "Set generate.start=0.4, say.")
        if self.released and top < steps:
            raise UserError(
                f"generate.start={start} with method.released=true: its countdowns begin with noise alone.",
                "Set method.released=false, or leave generate.start out.",
            )
        return plan(steps, self.at(steps), released=self.released, count=self.steps, top=top)

    def step(self, schedule: Schedule, calls: Sequence[Call], *, again: bool) -> Step:
        """The solver; where steps are repeated one without memory."""
        if self.solver == "original":
            return deterministic
        return DpmSolver(schedule, calls) if self.solver == "dpm" and not again else ddim

    def plain(self) -> dict[str, Any]:
        """Values for a manifest."""
        return asdict(self)


class Denoiser(nn.Module):
    """A network that says the clean sample, for one condition.

    Args:
        net: Answers ``kind``.
        schedule: The noise.
        kind: What it answers.
        condition: (B, M), or None where the network takes none.
        guidance: s in x0(nothing) + s (x0(asked) - x0(nothing)) (Ho and Salimans 2022); 1 = x0(asked).
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        kind: loss.Prediction,
        condition: Tensor | None,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.schedule = net, schedule
        self.kind: loss.Prediction = kind
        self.condition, self.guidance = condition, guidance

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W) noisy to clean, float32."""
        if self.condition is None or self.guidance == 1:
            output = self.net(x, t, self.condition).float()
        else:
            nothing = torch.zeros_like(self.condition)
            both = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.condition, nothing]))
            asked, free = both.float().chunk(2)
            output = free + self.guidance * (asked - free)
        return loss.to_x0(self.schedule, self.kind, output, x, t)


def drawn(
    schedule: Schedule,
    nets: Mapping[Stage, nn.Module],
    codec: Codec,
    *,
    sampling: Sampling,
    noise: Noise,
    wishes: Sequence[Wish],
) -> tuple[Tensor, Tensor]:
    """Draw one sample per wish.

    Args:
        schedule: The noise.
        nets: ``Denoiser`` of both stages.
        codec: The joint coding.
        sampling: How.
        noise: Where the noise comes from.
        wishes: What is fixed.

    Returns:
        Pictures (B, 3, H, W) and labels (B, H, W), uint8.
    """
    calls = sampling.calls(schedule.steps, wishes[0].start)
    x = noise("sample")
    if wishes[0].start < 1:
        begin = torch.stack([_encoded(codec, wish) for wish in wishes]).to(x)
        x = schedule.add_noise(begin, x, torch.full((len(x),), calls[0].t, device=x.device))
    known = _known(codec, sampling, noise, wishes, x)
    again = known is not None and known.resample > 1
    count = Counter(call.stage for call in calls)
    log.debug("%d calls of the large and %d of the small network", count["large"], count["small"])
    step = sampling.step(schedule, calls, again=again)
    for moment in descend(schedule, nets, x, calls, step, clip=sampling.clip, known=known):
        x = moment.x
    return codec.decode(x)


def blended(image: Tensor, mask: Tensor, wish: Wish) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lay what was made inside the wish's region over what was there.

    Returns:
        Picture (3, H, W) uint8, labels (H, W) uint8, and the picture underneath or None. Outside the region
        the picture is the one underneath, to the last bit, and without a label.
    """
    if wish.region is None or wish.image is None:
        return image, mask, None
    ground = (wish.image * 255).round().to(torch.uint8)
    inside: Any = ndimage.distance_transform_edt(_padded(wish.region))
    share = torch.from_numpy(inside[1:-1, 1:-1] / FEATHER).clamp(max=1).float()  # 0 outside
    mixed = ground + share * (image.float() - ground)
    return mixed.round().to(torch.uint8), mask * wish.region, ground


def _padded(region: Tensor) -> Any:  # noqa: ANN401 - an array
    """The border of the picture is no seam: a region that touches it goes on beyond."""
    return torch.nn.functional.pad(region[None].float(), (1, 1, 1, 1), mode="replicate")[0].numpy()


def _encoded(codec: Codec, wish: Wish) -> Tensor:
    """The picture of a wish with its labels, (C, H, W)."""
    assert wish.image is not None
    labels = torch.zeros(wish.image.shape[1:], dtype=torch.uint8) if wish.labels is None else wish.labels
    return codec.encode(wish.image[None], labels[None])[0]


def _known(
    codec: Codec, sampling: Sampling, noise: Noise, wishes: Sequence[Wish], like: Tensor
) -> Known | None:
    """What of the samples ``like`` (B, C, H, W) is given, or None."""
    x0, where = torch.zeros_like(like), torch.zeros_like(like, dtype=torch.bool)
    for k, wish in enumerate(wishes):
        if wish.image is not None and wish.region is not None:
            x0[k], where[k] = _encoded(codec, wish), ~wish.region
        if wish.mask is not None:
            blank = torch.zeros(1, RGB, *wish.mask.shape)
            x0[k, RGB:] = codec.encode(blank, wish.mask[None])[0, RGB:]
            where[k, RGB:] = True
    if not where.any():
        return None
    return Known(x0, where, sampling.resample, lambda k, again: noise("replace", k, again))
