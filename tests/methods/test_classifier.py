import torch

from fewspect.methods.classifier import Classifier
from fewspect.types import DataInfo, Episode, Prediction


class Nearest(Classifier):
    """Nearest class mean; counts its calls."""

    fit_kind = "none"

    def __init__(self):
        super().__init__()
        self.calls = []
        self.setup_data(DataInfo(protocol="features"))

    def adapt(self, support):
        self.calls.append(support.feature.shape)
        hot = torch.nn.functional.one_hot(support.label - 1, len(support.classes)).float()
        return torch.einsum("...sk,...svd->...kd", hot, support.feature)

    def predict(self, images, state):
        logits = torch.einsum("...qvd,...kd->...qk", images, state)
        return Prediction(logits=logits, score=logits.amax(-1))


def episode(index, shots=2, queries=4, asked=None, product="p"):
    random = torch.Generator().manual_seed(index)
    return Episode(
        support_image=torch.zeros(2 * shots, 3, 0, 0),
        support_mask=torch.zeros(2 * shots, 0, 0, dtype=torch.uint8),
        support_label=torch.arange(2 * shots) % 2 + 1,
        support_count=torch.ones(2 * shots),
        query_image=torch.zeros(queries, 3, 0, 0),
        query_mask=torch.zeros(queries, 0, 0, dtype=torch.uint8),
        query_label=torch.arange(queries) % 2 + 1,
        classes=("a", "b"),
        product=product,
        index=index,
        support_feature=torch.randn(2 * shots, 3, 8, generator=random),
        query_feature=torch.randn(queries, 3, 8, generator=random) if asked is None else asked,
    )


def test_episodes_of_one_shape_are_answered_together_and_as_alone():
    asked = torch.randn(4, 3, 8)
    batch = [
        *(episode(i, asked=asked) for i in range(3)),
        *(episode(i, queries=5) for i in (3, 4)),
        episode(5, shots=1),
    ]
    method = Nearest()
    together = method.answers(batch)
    assert [tuple(s) for s in method.calls] == [(3, 4, 3, 8), (2, 4, 3, 8), (1, 2, 3, 8)]
    for one, answer in zip(batch, together, strict=True):
        alone = method.classify(one.support, one.query_feature)
        assert torch.allclose(alone.logits, answer.logits, atol=1e-5)
        assert answer.logits.shape == (len(one.query_label), 2)
        assert answer.score.shape == (len(one.query_label),)
    assert method.validation_step(batch, 0)["episodes"] is batch
