"""The data module: the same episodes for any workers and ranks; resuming is exact; samplers do not pad."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewspect.data.index import Index
from fewspect.data.module import DataModule, with_val
from fewspect.data.readers import folder, mvtec
from fewspect.data.readers.toy import read
from fewspect.data.sharding import ResumableSampler, ShardSampler
from fewspect.data.toy import write
from fewspect.errors import UserError
from fewspect.types import Episode, Sample

SIDE = 32
CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return partial(
        read, str(tmp_path_factory.mktemp("toy")), side=SIDE, products=("wood",),
        defects=("hole", "stain", "thread", "blob"), images_per_class=6, test_per_class=3, good=6,
    )  # fmt: skip


def make(reader, **options):
    return DataModule(reader, **{"side": SIDE, "crops_per_support": 2} | options)


def equal(one: Episode, two: Episode) -> bool:
    pairs = [(getattr(one, n), getattr(two, n)) for n in Episode.__dataclass_fields__]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def epochs(module, number=2):
    loader = module.train_dataloader()
    out = []
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)
        out += [e for batch in loader for e in batch]
    return out


def test_workers_change_nothing(reader):
    expected = epochs(make(reader, batch_size=3))
    assert len(expected) == 2 * 12
    for workers in (1, 2):
        found = epochs(make(reader, batch_size=3, workers=workers))
        assert all(equal(a, b) for a, b in zip(expected, found, strict=True))


def test_evaluation_is_the_same_every_time(reader):
    module = make(reader, workers=1)
    loader = module.test_dataloader()
    one, two = ([b[0] for b in loader] for _ in range(2))
    assert len(one) == 3 and all(equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(equal(a, b) for a, b in zip(one, [b[0] for b in make(reader).test_dataloader()], strict=True))


def test_resume_in_the_middle_of_an_epoch(reader):
    whole = epochs(make(reader, batch_size=2), 3)
    module = make(reader, batch_size=2)
    module.resume(1, 4)
    loader = module.train_dataloader()
    assert len(loader) == 6
    rest = []
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        rest += [e for batch in loader for e in batch]
    assert all(equal(a, b) for a, b in zip(whole[12 + 8 :], rest, strict=True))


@given(st.integers(0, 40), st.integers(1, 5))
def test_shards_cover_everything_once(length, world):
    shards = [list(ShardSampler(length, r, world)) for r in range(world)]
    assert sorted(i for s in shards for i in s) == list(range(length))
    assert [len(ShardSampler(length, r, world)) for r in range(world)] == [len(s) for s in shards]


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.data())
def test_training_ranks_agree_with_one_process(length, world, batch, epoch, data):
    if length < world * batch:
        with pytest.raises(UserError, match="one step needs"):
            ResumableSampler(length, 0, world, batch)
        return
    samplers = [ResumableSampler(length, r, world, batch) for r in range(world)]
    for s in samplers:
        s.set_epoch(epoch)
    lists = [list(s) for s in samplers]
    assert len({len(x) for x in lists}) == 1 and len(lists[0]) == len(samplers[0])
    single = ResumableSampler(length, 0, 1, world * batch)
    single.set_epoch(epoch)
    for step in range(len(lists[0]) // batch):
        parts = {i for x in lists for i in x[step * batch : (step + 1) * batch]}
        assert parts == set(list(single)[step * world * batch : (step + 1) * world * batch])
    start = data.draw(st.integers(0, len(lists[0])))
    samplers[0].resume(epoch, start)
    assert list(samplers[0]) == lists[0][start:] and len(samplers[0]) == len(lists[0])


def test_info_and_options(reader):
    module = make(reader, fold=1, val_episodes=2, test_episodes=2)
    module.setup("fit")
    assert module.info.products == ("wood",) and not module.info.detect and module.info.side == SIDE
    assert len(module.val_dataloader()) == len(module.test_dataloader()) == 2
    assert {e.entries[0].name for e in [module.dataset("test")]} != {
        e.entries[0].name for e in [make(reader).dataset("test")]
    }
    assert make(reader, shot=0, normal_shot=2).info.detect


def test_no_supports_is_refused(reader):
    with pytest.raises(UserError, match="without supports"):
        make(reader, shot=0)


def test_workers_are_capped(reader, caplog):
    assert make(reader, workers=4000).workers < 4000
    assert "lowered" in caplog.text


def test_shortage_is_said(reader, caplog):
    make(reader, shot=9).dataset("test")
    assert "fewer than shot=9" in caplog.text


def test_support_and_query_folders_serve_test_and_predict(tmp_path):
    write(tmp_path / "d", "support_query", side=SIDE, products=("wood",), defects=("hole",), images=6)
    module = make(partial(folder.read, layout="support"), root=str(tmp_path / "d"))
    for loader in (module.test_dataloader(), module.predict_dataloader()):
        assert [Path(b[0].paths[0]).parts[-3] for b in loader] == ["query"] * 4


def test_validation_split_by_group(reader):
    index = reader()
    merged = index.with_samples(s for s in index.samples if s.split != "val")
    split = with_val(merged)
    assert 0 < split.splits["val"] < split.splits["train"]
    assert split.samples == with_val(merged).samples


def test_validation_leaves_something_of_everything_to_learn_from():
    few = [Sample(Path(f"{p}{c}.png"), label=c, product=p, split="train") for p in "abcdefgh" for c in (0, 1)]
    many = [Sample(Path(f"{i}.png"), label=0, product="z", split="train") for i in range(50)]
    for seed in range(20):
        split = with_val(Index((*few, *many)), seed)
        left = {(s.product, s.label) for s in split.samples if s.split == "train"}
        assert left == {(s.product, s.label) for s in (*few, *many)}
        held = {s.image for s in split.samples if s.split == "val"}  # what was never short is as it was
        alone = with_val(Index(tuple(many)), seed)
        assert held == {s.image for s in alone.samples if s.split == "val"} and held


def test_what_is_wrong_with_the_data_is_said_once(reader, tmp_path, caplog):
    caplog.set_level("INFO")
    assert not make(reader).index.problems and not caplog.messages
    for name in ("good/0", "bad/0", "bad/1", "bad/2"):
        (tmp_path / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(caplog.messages)).integers(0, 255, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "test" / f"{name}.png")
    (tmp_path / "ground_truth").mkdir()
    for _ in range(2):
        assert len(make(mvtec.read, root=str(tmp_path)).index) == 4
    said = [m for m in caplog.messages if "missing-mask" in m]
    assert len(said) == 1 and "0.png" in said[0] and "and 2 more" in said[0]


@pytest.mark.parametrize("option", ["fold", "category"])
def test_options_that_a_data_set_does_not_have_are_refused(option):
    with pytest.raises(UserError, match=f"{option}=2: this data set"):
        make(lambda root: Index(()), root="x", **{option: 2})


def test_validation_falls_back_to_training(reader, caplog):
    module = make(reader)
    index = module.index
    module._index = index.with_samples(s for s in index.samples if s.split != "val" or s.label == 0)
    assert len(module.val_dataloader()) == 12
    assert "training images validate" in caplog.text


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_fit_the_signatures(path):
    import inspect
    from importlib import import_module

    conf = yaml.safe_load(path.read_text())
    inner = conf["reader"]
    assert len(path.read_text().splitlines()) <= 60
    assert set(conf) - {"_target_"} <= set(inspect.signature(DataModule).parameters)
    if inner is None:  # cached features instead of images
        return
    module, name = inner["_target_"].rsplit(".", 1)
    parameters = set(inspect.signature(getattr(import_module(module), name)).parameters)
    assert set(inner) - {"_target_", "_partial_"} <= parameters
    assert {"root", *({"fold"} & set(conf))} <= parameters
