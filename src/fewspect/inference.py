"""Use a method without a Trainer: load -> support -> predict many.

Example:
    >>> predictor = Predictor(method)                     # a method with its weights loaded
    >>> state = predictor.support(images, masks)          # encoded once
    >>> prediction = predictor(image, state)              # as often as you like
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.segmenter import Segmenter
from fewspect.nn import windows
from fewspect.types import Prediction, State, Support


class Predictor:
    """A method in evaluation mode on one device.

    Args:
        method: A segmenter whose weights are loaded.
        device: Where to compute; default: where the method is.
    """

    def __init__(self, method: Segmenter, device: torch.device | str | None = None) -> None:
        self.method = method.eval() if device is None else method.eval().to(device)

    @torch.inference_mode()
    def support(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> State:
        """Encode the support set once.

        Args:
            images: uint8 (3, H, W), any sizes; seen whole, cut them yourself around small defects
                (``data.crops``).
            masks: uint8 (H, W), non-zero = defect; all zero = a normal image.

        Raises:
            UserError: No image, or an image and its mask differ in number or size.
        """
        if not images or len(images) != len(masks):
            raise UserError(
                f"A support needs as many masks as images, at least one; got {len(images)} and {len(masks)}.",
                "Give an all-zero mask for a normal image.",
            )
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            if image.shape[-2:] != mask.shape[-2:]:
                raise UserError(
                    f"Support {number}: image {tuple(image.shape[-2:])}, mask {tuple(mask.shape[-2:])}.",
                    "Make them one size.",
                )
        side = self.method.sliding.side
        view = torch.stack([windows.resize_pad(image, side) for image in images])
        mask = torch.stack([windows.resize_mask((m > 0).to(torch.uint8), side) for m in masks])
        label = mask.flatten(1).any(1).long()
        return self.method.adapt(self._move(Support(view, mask, label, torch.ones(len(view)), ("defect",))))

    @torch.inference_mode()
    def encode(self, support: Support) -> State:
        """Encode a ready-made support, e.g. ``episode.support``."""
        return self.method.adapt(self._move(support))

    @torch.inference_mode()
    def __call__(self, image: Tensor, state: State, *, whole: bool = False) -> Prediction:
        """Answer one image (3, H, W) uint8 at its own size."""
        return self.method.segment(image.to(self.method.device), state, whole=whole)

    def _move(self, support: Support) -> Support:
        return support.to(self.method.device)
