"""MVREC: few-shot defect classification from several views of every instance.

Paper: Lyu et al., AAAI 2025, arXiv 2412.16897. A frozen network describes square windows around an instance
and its mask; this method tells the classes apart by a few described instances. Nothing is trained before
``adapt``: the heads are closed forms, or are fitted to the support inside ``adapt`` (``zip_f``, ``tip_f``).

Shapes: supports (S, V, D), queries (Q, V, D), logits (Q, K), each with a leading episode axis E where
episodes are answered together. ``logits`` are logarithms of the merged probabilities.

Example:
    >>> method = MVREC(head="ridge")
    >>> method.classify(support, features).logits.shape
    torch.Size([10, 3])
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.classifier import Classifier
from fewspect.methods.graphs import FeatureGraph, Graph
from fewspect.methods.mvrec import heads
from fewspect.nn.heads import Text, mixed
from fewspect.nn.merging import merge as merged
from fewspect.nn.shots import Fitted, Head, Merge, Shots
from fewspect.nn.transductive import Way, together
from fewspect.types import Episode, Prediction, Support

Views = Literal["all", "first", "centred"] | list[int]
GRID, MIDDLE = 9, 4
"""Views come in groups of 3 x 3 offsets; the middle one is centred on the instance."""

SMALLEST = 1e-12
"""Probabilities below are not told apart in the logits."""


@dataclass(frozen=True, slots=True)
class State:
    """A fitted head and what else an answer needs.

    Attributes:
        fitted: The head after it has seen the support.
        shots: The support itself (for transductive answers).
        text: Zero-shot head, where text counts.
        threshold: (E,) score below which a query is none of the classes; None = every query is one.
        single: The support came without an episode axis.
    """

    fitted: Fitted
    shots: Shots
    text: Fitted | None
    threshold: Tensor | None
    single: bool


class MVREC(Classifier):
    """Heads on features of several views.

    Args:
        head: One of ``heads.NAMES``.
        merge: How the views of a query become one answer: ``entropy``, ``mean_prob``, ``mean_logit``,
            ``mean_feature``; ``auto`` = the head's own.
        support_views: Views of the supports: ``all``, ``first``, ``centred``, or a list of numbers.
        query_views: Views of the queries, likewise; ``all`` = those of the supports. The published "single
            view" is ``first``.
        text_weight: Share of the zero-shot answer by class descriptions, 0 to 1.
        transductive: ``none``; ``laplacian`` or ``pt_map`` answer all queries together (report apart), by
            features alone.
        reject: Share of known instances that may be called unknown; None = every query is one of the classes.
            The threshold comes from the support: every instance is judged by the others.
        mask_from: Run folder of a segmenter or detector whose predictions are the masks of instances without
            one; the data reads it (``data.features.mask_from``).
        cache: Fields of ``heads.CacheOptions``.
        training: Fields of ``nn.fine_tune.Recipe``.
        centered: Fields of ``nn.heads.Centred``.
        ridge: Fields of ``nn.linear_heads.Ridge``.
        lda: Fields of ``nn.linear_heads.Discriminant``.
        knn: Fields of ``nn.heads.Neighbours``.
        linear: Fields of ``nn.linear_heads.LinearProbe``.
        options: See ``Method``.

    Raises:
        UserError: Choices that do not fit together.
    """

    fit_kind = "none"
    schema: ClassVar[dict[str, Any]] = heads.HeadOptions.schema

    def __init__(
        self,
        *,
        head: heads.Name = "ridge",
        merge: Merge | Literal["auto"] = "auto",
        support_views: Views = "all",
        query_views: Views = "all",
        text_weight: float = 0.0,
        transductive: Way | Literal["none"] = "none",
        reject: float | None = None,
        mask_from: str | None = None,
        cache: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        centered: Mapping[str, Any] | None = None,
        ridge: Mapping[str, Any] | None = None,
        lda: Mapping[str, Any] | None = None,
        knn: Mapping[str, Any] | None = None,
        linear: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401 - seed: checked by the base
    ) -> None:
        super().__init__(**options)
        given = {
            "cache": cache,
            "training": training,
            "centered": centered,
            "ridge": ridge,
            "lda": lda,
            "knn": knn,
            "linear": linear,
        }
        self.name, self.mask_from = head, mask_from
        self.head: Head = heads.build(head, heads.HeadOptions.of(given))
        self.merge: Merge = self.head.merge if merge == "auto" else merge
        self.support_views: Views = support_views
        self.query_views: Views = query_views
        self.transductive: Way | Literal["none"] = transductive
        self.text_weight, self.reject = text_weight, reject
        self._refuse()

    # -- the contract

    def adapt(self, support: Support) -> State:
        """Fit the head on supports (S, V, D) or (E, S, V, D).

        Raises:
            UserError: A class without support, text that is not there, or too few supports for a threshold.
        """
        assert support.feature is not None, "a support of features was expected"
        single = support.feature.ndim == 3
        shots = self._shots(support, single=single)
        text = Text().fit(shots) if self.text_weight > 0 or self.name == "text" else None
        threshold = None if self.reject is None else self._threshold(shots)
        return State(self.head.fit(shots), shots, text, threshold, single)

    def predict(self, images: Tensor, state: State) -> Prediction:
        """Answer queries: features (Q, V, D) or (E, Q, V, D).

        Returns:
            ``logits`` (Q, K) = log probabilities, ``score`` (Q,) = largest mean logit of the head; with
            ``reject`` also ``extra["label"]`` (Q,), -1 = none of the classes.
        """
        query = (images[None] if images.ndim == 3 else images).float()
        views = self._places(self.query_views, query.shape[2], self._support_places(query.shape[2]))
        logits = self._logits(state.fitted, query, views)  # (E, Q, V', K)
        score = logits.mean(2)
        prob = merged(logits, self.merge)
        if state.text is not None and self.text_weight > 0:
            prob = mixed(prob, merged(state.text(query[:, :, views]), self.merge), self.text_weight)
        if self.transductive != "none":
            prob = self._together(state.shots, query, score)
        found = {"logits": prob.clamp(min=SMALLEST).log(), "score": score.amax(-1)}
        extra = {}
        if state.threshold is not None:
            label = found["logits"].argmax(-1) + 1
            extra["label"] = torch.where(found["score"] < state.threshold[:, None], -1, label)
        if state.single:
            found, extra = ({k: v[0] for k, v in part.items()} for part in (found, extra))
        return Prediction(logits=found["logits"], score=found["score"], extra=extra)

    def exported(self, episode: Episode) -> Graph:
        """See ``Method.exported``; the graph answers features, the data knows how they are made.

        Raises:
            UserError: Queries are answered together.
        """
        if self.transductive != "none":
            raise UserError(
                "MVREC cannot be exported with method.transductive: an answer depends on all queries.",
                "Set method.transductive=none.",
            )
        return FeatureGraph(self, self.adapt(episode.support), episode.classes)

    # -- pieces

    def _shots(self, support: Support, *, single: bool) -> Shots:
        """Supports with an episode axis, in the chosen views."""
        assert support.feature is not None
        feature, label, count = (
            t[None] if single else t for t in (support.feature, support.label, support.count)
        )
        text = support.text
        if self.name == "text" and not feature.shape[1]:
            raise UserError("Zero-shot answers need a support file for its class list.", "Set data.shot=1.")
        if text is not None and text.ndim == 2:
            text = text.expand(len(feature), -1, -1)
        if text is None and (self.text_weight > 0 or self.name == "text"):
            raise UserError(
                "The features hold no class descriptions.",
                "Write them into the feature file ('text'), or set method.text_weight=0 and another head.",
            )
        if label.numel() and (label.min() < 1 or label.max() > len(support.classes)):
            raise UserError("A support has no known class.", "Label every support, or leave it out.")
        feature = feature.float()[:, :, self._support_places(feature.shape[2])]
        shots = Shots(
            feature,
            label - 1,
            count.float(),
            len(support.classes),
            None if text is None else text.float(),
        )
        empty = (shots.hot.sum(1) == 0).any(0)
        if self.name != "text" and bool(empty.any()):
            names = ", ".join(name for name, no in zip(support.classes, empty, strict=True) if no)
            raise UserError(f"No support for: {names}.", "Give instances of these classes (data.shot).")
        return shots

    def _logits(self, fitted: Fitted, query: Tensor, views: list[int]) -> Tensor:
        """Logits (E, Q, V', K) of the chosen views of queries (E or 1, Q, V, D)."""
        chosen = query[:, :, views]
        if self.merge == "mean_feature":
            return fitted(chosen.mean(2, keepdim=True))
        known = self._support_places(query.shape[2])
        return fitted(chosen, None if views == known else [known.index(v) for v in views])

    def _threshold(self, shots: Shots) -> Tensor:
        """(E,) score that all but ``reject`` of the supports reach when the others judge them."""
        if bool((shots.hot.sum(1) < 2).any()):
            raise UserError(
                "method.reject needs at least two supports per class: each is judged by the others.",
                "Set data.shot=2 or more, or method.reject=null.",
            )
        views = list(range(shots.feature.shape[2]))
        scores = torch.stack(
            [
                self._own_logits(self.head.fit(shots.without(i)), shots.feature[:, i : i + 1], views)
                for i in range(shots.label.shape[1])
            ],
            1,
        )  # (E, S)
        rank = math.floor((self.reject or 0.0) * (scores.shape[1] + 1))
        if rank < 1:
            return torch.full_like(scores[:, 0], -math.inf)
        return scores.sort(1).values[:, rank - 1]

    def _own_logits(self, fitted: Fitted, feature: Tensor, views: list[int]) -> Tensor:
        """(E,) score of one instance (E, 1, V, D) that is already in the support's views."""
        mean = self.merge == "mean_feature"
        logits = fitted(feature.mean(2, keepdim=True) if mean else feature, None if mean else views)
        return logits.mean(2).amax(-1)[:, 0]

    def _together(self, shots: Shots, query: Tensor, score: Tensor) -> Tensor:
        """Probabilities (E, Q, K) that depend on all queries."""
        assert self.transductive != "none"
        views = self._support_places(query.shape[2])
        asked = query[:, :, views].expand(len(shots.label), -1, -1, -1)
        return together(self.transductive, shots, score, asked)

    def _support_places(self, number: int) -> list[int]:
        return self._places(self.support_views, number, list(range(number)))

    def _places(self, which: Views, number: int, known: list[int]) -> list[int]:
        """Numbers of the chosen views among ``number``.

        Raises:
            UserError: A view that does not exist, or that the supports do not have.
        """
        if which == "all":
            return known
        centred = list(range(MIDDLE, number, GRID)) if number % GRID == 0 else list(range(number))
        chosen = ([0] if which == "first" else centred) if isinstance(which, str) else list(which)
        if wrong := [v for v in chosen if v not in known]:
            raise UserError(
                f"Views {wrong} are not among the {len(known)} views of the supports.",
                "Set method.query_views and method.support_views to views that exist.",
            )
        return chosen

    def _refuse(self) -> None:
        if self.reject is not None and not 0 < self.reject < 1:
            raise UserError(f"method.reject={self.reject} is no share.", "Give e.g. 0.1, or null for none.")
        if self.reject is not None and self.name in (*heads.TRAINED, "text"):
            raise UserError(
                f"method.reject with method.head={self.name}: each support would need a training of its own.",
                "Choose another head, e.g. ridge.",
            )
        if not 0 <= self.text_weight <= 1:
            raise UserError(f"method.text_weight={self.text_weight} is no share.", "Give 0 to 1.")
        if self.text_weight > 0 and self.transductive != "none":
            raise UserError(
                f"method.transductive={self.transductive} reads no method.text_weight={self.text_weight}.",
                "Set method.text_weight=0, or method.transductive=none.",
            )
        if self.merge == "mean_feature" and self.name in heads.ALIGNED:
            raise UserError(
                f"method.head={self.name} compares views one by one, a mean feature is no view.",
                "Set method.merge=auto.",
            )
