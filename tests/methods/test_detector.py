"""What every unsupervised detector gets from its base: views, calibration on good images, decisions."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from fewspect.data.module import DataModule
from fewspect.data.plain import good
from fewspect.data.readers import folder
from fewspect.data.toy.layouts import write
from fewspect.errors import UserError
from fewspect.methods.base import of_all_processes
from fewspect.methods.calibration import Calibrations, Observed, Rules
from fewspect.methods.detector import Detector, Fitted, choose, owner_of
from fewspect.nn.maps import smooth
from fewspect.types import Prediction, Support

SIDE = 32


class MeanImage(Detector):
    """Distance to the mean good image of the product, which leaves the asked image out."""

    fit_kind = "single_pass"

    def __init__(self, **options):
        super().__init__(**options)
        self.seen: dict[str, dict[int, Tensor]] = {}

    def observe(self, batch):
        for episode in batch:
            self.seen.setdefault(episode.product, {})[owner_of(episode.paths[0])] = episode.query_image[0]

    def finish(self):
        pass

    def predict(self, images, state):
        kept = [v for k, v in self.seen[choose(state.product, self.seen)].items() if k != state.owner]
        mean = torch.stack(kept).mean(0)
        return Prediction(prob=(images - mean).abs().mean(1), image=mean.expand_as(images))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("parts") / "set"
    write(place, "mvtec", products=["wood", "board"], defects=["blob", "hole"], side=48, images=3, good=12)
    return place


@pytest.fixture
def data(root):
    return lambda **options: DataModule(
        folder.read, root=str(root), protocol="plain", side=SIDE,
        **{"shot": None, "augment": False, **options},
    )  # fmt: skip


def fitted(data, place, **options):
    method = MeanImage(evaluate={"side": SIDE}, **options)
    method.setup_data(data.info)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=place,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return method, trainer


def test_only_good_training_images_are_learned_and_everything_is_asked(data):
    module = data()
    train = module.dataset("train")
    assert all(int(e.query_label[0]) == 0 and not e.query_mask.any() for e in train)
    assert {s.split for s in train.samples} == {"train"}
    assert train[0].query_image.shape == (1, 3, SIDE, SIDE)
    test = module.dataset("test")
    assert len(test) == sum(s.split == "test" for s in module.index.samples)
    assert test[0].query_image.shape == (1, 3, 48, 48)
    assert {e.shown for e in test} >= {("blob",), ("hole",), ()}
    assert not {p for e in train for p in e.paths} & {p for e in test for p in e.paths}
    held = module.dataset("val")
    assert not {p for e in train for p in e.paths} & {p for e in held for p in e.paths}


def test_a_shot_is_all_there_is(data):
    module = data(shot=3)
    train, held = module.dataset("train"), module.dataset("val")
    assert len(train) == 3 * 2
    assert {e.paths for e in held} == {e.paths for e in train}
    again, other = data(shot=3).dataset("train"), data(shot=3, seed=1).dataset("train")
    assert [s.image for s in train.samples] == [s.image for s in again.samples]
    assert [s.image for s in train.samples] != [s.image for s in other.samples]


def test_a_detector_without_good_images_is_refused(data):
    with pytest.raises(UserError, match=r"data\.shot=0"):
        data(shot=0)


def test_thresholds_come_from_good_images_and_travel_with_the_checkpoint(data, tmp_path):
    module = data()
    method, trainer = fitted(module, tmp_path, threshold={"alpha": 0.2})
    table = method.calibrations.table
    assert set(table) == {"wood", "board"}
    held = [e for e in module.dataset("val") if e.product == "wood"]
    assert table["wood"].count == len(held)
    scores = sorted(
        float(method.finish_map(method.raw_map(e.query_image[0], Fitted("wood"))[0], (48, 48), None)[1])
        for e in held
    )
    rank = min(len(scores), -(-(len(scores) + 1) * 8 // 10))  # ceil((n + 1)(1 - 0.2))
    assert table["wood"].image == pytest.approx(scores[rank - 1], rel=1e-6)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    other = MeanImage(evaluate={"side": SIDE})
    other.load_state_dict(state)
    image = module.dataset("test")[0].query_image[0]
    other.seen = method.seen
    a, b = (m.detect(image, Fitted("wood"), "wood") for m in (method, other))
    assert torch.equal(a.mask, b.mask)
    assert (a.decision, a.scale) == (b.decision, b.scale)


def test_a_defect_cannot_move_a_threshold(data, tmp_path):
    module = data()
    before = fitted(module, tmp_path)[0].calibrations.table
    index = module.index
    spoiled = [replace(s, split="val") if s.label > 0 and k % 2 else s for k, s in enumerate(index.samples)]
    leaky = data()
    leaky._index = index.with_samples(spoiled)
    assert any(s.split == "val" and s.label > 0 for s in leaky.index.samples)
    after = fitted(leaky, tmp_path)[0].calibrations.table
    assert {k: (c.image, c.pixel) for k, c in before.items()} == {
        k: (c.image, c.pixel) for k, c in after.items()
    }
    defect = next(e for e in module.dataset("test") if int(e.query_label[0]) == 1)
    with pytest.raises(UserError, match="not a good image"):
        MeanImage(evaluate={"side": SIDE}).validation_step([defect], 0)


def test_an_image_does_not_answer_for_itself(data, tmp_path):
    module = data(shot=4)
    method, _ = fitted(module, tmp_path)
    episode = module.dataset("val")[0]
    owner = owner_of(episode.paths[0])
    alone, with_itself = (
        method.raw_map(episode.query_image[0], Fitted(episode.product, o))[0].mean() for o in (owner, None)
    )
    assert alone > with_itself


def test_too_few_good_images_for_the_rate_are_told(data, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        method, _ = fitted(data(shot=4), tmp_path, threshold={"alpha": 0.01})
    assert "board, wood: 4 good images cannot promise a false-alarm rate of 0.01, only 0.2" in caplog.text
    assert caplog.text.count("cannot promise") == 1
    assert "Give 99 good images" in caplog.text
    assert method.calibrations.table["wood"].alpha == pytest.approx(1 / 5)


@pytest.mark.parametrize("view", [{"stride": None}, {"stride": 20}, {"stride": 32, "zoom": 64}])
@pytest.mark.parametrize("size", [(48, 48), (30, 100), (7, 5)])
@pytest.mark.parametrize("resolution", ["original", "model"])
def test_answers_have_the_size_of_the_image(view, size, resolution):
    method = MeanImage(evaluate={"side": SIDE, **view}, maps={"resolution": resolution})
    method.seen = {"x": {1: torch.zeros(3, SIDE, SIDE)}}
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    answer = method.detect(image, Fitted("x"))
    assert answer.prob.shape == (1, *size)
    assert answer.mask is None, "no threshold was set"
    assert answer.score.shape == (1,)


def test_tiles_of_a_pixelwise_map_give_the_whole_map():
    method = MeanImage(evaluate={"side": SIDE, "stride": 20, "weight": "hann"})
    method.seen = {"x": {1: torch.zeros(3, SIDE, SIDE)}}
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    expected = image.float().mean(0) / 255
    assert torch.allclose(method.detect(image, Fitted("x")).prob[0], expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["off", "on", "auto"])
def test_the_promised_rate_holds_with_and_without_standardised_pixels(norm):
    """Seeded simulation: statistics that had seen the maps they judged gave 0.2 instead of 0.05."""
    random = torch.Generator().manual_seed(0)
    method = MeanImage(maps={"pixel_norm": norm, "score": "max"})
    ramp, alarms = torch.linspace(0, 3, 32), []
    for _ in range(40):
        maps = ramp + smooth(torch.randn(20 + 25, 32, 32, generator=random), 1.5)
        good = [Observed("x", one, (32, 32), k) for k, one in enumerate(maps[:20])]
        calibrations = Calibrations()
        calibrations.fit(good, Rules(alpha=0.05), norm, method.finish_map)
        found = calibrations.about("x")
        assert (found.norm is not None) == (norm != "off")
        alarms += [float(method.finish_map(one, (32, 32), found)[1]) > found.image for one in maps[20:]]
    assert 0.02 < sum(alarms) / len(alarms) < 0.085


def test_a_product_that_was_not_learned_is_named():
    with pytest.raises(UserError, match="'screw'"):
        choose("screw", {"wood": 1, "board": 2})
    assert choose("screw", {"wood": 1}) == "wood"


def test_few_shots_are_drawn_from_all_good_training_images(data):
    index = data().index
    known, held = good(index, 100, 0)
    assert known == held
    assert good(index, None, 0, hold_out=False) == (known, known)
    assert len(known) == sum(s.label == 0 and s.split in ("train", "val") for s in index.samples)


def test_the_support_of_an_episode_names_its_product(data):
    episode = data().dataset("test")[0]
    assert episode.support.product == episode.product
    assert MeanImage().adapt(episode.support) == Fitted(episode.product)
    assert isinstance(episode.support, Support)


def test_a_marked_region_grows_down_to_a_share_of_the_threshold(data, tmp_path):
    method, _ = fitted(data(), tmp_path, threshold={"pixel": "quantile", "p": 0.9})
    images = [e.query_image[0] for e in data().dataset("test")]
    before = [method.detect(x, Fitted("wood"), "wood") for x in images]
    method.cleaning = replace(method.cleaning, low=0.5)
    after = [method.detect(x, Fitted("wood"), "wood") for x in images]
    assert all(bool((a.mask >= b.mask).all()) for a, b in zip(after, before, strict=True))
    assert sum(int(a.mask.sum()) for a in after) > sum(int(b.mask.sum()) for b in before)
    assert all(a.mask.any() == b.mask.any() for a, b in zip(after, before, strict=True)), "nothing new begins"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": {"p": 95}}, r"method\.threshold\.p=95"),
        ({"threshold": {"image": "max", "alpha": 0}}, r"method\.threshold\.alpha=0"),
        ({"threshold": {"image": "max", "pixel": "pixel_fpr", "alpha": 2}}, r"method\.threshold\.alpha=2"),
        ({"threshold": {"pixel": "legacy_area", "area": 0}}, r"method\.threshold\.area=0"),
        ({"threshold": {"factor": -1}}, r"method\.threshold\.factor=-1"),
        ({"evaluate": {"stride": 0}}, r"method\.evaluate\.stride=0"),
        ({"evaluate": {"side": 32, "stride": 33}}, r"method\.evaluate\.stride=33 leaves gaps"),
        ({"evaluate": {"tiles_per_batch": 0}}, r"method\.evaluate\.tiles_per_batch=0"),
        ({"maps": {"score": "top1percent"}}, "no image score 'top1percent'"),
        ({"maps": {"smooth": -1.0}}, r"method\.maps\.smooth=-1"),
        ({"loss_weights": {"l1": 2.0}}, r"method\.loss_weights: MeanImage has no losses"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_learned(options, told):
    with pytest.raises(UserError, match=told):
        MeanImage(**options)


def test_what_several_processes_have_seen_comes_together(monkeypatch):
    def gathered(parts, mine):
        parts[:] = [mine, ["theirs"]]

    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    assert of_all_processes(["mine"]) == ["mine", "theirs"]


def test_a_share_of_the_threshold_is_a_share():
    with pytest.raises(UserError, match=r"clean\.low=1\.5"):
        MeanImage(clean={"low": 1.5})
