"""AlphaCLIP (arXiv 2312.03818): CLIP's image tower with a fourth input channel, the region of interest.

One more patch convolution, on the mask, is added to the patch embedding; both are one four-channel
convolution here. A checkpoint without it is plain CLIP (the convolution is zero). Masks arrive in [0, 1] and
are shown as (a - 0.5) / 0.26; without a mask the whole image is the region, as in AlphaCLIP's own training.
Licence of the weights: research only.

Shapes: image (B, 3, H, W) and alpha (B, 1, H, W) in [0, 1] -> tokens (B, N, D), class token (B, D).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewspect.backbones import weights as files
from fewspect.backbones.base import Features
from fewspect.backbones.clip import Clip, fetch, visual
from fewspect.nn.views import normal_alpha

COLOUR, ALPHA = "conv1.weight", "conv1_alpha.weight"


class AlphaClip(Clip):
    """Image tower with a mask.

    Args:
        name: ``alphaclip_vitb16``, ``alphaclip_vitl14`` or ``alphaclip_vitl14_336``.
        weights: None or ``none`` (random), or a path: the visual state dict as published, with or without
            ``module.`` or ``visual.``; a file of plain CLIP is taken, too.
        options: See ``Clip``.
    """

    prefix = "alphaclip_"
    takes_alpha = True
    patches = 2  # k_patch of MVREC

    def fill(self, weights: str | None, sha256: str) -> None:
        """Load the image tower with its mask convolution, or randomise it."""
        old = self.tower.conv1
        self.tower.conv1 = nn.Conv2d(4, self.size.width, old.kernel_size, old.stride, bias=False)
        state = fetch(weights, self.name, sha256)
        if state is None:
            files.randomise(self.tower, self.name)
        else:
            self.load_published(state, str(weights))

    def load_published(self, state: Mapping[str, Tensor], where: str) -> None:
        """Load tensors with the published names.

        Raises:
            UserError: Names or shapes do not match; lists them.
        """
        given = visual(dict(state))
        expected = self.published_state()
        if ALPHA not in given:
            given[ALPHA] = torch.zeros_like(expected[ALPHA])
        files.compare(expected, given, where)
        given[COLOUR] = torch.cat([given[COLOUR], given.pop(ALPHA)], 1)
        self.tower.load_state_dict(given)

    def published_state(self) -> dict[str, Tensor]:
        """The tower's tensors with open_clip's names, the two convolutions apart."""
        state = dict(self.tower.state_dict())
        both = state.pop(COLOUR)
        return {**state, COLOUR: both[:, :3], ALPHA: both[:, 3:]}

    def forward(self, image: Tensor, alpha: Tensor | None = None) -> Features:
        """Normalise both and encode; see ``Backbone.forward``."""
        self._check_size(*image.shape[-2:])
        mask = torch.ones_like(image[:, :1]) if alpha is None else alpha
        colour = (image - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode(torch.cat([colour, normal_alpha(mask).to(colour.dtype)], 1))
