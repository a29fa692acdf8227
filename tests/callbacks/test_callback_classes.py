import numpy as np
import torch

from fewspect.callbacks import classes, episodes
from fewspect.types import Episode, Prediction


def episode(queries=6, side=24, labels=(1, 2, 3, 1, 2, 0)):
    random = torch.Generator().manual_seed(0)
    return Episode(
        support_image=torch.rand(3, 3, side, side, generator=random),
        support_mask=torch.zeros(3, side, side, dtype=torch.uint8),
        support_label=torch.tensor([1, 2, 3]),
        support_count=torch.ones(3),
        query_image=torch.randint(256, (queries, 3, side, side), dtype=torch.uint8, generator=random),
        query_mask=torch.ones(queries, side, side, dtype=torch.uint8),
        query_label=torch.tensor(labels),
        classes=("a", "b", "c"),
        product="bolt",
        index=4,
        paths=tuple(f"q{i}.png" for i in range(queries)),
    )


def answer(said, label=None):
    logits = 5 * torch.nn.functional.one_hot(torch.tensor(said) - 1, 3).float()
    extra = {} if label is None else {"label": torch.tensor(label)}
    return Prediction(logits=logits, score=torch.arange(len(said)).float(), extra=extra)


def test_rows_say_what_was_answered():
    rows = classes.answer_rows(episode(), answer([1, 2, 3, 2, 2, 1], [1, 2, 3, 2, -1, -1]))
    assert [r["decision"] for r in rows] == ["a", "b", "c", "b", "unknown", "unknown"]
    assert [r["file"] for r in rows] == [f"q{i}.png" for i in range(6)]
    assert all(r["episode"] == 4 and 0.9 < r["probability"] < 1 for r in rows)


def test_a_row_of_the_episodes_counts_as_the_metric_does():
    """Rejected queries are wrong, those of no class count nowhere."""
    asked = episode(labels=(1, 2, 3, 1, 0, -1))
    assert episodes.row(asked, answer([1, 2, 3, 1, 2, 1]))["correct"] == 1
    assert episodes.row(asked, answer([1, 2, 3, 1, 2, 1], [1, 2, 3, -1, -1, 1]))["correct"] == 0.75
    assert "correct" not in episodes.row(episode(labels=(0,) * 6), answer([1] * 6))
    assert episodes.row(asked, answer([1] * 6))["product"] == "bolt"


def test_a_row_of_the_episodes_has_no_overlap_of_several_labels():
    mask = torch.full((6, 24, 24), 2, dtype=torch.uint8)
    one = episodes.row(episode(), Prediction(mask=mask.clamp(max=1)))
    assert (one["intersection"], one["union"]) == (6 * 24**2, 6 * 24**2)
    assert "union" not in episodes.row(episode(), Prediction(mask=mask, labels=("b", "a")))


def test_confident_mistakes_are_drawn_once():
    kept = classes.Mistakes(2)
    assert kept.page() is None
    kept.add(episode(), answer([1, 2, 3, 1, 2, 2], [1, 2, 3, 1, 2, -1]))
    assert kept.page() is None, "a rejected stranger is no mistake"
    for _ in range(2):
        kept.add(episode(), answer([2, 1, 3, 1, 2, 2]))
    assert kept.page().height > 2 * classes.TILE
    assert len(kept._heap) == 2
    kept.add(episode(side=0), answer([2] * 6))
    assert len(kept._heap) == 2


def test_pictures_have_room_for_names():
    names = ["crack", "a rather long name of a class", "z"]
    matrix = np.array([[5, 0, 1, 0], [0, 0, 0, 0], [2, 1, 9, 3]])
    wide = classes.confusion(names, matrix, "bolt")
    narrow = classes.confusion(names, matrix * [1, 1, 1, 0])
    assert wide.width == narrow.width + classes.CELL
    page = classes.views_page("bolt/a", torch.rand(27, 3, 32, 32), torch.zeros(27, 1, 32, 32))
    assert page.width > 9 * 90
    assert classes.views_page("x", torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)).height > 96
