"""A method without a Trainer: one support, many images of any size, and how windows become one answer."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.inference import Predictor
from fewspect.methods.segmenter import Segmenter, Sliding
from fewspect.methods.sofs.method import SOFS
from fewspect.nn import windows
from fewspect.types import Episode, Prediction, Support

SIDE = 32


def sofs(**sliding):
    torch.manual_seed(0)
    evaluate = {"side": SIDE, "crop_size": SIDE} | sliding
    return SOFS(Tiny(None, side=SIDE, width=16), head={"reduce_dim": 16, "embed_dim": 16}, evaluate=evaluate)


def photo(height, width, seed=0):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def mask(height, width, top=3, left=4):
    out = torch.zeros(height, width, dtype=torch.uint8)
    out[top : top + 9, left : left + 7] = 1
    return out


class Grey(Segmenter):
    """Answers with the brightness that the state scales: what a window shows is what it answers."""

    def adapt(self, support):
        return support.image.mean()

    def predict(self, images, state):
        return Prediction(prob=images.mean(1) * state)


class Numbered(Segmenter):
    """Answers window k with the k-th of given probability maps."""

    def __init__(self, answers, **options):
        super().__init__(**options)
        self.answers, self.asked = answers, 0

    def adapt(self, support):
        return support

    def predict(self, images, state):
        first, self.asked = self.asked, self.asked + len(images)
        return Prediction(prob=self.answers[first : self.asked])


# -- the predictor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(SIDE, SIDE), (50, 70), (20, 31)], ids=str)
def test_one_support_many_images_equals_an_episode(size):
    method = sofs().train()
    images, masks = [photo(SIDE, SIDE, 1), photo(48, 40, 2)], [mask(SIDE, SIDE), mask(48, 40)]
    predictor = Predictor(method)
    state = predictor.support(images, masks)
    found = [predictor(photo(*size, seed), state) for seed in (3, 4, 3)]
    for seed, answer in zip((3, 4, 3), found, strict=True):
        episode = Episode(
            support_image=torch.stack([windows.resize_pad(i, SIDE) for i in images]),
            support_mask=torch.stack([windows.resize_mask(m, SIDE) for m in masks]),
            support_label=torch.ones(2, dtype=torch.int64),
            support_count=torch.ones(2),
            query_image=photo(*size, seed)[None],
            query_mask=torch.zeros(1, *size, dtype=torch.uint8),
            query_label=torch.zeros(1, dtype=torch.int64),
            classes=("x",),
        )
        expected = method.evaluate_episode(episode)
        assert torch.equal(answer.prob, expected.prob)
        assert torch.equal(predictor(photo(*size, seed), predictor.encode(episode.support)).prob, answer.prob)
    assert torch.equal(found[0].prob, found[2].prob)
    assert not torch.equal(found[0].prob, found[1].prob)


def test_the_predictor_switches_dropout_off_and_computes_no_gradient():
    method = sofs().train()
    predictor = Predictor(method, "cpu")
    assert not method.training
    state = predictor.support([photo(SIDE, SIDE)], [mask(SIDE, SIDE)])
    assert not predictor(photo(SIDE, SIDE), state).prob.requires_grad


def test_any_value_but_zero_marks_a_defect():
    predictor, image, marked = Predictor(sofs()), photo(SIDE, SIDE), mask(SIDE, SIDE)
    query = photo(SIDE, SIDE, 5)
    answers = [predictor(query, predictor.support([image], [marked * value])).prob for value in (1, 7, 255)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_an_empty_mask_is_a_normal_image():
    predictor, image = Predictor(sofs()), photo(SIDE, SIDE)
    state = predictor.support([image], [torch.zeros(SIDE, SIDE, dtype=torch.uint8)])
    assert not state.foreground.any()
    assert predictor(image, state).prob.max() < 1e-3


@pytest.mark.parametrize(
    ("images", "masks", "words"),
    [
        ([], [], "at least one"),
        ([photo(8, 8)], [], "got 1 and 0"),
        ([photo(8, 8)], [mask(8, 8), mask(8, 8)], "got 1 and 2"),
        ([photo(8, 8), photo(8, 9)], [mask(8, 8), mask(8, 8)], r"Support 1: image \(8, 9\), mask \(8, 8\)"),
    ],
    ids=["nothing", "no mask", "two masks", "sizes"],
)
def test_supports_that_do_not_fit_are_explained(images, masks, words):
    with pytest.raises(UserError, match=words):
        Predictor(sofs()).support(images, masks)


# -- windows -------------------------------------------------------------------------------------------------


def test_a_window_as_large_as_the_image_is_the_whole_image():
    method, image = sofs().eval(), photo(SIDE, SIDE, 1)
    predictor = Predictor(method)
    state = predictor.support([photo(SIDE, SIDE)], [mask(SIDE, SIDE)])
    one, two = (predictor(image, state, whole=whole) for whole in (False, True))
    assert torch.equal(one.prob, two.prob)
    wide = photo(SIDE * 2, SIDE * 2, 1)
    assert not torch.equal(predictor(wide, state).prob, predictor(wide, state, whole=True).prob)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_windows_put_every_pixel_where_it_was(height, width, overlap, at_once):
    sliding = {"side": 24, "crop_size": 24, "overlap": overlap, "windows_per_batch": at_once}
    image = photo(height, width)
    found = Grey(evaluate=sliding).segment(image, torch.tensor(1.0))
    expected = image.float().mean(0) / 255
    assert found.prob.shape == (1, height, width)
    if min(height, width) >= 24:
        assert torch.allclose(found.prob[0], expected, atol=1e-5)
    assert torch.allclose(found.prob.mean(), expected.mean(), atol=0.06)


@pytest.mark.parametrize("crop", [12, 24, 48])
def test_windows_that_are_resized_keep_a_smooth_image(crop):
    ramp = torch.linspace(0, 255, 60)[None, None].expand(3, 50, 60).to(torch.uint8)
    found = Grey(evaluate={"side": 24, "crop_size": crop}).segment(ramp, torch.tensor(1.0))
    assert torch.allclose(found.prob[0], ramp[0].float() / 255, atol=0.09)


@pytest.mark.parametrize("windows_per_batch", [1, 3, 100])
def test_how_many_windows_go_at_once_changes_nothing(windows_per_batch):
    image = photo(70, 50, 2)
    method = sofs(overlap=0.5, windows_per_batch=windows_per_batch).eval()
    reference = sofs(overlap=0.5, windows_per_batch=2).eval()
    support = [photo(SIDE, SIDE)], [mask(SIDE, SIDE)]
    one, two = (Predictor(m)(image, Predictor(m).support(*support)).prob for m in (method, reference))
    assert torch.allclose(one, two, atol=1e-5)


# -- merging -------------------------------------------------------------------------------------------------


def slow(boxes, answers, height, width, threshold=0.5):
    """Mean probability and mean decision of every pixel, pixel by pixel."""
    prob, votes = torch.zeros(height, width), torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            seen = [
                float(a[y - top, x - left])
                for (top, bottom, left, right), a in zip(boxes, answers, strict=True)
                if top <= y < bottom and left <= x < right
            ]
            assert seen, "a pixel that no window shows"
            prob[y, x] = sum(seen) / len(seen)
            votes[y, x] = sum(p > threshold for p in seen) / len(seen)
    return prob, votes


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(8, 8), (11, 13), (8, 20)], ids=str)
def test_merging_equals_a_slow_reference(size, overlap):
    boxes = windows.tile(*size, 8, overlap)
    answers = torch.rand(len(boxes), 8, 8, generator=torch.manual_seed(len(boxes)))
    prob, votes = slow(boxes, answers, *size)
    for merge in ("mean", "vote"):
        sliding = {"side": 8, "crop_size": 8, "overlap": overlap, "merge": merge}
        found = Numbered(answers, evaluate=sliding).segment(photo(*size), None)
        assert torch.allclose(found.prob[0], prob, atol=1e-6)
        assert torch.equal(found.score, found.prob.amax((1, 2)))
        if merge == "mean":
            assert "votes" not in found.extra
            assert torch.equal(found.mask[0] == 1, found.prob[0] > 0.5)
        else:
            assert torch.allclose(found.extra["votes"][0], votes)
            assert torch.equal(found.mask[0] == 1, votes > 0.5)


def test_disputed_pixels_keep_their_fraction():
    """Window 0 sees a defect everywhere, window 1 nowhere: the original does not decide again."""
    answers = torch.stack([torch.full((8, 8), 0.9), torch.full((8, 8), 0.2)])
    sliding = {"side": 8, "crop_size": 8, "merge": "vote"}
    found = Numbered(answers, evaluate=sliding).segment(photo(8, 12), None)
    assert found.extra["votes"][0, 0].tolist() == [1.0] * 4 + [0.5] * 4 + [0.0] * 4
    assert found.mask[0, 0].tolist() == [1] * 4 + [0] * 8
    mean = Numbered(answers, evaluate=sliding | {"merge": "mean"}).segment(photo(8, 12), None)
    assert mean.mask[0, 0].tolist() == [1] * 8 + [0] * 4


def test_decisions_that_are_resized_are_cut_at_nine_tenths_as_in_the_original():
    answer = (torch.rand(1, 8, 8, generator=torch.manual_seed(1)) * 1.2).clamp(0, 1)
    sliding = {"side": 8, "crop_size": 16, "merge": "vote"}
    hard = Numbered(answer, evaluate=sliding | {"upsample": "hard"}).segment(photo(16, 16), None)
    soft = Numbered(answer, evaluate=sliding).segment(photo(16, 16), None)
    decided = (answer > 0.5).float()
    expected, heat = torch.zeros(16, 16), torch.zeros(16, 16)
    for y in range(16):
        for x in range(16):
            expected[y, x] = aligned(decided[0], y * 7 / 15, x * 7 / 15) > 0.9
            heat[y, x] = aligned(answer[0], y * 7 / 15, x * 7 / 15)
    assert torch.equal(hard.extra["votes"][0], expected)
    assert hard.extra["votes"].sum() < decided.sum() * 4, "erodes"
    assert torch.allclose(hard.prob[0], heat, atol=1e-6), "corners are aligned, too"
    assert not torch.equal(hard.prob, soft.prob)
    assert 0 < soft.extra["votes"].frac().max() < 1


def aligned(values, y, x):
    """Bilinear value at fractional coordinates."""
    top, left = min(int(y), 6), min(int(x), 6)
    dy, dx = y - top, x - left
    rows = [(1 - dx) * float(values[top + k, left]) + dx * float(values[top + k, left + 1]) for k in (0, 1)]
    return (1 - dy) * rows[0] + dy * rows[1]


def test_the_threshold_is_strict_and_taken_from_the_options():
    answer = torch.full((1, 8, 8), 0.25)
    answer[0, 0, 0] = 0.26
    found = Numbered(answer, evaluate={"side": 8, "crop_size": 8, "threshold": 0.25}).segment(
        photo(8, 8), None
    )
    assert found.mask.sum() == 1


def test_options_that_do_not_exist_are_refused():
    with pytest.raises((UserError, TypeError), match="treshold"):
        Grey(evaluate={"treshold": 0.3})
    assert Grey().sliding == Sliding()


def test_a_ready_made_support_is_encoded_as_it_is():
    method = Grey(evaluate={"side": 8, "crop_size": 8})
    support = Support(torch.full((1, 3, 8, 8), 0.5), mask(8, 8)[None], torch.ones(1).long(), torch.ones(1))
    predictor = Predictor(method)
    assert predictor.encode(support) == 0.5
    bright = replace(support, image=support.image * 2)
    assert predictor(photo(8, 8), predictor.encode(bright)).prob.mean() > 0.4
