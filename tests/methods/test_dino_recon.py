"""Feature reconstruction: network, loss, and that it learns what good parts look like."""

import pytest
import torch
import torch.nn.functional as F
from plain_episodes import SIDE, episodes, images, support

from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.detector import Fitted
from fewspect.methods.dino_recon.loss import EASY_FACTOR, cosine_loss, easy_share, residual
from fewspect.methods.dino_recon.method import DinoRecon
from fewspect.methods.dino_recon.net import LinearAttention, ReconNet


def backbone(layers=(4, 5, 6, 7)):
    return Tiny(None, layers=layers, side=SIDE, width=16)


def dino_recon(**options):
    torch.manual_seed(0)
    net = {"depth": 2} | options.pop("net", {})
    return DinoRecon(backbone(), net=net, evaluate={"side": SIDE}, **options)


# -- network -------------------------------------------------------------------------------------------------


def test_linear_attention_is_the_double_sum():
    torch.manual_seed(0)
    layer, x = LinearAttention(8, 2), torch.randn(2, 5, 8)
    q, k, v = layer.mix(x).split(8, -1)
    wanted = torch.zeros(2, 5, 8)
    for head in (slice(0, 4), slice(4, 8)):
        similar = (F.elu(q[..., head]) + 1) @ (F.elu(k[..., head]) + 1).transpose(1, 2)  # (B, N, N)
        wanted[..., head] = (similar / similar.sum(-1, keepdim=True)) @ v[..., head]
    assert torch.allclose(layer(x), layer.out(wanted), atol=1e-6)


def test_the_last_block_answers_for_the_first_layers():
    net = ReconNet(backbone(), groups=2, depth=4).eval()
    picture = images(2)
    with torch.no_grad():
        pairs = net(picture)
        layers = net.backbone(picture).tokens
        x = net.bottleneck(torch.stack(layers).mean(0))
        outputs = [x := block(x) for block in net.decoder]
    assert pairs.grid == (SIDE // 4, SIDE // 4)
    for found, wanted in zip(pairs.target, (layers[:2], layers[2:]), strict=True):
        assert torch.allclose(found, torch.stack(wanted).mean(0), atol=1e-6)
    for found, wanted in zip(pairs.rebuilt, (outputs[2:], outputs[:2]), strict=True):
        assert torch.allclose(found, torch.stack(wanted).mean(0), atol=1e-6)


def test_odd_numbers_of_layers_and_blocks_are_shared_out():
    net = ReconNet(backbone((3, 5, 7)), groups=2, depth=3)
    pairs = net(images(1))
    assert len(pairs.target) == len(pairs.rebuilt) == 2
    assert all(t.shape == (1, (SIDE // 4) ** 2, 16) for t in (*pairs.target, *pairs.rebuilt))


@pytest.mark.parametrize(
    "options", [{"groups": 0}, {"groups": 5}, {"groups": 3, "depth": 2}, {"heads": 3}], ids=str
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(UserError):
        ReconNet(backbone(), **options)


# -- loss ----------------------------------------------------------------------------------------------------


def maps(seed, number=2):
    g = torch.manual_seed(seed)
    return [torch.randn(3, 10, 4, generator=g) for _ in range(number)]


def test_the_loss_is_one_minus_the_cosine_of_whole_maps():
    target, rebuilt = maps(0), maps(1)
    by_hand = [
        1 - float((t[i] * r[i]).sum() / (t[i].norm() * r[i].norm()))
        for t, r in zip(target, rebuilt, strict=True)
        for i in range(3)
    ]
    wanted = sum(by_hand) / 6
    for easy in (0.0, 0.5):
        assert float(cosine_loss(target, rebuilt, easy)) == pytest.approx(wanted, abs=1e-6)
    assert float(cosine_loss(target, target, 0.0)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_loss(target, [-t for t in target], 0.0)) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("easy", [0.0, 0.3, 0.9])
def test_gradients_of_what_is_rebuilt_well_are_damped(easy):
    (target,), (rebuilt,) = maps(0, 1), maps(1, 1)
    gradients = []
    for share in (0.0, easy):
        leaf = rebuilt.clone().requires_grad_()
        cosine_loss([target], [leaf], share).backward()
        gradients.append(leaf.grad)
    ratio = (gradients[1] / gradients[0]).mean(-1)
    distance = 1 - F.cosine_similarity(target, rebuilt, dim=-1)
    number = int(easy * 30)
    damped = distance <= distance.flatten().sort().values[number - 1] if number else distance < -1
    assert int(damped.sum()) == number
    assert torch.allclose(ratio, torch.where(damped, EASY_FACTOR, 1.0), atol=1e-4)


def test_the_share_of_easy_tokens_grows():
    assert [easy_share(s) for s in (0, 500, 1000, 9999)] == pytest.approx([0, 0.45, 0.9, 0.9])
    assert easy_share(5, ramp=10, share=0.5) == 0.25


def test_the_residual_is_the_mean_distance_of_tokens():
    target, rebuilt = maps(0), maps(1)
    wanted = sum(1 - F.cosine_similarity(t, r, dim=-1) for t, r in zip(target, rebuilt, strict=True)) / 2
    assert torch.allclose(residual(target, rebuilt), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(residual(target, rebuilt), wanted)


# -- method --------------------------------------------------------------------------------------------------


def train(method, batch, steps):
    optimizer, _ = optim.build(method.named_parameters(), steps, name="adamw", lr=2e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = method.train().losses(batch)["cosine"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    method.eval()
    return losses


def test_it_learns_to_rebuild_what_is_good_better_than_what_is_not():
    good = episodes(4)
    method = dino_recon(net={"dropout": 0.0})
    losses = train(method, good, 60)
    assert losses[-1] < 0.5 * losses[0]
    state = Fitted("board")
    noise = torch.rand(4, 3, SIDE, SIDE, generator=torch.manual_seed(3))
    with torch.inference_mode():
        known = method.predict(torch.cat([e.query_image for e in good]), state).prob
        strange = method.predict(noise, state).prob
    assert known.shape == (4, SIDE // 4, SIDE // 4)
    assert strange.mean() > 1.5 * known.mean()
    assert known.min() >= 0
    assert strange.max() <= 2


def test_gradients_reach_all_of_the_decoder_and_nothing_of_the_backbone():
    method = dino_recon().train()
    method.losses(episodes(2))["cosine"].backward()
    trained = {k for k, p in method.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None and p.grad.any() for k, p in method.named_parameters() if k in trained)
    assert not any("backbone" in k for k in trained)
    assert all(p.grad is None for p in method.net.backbone.parameters())


def test_evaluation_draws_nothing_and_images_do_not_mix():
    method = dino_recon().eval()
    queries = images(3, 9)
    with torch.inference_mode():
        together = method.predict(queries, Fitted("board")).prob
        again = method.predict(queries, method.adapt(support(queries[:0]))).prob
        alone = torch.cat([method.predict(q[None], Fitted("board")).prob for q in queries])
    assert torch.equal(together, again)
    assert torch.allclose(together, alone, atol=1e-6)


def test_dropout_is_the_noise_of_the_bottleneck():
    batch = episodes(1)
    for dropout, same in ((0.2, False), (0.0, True)):
        method = dino_recon(net={"dropout": dropout}).train()
        with torch.no_grad():
            one, two = (method.losses(batch)["cosine"] for _ in range(2))
        assert torch.equal(one, two) == same
