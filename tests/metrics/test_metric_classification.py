import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from fewspect.metrics.classification import auroc, half_width
from fewspect.metrics.suites import suite
from fewspect.types import Episode, Prediction


def episode(labels, index=0, product="bolt", classes=("a", "b", "c")):
    empty = torch.zeros(0, 3, 0, 0)
    return Episode(
        support_image=empty,
        support_mask=empty[:, 0],
        support_label=torch.zeros(0, dtype=torch.int64),
        support_count=torch.zeros(0),
        query_image=empty,
        query_mask=empty[:, 0],
        query_label=torch.tensor(labels),
        classes=classes,
        product=product,
        index=index,
    )


def answer(labels, score=None, classes=3):
    labels = torch.tensor(labels)
    logits = torch.nn.functional.one_hot(labels.clamp(min=1) - 1, classes).float()
    extra = {"label": labels} if (labels < 0).any() else {}
    return Prediction(logits=logits, score=None if score is None else torch.tensor(score), extra=extra)


def measured(*pairs):
    measure = suite("classify", detect=False)
    for prediction, truth in pairs:
        measure.update(prediction, truth)
    return measure, {k: float(v) for k, v in measure.compute().items()}


def test_values_are_those_of_scikit_learn():
    random = torch.Generator().manual_seed(0)
    pairs, accuracy, macro, matrix = [], [], [], 0
    for index in range(5):
        truth = torch.randint(1, 4, (20,), generator=random)
        found = torch.where(torch.rand(20, generator=random) < 0.6, truth, truth % 3 + 1)
        pairs.append((answer(found.tolist()), episode(truth.tolist(), index)))
        accuracy.append(float((truth == found).float().mean()))
        macro.append(balanced_accuracy_score(truth, found))
        matrix = matrix + confusion_matrix(truth, found, labels=[1, 2, 3])
    measure, values = measured(*pairs)
    assert values["accuracy"] == pytest.approx(sum(accuracy) / 5)
    assert values["macro_recall"] == pytest.approx(sum(macro) / 5)
    spread = torch.tensor(accuracy).std().item()
    assert values["accuracy_ci95"] == pytest.approx(2.776445 * spread / math.sqrt(5), rel=1e-5)
    names, found = measure.matrices()["bolt"]
    assert names == ["a", "b", "c"]
    assert (found[:, :3] == matrix).all()
    assert found.sum() == 100
    assert [e["accuracy"] for e in measure.episodes()] == pytest.approx(accuracy)
    rows = {r["class"]: r for r in measure.table()}
    assert rows["bolt/a"]["recall"] == pytest.approx(matrix[0, 0] / matrix[0].sum())
    assert rows["bolt"]["queries"] == 100


def test_products_count_equally_and_unknown_labels_not_at_all():
    pairs = [
        (answer([1, 1, 1, 1]), episode([1, 1, 1, -1])),
        (answer([2]), episode([1], 1, "nut")),
    ]
    assert measured(*pairs)[1]["accuracy"] == pytest.approx(0.5)


def test_classes_of_other_episodes_are_told_apart():
    pairs = [
        (answer([1], classes=2), episode([1], 0, classes=("x", "y"))),
        (answer([1], classes=2), episode([2], 1, classes=("y", "x"))),
    ]
    names, matrix = measured(*pairs)[0].matrices()["bolt"]
    assert names == ["x", "y"]
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0]]


def test_rejection():
    score = [0.9, 0.2, 0.8, 0.1, 0.5]
    truth = [1, 2, 0, 0, 2]
    _, values = measured((answer([1, -1, 1, -1, 2], score), episode(truth)))
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["known_kept"] == pytest.approx(2 / 3)
    assert values["unknown_found"] == pytest.approx(0.5)
    assert values["unknown_auroc"] == pytest.approx(roc_auc_score([k > 0 for k in truth], score))


def test_odd_cases():
    assert math.isnan(half_width(torch.ones(1).numpy()))
    assert math.isnan(auroc((torch.ones(3) > 0).numpy(), torch.ones(3).numpy()))
    measure = suite("classify", detect=False)
    assert measure.compute() == {}
    assert "no labelled queries" in measure.notes()[0]
    values = measured((answer([1]), episode([1])))[1]
    assert values["accuracy"] == 1.0
    assert "accuracy_ci95" not in values
