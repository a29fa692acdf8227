"""Task base of the few-shot classifiers: features of a few labelled items in, logits of the queries out.

A concrete classifier gives ``adapt(support)`` and ``predict(features (Q, V, D), state) -> Prediction`` with
``logits (Q, K)``, whose column k - 1 belongs to label k, i.e. to ``support.classes[k - 1]``. Both take a
leading episode axis as well (``Support.feature`` (E, S, V, D), features (E, Q, V, D), logits (E, Q, K)):
episodes of one shape are answered together. Nothing in the state may mix episodes.

Where the features come from (a file, a frozen backbone) is the data's business.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fewspect.methods.base import Method
from fewspect.types import Episode, Prediction, Support


class Classifier(Method):
    """Base of methods that tell classes apart by cached features.

    Args:
        options: See ``Method``.
    """

    task = "classify"
    protocols = ("features",)

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """Answer episodes in order; neighbours of one shape and class list together."""
        predictions: list[Prediction] = []
        with torch.no_grad():  # not inference_mode: a head may learn inside ``adapt``
            for group in alike(batch):
                together = self.predict(query(group), self.adapt(stack(group)))
                predictions += [one(together, i) for i in range(len(group))]
        return predictions

    def classify(self, support: Support, feature: Tensor) -> Prediction:
        """Answer queries (Q, V, D) by one support, without a trainer."""
        with torch.no_grad():
            return self.predict(feature, self.adapt(support))


def alike(batch: list[Episode]) -> Iterator[list[Episode]]:
    """Cut a list where the shape of support or queries, or the classes, change."""
    group: list[Episode] = []
    for episode in batch:
        if group and _shape(episode) != _shape(group[0]):
            yield group
            group = []
        group.append(episode)
    if group:
        yield group


def stack(group: list[Episode]) -> Support:
    """Supports of several episodes as one, with a leading episode axis; pictures are left out."""
    supports = [e.support for e in group]
    fields = {k: torch.stack([getattr(s, k) for s in supports]) for k in ("label", "count")}
    feature = torch.stack([known(s.feature) for s in supports])  # (E, S, V, D)
    return replace(supports[0], feature=feature, **fields)


def query(group: list[Episode]) -> Tensor:
    """Query features (E, Q, V, D); (1, Q, V, D) where all episodes ask about the very same."""
    features = [known(e.query_feature) for e in group]
    if len({f.data_ptr() for f in features}) == 1:
        return features[0][None]
    return torch.stack(features)


def known(tensor: Tensor | None) -> Tensor:
    """A tensor that an episode of features always has."""
    assert tensor is not None, "an episode of features was expected"
    return tensor


def _shape(episode: Episode) -> tuple[object, ...]:
    support, asked = known(episode.support_feature), known(episode.query_feature)
    return support.shape, asked.shape, episode.classes, episode.product


def one(together: Prediction, place: int) -> Prediction:
    """The answer for one episode."""
    pick = {
        k: v[place]
        for k in ("logits", "score", "decision")
        if isinstance(v := getattr(together, k), torch.Tensor)
    }
    return replace(together, **pick, extra={k: v[place] for k, v in together.extra.items()})
