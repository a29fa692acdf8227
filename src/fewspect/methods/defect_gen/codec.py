"""Image and index mask as one tensor, and back (specification 1.2, 1.3).

Channels: red, green, blue in [-1, 1], then one per class: background, defect type 1, 2, ... With K types
there are C = K + 4.

Example:
    >>> codec = Codec(2)
    >>> codec.encode(torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([1, 6, 8, 8])
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.errors import UserError

RGB = 3


@dataclass(frozen=True, slots=True)
class Codec:
    """The joint coding of K defect types.

    Attributes:
        types: K.
        low: Value of a class channel where the class is absent; it is 1 where present. -1 gives masks the
            range of images; the original has 0.
    """

    types: int
    low: float = -1.0

    @property
    def channels(self) -> int:
        """C = K + 4."""
        return RGB + 1 + self.types

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """Join pictures and their masks.

        Args:
            image: (B, 3, H, W) in [0, 1].
            mask: (B, H, W) integers 0..K.

        Returns:
            (B, K + 4, H, W) float32.

        Raises:
            UserError: A label above K.
        """
        highest = int(mask.max()) if mask.numel() else 0
        if highest > self.types:
            raise UserError(
                f"A mask has label {highest}, {self.types} defect types are declared.",
                "Declare more types, or mend the mask.",
            )
        present = F.one_hot(mask.long(), self.types + 1).movedim(-1, 1).float()  # (B, K + 1, H, W)
        return torch.cat([image * 2 - 1, self.low + (1 - self.low) * present], 1)

    def decode(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Split samples (B, K + 4, H, W): pictures (B, 3, H, W) uint8 and masks (B, H, W) uint8.

        Colours are clamped and rounded; the class with the largest value wins, the lower one of equals.
        """
        grey = (sample[:, :RGB].clamp(-1, 1) + 1) / 2 * 255 + 0.5
        return grey.to(torch.uint8), sample[:, RGB:].argmax(1).to(torch.uint8)
