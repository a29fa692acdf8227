import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import cases, episode, equal
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import multiprocessing

from fewspect.errors import UserError
from fewspect.metrics.detection import ImageRanking, PixelRanking
from fewspect.metrics.suites import suite
from fewspect.types import Prediction


def measure(metric, pairs):
    for prediction, truth in pairs:
        metric.update(prediction, truth)
    return metric


def test_detection_values_are_product_means_of_scikit_learn():
    pairs = cases(36, products=("a", "b"))
    values = measure(suite("segment", detect=True), pairs).compute()
    expected = {"pixel_auroc": [], "pixel_ap": [], "image_auroc": [], "image_ap": []}
    for product in ("a", "b"):
        part = [(p, e) for p, e in pairs if e.product == product]
        truth = torch.cat([e.query_mask.flatten() for _, e in part])
        score = torch.cat([p.prob.flatten() for p, _ in part])[truth != 255]
        image = [int(e.query_label) for _, e in part], [float(p.score) for p, _ in part]
        expected["pixel_auroc"].append(roc_auc_score(truth[truth != 255], score))
        expected["pixel_ap"].append(average_precision_score(truth[truth != 255], score))
        expected["image_auroc"].append(roc_auc_score(*image))
        expected["image_ap"].append(average_precision_score(*image))
    for name, numbers in expected.items():
        assert values[name] == pytest.approx(sum(numbers) / 2, abs=1e-4 if "pixel" in name else 1e-6)
    assert {"aupro_0.3", "aupro_0.05", "miou", "image_f1_max"} <= values.keys()


def test_one_kind_only_is_absent_with_a_note():
    metric = measure(
        suite("detect", detect=True), [(Prediction(prob=torch.rand(1, 4, 4)), episode(torch.zeros(4, 4)))]
    )
    values = metric.compute()
    assert not any(name.startswith(("pixel", "image", "aupro")) for name in values)
    assert "part: only good or only defective pixels, not ranked" in metric.notes()
    assert "part: only good or only defective images, not ranked" in metric.notes()


def test_raw_scores_are_ranked_unclamped_and_fall_back_to_the_map():
    truth = [episode([[1, 0]], index=i, label=i % 2) for i in range(4)]
    raw = [Prediction(score=torch.tensor([s])) for s in (5.0, 7.0, -3.0, 6.0)]
    assert measure(ImageRanking(), zip(raw, truth, strict=True)).compute()["image_auroc"] == 1.0
    maps = [Prediction(prob=torch.tensor([[[0.1, s]]])) for s in (0.5, 0.7, 0.3, 0.6)]
    assert measure(ImageRanking(), zip(maps, truth, strict=True)).compute()["image_auroc"] == 1.0


def test_unknown_labels_and_broken_scores_are_noted():
    truth = [episode([[1, 0]], index=i, label=label) for i, label in enumerate((0, 1, -1, 1))]
    raw = [Prediction(score=torch.tensor([s])) for s in (0.0, 1.0, 2.0, float("nan"))]
    metric = measure(ImageRanking(), zip(raw, truth, strict=True))
    assert metric.compute()["image_auroc"] == 1.0
    assert metric.notes == ["2 images without a label or with a score that is no number"]
    pixels = measure(PixelRanking(), [(Prediction(prob=torch.tensor([[[0.9, float("nan")]]])), truth[0])])
    assert pixels.compute()["pixel_auroc"] == 1.0
    assert "1 pixel scores were not numbers and rank lowest" in pixels.notes


def test_computing_between_updates_changes_nothing():
    pairs = cases(12)
    metric = measure(PixelRanking(), pairs[:6])
    metric.compute()
    assert equal(measure(metric, pairs[6:]).compute(), measure(PixelRanking(), pairs).compute())


@given(st.lists(st.integers(0, 1), min_size=14, max_size=14))
@settings(max_examples=6, deadline=None)
def test_detection_shards_equal_the_whole(owner):
    pairs = cases(14)
    for kind in (PixelRanking, ImageRanking):
        parts = [measure(kind(), [p for p, o in zip(pairs, owner, strict=True) if o == k]) for k in (0, 1)]
        parts[1].merge_state(parts[0])
        assert equal(parts[1].compute(), measure(kind(), pairs).compute())


def test_tables_join_and_unknown_task_is_refused():
    metric = measure(suite("detect", detect=True), cases(12, products=("a",)))
    metric.compute()
    assert {row["class"] for row in metric.table()} == {"a"}
    with pytest.raises(UserError, match="no metrics"):
        suite("fly", detect=False)


def _rank(rank, world, file, share, out):
    torch.set_num_threads(1)  # the thread pool does not survive a fork
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    metric = measure(suite("segment", detect=True), cases(13)[share[rank]])
    values = metric.compute()
    torch.save((values, metric.table(), metric.notes()), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="fork")
@pytest.mark.parametrize("share", [(slice(0, 13, 2), slice(1, 13, 2)), (slice(0, 13), slice(0, 0))])
def test_two_processes_equal_one(tmp_path, share):
    """Uneven shards, different classes per process, and a process without any episode."""
    arguments = (2, tmp_path / "store", share, tmp_path)
    multiprocessing.start_processes(_rank, args=arguments, nprocs=2, start_method="fork")
    single = measure(suite("segment", detect=True), cases(13))
    expected = single.compute()
    for rank in (0, 1):
        values, table, notes = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert equal(values, expected)
        assert (table, notes) == (single.table(), single.notes())
