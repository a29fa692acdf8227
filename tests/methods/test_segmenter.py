"""Normal views beside defective ones, and the steps that a Trainer calls."""

from dataclasses import replace

import pytest
import torch

from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods.segmenter import Segmenter
from fewspect.methods.sofs.method import ORIGINAL_EVALUATION, ORIGINAL_HEAD, SOFS
from fewspect.types import DataInfo, Episode, Prediction, Support

SIDE = 32


def sofs(**options):
    torch.manual_seed(0)
    head = {"reduce_dim": 16, "embed_dim": 16} | options.pop("head", {})
    evaluate = {"side": SIDE, "crop_size": SIDE}
    backbone = Tiny(None, side=SIDE, width=16)
    return SOFS(backbone, head=head, **({"evaluate": evaluate} | options)).eval()


def support(defective, normal, seed=0):
    """Views; the first ones show a defect."""
    generator = torch.manual_seed(seed)
    image = torch.rand(defective + normal, 3, SIDE, SIDE, generator=generator)
    mask = torch.zeros(defective + normal, SIDE, SIDE, dtype=torch.uint8)
    mask[:defective, 6:17, 3:20] = 1
    label = torch.tensor([1] * defective + [0] * normal)
    return Support(image, mask, label, torch.ones(defective + normal), ("x",))


def first(views, number):
    keys = ("image", "mask", "label", "count")
    return replace(views, **{k: getattr(views, k)[:number] for k in keys})


def queries(number=2, seed=9):
    return torch.rand(number, 3, SIDE, SIDE, generator=torch.manual_seed(seed))


@torch.no_grad()
def inside(method, views):
    """State and priors of some queries."""
    state = method.adapt(views)
    semantic, abnormal = method.net.head.priors(method.net.features(queries()[None]), state)
    return state, semantic, abnormal


@pytest.mark.parametrize("normal", [1, 3])
def test_normal_views_add_to_what_is_normal_and_to_nothing_else(normal):
    method, views = sofs(head={"shot_average": "foreground"}), support(2, normal)
    alone, semantic, abnormal = inside(method, first(views, 2))
    mixed, semantic2, abnormal2 = inside(method, views)
    assert torch.allclose(semantic, semantic2, atol=1e-6)
    assert torch.allclose(alone.classifier, mixed.classifier, atol=1e-6)
    assert torch.allclose(alone.bias, mixed.bias, atol=1e-6)
    assert torch.allclose(alone.share, mixed.share[:, :2], atol=1e-6)
    assert not mixed.share[:, 2:].any()
    assert mixed.foreground.all()
    assert (abnormal2 <= abnormal + 1e-6).all()
    assert (abnormal2 < abnormal - 1e-4).any(), "the normal views say nothing"


def test_fused_values_do_not_change_either():
    method, views = sofs(head={"shot_average": "foreground"}), support(2, 2)
    alone, mixed = inside(method, first(views, 2))[0], inside(method, views)[0]
    for key in ("key", "key_mask", "value"):
        assert torch.allclose(getattr(alone, key), getattr(mixed, key), atol=1e-6), key


@pytest.mark.parametrize(("normal", "factor"), [(2, 1 / 2), (4, 1 / 3)])
def test_the_published_mean_shrinks_with_every_normal_view(normal, factor):
    """Documented behaviour of the original: z, gq and the semantic prior are means over all views."""
    method, views = sofs(head={"shot_average": "all"}), support(2, normal)
    alone, mixed = inside(method, first(views, 2)), inside(method, views)
    assert torch.allclose(mixed[0].classifier, factor * alone[0].classifier, atol=1e-6)
    assert torch.allclose(mixed[0].bias, factor * alone[0].bias, atol=1e-6)
    assert torch.allclose(mixed[1], factor * alone[1], atol=1e-6)
    assert (mixed[2] <= alone[2] + 1e-6).all()


def test_a_normal_view_that_is_the_query_leaves_nothing_abnormal():
    method, views = sofs(head={"shot_average": "foreground"}), support(1, 2)
    views.image[1:] = queries()
    assert inside(method, views)[2].abs().max() < 1e-5


def test_views_of_count_zero_are_not_there():
    method, views = sofs(), support(2, 2)
    gone = replace(views, count=torch.tensor([1.0, 0, 1, 0]))
    kept = replace(views, **{k: getattr(views, k)[[0, 2]] for k in ("image", "mask", "label", "count")})
    with torch.no_grad():
        one, two = (method.predict(queries(), method.adapt(v)).prob for v in (gone, kept))
    assert torch.allclose(one, two, atol=1e-5)


def test_parity_overrules_every_choice():
    ours = {"shot_average": "foreground", "fusion_norm": True, "mask_downsample": "bilinear"}
    method = sofs(parity=True, head=ours, evaluate={"side": SIDE, "overlap": 0.5, "threshold": 0.3})
    head = method.net.head
    assert {k: getattr(head, k) for k in ORIGINAL_HEAD if hasattr(head, k)} == {
        k: v for k, v in ORIGINAL_HEAD.items() if hasattr(head, k)
    }
    assert head.shot_average == "all"
    assert not head.fusion_norm
    assert head.mask_downsample == "area"
    assert {k: getattr(method.sliding, k) for k in ORIGINAL_EVALUATION} == ORIGINAL_EVALUATION
    assert method.sliding.side == SIDE


def test_unknown_loss_options_are_named():
    with pytest.raises(UserError, match=r"no option etta"):
        sofs(loss={"etta": 1.0})


def test_loss_weights_beside_those_of_the_options_are_refused():
    with pytest.raises(UserError, match=r"method\.loss_weights is not read") as caught:
        sofs(loss_weights={"ce": 2.0})
    assert "method.loss.dice_weight" in caught.value.hint


def test_a_weight_for_a_loss_that_does_not_exist_is_refused():
    method = sofs()
    method.losses = lambda batch: {"dice": torch.zeros(()), "ce": torch.zeros(())}
    method.loss_weights["dise"] = 0.0
    with pytest.raises(UserError, match="dise is no part of the loss") as caught:
        method.training_step([], 0)
    assert "dice, ce" in caught.value.hint


def test_loss_weights_are_those_of_the_options():
    method = sofs(loss={"dice_weight": 2.0, "ce_weight": 0.5})
    assert method.loss_weights == {"dice": 2.0, "ce": 0.5}
    logged = {}
    method.log_dict = lambda values, **_: logged.update(values)
    method.log = lambda name, value, **_: logged.update({name: value})
    out = method.training_step([training_episode(0), training_episode(1)], 0)
    assert torch.allclose(out["loss"], 2.0 * out["dice"] + 0.5 * out["ce"])
    assert logged.keys() == {"train/dice", "train/ce", "train/loss"}
    assert out["loss"].requires_grad
    assert not any(v.requires_grad for v in logged.values())


def training_episode(seed):
    views = support(1, 1, seed)
    truth = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    truth[0, :9, :9] = 1
    return Episode(
        views.image,
        views.mask,
        views.label,
        views.count,
        queries(1, seed),
        truth,
        torch.ones(1).long(),
        ("x",),
    )


# -- what the Trainer calls ----------------------------------------------------------------------------------


class Bright(Segmenter):
    """The brighter, the more defective."""

    def adapt(self, support):
        return None

    def predict(self, images, state):
        return Prediction(prob=images.mean(1))


def asked(index, grey, truth):
    """A query of one grey value, and its mask."""
    views = support(1, 0)
    image = torch.full((1, 3, 20, 28), grey, dtype=torch.uint8)
    mask = torch.full((1, 20, 28), truth, dtype=torch.uint8)
    label = torch.tensor([truth])
    return Episode(
        views.image,
        views.mask,
        views.label,
        views.count,
        image,
        mask,
        label,
        ("x",),
        "p",
        index,
        False,
        (f"{index}",),
    )


def bright(detect=False):
    method = Bright(evaluate={"side": SIDE, "crop_size": SIDE})
    method.setup_data(DataInfo(tasks=frozenset({"segment"}), detect=detect))
    return method


@pytest.mark.parametrize("split", ["val", "test"])
def test_measuring_starts_anew_and_the_splits_do_not_mix(split):
    method = bright()
    logged = {}
    method.log_dict = lambda values, **_: logged.update(values)
    names = {"val": "validation", "test": "test"}
    step, start, end = (
        getattr(method, k.format(names[split])) for k in ("{}_step", "on_{}_epoch_start", "on_{}_epoch_end")
    )
    start()
    step([asked(0, 250, 1), asked(1, 5, 1)], 0)
    end()
    assert logged[f"{split}/miou"] == 0.5
    assert logged[f"{split}/episodes"] == 2
    start()
    out = step([asked(0, 250, 1)], 0)
    end()
    assert logged[f"{split}/miou"] == 1
    assert logged[f"{split}/episodes"] == 1
    assert not [k for k in logged if not k.startswith(split)]
    assert len(out["episodes"]) == len(out["predictions"]) == 1


def test_predicting_needs_no_truth():
    unknown = replace(asked(0, 250, 1), query_mask=torch.full((1, 20, 28), 255, dtype=torch.uint8))
    out = bright().predict_step([unknown], 0)
    assert out["predictions"][0].mask.all()
    assert out["episodes"][0] is unknown


def test_anomaly_detection_ranks_images():
    method, logged = bright(detect=True), {}
    method.log_dict = lambda values, **_: logged.update(values)
    method.on_test_epoch_start()
    method.test_step([asked(0, 200, 1), asked(1, 90, 0), asked(2, 150, 1), asked(3, 10, 0)], 0)
    method.on_test_epoch_end()
    ranked = {k: float(v) for k, v in logged.items() if "auroc" in k}
    assert ranked
    assert set(ranked.values()) == {1.0}
    assert not [k for k in logged if "auroc" in k and k.startswith("val")]


def test_episodes_that_show_large_defects_are_looked_at_in_one_piece():
    method, seen = bright(), []
    method.predict = lambda images, state: seen.append(len(images)) or Prediction(prob=images.mean(1))
    wide = replace(asked(0, 9, 1), query_image=torch.zeros(1, 3, SIDE, 3 * SIDE, dtype=torch.uint8))
    method.evaluate_episode(wide)
    method.evaluate_episode(replace(wide, whole=True))
    assert seen == [3, 1]
