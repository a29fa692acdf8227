"""SSIM against a plain convolution and against a loop over windows; what it must and must not depend on."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from fewspect.errors import UserError
from fewspect.nn import ssim as module
from fewspect.nn.ssim import C1, C2, GREY, SSIM, banded, blur, blur_plain, gaussian, grey, ssim

PADDINGS = ("zeros", "reflect", "valid")
SCIPY = {"zeros": "constant", "reflect": "mirror", "valid": "constant"}


def pair(*shape, seed=0):
    """Two images that are alike, but not the same."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(*shape, generator=draw)
    return first, (first + 0.2 * torch.randn(*shape, generator=draw)).clamp(0, 1)


def oracle(x, y, window, padding, sigma=1.5):
    """SSIM map of one channel (H, W), float64, moments by SciPy."""
    at = np.arange(window) - window // 2
    line = np.exp(-(at**2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def f(z):
        found = correlate(z, kernel, mode=SCIPY[padding])
        r = window // 2
        return found[r : found.shape[0] - r, r : found.shape[1] - r] if padding == "valid" else found

    x, y = x.double().numpy(), y.double().numpy()
    mx, my = f(x), f(y)
    vx, vy, cov = f(x * x) - mx**2, f(y * y) - my**2, f(x * y) - mx * my
    return (2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window", [1, 3, 11, 15])
def test_the_map_is_that_of_the_definition(window, padding):
    x, y = pair(2, 3, 20, 17)
    found = ssim(x, y, window=window, padding=padding)
    expected = np.stack([[oracle(a, b, window, padding) for a, b in zip(i, j)] for i, j in zip(x, y)])  # noqa: B905
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() < 3e-4
    exact = ssim(x.double(), y.double(), window=window, padding=padding)
    assert exact.dtype == torch.float64
    assert np.abs(exact.numpy() - expected).max() < 1e-9


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3, 5, 7, 11, 15]),
    st.sampled_from(PADDINGS),
    st.floats(0.3, 4.0),
)
@settings(max_examples=80, deadline=None)
def test_both_ways_to_filter_agree(height, width, window, padding, sigma):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)).double()
    needed = {"zeros": 1, "reflect": window // 2 + 1, "valid": window}[padding]
    if min(height, width) < needed:
        with pytest.raises(UserError, match=f"too short for an SSIM window of {window}"):
            blur(x, window=window, sigma=sigma, padding=padding)
        return
    found, plain = (f(x, window=window, sigma=sigma, padding=padding) for f in (blur, blur_plain))
    assert found.shape == plain.shape
    assert torch.allclose(found, plain, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_of_both_ways_agree(padding, monkeypatch):
    x, y = pair(2, 3, 24, 31)
    grads = []
    for rule in (module.BANDED, 0):
        monkeypatch.setattr(module, "BANDED", rule)
        leaf = x.double().requires_grad_()
        ssim(leaf, y.double(), window=7, padding=padding).mean().backward()
        grads.append(leaf.grad)
    assert grads[0].abs().max() > 1e-6
    assert torch.allclose(*grads, atol=1e-12)
    small = x[:1, :1, :9, :9].double().requires_grad_()
    other = y[:1, :1, :9, :9].double()
    assert torch.autograd.gradcheck(lambda z: ssim(z, other, window=5, padding=padding).mean(), small)


def test_large_images_take_the_convolution(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a matrix of this size was made")

    monkeypatch.setattr(module, "banded", refuse)
    x = torch.rand(1, 1, 1000, 600)
    assert torch.equal(blur(x, window=3), blur_plain(x, window=3))
    with pytest.raises(AssertionError, match="a matrix"):
        blur(x, window=5)


# -- properties ----------------------------------------------------------------------------------------------


@given(st.sampled_from([3, 7, 11, 15]), st.sampled_from(PADDINGS), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_identity_symmetry_and_range(window, padding, seed):
    x, y = pair(2, 3, 16, 21, seed=seed)
    options = {"window": window, "padding": padding}
    assert torch.allclose(ssim(x, x, **options), torch.ones(()), atol=1e-6)
    assert torch.allclose(ssim(x, y, **options), ssim(y, x, **options), atol=1e-6)
    found = ssim(x, 1 - x, **options)
    assert found.min() >= -1 - 1e-4
    assert found.max() <= 1 + 1e-4
    assert found.mean() < 0.2, "the negative is not alike"


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_images_are_finite(level):
    flat = torch.full((1, 3, 24, 24), level)
    leaf = flat.clone().requires_grad_()
    found = ssim(leaf, 1 - flat, padding="reflect")
    found.mean().backward()
    assert torch.isfinite(leaf.grad).all()
    a, b = level, 1 - level
    expected = (2 * a * b + C1) / (a * a + b * b + C1)  # no structure: only the levels are compared
    # E[x^2] - E[x]^2 of a flat bright image is rounding noise, which C2 keeps small
    assert torch.allclose(found, torch.full_like(found, expected), atol=1e-3)


def test_every_window_counts():
    """A library that derives the window from sigma returns the same value for all of them (fault of 7.3)."""
    x, y = pair(1, 3, 40, 48)
    values = [float(ssim(x, y, window=k).mean()) for k in (3, 7, 11, 15)]
    assert len({round(v, 4) for v in values[:3]}) == 3
    assert abs(values[3] - values[2]) < 2e-3, "with sigma 1.5, 15 is nearly 11"
    wide = [float(ssim(x, y, window=k, sigma=k / 6).mean()) for k in (11, 15)]
    assert abs(wide[1] - wide[0]) > 2e-3, "with sigma k/6 it is not"
    assert SSIM(12 + 3, "k/6").sigma == 2.5


def test_zero_padding_flatters_the_border():
    x, y = pair(1, 1, 32, 32)
    zeros, mirrored = (ssim(x, y, padding=p) for p in ("zeros", "reflect"))
    assert torch.allclose(zeros[..., 5:-5, 5:-5], mirrored[..., 5:-5, 5:-5], atol=1e-5)
    assert torch.allclose(zeros[..., 5:-5, 5:-5], ssim(x, y, padding="valid"), atol=1e-5)
    assert zeros[..., 0].mean() > mirrored[..., 0].mean() + 0.05


# -- colour --------------------------------------------------------------------------------------------------


def test_colour_handling():
    x, y = pair(2, 3, 20, 20)
    each = torch.cat([ssim(x[:, c : c + 1], y[:, c : c + 1]) for c in range(3)], 1)
    assert torch.allclose(ssim(x, y), each, atol=1e-6)
    assert torch.allclose(ssim(x, y, colour="min")[:, 0], each.amin(1), atol=1e-6)
    assert torch.allclose(ssim(x, y, colour="grey"), ssim(grey(x), grey(y)), atol=1e-6)
    assert torch.allclose(ssim(x, y, colour="min")[:, 0], ssim(x.flip(1), y.flip(1), colour="min")[:, 0])


def test_a_change_of_hue_is_seen_unless_grey_is_asked_for():
    """Fault 15: the original scores grey images although it trains on colour."""
    red, green = (torch.zeros(1, 3, 24, 24) for _ in range(2))
    red[:, 0], green[:, 1] = GREY[1], GREY[0]  # equally bright
    assert torch.allclose(grey(red), grey(green))
    assert ssim(red, green, colour="grey").min() > 0.999
    assert ssim(red, green).mean() < 0.5
    assert ssim(red, green, colour="min").mean() < 0.1


def test_grey_weights():
    image = torch.eye(3)[:, :, None, None]  # pure red, green, blue
    assert grey(image).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    assert grey(torch.ones(1, 1, 2, 2)).shape == (1, 1, 2, 2)


# -- the window is a constant, the arithmetic single precision -----------------------------------------------


def test_the_window_is_a_constant_and_made_once():
    """Fault 11: the original rebuilt it for every replica and device; it belonged to no state."""
    net = SSIM(7)
    assert not net.state_dict()
    assert not list(net.buffers())
    x, y = pair(1, 3, 28, 36)
    before = net(x, y)
    banded.cache_clear()
    first = net(x, y)
    size = banded.cache_info().currsize
    for replica in (net, copy.deepcopy(net), SSIM(7)):
        again = replica(x, y)
        assert torch.equal(again.map, before.map)
        assert torch.equal(again.mean, first.mean)
    assert banded.cache_info().currsize == size == 2, "one matrix per side, whatever asked for it"


def test_a_matrix_made_while_answering_serves_training():
    banded.cache_clear()
    x, y = pair(1, 1, 26, 27)
    with torch.inference_mode():
        answered = ssim(x, y, window=5)
    leaf = x.clone().requires_grad_()
    trained = ssim(leaf, y, window=5)
    trained.mean().backward()
    assert leaf.grad is not None
    assert torch.equal(trained.detach(), answered)


def test_autocast_does_not_reach_the_moments():
    x, y = pair(1, 3, 32, 32)
    plain = ssim(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ssim(x, y)
        low = ssim(x.bfloat16(), y.bfloat16())
    assert found.dtype == low.dtype == torch.float32
    assert torch.equal(found, plain)
    assert torch.allclose(low, ssim(x.bfloat16().float(), y.bfloat16().float()))


def test_window():
    line = gaussian(11)
    assert line.dtype == torch.float64
    assert float(line.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(line, line.flip(0))
    assert float(line[5] / line[4]) == pytest.approx(math.exp(1 / (2 * 1.5**2)))
    assert gaussian(1).tolist() == [1]


@pytest.mark.parametrize("window", [0, 4, -3])
def test_a_window_without_a_centre_is_refused(window):
    with pytest.raises(UserError, match=f"{window} pixels has no centre"):
        SSIM(window)
    with pytest.raises(UserError, match="odd"):
        ssim(*pair(1, 1, 8, 8), window=window)
