"""The endless classes that the embedded backbone is trained on, and that training itself."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from fewspect.backbones.tiny import Tiny
from fewspect.data.pretext import Pretext, episode
from fewspect.data.pretext.episodes import LARGEST, SMALLEST
from fewspect.data.pretext.style import LOOKS, SHAPES, Style, paint
from fewspect.data.pretext.surface import FAMILIES, Surface, noise, render
from fewspect.engine import pretrain

SIDE = 48


def random(seed=0):
    return np.random.default_rng(seed)


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("shots", [1, 3])
def test_items_have_the_promised_form(shots):
    images, masks = Pretext(2, 0, SIDE, shots)[1]
    assert images.shape == (1 + shots, 3, SIDE, SIDE)
    assert masks.shape == (1 + shots, SIDE, SIDE)
    assert images.dtype == masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 1}


def test_items_depend_on_seed_and_number_only():
    data, again = Pretext(4, 7, SIDE), Pretext(9, 7, SIDE)
    forward = [data[i] for i in range(4)]
    backward = [again[i] for i in reversed(range(4))]
    assert all(equal(a, b) for a, b in zip(forward, backward[::-1], strict=True))
    assert not any(equal(forward[i], forward[j]) for i in range(4) for j in range(i))
    assert not equal(forward[0], Pretext(4, 8, SIDE)[0])


@pytest.mark.parametrize("item", [-1, 3])
def test_items_that_do_not_exist(item):
    with pytest.raises(IndexError):
        Pretext(3, 0, SIDE)[item]


def test_workers_change_nothing():
    data = Pretext(4, 1, SIDE)
    alone, helped = (list(DataLoader(data, batch_size=2, num_workers=n)) for n in (0, 2))
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_the_callers_generators_stay():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global one is what must not be touched
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    _ = Pretext(1, 0, SIDE)[0]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_supports_always_show_the_class(seed):
    images, masks = episode(random(seed), SIDE, 2)
    areas = masks.reshape(3, -1).sum(1)
    assert (areas[1:] >= SMALLEST).all()
    assert (areas < SIDE * SIDE * LARGEST).all()
    assert images.min() >= 0
    assert images.dtype == masks.dtype == np.uint8
    assert images.std() > 0


def test_queries_are_sometimes_normal_grey_or_coloured():
    data = Pretext(60, 5, 32)
    items = [data[i] for i in range(60)]
    empty = sum(not masks[0].any() for _, masks in items)
    grey = sum(bool((images[:, 0] == images[:, 1]).all()) for images, _ in items)
    assert 1 <= empty <= 20
    assert 15 <= grey <= 45


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_painting_stays_in_range_and_keeps_its_picture(seed):
    r = random(seed)
    image = render(Surface.draw(r), r, SIDE)
    kept = image.copy()
    painted, mask = paint(image, Style.draw(r), r)
    assert (image == kept).all()
    assert painted.shape == image.shape
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert np.isfinite(painted).all()
    assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize("look", range(LOOKS))
@pytest.mark.parametrize("shape", range(SHAPES))
def test_every_style_paints_something_where_the_mask_is(shape, look):
    style = dataclasses.replace(
        Style.draw(random(1)), shape=shape, look=look, size=0.12, thickness=2.0, softness=0.5, delta=0.3
    )
    surface = Surface.draw(random(2))
    changed, outside, area = [], [], 0
    for seed in range(4):
        image = render(surface, random(seed), SIDE)
        painted, mask = paint(image, style, random(100 + seed))
        difference = np.abs(painted - image).mean(-1)
        far = ~dilated(mask, 8)
        changed.append(difference[mask == 1].sum())
        outside.append(difference[far].sum())
        area += mask.sum()
    assert area > 0
    assert sum(changed) > 0
    assert sum(outside) < 0.05 * sum(changed)


def dilated(mask, by):
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=by)


@pytest.mark.parametrize("family", range(FAMILIES))
def test_pictures_of_a_surface_are_alike_but_not_equal(family):
    surface = dataclasses.replace(Surface.draw(random(4)), family=family)
    one, two = (render(surface, random(seed), SIDE) for seed in (0, 1))
    assert one.shape == (SIDE, SIDE, 3)
    assert one.dtype == np.float32
    assert min(one.min(), two.min()) >= 0
    assert max(one.max(), two.max()) <= 1
    assert not (one == two).all()
    assert (one == render(surface, random(0), SIDE)).all()
    assert np.abs(one.mean((0, 1)) - two.mean((0, 1))).max() < 0.25


@given(st.floats(2, 24), st.floats(1, 12), st.floats(0, 3.1), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_noise_has_unit_deviation(scale, aspect, angle, seed):
    field = noise(random(seed), SIDE, scale, aspect=aspect, angle=angle)
    assert field.shape == (SIDE, SIDE)
    assert field.std() == pytest.approx(1, abs=1e-3)


def test_training_gives_weights_that_load(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SIDE", 32)
    monkeypatch.setattr(pretrain, "BATCH", 2)
    net = pretrain.train(2)
    start = Tiny(None, side=32, frozen=False)
    moved = [k for k, v in net.state_dict().items() if not torch.equal(v, start.state_dict()[k])]
    assert len(moved) > len(net.state_dict()) / 2
    path = tmp_path / "tiny.safetensors"
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, path)
    loaded = Tiny(str(path), side=32)
    image = torch.rand(1, 3, 32, 32, generator=torch.manual_seed(0))
    with torch.no_grad():
        for one, two in zip(loaded(image).tokens, net.eval()(image).tokens, strict=True):
            assert torch.allclose(one, two, atol=0.02)
    assert all(not p.requires_grad for p in loaded.parameters())
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {
        k: v.shape for k, v in start.state_dict().items()
    }


def test_training_repeats_bit_by_bit(monkeypatch):
    monkeypatch.setattr(pretrain, "SIDE", 32)
    monkeypatch.setattr(pretrain, "BATCH", 1)
    one, two = (pretrain.train(1).state_dict() for _ in range(2))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_the_command_writes_the_file_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "train", lambda steps: Tiny(None, side=32))
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(tmp_path / "w.safetensors"), "--steps", "1"])
    pretrain.main()
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    Tiny(str(tmp_path / "w.safetensors"), side=32)


def test_the_share_that_the_loss_wants_costs_less_than_its_opposite():
    share = torch.zeros(1, 16)
    share[0, :4] = 1
    right, wrong = (pretrain.loss(sign * (share * 2 - 1) * 5, share) for sign in (1, -1))
    assert right < 0.1 < wrong
    assert pretrain.rate(0, 1000) == pytest.approx(pretrain.RATE / pretrain.WARMUP)
    assert pretrain.rate(1000, 1000) == pytest.approx(0)
