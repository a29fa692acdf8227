"""Memory bank: what is in it, what it answers, what a checkpoint keeps."""

import logging

import pytest
import torch
from plain_episodes import SIDE, ask, episodes, images, learned, support

from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods.detector import Fitted, owner_of
from fewspect.methods.patch_nn.method import PatchNN
from fewspect.nn.prototype import unit

CELLS = (SIDE // 4) ** 2


def patch_nn(**options):
    return PatchNN(Tiny(None, side=SIDE, width=16), evaluate={"side": SIDE}, **options).eval()


def tokens(method, queries):
    """Unit descriptors (Q, N, D) by hand."""
    with torch.inference_mode():
        return unit(torch.cat([unit(t) for t in method.backbone(queries).tokens], -1))


def test_the_answer_is_the_distance_to_the_nearest_good_patch():
    good, queries = episodes(5), images(2, seed=9)
    method = learned(patch_nn(), good)
    bank = tokens(method, torch.cat([e.query_image for e in good])).flatten(0, 1)
    wanted = 1 - (tokens(method, queries) @ bank.T).amax(-1)
    found = ask(method, queries)
    assert found.shape == (2, SIDE // 4, SIDE // 4)
    assert torch.allclose(found.flatten(1), wanted, atol=1e-6)
    assert ask(method, good[3].query_image).max() < 1e-6, "what was learned is not abnormal"
    assert found.mean() > 1e-3


def test_several_neighbours_are_averaged():
    good, queries = episodes(4), images(1, seed=9)
    one, three = (learned(patch_nn(neighbours=k), good) for k in (1, 3))
    bank = tokens(one, torch.cat([e.query_image for e in good])).flatten(0, 1)
    wanted = 1 - (tokens(one, queries)[0] @ bank.T).topk(3).values.mean(-1)
    assert torch.allclose(ask(three, queries).flatten(), wanted, atol=1e-6)
    assert (ask(three, queries) >= ask(one, queries) - 1e-6).all()


@pytest.mark.parametrize("options", [{}, {"metric": "euclidean", "reweight": 3}, {"neighbours": 2}], ids=str)
def test_an_image_is_left_out_of_its_own_answer(options):
    good = episodes(4)
    method = learned(patch_nn(**options), good)
    for k, episode in enumerate(good):
        rest = learned(patch_nn(**options), good[:k] + good[k + 1 :])
        left_out = ask(method, episode.query_image, owner=owner_of(episode.paths[0]))
        assert torch.allclose(left_out, ask(rest, episode.query_image), atol=1e-5)
        assert left_out.mean() > ask(method, episode.query_image).mean() + 1e-4


def test_an_image_that_was_not_learned_is_asked_with_the_whole_bank():
    method, queries = learned(patch_nn(), episodes(3)), images(1, seed=9)
    assert torch.equal(ask(method, queries, owner=owner_of("other.png")), ask(method, queries))


def test_of_a_single_image_each_patch_leaves_itself_out():
    (good,) = episodes(1)
    method = learned(patch_nn(), [good])
    rows = tokens(method, good.query_image)[0]
    wanted = 1 - (rows @ rows.T).fill_diagonal_(-1).amax(-1)
    found = ask(method, good.query_image, owner=owner_of(good.paths[0])).flatten()
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.max() > 1e-4


def test_products_are_kept_apart():
    board, wood = episodes(3, "board"), episodes(3, "wood.v2", seed=5)
    both = learned(patch_nn(), board + wood)
    for product, part in (("board", board), ("wood.v2", wood)):
        alone = learned(patch_nn(), part)
        assert torch.equal(ask(both, images(1, 9), product), ask(alone, images(1, 9), product))
    with pytest.raises(UserError, match="Nothing was learned about the product 'tile'"):
        ask(both, images(1, 9), "tile")
    assert torch.equal(ask(alone, images(1, 9), "tile"), ask(alone, images(1, 9), "wood.v2"))


def test_an_empty_bank_says_so():
    with pytest.raises(UserError, match="no memory bank yet"):
        ask(patch_nn(), images(1))


# -- bank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 100])
def test_a_coreset_is_a_part_of_the_bank(share):
    good = episodes(3)
    whole = learned(patch_nn(), good).banks.of("board")
    part = learned(patch_nn(coreset=share), good).banks.of("board")
    again = learned(patch_nn(coreset=share), good).banks.of("board")
    assert len(part["rows"]) == (100 if share == 100 else round(share * 3 * CELLS))
    match = (part["rows"] @ whole["rows"].T).max(1)
    assert torch.allclose(match.values, torch.ones(len(part["rows"])), atol=1e-5)
    assert torch.equal(part["owners"], whole["owners"][match.indices])
    assert len(set(part["owners"].tolist())) == 3
    assert all(torch.equal(part[k], again[k]) for k in part)


@pytest.mark.parametrize("share", [1, 1.0, 3 * CELLS, 10**6])
def test_a_coreset_of_everything_is_the_bank_as_it_is(share):
    whole, same = (learned(patch_nn(coreset=c), episodes(3)).banks.of("board") for c in (None, share))
    assert all(torch.equal(whole[k], same[k]) for k in whole)


def test_rotations_multiply_the_bank_and_begin_with_the_image_itself():
    good = episodes(2)
    plain, turned = (learned(patch_nn(rotations=n), good).banks.of("board") for n in (1, 4))
    assert len(turned["rows"]) == 4 * len(plain["rows"])
    assert torch.equal(turned["rows"][:CELLS], plain["rows"][:CELLS])
    assert [int((turned["owners"] == owner_of(e.paths[0])).sum()) for e in good] == [4 * CELLS] * 2
    quarter = images(1, seed=0).rot90(1, (2, 3))
    method = learned(patch_nn(rotations=4), episodes(1))
    assert ask(method, quarter).max() < 1e-3 < ask(learned(patch_nn(), episodes(1)), quarter).max()


def test_a_new_pass_forgets_what_another_has_begun():
    method = patch_nn()
    method.observe(episodes(2))
    method._seen.clear()  # what on_train_epoch_start does
    learned(method, episodes(3, seed=7))
    expected = learned(patch_nn(), episodes(3, seed=7)).banks.of("board")
    assert torch.equal(method.banks.of("board")["rows"], expected["rows"])


@pytest.mark.parametrize(
    "options",
    [{"coreset": 0.0}, {"coreset": -3}, {"coreset": 1.5}, {"neighbours": 0}, {"rotations": 0}, {"pool": 2}],
    ids=str,
)
def test_senseless_options_are_refused(options):
    with pytest.raises(UserError):
        patch_nn(**options)


# -- checkpoints ---------------------------------------------------------------------------------------------


def test_a_saved_bank_answers_the_same(tmp_path):
    method = learned(patch_nn(coreset=0.3), episodes(3, "M4.screw") + episodes(2, "", seed=3))
    torch.save(method.state_dict(), tmp_path / "x.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    fresh, filled = patch_nn(), learned(patch_nn(), episodes(4, "other"))
    for other in (fresh, filled):  # what is in the file is what there is, whatever there was
        other.load_state_dict(state)
        assert other.banks.known == ("", "M4.screw")
        for product in other.banks.known:
            assert torch.equal(ask(other, images(2, 9), product), ask(method, images(2, 9), product))


def test_a_damaged_bank_is_refused():
    state = learned(patch_nn(), episodes(2)).state_dict()
    key = next(k for k in state if k.startswith("banks.") and k.endswith("rows"))
    with pytest.raises(RuntimeError, match="Unexpected"):
        patch_nn().load_state_dict(state | {key + ".more": state[key]})


# -- few images, no training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"coreset": 0.5}, {"rotations": 2}], ids=str)
def test_a_support_of_good_images_is_a_bank(options):
    good = episodes(3)
    by_pass = learned(patch_nn(**options), good)
    method = patch_nn(**options)
    with torch.inference_mode():
        state = method.adapt(support(torch.cat([e.query_image for e in good])))
        found = method.predict(images(2, 9), state).prob
    assert not method.banks.known, "the state is returned, not kept"
    assert torch.allclose(found, ask(by_pass, images(2, 9)), atol=1e-6)
    assert found.mean() > 1e-3


def test_defective_supports_are_left_out_and_an_empty_support_means_what_was_learned():
    method = learned(patch_nn(), episodes(2))
    views = images(3)
    with torch.inference_mode():
        mixed = method.adapt(support(views, label=[0, 1, 0]))
        pure = method.adapt(support(views[[0, 2]]))
    assert torch.equal(mixed.rows, pure.rows)
    assert method.adapt(support(views[:0])) == Fitted("board")
    with pytest.raises(UserError, match="no good image"):
        method.adapt(support(views[:1], label=[1]))


# -- costs ---------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_size_of_the_bank(caplog):
    method = patch_nn(coreset=0.25)
    cost = method.cost(4)
    learned(method, episodes(4))
    size = method.banks.of("board")["rows"].nbytes / 2**20
    assert cost.bank_mb == pytest.approx(size)
    with caplog.at_level(logging.INFO):
        learned(method, episodes(4))
    assert any("coreset: 256 of 256 rows" in r.message for r in caplog.records)


def objects(number, seed=0):
    """Pictures with a bright disk in front of a dark ground: (number, 3, SIDE, SIDE)."""
    g = torch.manual_seed(seed)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    inside = (row - SIDE / 2) ** 2 + (column - SIDE / 2) ** 2 < (SIDE / 4) ** 2
    return (0.1 + 0.7 * inside + 0.02 * torch.randn(number, 3, SIDE, SIDE, generator=g)).clamp(0, 1)


def test_the_background_is_left_out_and_saved(tmp_path):
    from dataclasses import replace

    good = [replace(e, query_image=p[None]) for e, p in zip(episodes(4), objects(4), strict=True)]
    whole, method = learned(patch_nn(), good), learned(patch_nn(foreground="auto"), good)
    assert len(method.banks.of(good[0].product)["rows"]) < 0.8 * len(whole.banks.of(good[0].product)["rows"])
    dirty = objects(1, seed=3)
    dirty[..., :6, :6] = 0.0  # dirt on the ground
    dirty[..., SIDE // 2 - 3 : SIDE // 2 + 3, SIDE // 2 - 3 : SIDE // 2 + 3] = 0.5  # a defect
    seen, cells = ask(method, dirty)[0], SIDE // 4
    assert ask(whole, dirty)[0, 0, 0] > 1e-3
    assert seen[0, 0] == 0
    assert seen[cells // 2, cells // 2] > 1e-3
    again = patch_nn(foreground="auto")
    again.load_state_dict(method.state_dict())
    assert torch.equal(ask(again, dirty)[0], seen)


def test_tiles_show_no_middle():
    with pytest.raises(UserError, match="tiles do not show"):
        PatchNN(Tiny(None, side=SIDE, width=16), foreground="auto", evaluate={"side": SIDE, "stride": 8})
