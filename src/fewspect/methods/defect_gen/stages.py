"""What one trained network is: its sizes, what it was trained on and what it says; and how a run is read.

Plain values that travel in the checkpoint, so that a second network can be built without its config.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.defect_gen.codec import Codec
from fewspect.methods.defect_gen.loss import Prediction
from fewspect.methods.defect_gen.net import UNet
from fewspect.methods.defect_gen.sampler import Stage
from fewspect.nn import loading

CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
"""Where a run folder keeps its weights, the first that is there."""

KEY = "defect_gen"
"""Of a checkpoint's ``fewspect`` entry."""


def require_cells(net: UNet, side: int, option: str) -> None:
    """Refuse pictures that a network cannot take.

    Args:
        net: It halves its input level by level.
        side: Of the pictures in pixels.
        option: Who sets it.

    Raises:
        UserError: The side is no multiple of the network's coarsest cell.
    """
    cell = net.patch << (net.levels - 1)
    if side < 1 or side % cell:
        raise UserError(
            f"{option}={side} is no multiple of {cell}, which this network needs.",
            f"Set {option}={max(1, round(side / cell)) * cell}.",
        )


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A network and its meaning.

    Attributes:
        stage: ``large`` or ``small``.
        classes: Defect types in label order.
        products: Products in the order of their condition.
        side: Side of the training pictures in pixels.
        net: Arguments of ``UNet``.
        predict: What it says.
        steps: T.
        low: See ``Codec``.
        asked: Takes a condition.
    """

    stage: Stage
    classes: tuple[str, ...]
    products: tuple[str, ...]
    side: int
    net: Mapping[str, Any] = field(default_factory=dict[str, Any])
    predict: Prediction = "velocity"
    steps: int = 1000
    low: float = -1.0
    asked: bool = True

    @property
    def codec(self) -> Codec:
        """The joint coding of image and mask."""
        return Codec(len(self.classes), self.low)

    @property
    def condition(self) -> int:
        """Length of the condition: one that says "asked", classes, and products if there are several."""
        return (1 + len(self.classes) + self._products) * self.asked

    @property
    def _products(self) -> int:
        return len(self.products) if len(self.products) > 1 else 0

    def build(self) -> UNet:
        """The network, not filled.

        Raises:
            UserError: A size that does not exist, or the side of the pictures does not fit.
        """
        try:
            net = UNet(self.codec.channels, condition=self.condition, **self.net)
        except TypeError as error:
            raise UserError(f"method.net: {str(error).rpartition('() ')[2]}.", "See net.py.") from error
        require_cells(net, self.side, "data.side")
        return net

    def ask(self, names: Sequence[str], product: str) -> Tensor:
        """The condition (M,) for pictures of a product that show these classes."""
        asked = torch.zeros(self.condition)
        if self.asked:
            asked[0] = 1
            for name in names:
                asked[1 + self.classes.index(name)] = 1
            if self._products and product in self.products:
                asked[1 + len(self.classes) + self.products.index(product)] = 1
        return asked

    def plain(self) -> dict[str, Any]:
        """Values for a checkpoint."""
        net = {k: list(v) if isinstance(v, tuple) else v for k, v in self.net.items()}
        return asdict(self) | {"classes": list(self.classes), "products": list(self.products), "net": net}

    def require_same(self, other: "Blueprint", where: str, *more: str) -> None:
        """Refuse a network for other pictures or other noise.

        Args:
            other: The other one.
            where: Its file.
            more: Further fields that have to be equal.

        Raises:
            UserError: Says what differs.
        """
        if len(other.classes) != len(self.classes):
            raise UserError(
                f"{where} is for {other.codec.channels} channels ({len(other.classes)} defect types: "
                f"{', '.join(other.classes)}), not for {self.codec.channels} ({', '.join(self.classes)}).",
                "Choose a run on the same data set, or train again on this one.",
            )
        for name in ("classes", "products", "side", "steps", "low", *more):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (name == "products" and self._products == other._products == 0):
                raise UserError(
                    f"{where} was trained with {name} {_told(theirs)}, this is {_told(mine)}.",
                    "Choose a run on the same data with the same data.side, or train again.",
                )


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def of_checkpoint(content: Mapping[str, Any], where: str) -> Blueprint:
    """The blueprint that a checkpoint carries.

    Raises:
        UserError: It carries none, or one that makes no sense.
    """
    found = (content.get("fewspect") or {}).get(KEY)
    if not isinstance(found, dict):
        raise UserError(f"{where} was not written by Defect-Gen.", "Name a run of method=defect_gen.")
    try:
        lists = {k: tuple(found[k]) for k in ("classes", "products")}
        return Blueprint(**{**found, **lists})
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: its sizes cannot be read.", "Train again with this version.") from error


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a run folder or a file name means.

    Raises:
        UserError: There is none.
    """
    found = path if path.is_file() else next((path / c for c in CHECKPOINTS if (path / c).is_file()), None)
    if found is None:
        raise UserError(
            f"method.small={path}: no checkpoint there.",
            "Name the run folder of method=defect_gen method.stage=small, or a .ckpt file in it.",
        )
    return found


def load(path: Path) -> tuple[Blueprint, dict[str, dict[str, Tensor]]]:
    """A network's blueprint and its ``average`` and ``raw`` weights.

    Raises:
        UserError: The file is unreadable, or not by Defect-Gen.
    """
    content = loading.content(path)
    blueprint = of_checkpoint(content if isinstance(content, dict) else {}, str(path))
    state = content["state_dict"]
    prefixes = {"average": "average.net.", "raw": "net."}
    weights = {
        kind: {k.removeprefix(p): v for k, v in state.items() if k.startswith(p)}
        for kind, p in prefixes.items()
    }
    return blueprint, weights
