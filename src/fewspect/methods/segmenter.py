"""Task base of the few-shot segmenters: from a network that answers square crops to masks of whole images.

A concrete segmenter gives ``adapt(support)`` and ``predict(images (Q, 3, side, side), state) ->
Prediction.prob (Q, side, side)``. This base cuts the query into windows (or takes it whole), merges the
answers, decides, measures and hands episodes with predictions to the callbacks. Empty supports make it an
anomaly detector with the same code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.base import Method
from fewspect.methods.graphs import Graph, SegmenterGraph
from fewspect.nn import windows
from fewspect.types import DataInfo, Episode, Prediction, State, Support


@dataclass(frozen=True, slots=True)
class Sliding:
    """How a whole image is answered by a network that sees squares.

    Attributes:
        side: Network side in pixels.
        crop_size: Window side in the image's own pixels; smaller than ``side`` enlarges.
        overlap: Share of a window that it has in common with its neighbour, 0 (as published) to below 1.
        windows_per_batch: Windows answered at once; bounds the memory.
        threshold: A pixel is defective when its probability is above this.
        merge: ``mean`` averages probabilities; ``vote`` averages hard maps without a further threshold
            (original).
        upsample: ``prob`` resizes probabilities; ``hard`` resizes decisions and cuts at 0.9 (original).
    """

    side: int = 518
    crop_size: int = 518
    overlap: float = 0.0
    windows_per_batch: int = 4
    threshold: float = 0.5
    merge: Literal["mean", "vote"] = "mean"
    upsample: Literal["prob", "hard"] = "prob"


class Segmenter(Method):
    """Base of methods that answer with a foreground probability per pixel.

    Class attributes:
        needs_defect: Supports without any defect are no task for it.

    Args:
        evaluate: Fields of ``Sliding``.
        options: See ``Method``.
    """

    task = "segment"
    needs_defect: ClassVar[bool] = False

    def __init__(self, *, evaluate: Mapping[str, Any] | None = None, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.sliding = Sliding(**(evaluate or {}))

    def setup_data(self, info: DataInfo) -> None:
        """See ``Method.setup_data``; good supports alone are refused where a defect is needed."""
        if self.needs_defect and info.detect:
            raise UserError(*_no_defect(type(self).__name__))
        super().setup_data(info)

    def require_defect(self, support: Support) -> None:
        """Refuse a support that marks nothing, where a defect is needed.

        Raises:
            UserError: No view has a foreground pixel.
        """
        if self.needs_defect and not bool((support.mask == 1).any()):
            raise UserError(*_no_defect(type(self).__name__))

    def segment(self, image: Tensor, state: State, *, whole: bool = False) -> Prediction:
        """Answer one image at its own size.

        Args:
            image: (3, H, W) uint8.
            state: What ``adapt`` returned.
            whole: Resize the image to the network's side instead of sliding a window over it.

        Returns:
            ``prob`` and ``mask`` (1, H, W), ``score`` (1,) = highest probability. With ``merge=vote``,
            ``extra["votes"]`` (1, H, W) holds the original's fractional votes, which are counted by its own
            rule.
        """
        height, width = image.shape[-2:]
        size = max(height, width) if whole else self.sliding.crop_size
        boxes = windows.tile(height, width, size, 0.0 if whole else self.sliding.overlap)
        heat, votes = (windows.Merger(height, width, image.device) for _ in range(2))
        hard_too = self.sliding.merge == "vote"
        for start in range(0, len(boxes), self.sliding.windows_per_batch):
            chunk = boxes[start : start + self.sliding.windows_per_batch]
            for box, prob in zip(chunk, self._answer(image, chunk, state), strict=True):
                self._merge(heat, box, prob, hard=False)
                if hard_too:
                    self._merge(votes, box, prob, hard=True)
        return self._decide(heat.result(), votes.result() if hard_too else None)

    def exported(self, episode: Episode) -> Graph:
        """See ``Method.exported``."""
        return SegmenterGraph(self, self.adapt(episode.support), episode.classes, whole=episode.whole)

    def evaluate_episode(self, episode: Episode) -> Prediction:
        """Adapt to the support once, then answer the episode's query at its own size."""
        return self.answers([episode])[0]

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """Answer episodes in order; neighbours with the same support share its state."""
        predictions: list[Prediction] = []
        state: State = None
        with torch.inference_mode():
            for before, episode in zip([None, *batch], batch, strict=False):
                if before is None or not _same_support(before, episode):
                    state = self.adapt(episode.support)
                predictions.append(self.segment(episode.query_image[0], state, whole=episode.whole))
        return predictions

    def _answer(self, image: Tensor, boxes: list[tuple[int, int, int, int]], state: State) -> Tensor:
        views = [windows.resize_pad(image[:, t:b, le:r], self.sliding.side) for t, b, le, r in boxes]
        prob = self.predict(torch.stack(views), state).prob
        assert prob is not None, f"{type(self).__name__}.predict gave no prob"
        return prob.float()  # (windows, side, side)

    def _merge(
        self, into: windows.Merger, box: tuple[int, int, int, int], prob: Tensor, *, hard: bool
    ) -> None:
        top, bottom, left, right = box
        height, width = bottom - top, right - left
        valid = windows.fit_size(height, width, self.sliding.side)
        if hard:
            prob = (prob > self.sliding.threshold).float()
        if valid == (height, width):
            answer = prob[:height, :width]
        elif hard and self.sliding.upsample == "hard":
            answer = windows.restore_hard(prob, height, width, valid)
        elif self.sliding.upsample == "hard":
            answer = windows.restore_heat(prob, height, width, valid)
        else:
            answer = windows.restore(prob, height, width, valid)
        into.add(box, answer)

    def _decide(self, prob: Tensor, votes: Tensor | None) -> Prediction:
        decided = prob if votes is None else votes
        mask = (decided > self.sliding.threshold).to(torch.uint8)
        extra = {} if votes is None else {"votes": votes[None]}
        return Prediction(prob=prob[None], mask=mask[None], score=prob.max()[None], extra=extra)


def _no_defect(name: str) -> tuple[str, str]:
    return (
        f"{name} learns a defect from its masks, and these supports show none.",
        "Set data.shot=1 or more; for good parts alone use method=patch_nn or method=sofs.",
    )


def _same_support(a: Episode, b: Episode) -> bool:
    pairs = [(getattr(a, f"support_{k}"), getattr(b, f"support_{k}")) for k in ("mask", "count", "image")]
    return all(x.shape == y.shape and bool((x == y).all()) for x, y in pairs)
