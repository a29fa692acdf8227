"""Few-step solvers against closed forms, hand-over, guidance, replacement, seeds."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewspect import draws
from fewspect.errors import UserError
from fewspect.methods.defect_gen.codec import Codec
from fewspect.methods.defect_gen.drawing import Denoiser, Sampling, blended, drawn
from fewspect.methods.defect_gen.method import DefectGen
from fewspect.methods.defect_gen.sampler import Call, DpmSolver, ddim, descend, nexts, plan, spaced
from fewspect.methods.defect_gen.schedule import Schedule
from fewspect.methods.generator import Wish
from fewspect.types import DataInfo

SCHEDULE = Schedule(1000)
SIDE = 16


class Gaussian(nn.Module):
    """The best denoiser of independent normal variables, and where its flow ends."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, t):
        a, s = SCHEDULE.sqrt_alphas_cumprod[t[0]], SCHEDULE.sqrt_one_minus_alphas_cumprod[t[0]]
        share = a * self.std**2 / (a**2 * self.std**2 + s**2)
        return self.mean + share * (x - a * self.mean)

    def end(self, x, t=999):
        """The probability flow keeps the distance to the mean in units of the standard deviation."""
        a, s = SCHEDULE.sqrt_alphas_cumprod[t], SCHEDULE.sqrt_one_minus_alphas_cumprod[t]
        return self.mean + self.std * (x - a * self.mean) / (a**2 * self.std**2 + s**2).sqrt()


def world():
    r = torch.manual_seed(0)
    mean = 0.5 * torch.randn(1, 4, 8, 8, generator=r)
    std = torch.logspace(-2, 0, 256).reshape(1, 4, 8, 8)
    return Gaussian(mean, std), torch.randn(16, 4, 8, 8, generator=r)


def final(net, x, calls, step):
    *_, last = descend(SCHEDULE, {"large": net, "small": net}, x, calls, step, clip=False)
    return last.x


@pytest.mark.parametrize(("kind", "most"), [("dpm", 0.05), ("ddim", 0.12)])
def test_few_steps_end_where_the_exact_flow_ends(kind, most):
    net, x = world()
    exact, errors = net.end(x), {}
    for count in (10, 20, 50, 200):
        calls = plan(1000, 400, count=count)
        step = DpmSolver(SCHEDULE, calls) if kind == "dpm" else ddim
        errors[count] = float((final(net, x, calls, step) - exact).norm() / exact.norm())
    assert errors[20] < most
    assert errors[10] > errors[20] > errors[50] > errors[200]


def test_dpm_solver_beats_ddim_and_agrees_with_a_thousand_small_steps():
    net, x = world()
    slow = final(net, x, plan(1000, 400), ddim)
    calls = plan(1000, 400, count=20)
    fast = final(net, x, calls, DpmSolver(SCHEDULE, calls))
    assert (fast - slow).norm() < 0.6 * (final(net, x, calls, ddim) - slow).norm()
    assert (fast - slow).norm() / slow.norm() < 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000))
def test_any_number_of_steps_goes_strictly_down_from_the_noisiest(top, count):
    if count > top:
        with pytest.raises(UserError, match=r"method\.steps"):
            spaced(top, count)
        return
    found = spaced(top, count)
    assert len(found) == count
    assert found[0] == top - 1
    assert found[-1] >= 0
    assert all(a > b for a, b in pairwise(found))


def test_the_hand_over_is_a_time():
    calls = plan(1000, 400, count=20)
    assert [c.stage for c in calls] == ["large"] * 12 + ["small"] * 8
    assert next(c.t for c in calls if c.stage == "small") < 400
    assert nexts(calls)[:2] == [949, 899]
    assert nexts(calls)[-1] == -1
    half = plan(1000, 400, count=20, top=400)
    assert [c.stage for c in half] == ["small"] * 8
    released = plan(1000, 400, count=20, released=True)
    assert (released[0], released[12]) == (Call(599, "large"), Call(399, "small"))
    assert nexts(released)[11] == -1, "the first countdown ends clean"
    for step in (DpmSolver(SCHEDULE, released), ddim):
        net, x = world()
        assert final(net, x, released, step).isfinite().all()


def test_the_original_step_takes_no_leap():
    net, x = world()
    sampling = Sampling(solver="original", steps=20)
    calls = sampling.calls(1000, 1.0)
    with pytest.raises(UserError, match="from 999 to 998, not to 949"):
        final(net, x, calls, sampling.step(SCHEDULE, calls, again=False))


@pytest.mark.parametrize("fields", [{"switch": 1.2}, {"resample": 0}])
def test_samplings_that_make_no_sense_are_refused(fields):
    with pytest.raises(UserError, match=rf"method\.{next(iter(fields))}"):
        Sampling(**fields)


# -- guidance ------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Says what it was asked for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, condition):
        self.calls.append(len(x))
        return torch.zeros_like(x) + (1 + condition.sum(1))[:, None, None, None]


@pytest.mark.parametrize(("guidance", "value", "size"), [(1.0, 3.0, 2), (2.0, 5.0, 4), (0.0, 1.0, 4)])
def test_guidance_goes_from_nothing_asked_through_what_is_asked(guidance, value, size):
    net, x, t = Told(), torch.zeros(2, 5, 8, 8), torch.tensor([3, 3])
    found = Denoiser(net, SCHEDULE, "x0", torch.ones(2, 2), guidance)(x, t)
    assert torch.equal(found, torch.full_like(x, value))
    assert net.calls == [size]


# -- what is given -------------------------------------------------------------------------------------------


class Memory(nn.Module):
    """The best denoiser of a few known pictures: their average by how well each explains the noise."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def forward(self, x, t):
        a, s = SCHEDULE.sqrt_alphas_cumprod[t[0]], SCHEDULE.sqrt_one_minus_alphas_cumprod[t[0]]
        away = (x[:, None] - a * self.known[None]).flatten(2).square().sum(2)
        return torch.einsum("bk,kchw->bchw", (-away / (2 * s**2)).softmax(1), self.known)


def smooth(*shape, seed):
    rough = torch.randn(*shape, generator=torch.manual_seed(seed))
    return nn.functional.interpolate(rough, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)


def owned(resample):
    """Share of drawn colours that belong to the picture whose mask was asked for (specification 11.4)."""
    codec, number = Codec(1), 12
    picture = smooth(number, 3, 3, 3, seed=0)
    mask = (smooth(number, 1, 4, 4, seed=1)[:, 0] > 0).to(torch.uint8)
    known = codec.encode((picture + 1) / 2, mask)
    asked = torch.arange(48) % number

    def noise(stream, *index):
        r = draws.generator(0, stream, *index)
        return torch.randn(len(asked), *known.shape[1:], generator=r)

    images, masks = drawn(
        SCHEDULE,
        {"large": Memory(known), "small": Memory(known)},
        codec,
        sampling=Sampling(steps=50, resample=resample, solver="ddim"),
        noise=noise,
        wishes=[Wish(mask=mask[int(k)]) for k in asked],
    )
    assert torch.equal(masks, mask[asked])
    truth = codec.decode(known)[0].float()
    found = (images[:, None].float() - truth[None]).flatten(2).square().mean(2).argmin(1)
    return float((found == asked).float().mean())


def test_a_given_mask_draws_its_own_picture_when_steps_are_repeated():
    once, often = owned(1), owned(3)
    assert often > 0.95
    assert often >= once


def made(classes=("hole", "scratch"), seed=0, **options):
    """A small network that says something: its last layers are filled."""
    net = {"width": 32, "mult": [1, 2], "attention": [2], "patch": 2}
    method = DefectGen(**{"net": net, "seed": seed, "steps": 6, **options})
    method.setup_data(DataInfo(classes, ("wood",), frozenset({"segment"}), False, SIDE, "labelled"))
    r = torch.manual_seed(7)
    for part in (method.net, method.average.net):
        for p in part.parameters():
            if not p.any():
                p.data = 0.05 * torch.randn(p.shape, generator=r)
    return method.eval()


def test_same_seed_same_samples_in_any_company():
    method = made()
    together = method.generate(range(7))
    alone = [method.generate([k])[0] for k in range(7)]
    pairs = method.generate([5, 2])
    for one, two in [*zip(together, alone, strict=True), (pairs[0], together[5]), (pairs[1], together[2])]:
        assert (one.image.int() - two.image.int()).abs().max() <= 1
        assert (one.mask != two.mask).float().mean() < 0.01
    assert not torch.equal(together[0].image, together[1].image)
    assert not torch.equal(together[0].image, made(seed=1).generate([0])[0].image)


def test_averaged_weights_draw_unless_told_otherwise():
    one, raw = made(), made(weights="raw")
    before = one.generate([0])[0].image, raw.generate([0])[0].image
    for method in (one, raw):
        for p in method.average.net.parameters():
            p.data.mul_(0.5)
    assert not torch.equal(one.generate([0])[0].image, before[0])
    assert torch.equal(raw.generate([0])[0].image, before[1])


@pytest.mark.parametrize("resample", [1, 3])
def test_outside_the_region_a_good_picture_stays_as_it_is(resample):
    method = made(resample=resample)
    good = torch.rand(3, SIDE, SIDE, generator=torch.manual_seed(3))
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[2:12, 4:16] = True
    [found] = method.control([0], [Wish(image=good, region=region, group="a.png", source="a.png")])
    ground = (good * 255).round().to(torch.uint8)
    assert torch.equal(found.image[:, ~region], ground[:, ~region])
    assert torch.equal(found.ground, ground)
    assert (found.image != ground)[:, 5:9, 8:14].float().mean() > 0.5
    assert not found.mask[~region].any()
    assert found.group == found.origin["source"] == "a.png"


def test_the_seam_is_soft_and_the_border_of_the_picture_is_none():
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[:, 4:] = True
    black = Wish(image=torch.zeros(3, SIDE, SIDE), region=region)
    white = torch.full((3, SIDE, SIDE), 240, dtype=torch.uint8)
    image, _, _ = blended(white, torch.ones(SIDE, SIDE, dtype=torch.uint8), black)
    assert image[0, 0].tolist() == image[0, 8].tolist()
    assert image[0, 8, :8].tolist() == [0, 0, 0, 0, 80, 160, 240, 240]


def test_variations_stay_near_their_picture_and_need_the_small_network_only():
    method = made(stage="small", predict="velocity")  # untrained, it leaves a picture nearly as it is
    image = torch.rand(3, SIDE, SIDE, generator=torch.manual_seed(3))
    labels = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    near, far = (
        method.control([0], [Wish(image=image, labels=labels, start=start)])[0].image.float() / 255
        for start in (0.05, 0.9)
    )
    assert (near - image).abs().mean() < 0.1 < (far - image).abs().mean()
    with pytest.raises(UserError, match="no time in"):
        method.control([0], [Wish(image=image, start=0.0)])


def test_conditions_follow_the_wish_and_else_the_training_pictures():
    method = made()
    method._shown = [(("scratch",), "wood"), ((), "wood")]
    assert {method._asked(n, Wish())[0] for n in range(8)} == {("scratch",)}
    assert method._asked(0, Wish(classes=("hole",)))[0] == ("hole",)
    mask = torch.tensor([[0, 2], [1, 0]], dtype=torch.uint8)
    assert method._asked(0, Wish(mask=mask))[0] == ("hole", "scratch")
    plain, other = (method.control([0], [Wish(classes=(c,))])[0].image for c in ("hole", "scratch"))
    assert not torch.equal(plain, other), "the network does not listen"
