"""The reconstruction networks: sizes, codes, what is drawn and what is not, checkpoint names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.errors import UserError
from fewspect.methods.reconstruct.bergmann import BergmannAE
from fewspect.methods.reconstruct.corrupt import AREA, cut_paste
from fewspect.methods.reconstruct.red_net import RedNet
from fewspect.methods.reconstruct.srgan import Discriminator, Generator
from fewspect.methods.reconstruct.ssim_ae import SsimAE, SsimAELite
from fewspect.methods.reconstruct.vae import Vae, VaeLegacy

CASES = {
    "ssim_ae": (lambda c: SsimAE(16, c), 32, 32),
    "lite": (lambda c: SsimAELite(16, c), 64, 64),
    "red_2": (lambda c: RedNet(2, 16, c), 64, 64),
    "red_3": (lambda c: RedNet(3, 16, c), 64, 64),
    "red_4": (lambda c: RedNet(4, 16, c), 64, 64),
    "vae": (lambda c: Vae(16, c), 32, 32),
    "srgan_2": (lambda c: Generator(2, c), 2, 2),
    "srgan_4": (lambda c: Generator(4, c), 4, 4),
    "bergmann_128": (lambda c: BergmannAE(16, c), 16, 128),
    "bergmann_256": (lambda c: BergmannAE(16, c, side=256), 32, 256),
    "vae_legacy": (lambda _: VaeLegacy(), 1, 15),
}


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    known = {}

    def made(name, channels=3):
        if (name, channels) not in known:
            known[name, channels] = CASES[name][0](channels).eval()
        return known[name, channels]

    return made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_comes_back_in_its_own_size(nets, name, channels):
    if name == "vae_legacy" and channels == 1:
        pytest.skip("three channels by construction")
    _, divisor, minimum = CASES[name]
    net = nets(name, channels)
    for rows, columns in ((0, 0), (1, 0), (0, 2)):
        size = (minimum + rows * divisor, minimum + columns * divisor)
        with torch.no_grad():
            again = net(torch.rand(2, channels, *size))
        assert again.shape == (2, channels, *size)
        assert again.dtype == torch.float32
        assert again.min() >= 0
        assert again.max() <= 1


@pytest.mark.parametrize("name", CASES)
def test_other_sizes_are_refused_by_name(nets, name):
    _, divisor, minimum = CASES[name]
    net = nets(name)
    wrong = [(minimum - divisor, minimum), (minimum, minimum - 1)]
    if divisor > 1:
        wrong += [(minimum + 1, minimum), (minimum, minimum + divisor // 2)]
    for height, width in wrong:
        if min(height, width) < 1:
            continue
        with pytest.raises(UserError) as error:
            net(torch.rand(1, 3, height, width))
        assert f"{height} x {width}" in error.value.message
        assert str(divisor if divisor > 1 else minimum) in error.value.message
        advised = int(error.value.hint.removeprefix("Set data.side=").rstrip("."))
        with torch.no_grad():
            assert net(torch.rand(1, 3, advised, advised)).shape[-1] == advised


def test_other_channels_are_refused():
    with pytest.raises(UserError, match="SsimAE has 1 image channels, the images have 3"):
        SsimAE(8, 1)(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("net", "divisor", "width"),
    [
        (SsimAE(24), 32, 24),
        (SsimAELite(24, 3), 64, 24),
        (Vae(24), 32, 24),
        (BergmannAE(24, 3), 128, 24),
        (BergmannAE(24, 3, side=256), 256, 24),
        (Generator(4), 4, 3),
    ],
    ids=lambda x: type(x).__name__,
)
def test_code_dim_is_the_width_of_the_code(net, divisor, width):
    """Fault 14: the original's VAE ignores it."""
    side = max(net.minimum, net.divisor)
    with torch.no_grad():
        code = net.eval().encode(torch.rand(1, 3, side, side))
        assert code.shape == (1, width, side // divisor, side // divisor)
        assert net.decode(code).shape == (1, 3, side, side)


def test_the_paper_network_has_its_layers():
    """Table 1 of arXiv 1807.02011, by hand."""
    net = BergmannAE(100, 1)
    plain = [(1, 32, 4), (32, 32, 4), (32, 32, 3), (32, 64, 4), (64, 64, 3), (64, 128, 4), (128, 64, 3)]
    plain += [(64, 32, 3), (32, 100, 8), (100, 32, 8), (32, 64, 3), (64, 128, 3), (128, 64, 4), (64, 64, 3)]
    plain += [(64, 32, 4), (32, 32, 3), (32, 32, 4), (32, 1, 4)]
    expected = sum(i * o * k * k + o for i, o, k in plain)
    assert sum(p.numel() for p in net.parameters()) == expected
    more = sum(p.numel() for p in BergmannAE(100, 1, side=256).parameters())
    assert more - expected == 2 * (32 * 32 * 16 + 32)
    linear = BergmannAE(8, 1, output="linear").eval()
    with torch.no_grad():
        linear.last.bias.fill_(5.0)
        assert linear(torch.rand(1, 1, 128, 128)).min() > 1, "nothing binds a linear output"


def test_more_skips_only_add_paths():
    """The same parameters; 2 skips use the two deepest maps, 4 also those that let defects leak."""
    nets = [RedNet(n, 16) for n in (2, 3, 4)]
    for other in nets[1:]:
        other.load_state_dict(nets[0].state_dict())
    assert [list(n.skips) for n in nets] == [[0, 2], [0, 2, 4], [0, 2, 4, 6]]
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        two, three, four = (n(images) for n in nets)  # batch statistics: every path counts
    assert (two - three).abs().max() > 1e-3
    assert (three - four).abs().max() > 1e-3


# -- variational ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "vae_legacy"])
@pytest.mark.parametrize("training", [False, True])
def test_a_vae_answers_the_same_twice_at_any_size(nets, name, training):
    """Fault 9: the original draws at test time and is wired to 256 x 256 x 3."""
    net = nets(name).train(training)
    for size in ((32, 64), (96, 32)) if name == "vae" else ((15, 15), (33, 20), (64, 17)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.manual_seed(1)
            first = net(image)
            torch.manual_seed(2)
            assert torch.equal(net(image), first)
            mean, logvar = net.moments(image)
            assert torch.equal(net.sample(image, torch.zeros_like(mean)).image, first), "the decoded mean"
            noise = torch.ones_like(mean)
            expected = net.decode(mean + torch.exp(logvar / 2))
            assert torch.allclose(net.sample(image, noise).image, expected, atol=1e-6)
    net.eval()


def test_samples_follow_torch_s_generator(nets):
    net, image = nets("vae"), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.manual_seed(3)
        first = net.sample(image).image
        second = net.sample(image).image
        torch.manual_seed(3)
        assert torch.equal(net.sample(image).image, first)
    assert not torch.equal(first, second)


def test_only_the_legacy_code_is_larger_than_the_image():
    image = torch.rand(1, 3, 64, 64)
    assert VaeLegacy().encode(image).numel() > 10 * image.numel()
    assert Vae().encode(image).numel() < image.numel()


# -- parts of SRGAN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 33, 128])
def test_the_judge_takes_any_size(side):
    judge = Discriminator().eval()
    with torch.no_grad():
        found = judge(torch.rand(3, 3, side, side))
    assert found.shape == (3,)
    assert ((found > 0) & (found < 1)).all()


def test_border_averages_count_the_padding():
    """count_include_pad of the reference: the corner of a white image is 4/9 bright."""
    shrunk = Generator(2).encode(torch.ones(1, 3, 8, 8))
    assert shrunk[0, 0, 0, 0] == pytest.approx(4 / 9)
    assert shrunk[0, 0, 1, 1] == pytest.approx(1)


# -- synthetic damage ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_damage_only_moves_pixels_of_the_same_image(height, width, seed):
    images = torch.arange(2 * 3 * height * width).float().view(2, 3, height, width)
    before = images.clone()
    found = cut_paste(images, 1.0, torch.Generator().manual_seed(seed))
    assert torch.equal(images, before), "the target must stay whole"
    again = cut_paste(images, 1.0, torch.Generator().manual_seed(seed))
    assert torch.equal(found, again)
    for one, whole in zip(found, images, strict=True):
        values = one.flatten(1).T  # colours of a pixel stay together
        known = {tuple(v) for v in whole.flatten(1).T.tolist()}
        assert all(tuple(v) in known for v in values.tolist())


def test_as_many_images_are_damaged_as_asked_for():
    images = torch.rand(400, 1, 32, 32)
    found = cut_paste(images, 0.3, torch.Generator().manual_seed(0))
    changed = (found != images).flatten(1).float().mean(1)
    assert 0.24 < float((changed > 0).float().mean()) < 0.36
    assert changed.max() < 3 * AREA[1] + 0.02
    assert torch.equal(cut_paste(images, 0.0), images)
