"""The field of view of the networks, exact and measured; losses that agree; foreign checkpoints."""

import pytest
import torch
from torch import nn

from fewspect.errors import UserError
from fewspect.methods.defect_gen import checkpoint, loss
from fewspect.methods.defect_gen.codec import Codec
from fewspect.methods.defect_gen.ema import Average
from fewspect.methods.defect_gen.net import UNet, receptive_field
from fewspect.methods.defect_gen.sampler import plan
from fewspect.methods.defect_gen.schedule import Schedule

FIELDS = [((1, 1, 1), 2, 157), ((1, 1, 1), 1, 101), ((1, 1), 2, 69), ((1, 1), 1, 45), ((1,), 2, 25)]


def seen(net, side):
    """Rows and columns of the input that the centre pixel of the output hears of."""
    nn.init.normal_(net.conv_out.weight)
    for name, parameter in net.named_parameters():
        if name.endswith("conv2.weight"):
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, net.channels, side, side, generator=torch.manual_seed(1), requires_grad=True)
    net(x, torch.tensor([10]))[0, :, side // 2, side // 2].sum().backward()
    touched = x.grad[0].abs().amax(0) > 0
    return touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()


@pytest.mark.parametrize(("mult", "blocks", "field"), FIELDS)
def test_the_field_of_view_equals_its_formula_and_nothing_outside_is_seen(mult, blocks, field):
    assert receptive_field(len(mult), blocks) == field
    side = (field // 16 + 2) * 16
    rows, columns = seen(UNet(6, width=32, mult=mult, blocks=blocks, norm="local"), side)
    assert int(rows.max() - rows.min()) + 1 == field
    assert int(columns.max() - columns.min()) + 1 == field


def test_group_norm_sees_everything():
    rows, _ = seen(UNet(6, width=32, mult=(1, 1), blocks=1), 64)
    assert len(rows) == 64


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_weighted_losses_are_one_loss(gamma):
    made, r = Schedule(), torch.manual_seed(0)
    t = torch.tensor([5, 100, 400, 700, 950])
    x0, noise, guess = (torch.randn(5, 6, 8, 8, generator=r) for _ in range(3))
    x_t = made.add_noise(x0, noise, t)
    outputs = {
        "x0": guess,
        "noise": made.noise_of_x0(x_t, guess, t),
        "velocity": made.velocity(guess, made.noise_of_x0(x_t, guess, t), t),
    }
    found = []
    for kind, output in outputs.items():
        assert torch.allclose(loss.to_x0(made, kind, output, x_t, t), guess, atol=2e-3)
        weight = loss.min_snr(made, kind, t, gamma)
        found.append(loss.squared(output, loss.target(made, kind, x0, noise, t), weight))
    assert torch.allclose(torch.stack(found), found[0], rtol=1e-3)


def test_the_pass_of_the_paper_and_the_two_countdowns():
    calls = plan(1000, 400)
    assert [c.t for c in calls] == list(range(999, -1, -1))
    assert [c.stage for c in calls] == ["large"] * 600 + ["small"] * 400
    released = plan(1000, 400, released=True)
    assert [c.t for c in released] == [*range(599, -1, -1), *range(399, -1, -1)]
    with pytest.raises(UserError, match="hand-over"):
        plan(1000, 1001)


def test_a_checkpoint_of_the_original_comes_back(tmp_path):
    one, two = (UNet(6, width=32, mult=(1, 2), attention=(2,), middle=True) for _ in range(2))
    nn.init.normal_(one.conv_out.weight)
    ema = checkpoint.export_reference(one)
    raw = {f"module.{k}": torch.zeros_like(v) for k, v in ema.items()}
    torch.save({"model": raw, "optimizer": {}, "ema": ema}, tmp_path / "x.pt")
    checkpoint.load_reference(tmp_path / "x.pt", two)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    checkpoint.load_reference(tmp_path / "x.pt", two, "model")
    assert not any(v.any() for v in two.state_dict().values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("out.2.bias"), "out.2.bias is missing"),
        (lambda s: s.__setitem__("more", torch.zeros(1)), "more is not known"),
        (lambda s: s.__setitem__("out.0.bias", torch.zeros(7)), r"out.0.bias has shape \(7,\)"),
        (lambda s: s.__setitem__(checkpoint.FIRST, torch.zeros(32, 9, 3, 3)), r"9 channels \(5 defect types"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, says):
    net = UNet(6, width=32, mult=(1, 2))
    state = checkpoint.export_reference(net)
    change(state)
    with pytest.raises(UserError, match=says):
        checkpoint.load_reference(state, net)


def test_pickled_code_is_never_loaded(tmp_path):
    torch.save({"ema": nn.Linear(1, 1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoint.load_reference(tmp_path / "x.pt", UNet(6, width=32, mult=(1,)))


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_code_of_a_mask_is_read_back(low):
    image = torch.randint(256, (2, 3, 9, 7), generator=torch.manual_seed(0)).float() / 255
    mask = torch.randint(4, (2, 9, 7), generator=torch.manual_seed(1)).to(torch.uint8)
    sample = Codec(3, low).encode(image, mask)
    assert sample.min() >= -1
    found, again = Codec(3, low).decode(sample)
    assert torch.equal(again, mask)
    assert torch.equal(found, (image * 255).round().to(torch.uint8))
    with pytest.raises(UserError, match="label 3, 2 defect types"):
        Codec(2, low).encode(image, mask)


def test_the_average_follows_quickly_at_first_and_exactly_without_warm_up():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    quick, slow = Average(net, 0.9), Average(net, 0.9, warmup=False)
    nn.init.ones_(net.weight)
    for _ in range(2):
        quick.update(net)
        slow.update(net)
    assert float(slow.net.weight) == pytest.approx(1 - 0.9**2)
    assert float(quick.net.weight) == pytest.approx(1 - 1 / 10 * 2 / 11)
    assert not any(p.requires_grad for p in quick.parameters())
