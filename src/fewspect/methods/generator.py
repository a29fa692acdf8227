"""Task base of the generators: they draw pictures with the masks of their defects, one by its number.

Sample i is a pure function of (seed, i), so that neither batch size nor order nor the number of samples
changes it. A concrete generator gives ``generate(numbers)``, and ``control(numbers, wishes)`` if it can be
told what to draw.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.base import Method
from fewspect.types import Episode, Generated, Prediction, State, Support


@dataclass(frozen=True, slots=True)
class Wish:
    """What is fixed about one sample; all wishes of a call fix the same things.

    Attributes:
        classes: Names of the defect types to show; empty = as often as in training.
        product: The inspected object; empty = any.
        mask: (side, side) uint8 labels to draw a picture for.
        image: (3, side, side) in [0, 1]: the picture to put a defect onto, or to vary.
        labels: (side, side) uint8 labels of ``image``; None = none.
        region: (side, side) bool: where ``image`` may change; None = everywhere.
        start: Time in (0, 1] to begin at: below 1 with a noisy ``image`` instead of noise alone.
        source: Names of the files that ``mask`` and ``image`` come from.
        group: The real image that the sample will derive from; empty = none.
    """

    classes: tuple[str, ...] = ()
    product: str = ""
    mask: Tensor | None = None
    image: Tensor | None = None
    labels: Tensor | None = None
    region: Tensor | None = None
    start: float = 1.0
    source: str = ""
    group: str = ""


class Generator(Method):
    """Base of methods that make data; see ``Method`` for arguments."""

    task: ClassVar[str] = "generate"
    needs: ClassVar[str] = "segment"
    protocols: ClassVar[tuple[str, ...]] = ("labelled",)

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, ... in the masks that it draws."""

    @abstractmethod
    def generate(self, numbers: Sequence[int]) -> list[Generated]:
        """Draw the samples of these numbers."""

    def control(self, numbers: Sequence[int], wishes: Sequence[Wish]) -> list[Generated]:
        """Draw the samples of these numbers as they are wished for.

        Raises:
            UserError: This generator cannot be told.
        """
        del numbers, wishes
        raise UserError(
            f"{type(self).__name__} cannot be told what to draw.",
            "Use method=defect_gen, or leave the options of generate.* but count, folder and batch out.",
        )

    def preview(self) -> list[Generated]:
        """A few samples to look at while it learns; none here."""
        return []

    def about(self) -> dict[str, Any]:
        """Plain values for the manifest of a set: steps, switch, digests of what was loaded."""
        return {}

    def observe(self, batch: list[Episode]) -> None:
        """Look at training images once before drawing; a trained generator has learned already."""
        del batch

    def adapt(self, support: Support) -> State:
        """Nothing: what a generator knows it has learned."""
        del support

    def predict(self, images: Tensor, state: State) -> Prediction:
        """Not a generator's task."""
        raise NotImplementedError(f"{type(self).__name__} answers no images")

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """One sample per episode, by its number: for panels and for ``mode=check``."""
        made = self.generate([episode.index for episode in batch])
        return [Prediction(image=m.image[None].float() / 255, mask=m.mask[None]) for m in made]
