"""Principal subspace: one pass, leave-out by parts, what a checkpoint keeps."""

import numpy as np
import pytest
import torch
from plain_episodes import SIDE, ask, episodes, images, learned, support

from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods.detector import Fitted, owner_of
from fewspect.methods.subspace.method import FOLDS, SubspaceAD
from fewspect.nn.subspace import Moments, Subspace


def subspace(**options):
    return SubspaceAD(Tiny(None, side=SIDE, width=16), evaluate={"side": SIDE}, **options).eval()


def descriptors(method, queries):
    """(Q, N, D) by hand: unit tokens of every layer beside each other."""
    with torch.inference_mode():
        tokens = method.backbone(queries).tokens
    return torch.cat([t / t.norm(dim=-1, keepdim=True) for t in tokens], -1)


def test_the_answer_is_the_residual_of_an_svd():
    good, queries = episodes(6), images(2, seed=9)
    method = learned(subspace(variance=0.9), good)
    rows = descriptors(method, torch.cat([e.query_image for e in good])).flatten(0, 1).double().numpy()
    mean = rows.mean(0)
    _, s, vt = np.linalg.svd(rows - mean, full_matrices=False)
    kept = vt[: int((np.cumsum(s**2) / np.sum(s**2) < 0.9).sum()) + 1]
    centred = descriptors(method, queries).double().numpy() - mean
    wanted = ((centred - centred @ kept.T @ kept) ** 2).sum(-1)
    assert np.allclose(ask(method, queries).flatten(1), wanted, atol=1e-5)
    assert wanted.mean() > 1e-3


def test_the_order_of_the_images_does_not_matter():
    good, queries = episodes(7), images(2, seed=9)
    one = ask(learned(subspace(), good), queries)
    assert torch.allclose(ask(learned(subspace(), good[::-1]), queries), one, atol=1e-6)


@pytest.mark.parametrize("number", [3, 7])
def test_an_image_is_judged_without_its_own_part(number):
    good = episodes(number)
    method = learned(subspace(variance=0.8), good)
    kept = method.subspaces.of("board")
    rank = Subspace(kept["mean"][0], kept["basis"][0], bool(kept["outside"])).rank
    for k, episode in enumerate(good):
        others = [e for i, e in enumerate(good) if i % FOLDS != k % FOLDS]
        rows = descriptors(method, torch.cat([e.query_image for e in others])).flatten(0, 1)
        moments = Moments(rows.shape[1])
        moments.add(rows)
        rest = Subspace.of(moments, 0.8, rank)  # the whole decides the number of directions
        wanted = rest.residual(descriptors(method, episode.query_image))
        found = ask(method, episode.query_image, owner=owner_of(episode.paths[0]))
        assert torch.allclose(found.flatten(1), wanted, atol=1e-5)
        assert found.mean() > ask(method, episode.query_image).mean()


def test_an_image_that_was_not_learned_is_judged_by_the_whole():
    method, queries = learned(subspace(), episodes(6)), images(1, seed=9)
    assert torch.equal(ask(method, queries, owner=owner_of("other.png")), ask(method, queries))


def test_a_single_image_can_only_be_judged_by_itself():
    (good,) = episodes(1)
    method = learned(subspace(), [good])
    found = ask(method, good.query_image, owner=owner_of(good.paths[0]))
    assert torch.equal(found, ask(method, good.query_image))


def test_the_state_does_not_grow_with_the_images():
    for number in (5, 15):
        kept = learned(subspace(), episodes(number)).subspaces.of("board")
        width = kept["mean"].shape[1]
        assert kept["mean"].shape == (FOLDS + 1, width)
        assert kept["basis"].shape[:2] == (FOLDS + 1, width)
        assert kept["basis"].shape[2] <= width // 2
        assert kept["owners"].shape == (number,)


def test_products_are_kept_apart_and_survive_a_file(tmp_path):
    board, wood = episodes(4, "board"), episodes(4, "wood.v2", seed=5)
    both = learned(subspace(), board + wood)
    torch.save(both.state_dict(), tmp_path / "x.pt")
    other = subspace()
    other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    for product, part in (("board", board), ("wood.v2", wood)):
        owner, queries = owner_of(part[0].paths[0]), images(2, 9)
        alone = learned(subspace(), part)
        assert torch.equal(ask(both, queries, product), ask(alone, queries, product))
        assert torch.equal(ask(other, queries, product), ask(both, queries, product))
        assert torch.equal(ask(other, queries, product, owner), ask(both, queries, product, owner))
    with pytest.raises(UserError, match="Nothing was learned about the product 'tile'"):
        ask(both, images(1, 9), "tile")
    with pytest.raises(UserError, match="learned nothing yet"):
        ask(subspace(), images(1))


def test_a_support_of_good_images_is_enough():
    good = episodes(3)
    views = torch.cat([e.query_image for e in good])
    method = subspace()
    with torch.inference_mode():
        found = method.predict(images(2, 9), method.adapt(support(views))).prob
        mixed = method.adapt(support(torch.cat([views, images(1, 4)]), label=[0, 0, 0, 1]))
        again = method.predict(images(2, 9), mixed).prob
    assert torch.allclose(found, ask(learned(subspace(), good), images(2, 9)), atol=1e-6)
    assert torch.equal(found, again), "a defective view was learned"
    assert method.adapt(support(views[:0])) == Fitted("board")
    with pytest.raises(UserError, match="no good image"):
        method.adapt(support(views[:1], label=[1]))


@pytest.mark.parametrize(
    "options", [{"join": "mean"}, {"pool": 3}, {"equal": False}, {"rotations": 4}], ids=str
)
def test_every_option_does_something(options):
    good, queries = episodes(4), images(2, seed=9)
    found = ask(learned(subspace(**options), good), queries)
    assert found.shape == (2, SIDE // 4, SIDE // 4)
    assert found.isfinite().all()
    assert not torch.allclose(found, ask(learned(subspace(), good), queries), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"variance": 0.0}, {"variance": 1.0}, {"rotations": 0}, {"pool": 4}], ids=str
)
def test_senseless_options_are_refused(options):
    with pytest.raises(UserError):
        subspace(**options)
