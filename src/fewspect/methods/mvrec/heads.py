"""The heads by name: what ``method.head`` can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from fewspect.errors import UserError
from fewspect.nn.adapter import TAU, Zip
from fewspect.nn.fine_tune import Recipe, TipF, ZipF
from fewspect.nn.heads import Centred, Neighbours, Prototypes, Text
from fewspect.nn.linear_heads import Discriminant, LinearProbe, Ridge
from fewspect.nn.shots import Head

Name = Literal[
    "zip", "zip_f", "tip", "tip_f", "proto", "euclid", "knn", "ridge", "lda", "linear", "text", "centered"
]
NAMES: tuple[Name, ...] = get_args(Name)
TRAINED = ("zip_f", "tip_f")
ALIGNED = ("centered", "ridge", "lda")
"""Heads that know which view is which: they cannot be asked about the mean of the views."""

ZIP_BETA, FINE_TUNED_BETA = 32.0, 1.0
"""Published sharpness without and with training."""


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Options of the cache heads (``zip``, ``zip_f``, ``tip``, ``tip_f``).

    Attributes:
        beta: Sharpness of the affinity; None = published (32 without training, 1 with).
        tau: Temperature.
        config: ``zip_f``: what is trained, 0 to 8; published 6.
        half: Emulate the original's half precision, for parity.
    """

    beta: float | None = None
    tau: float = TAU
    config: int = 6
    half: bool = False


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """Options of every head; those of the chosen one count."""

    cache: CacheOptions
    training: Recipe
    centered: Centred
    ridge: Ridge
    lda: Discriminant
    knn: Neighbours
    linear: LinearProbe
    schema: ClassVar[dict[str, Any]] = {
        "cache": CacheOptions,
        "training": Recipe,
        "centered": Centred,
        "ridge": Ridge,
        "lda": Discriminant,
        "knn": Neighbours,
        "linear": LinearProbe,
    }

    @classmethod
    def of(cls, given: Mapping[str, Mapping[str, Any] | None]) -> "HeadOptions":
        """From plain mappings, absent ones at their defaults."""
        return cls(**{name: kind(**(given.get(name) or {})) for name, kind in cls.schema.items()})


def build(name: str, options: HeadOptions) -> Head:
    """The head of this name.

    Raises:
        UserError: No such head, or no such configuration of it.
    """
    o, c = options, options.cache
    if name not in NAMES:
        raise UserError(f"method.head={name} does not exist.", f"Choose one of: {', '.join(NAMES)}.")
    if c.config not in range(9):
        raise UserError(f"method.cache.config={c.config} does not exist.", "Choose 0 to 8; published is 6.")
    if name in ("zip", "tip"):
        return Zip(c.beta or ZIP_BETA, c.tau, c.half)
    if name == "zip_f":
        return ZipF(c.config, c.beta or FINE_TUNED_BETA, c.tau, c.half, o.training)
    if name == "tip_f":
        return TipF(c.beta or FINE_TUNED_BETA, c.tau, o.training)
    if name in ("proto", "euclid"):
        return Prototypes("cosine" if name == "proto" else "euclidean")
    return {"knn": o.knn, "ridge": o.ridge, "lda": o.lda, "linear": o.linear, "text": Text()}.get(
        name, o.centered
    )
