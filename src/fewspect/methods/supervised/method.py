"""Supervised segmentation of known defect classes, trained on label masks.

The yardstick of generated data: the same network on the same real images, with and without further ones
(Defect Spectrum, arXiv 2310.17316, section 5). Images are squashed to the network's side, answers are given
at the image's own size.

Example:
    >>> method = Supervised(seed=0)
    >>> method.setup_data(DataInfo(("crack",), side=128, protocol="labelled"))
    >>> prediction = method.segment(image)     # mask of labels (1, H, W), labels = ("crack",)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect import draws
from fewspect.backbones.base import Backbone
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.base import Method, own_weights
from fewspect.methods.supervised.loss import cross_entropy, dice
from fewspect.methods.supervised.net import build
from fewspect.nn.windows import squash
from fewspect.types import DataInfo, Episode, Prediction, State, Support


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised.

    Attributes:
        ce: Weight of the cross entropy.
        dice: Weight of the Dice loss.
        balance: Factors of background and defect pixels in the cross entropy; None = 1 and 1.
    """

    ce: float = 1.0
    dice: float = 1.0
    balance: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if min(self.ce, self.dice) < 0 or self.ce + self.dice <= 0:
            raise UserError(
                f"method.loss with ce={self.ce} and dice={self.dice} minimises nothing.",
                "Give one of them a positive weight, and none a negative one.",
            )


class Supervised(Method):
    """Gives every pixel a class.

    Args:
        network: ``unet`` or a network of torchvision, see ``net.TORCHVISION``.
        width: ``unet``: channels at full size.
        levels: ``unet``: number of sizes.
        backbone: ``unet``: its frozen features enter the network; None = from pixels alone.
        context: ``unet``: false leaves the backbone out.
        side: Side of the network input in pixels; 0 = that of the data.
        loss: Fields of ``Loss``.
        options: See ``Method``.
    """

    task = "label"
    needs = "detect"  # images without masks can be asked about; learning from them is refused by the data
    protocols = ("labelled",)
    not_exported = "its maps are resized class by class, which nobody has written as a graph"
    schema: ClassVar[dict[str, Any]] = {"loss": Loss, "optimizer": optim.build}

    def __init__(
        self,
        *,
        network: str = "unet",
        width: int = 16,
        levels: int = 4,
        backbone: Backbone | None = None,
        context: bool = True,
        side: int = 0,
        loss: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401 - those of Method
    ) -> None:
        self.loss = Loss(**(loss or {}))
        own_weights(options, "method.loss.ce and dice")
        weights = {"ce": self.loss.ce, "dice": self.loss.dice}
        super().__init__(loss_weights={k: w for k, w in weights.items() if w}, **options)
        self.network, self.width, self.levels, self.side = network, width, levels, side
        self.backbone = backbone if context and network == "unet" else None
        self.classes: tuple[str, ...] = ()
        self.net = nn.Module()
        self._made = 0

    # -- what is known of the data decides the outputs

    def setup_data(self, info: DataInfo) -> None:
        """See ``Method.setup_data``; makes the network, one output per class and one for the background."""
        super().setup_data(info)
        self._make(info.classes, info.side)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the classes that were learned, whatever the data at hand show."""
        info = checkpoint.get("fewspect", {}).get("info", {})
        if info:
            self._make(tuple(info["classes"]), int(info["side"]))
        super().on_load_checkpoint(checkpoint)

    def _make(self, classes: Sequence[str], side: int) -> None:
        self.classes, self.side = tuple(classes), self.side or side
        if self._made == len(self.classes) + 1:
            return
        self._made = len(self.classes) + 1
        context = 0 if self.backbone is None else len(self.backbone.layers) * self.backbone.dim
        stride = 1 if self.backbone is None else self.backbone.stride
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.key(self.seed, "supervised/init"))
            net = build(
                self.network,
                self._made,
                width=self.width,
                levels=self.levels,
                context=context,
                stride=stride,
            )
        self.net = net.to(self.device)

    # -- learning and answering

    def losses(self, batch: list[Episode]) -> dict[str, Tensor]:
        """Cross entropy and Dice of the labels.

        Raises:
            UserError: There is no class to learn.
        """
        if not self.classes:
            raise UserError(
                "The data set has no defect with a mask to learn.", "Run mode=check to see what was found."
            )
        images = torch.cat([e.query_image for e in batch])  # (B, 3, side, side)
        target = torch.cat([e.query_mask for e in batch])
        # DeepLabV3 normalises over images what it has pooled to one value of each: a single one has no spread
        lonely = len(images) == 1 and self.network.startswith("deeplabv3")
        logits = self.logits(torch.cat([images, images]) if lonely else images).float()[: len(images)]
        parts = {
            "ce": lambda: cross_entropy(logits, target, self.loss.balance),
            "dice": lambda: dice(logits, target),
        }
        return {name: part() for name, part in parts.items() if name in self.loss_weights}

    def logits(self, images: Tensor) -> Tensor:
        """(B, K + 1, h, w) of images (B, 3, h, w) in [0, 1]."""
        if self.backbone is None:
            return self.net(images)
        maps = torch.cat(self.backbone(images).maps(), 1)  # (B, L * D, h / stride, w / stride)
        return self.net(images, maps)

    def adapt(self, support: Support) -> State:
        """Nothing: the classes were learned."""
        del support

    def predict(self, images: Tensor, state: State) -> Prediction:
        """Labels of images (Q, 3, h, w) in [0, 1] at the network's side."""
        del state
        return self._decided(self.logits(images).float(), images.shape[-2:])

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """Answer episodes of evaluation, each at its image's own size."""
        with torch.inference_mode():
            return [self.segment(e.query_image[0]) for e in batch]

    def segment(self, image: Tensor) -> Prediction:
        """Answer one image (3, H, W) uint8 at its own size."""
        view = squash(image, self.side)[None].to(self.device)
        return self._decided(self.logits(view).float(), image.shape[-2:])

    def _decided(self, logits: Tensor, size: Sequence[int]) -> Prediction:
        """Resize probabilities class by class (large images need three maps, not K) and take the largest."""
        prob = logits.softmax(1)  # (Q, K + 1, h, w)
        highest = _resized(prob[:, 0], size)
        defect = 1 - highest
        mask = torch.zeros_like(highest, dtype=torch.uint8)
        for label in range(1, prob.shape[1]):
            one = _resized(prob[:, label], size)
            better = one > highest
            highest, mask = torch.where(better, one, highest), mask.masked_fill(better, label)
        score = defect.amax((1, 2))
        return Prediction(prob=defect, mask=mask, score=score, labels=self.classes)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(Q, H, W) of maps (Q, h, w), bilinear."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
