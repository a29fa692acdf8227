"""Episodes: pure functions of (seed, epoch, i); no query supports itself; nothing is dropped in silence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.data.crops import Cropper
from fewspect.data.entries import EntryTable, candidates, class_entries, normal_entries, pick
from fewspect.data.episodes import EpisodeDataset, Recipe
from fewspect.data.index import Index
from fewspect.data.readers import folder
from fewspect.data.readers.toy import read
from fewspect.data.toy import write
from fewspect.data.transforms import Augment
from fewspect.draws import rng
from fewspect.errors import UserError
from fewspect.types import IGNORE, Episode, Sample

SIDE = 32
ONE = Recipe()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    return read(
        str(root), side=SIDE, products=("wood", "metal"), defects=("hole", "stain", "thread", "blob"),
        images_per_class=6, test_per_class=4, good=6,
    )  # fmt: skip


def make(index, split="train", recipe=ONE, *, train=None, **options):
    train = split == "train" if train is None else train
    table = class_entries(index, split, split, recipe.shot, recipe.normal_shot, same_group=recipe.same_group)
    cropper = Cropper(SIDE, SIDE, 2)
    return EpisodeDataset(table, split, recipe, cropper, train=train, augment=Augment(), **options)


def equal(one: Episode, two: Episode) -> bool:
    names = Episode.__dataclass_fields__
    pairs = [(getattr(one, n), getattr(two, n)) for n in names]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_shapes_and_labels(index):
    recipe = Recipe(shot=2, normal_shot=1, query=3)
    e = make(index, recipe=recipe)[0]
    views = len(e.support_label)
    assert e.support_image.shape == (views, 3, SIDE, SIDE) and e.support_mask.shape == (views, SIDE, SIDE)
    assert float(e.support_count.sum()) == 2 * 3
    assert e.query_image.shape == (3, 3, SIDE, SIDE) and e.query_mask.shape == (3, SIDE, SIDE)
    assert (e.support_mask.flatten(1).any(1) == (e.support_label == 1)).all()
    assert (e.query_mask.flatten(1).any(1) == (e.query_label == 1)).all()
    assert 0 in e.support_label and len(e.paths) == 3 + 3


def test_evaluation_shows_original_pixels(index):
    e = make(index, "test")[0]
    assert e.query_image.dtype == torch.uint8 and e.query_image.shape == (1, 3, SIDE, SIDE)
    assert e.query_mask.shape == (1, SIDE, SIDE) and e.query_label.tolist() == [1]


def test_items_do_not_depend_on_the_order_they_are_asked_for(index):
    one, two = make(index), make(index)
    forward = [one[i] for i in range(6)]
    backward = [two[i] for i in reversed(range(6))][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not equal(one[0], make(index, seed=1)[0])


def test_an_epoch_is_a_pass_in_a_new_order(index):
    episodes = make(index)
    number = len(episodes)
    passes = [[episodes.roles(e * number + i).paths[0] for i in range(number)] for e in range(3)]
    assert number == len(set(passes[0])) == 2 * 3 * 4
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1] != passes[2]


def test_a_longer_epoch_repeats_passes(index):
    number = len(make(index))
    episodes = make(index, episodes=2 * number)
    queries = [episodes.roles(i).paths[0] for i in range(2 * number)]
    assert sorted(queries) == sorted(2 * queries[:number])


def test_evaluation_lists(index):
    number = len(make(index, "test"))
    assert number == 2 * 1 * 4
    repeated = make(index, "test", repeats=3)
    asked = [repeated.roles(i).paths[0] for i in range(len(repeated))]
    assert len(asked) == 3 * number and len(set(asked)) == number
    few = make(index, "test", episodes=4)
    assert [few.roles(i).paths[0] for i in range(len(few))] == asked[:number:2]
    with pytest.raises(IndexError):
        make(index, "test")[number]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_query_never_supports_itself(index, item, shot):
    roles = make(index, recipe=Recipe(shot=shot, query=2)).roles(item)
    assert roles.queries[0] not in roles.supports
    if shot <= 3:
        assert len(set(map(id, roles.supports))) == shot
    if shot < 3:
        assert roles.queries[1] not in [*roles.supports, roles.queries[0]]


@given(st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=8), st.integers(0, 7), st.booleans())
def test_candidates_keep_groups_apart(groups, at, same_group):
    samples = [Sample(Path(f"{i}.png"), group=g) for i, g in enumerate(groups)]
    query = samples[at % len(samples)]
    found = candidates(samples, query, same_group=same_group)
    assert query not in found
    for s in samples:
        blocked = s is query or (not same_group and s.group and s.group == query.group)
        assert (s in found) != bool(blocked)


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 99))
def test_pick_repeats_only_when_it_must(size, number, seed):
    samples = [Sample(Path(f"{i}.png")) for i in range(size)]
    chosen = pick(rng(seed, "pick"), samples, number)
    assert len(chosen) == number
    assert len(set(map(id, chosen))) == number or number > size


def test_small_classes_are_named(index):
    hole = [s for s in index.samples if "hole" in s.regions and s.product == "wood" and s.split == "train"]
    rest = [s for s in index.samples if s not in hole]
    lonely = index.with_samples([*rest, hole[0]])
    table = class_entries(lonely, "train", "train", 1, 0)
    assert ["wood/hole" in p.detail and "skipped" in p.detail for p in table.problems] == [True]
    assert all(e.name != "hole" or e.query.product != "wood" for e in table.entries)
    short = class_entries(index, "train", "train", 9, 0)
    assert len(short.problems) == 6 and "repeat" in short.problems[0].detail
    tied = index.with_samples([*rest, *(replace(s, group="one") for s in hole)])
    assert "4 of 4 images skipped" in class_entries(tied, "train", "train", 1, 0).problems[0].detail
    assert not class_entries(tied, "train", "train", 1, 0, same_group=True).problems


def test_no_episode_is_an_error(index):
    with pytest.raises(UserError, match="No x episode"):
        EpisodeDataset(EntryTable(), "x", Recipe(), Cropper(8, 8), train=True)


def test_anomaly_detection_asks_every_image(index):
    table = normal_entries(index, "test", 2)
    episodes = EpisodeDataset(table, "test", Recipe(0, 2), Cropper(SIDE, SIDE, 1), train=False)
    assert len(episodes) == len(index.filter(split="test"))
    labels = []
    for e in episodes:
        assert not e.support_mask.any() and e.support_label.tolist() == [0, 0] and e.whole
        assert e.classes == ("anomaly",) and bool(e.query_mask.any()) == bool(e.query_label)
        labels.append(int(e.query_label))
        assert all("train" in Path(p).parts for p in e.paths[1:])
    assert 0 in labels and 1 in labels


def test_normal_queries(index):
    recipe = Recipe(normal_shot=1, normal_query_prob=1.0)
    e = make(index, recipe=recipe)[0]
    assert "good" in e.paths[0] and e.query_label.tolist() == [0] and e.paths[0] not in e.paths[1:]
    one = make(index, recipe=Recipe(normal_query_prob=1.0))[0]
    assert "good" in one.paths[0] and 1 in one.support_label


def test_support_folder(tmp_path):
    write(tmp_path / "d", "support_query", side=SIDE, products=("wood",), defects=("hole",), images=6)
    index = folder.read(str(tmp_path / "d"), layout="support")
    table = class_entries(index, "query", "support", 1, 0)
    episodes = EpisodeDataset(table, "predict", Recipe(), Cropper(SIDE, SIDE, 1), train=False)
    assert len(episodes) == 4
    assert all("support" in Path(e.paths[1]).parts and e.query_label.tolist() == [1] for e in episodes)
    blind = index.with_samples(
        replace(s, regions={}, label=-1) if s.split == "query" else s for s in index.samples
    )
    table = class_entries(blind, "query", "support", 1, 0)
    for e in EpisodeDataset(table, "predict", Recipe(), Cropper(SIDE, SIDE, 1), train=False):
        assert (e.query_mask == IGNORE).all() and e.query_label.tolist() == [-1]


def test_index_is_not_needed_by_items(index):
    assert isinstance(index, Index)
    assert make(index, train=False)[0].query_image.dtype == torch.uint8
