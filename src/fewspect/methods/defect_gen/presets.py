"""Named settings of Defect-Gen: a tiny pair for a processor, a pair for a GPU, and the published one.

Specification defect_gen, 8 and 11.2. What a config leaves null or empty comes from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from fewspect.errors import UserError
from fewspect.methods.defect_gen.loss import Prediction
from fewspect.methods.defect_gen.net import Modulation, Norm
from fewspect.methods.defect_gen.sampler import Stage

Preset = Literal["tiny", "default", "paper"]


def both(kind: Prediction) -> dict[Stage, Prediction]:
    """The same for both stages."""
    return {"large": kind, "small": kind}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a preset fixes.

    Attributes:
        net: Of each stage, arguments of ``UNet``.
        predict: What the network of each stage says.
        gamma: Of the min-SNR weights; 0 = every timestep alike.
        parts: Colours and classes are averaged apart, so that many classes do not outvote the colours, and
            with ``keep`` rare classes count as much as common ones.
        low: Value of a class channel where the class is absent.
        focus: Share of training timesteps on a stage's own side of the hand-over; the rest is drawn from all.
        decay: Of the averaged weights.
        warmup: Begin to average with a smaller decay.
        weights: Which weights draw samples.
        unasked: Share of training samples whose condition is hidden; None = no condition at all.
        turn: How training pictures are turned, see ``augment``.
    """

    net: Mapping[Stage, Mapping[str, Any]]
    predict: Mapping[Stage, Prediction] = field(default_factory=lambda: both("velocity"))
    gamma: float = 5.0
    parts: bool = True
    low: float = -1.0
    focus: float = 0.75
    decay: float = 0.999
    warmup: bool = True
    weights: Literal["average", "raw"] = "average"
    unasked: float | None = 0.1
    turn: Literal["none", "mirror", "any"] = "mirror"


WHOLE = {"middle": True, "modulation": "scale_shift"}
"""Large networks."""

PRESETS: dict[Preset, Settings] = {
    "tiny": Settings(
        net={
            "large": {"width": 64, "mult": (1, 2), "blocks": 1, "attention": (2,), "patch": 4, **WHOLE},
            "small": {"width": 64, "mult": (1,), "blocks": 2, "patch": 2, "norm": "local"},
        },
        # velocities repeat the noise, and networks so narrow leave some of it: grain, specks of wrong classes
        predict=both("x0"),
        decay=0.995,
    ),
    "default": Settings(
        net={
            "large": {
                "width": 128,
                "mult": (1, 1, 2, 2, 4, 4),
                "blocks": 2,
                "attention": (8, 16, 32),
                "head": 64,
                **WHOLE,
            },
            "small": {"width": 64, "mult": (1, 2, 4), "blocks": 1, "norm": "local"},  # specification 11.3
        },
        decay=0.9999,
    ),
    "paper": Settings(
        net={
            "large": {
                "width": 128,
                "mult": (1, 1, 2, 2, 4, 4),
                "blocks": 2,
                "attention": (8, 16, 32),
                **WHOLE,
            },
            "small": {"width": 192, "mult": (1, 2, 4), "blocks": 2},
        },
        predict=both("x0"),
        gamma=0.0,
        parts=False,
        low=0.0,
        focus=0.0,
        decay=0.9999,
        warmup=False,
        weights="raw",
        unasked=None,
        turn="none",
    ),
}


def sizes(
    *,
    width: int | None = None,
    mult: Sequence[int] | None = None,
    blocks: int | None = None,
    attention: Sequence[int] | None = None,
    head: int | None = None,
    middle: bool | None = None,
    modulation: Modulation | None = None,
    norm: Norm | None = None,
    patch: int | None = None,
) -> dict[str, Any]:
    """The arguments of ``UNet`` that are given."""
    given = {"width": width, "mult": mult, "blocks": blocks, "attention": attention, "head": head}
    given |= {"middle": middle, "modulation": modulation, "norm": norm, "patch": patch}
    return {k: v for k, v in given.items() if v is not None}


def chosen(preset: Preset, **given: Any) -> Settings:  # noqa: ANN401 - fields of ``Settings``
    """A preset with what is given instead; None gives nothing.

    Raises:
        UserError: There is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f"method.preset={preset} does not exist.", f"Choose one of {', '.join(PRESETS)}.")
    known = {f.name for f in fields(Settings)}
    assert given.keys() <= known, given.keys() - known
    return replace(PRESETS[preset], **{k: v for k, v in given.items() if v is not None})
