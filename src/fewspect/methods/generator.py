"""Task base of the generators: they draw pictures with the masks of their defects, one by its number.

Sample i is a pure function of (seed, i), so that neither batch size nor order nor the number of samples
changes it. A concrete generator gives ``generate(numbers)``.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from fewspect.methods.base import Method
from fewspect.types import Episode, Generated, Prediction, State, Support


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
