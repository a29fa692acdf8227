"""Episodes of N classes: who takes part, in which part of the data, and what cannot be drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewspect.backbones.text import Ngrams
from fewspect.data import features
from fewspect.data.features import FeatureSet
from fewspect.data.way_source import WaySource
from fewspect.data.ways import WayEpisodes, WayOptions, described, readable
from fewspect.errors import UserError
from fewspect.nn import sampler

CLASSES = tuple(f"class {c}" for c in "abcdefghij")
EACH = 20


def made(classes=CLASSES, each=EACH, seed=0, **options):
    g = torch.manual_seed(seed)
    label = torch.arange(len(classes)).repeat_interleave(each)
    feature = torch.randn(len(label), 1, 1, 6, generator=g) + label[:, None, None, None]
    text = torch.eye(len(classes)) if options.pop("with_text", True) else None
    return FeatureSet(feature, label, tuple(classes), text=text, **options)


def source(tmp_path, content=None, options=None, **more):
    path = tmp_path / "all.safetensors"
    features.write(path, content or made())
    return WaySource(lambda: None, (str(path), None), more.pop("text", None), options or WayOptions(), **more)


def test_parts_share_no_class(tmp_path):
    parts = source(tmp_path, options=WayOptions(val=0.3)).parts
    assert sorted((*parts.seen, *parts.val, *parts.test)) == sorted(CLASSES)
    assert len(parts.test) == 3
    assert len(parts.val) == 2


def test_validation_is_zero_shot(tmp_path):
    data = source(tmp_path, options=WayOptions(way=2, query=5, val=0.3))
    episode = data.dataset("val", 5)[0]
    assert len(episode.support_label) == 0
    assert set(episode.classes) <= set(data.parts.val)


def test_what_is_tested_was_not_trained_on(tmp_path):
    data = source(tmp_path, options=WayOptions(way=3, query=5, runs=20))
    seen = data.dataset("train", 1)[0]
    rows = {tuple(r) for r in seen.support_feature.flatten(1).tolist()}
    for episode in data.dataset("test", 1):
        assert not set(episode.classes) & set(seen.classes)
        asked = {tuple(r) for r in episode.query_feature.flatten(1).tolist()}
        assert not asked & rows
        assert not asked & {tuple(r) for r in episode.support_feature.flatten(1).tolist()}


def test_seen_images_that_are_tested_are_not_trained_on(tmp_path):
    """The original's seen accuracy is a training accuracy."""
    data = source(tmp_path, options=WayOptions(generalised=True))
    (episode,) = data.dataset("test", None)
    seen = data.dataset("train", 1)[0]
    trained = {tuple(r) for r in seen.support_feature.flatten(1).tolist()}
    supports = {tuple(r) for r in episode.support_feature.flatten(1).tolist()}
    asked = {tuple(r) for r in episode.query_feature.flatten(1).tolist()}
    assert supports == trained
    assert not asked & trained
    names = {episode.classes[k - 1] for k in episode.query_label.tolist()}
    assert names == set(episode.classes)
    assert {episode.classes[k - 1] for k in episode.support_label.tolist()} == set(seen.classes)


def test_texts_and_features_stay_with_their_class(tmp_path):
    data = source(tmp_path, options=WayOptions(way=3, query=4, runs=30))
    for episode in data.dataset("test", 2):
        for k, name in enumerate(episode.classes):
            place = CLASSES.index(name)
            assert episode.text[k, place] == 1
            mean = episode.query_feature[episode.query_label == k + 1].mean()
            assert float(mean) == pytest.approx(place, abs=1.5)


def test_an_episode_is_a_function_of_seed_and_index():
    short = sampler.indexed([30, 20, 25, 40], runs=10, ways=3, shot=1, query=15, seed=4)
    long = sampler.indexed([30, 20, 25, 40], runs=200, ways=3, shot=1, query=15, seed=4)
    assert (long.real[:10] == short.real).all()
    assert len(long.real) == 200
    other = sampler.indexed([30, 20, 25, 40], runs=10, ways=3, shot=1, query=15, seed=5)
    assert (other.real != short.real).any()


def test_more_shots_are_asked_about_the_same_queries():
    one, five = (sampler.indexed([30] * 6, runs=20, ways=5, shot=s, query=15) for s in (1, 5))
    assert (one.real[..., 1:] == five.real[..., 5:]).all()
    assert (one.real[..., 0] == five.real[..., 0]).all()


def test_classes_keep_all_their_samples():
    found = sampler.indexed([16, 400], runs=300, ways=2, shot=1, query=15)
    big = found.real[found.classes == 1]
    assert len(np.unique(big)) > 390


def test_groups_stay_on_one_side():
    groups = [np.repeat(np.arange(10), 4)] * 3
    found = sampler.indexed([40] * 3, runs=50, ways=3, shot=3, query=8, groups=groups)
    for run in found.real.reshape(-1, 11):
        assert not set(groups[0][run[:3]]) & set(groups[0][run[3:]])


def test_groups_that_leave_nothing_are_told():
    groups = [np.zeros(40, int)] * 3
    with pytest.raises(UserError, match="groups leave no 1 supports"):
        sampler.indexed([40] * 3, runs=1, ways=3, shot=1, query=8, groups=groups)


@pytest.mark.parametrize(
    ("options", "shot", "message"),
    [
        ({"way": 11}, 1, "there are 10"),
        ({"way": 5, "query": 20}, 1, "class a has 20"),
        ({"way": 1}, 1, "1 class cannot be told"),
        ({"way": 3, "query": 0}, 1, "data.ways.query=0"),
    ],
)
def test_what_cannot_be_drawn_is_told(options, shot, message):
    with pytest.raises(UserError, match=message):
        WayEpisodes(made(), "test", WayOptions(**options), shot=shot, runs=3)


def test_unequal_numbers_of_queries():
    episodes = WayEpisodes(made(each=60), "test", WayOptions(way=4, query=10, imbalance=2.0), shot=1, runs=50)
    counts = torch.stack([torch.bincount(e.query_label, minlength=5)[1:] for e in episodes])
    assert counts.float().std() > 3
    assert counts.sum(1).float().mean() == pytest.approx(40, abs=4)


def test_queries_of_unknown_classes():
    episodes = WayEpisodes(made(), "test", WayOptions(way=3, unknown=2, query=5), shot=1, runs=5)
    for episode in episodes:
        assert torch.bincount(episode.query_label).tolist() == [10, 5, 5, 5]
        assert len(episode.classes) == 3


# -- texts ---------------------------------------------------------------------------------------------------


def test_descriptions_by_data_set_and_class(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"_note": "x", "neu": {"scratches": ["bright lines"]}, "hole": "a dark hole"}))
    found = described(["neu/scratches", "scratches", "hole", "MT_Break"], str(path))
    assert found == [["bright lines"], ["bright lines"], ["a dark hole"], ["Break"]]
    assert readable("x_sdd/rolled-in_scale") == "rolled in scale"


@pytest.mark.parametrize("content", ["[1]", "{", '{"other": ["x"]}'])
def test_a_file_that_describes_nothing_is_told(tmp_path, content):
    path = tmp_path / "texts.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"texts\.json"):
        described(["hole"], str(path))


def test_text_features_from_a_file(tmp_path):
    path = tmp_path / "text.safetensors"
    save_file({"text": torch.arange(20.0).view(10, 2)}, path, {"classes": json.dumps(CLASSES[::-1])})
    data = source(tmp_path, replace(made(), text=None), text=str(path))
    assert data.pool.text[0].tolist() == [18, 19]
    save_file({"text": torch.zeros(1, 2)}, path, {"classes": json.dumps(CLASSES[:1])})
    with pytest.raises(UserError, match="no text feature of class b"):
        _ = source(tmp_path, replace(made(), text=None), text=str(path)).pool


def test_duplicate_texts_are_told(tmp_path, caplog):
    content = replace(made(with_text=False))
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({c: ["the same"] for c in CLASSES[:2]}))
    pool = source(tmp_path, content, text=str(path), encoder=Ngrams(32)).pool
    assert torch.equal(pool.text[0], pool.text[1])
    assert "cannot be told apart" in caplog.text


def test_ngrams_know_words_and_stems_only():
    one, stem, other = Ngrams(512)(
        [["dark spots on steel"], ["a dark spotted steel"], ["bright long scratch"]]
    )
    assert one @ stem > 0.5
    assert one @ other < 0.2
    assert torch.equal(Ngrams(512)([["dark spots on steel"]])[0], one)
    with pytest.raises(UserError, match="no text"):
        Ngrams()([[" "]])
