import random

import pytest
import torch
from safetensors.torch import save_file

from fewspect.data import features, sampling
from fewspect.data.feature_episodes import FeatureEpisodes, make_task
from fewspect.data.features import FeatureSet
from fewspect.data.module import DataModule
from fewspect.errors import UserError

CLASSES = ("hole", "scratch", "stain")
PUBLISHED = {
    5: "21043 23401 21340 02341 34021",
    6: "42105 23504 23145 02354 35402",
}
"""First five places of the shuffled list, seeds 0 to 4 (specification 1.4)."""


def made(number=9, views=2, tokens=3, width=8, classes=CLASSES, **fields):
    random = torch.Generator().manual_seed(number)
    feature = torch.randn(number, views, tokens, width, generator=random).half()
    return FeatureSet(feature, torch.arange(number) % len(classes), classes, **fields)


def test_a_file_brings_back_what_was_written(tmp_path):
    ids = tuple(f"a/{i}" for i in range(9))
    before = made(ids=ids, groups=("g",) * 9, product="bolt", config={"backbone": "x", "sizes": [1, 2]})
    features.write(tmp_path / "a.safetensors", before)
    after = features.read(tmp_path / "a.safetensors")
    assert torch.equal(after.feature, before.feature)
    assert torch.equal(after.label, before.label)
    same = ("classes", "ids", "groups", "paths", "product", "config")
    assert [getattr(after, k) for k in same] == [getattr(before, k) for k in same]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_tokens_are_chosen_or_joined():
    store = made()
    assert torch.equal(store.token("class"), store.feature[:, :, 0])
    assert store.token("both").shape == (9, 2, 16)
    assert store.token("all").shape == (9, 2, 24)
    assert torch.allclose(store.token("patches").float(), store.feature[:, :, 1:].float().mean(2), atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 8), (9, 2, 8), (9, 2, 1, 8)])
def test_files_with_fewer_axes_are_read(tmp_path, shape):
    tensors = {"features": torch.randn(shape), "labels": torch.arange(9) % 3}
    save_file(tensors, tmp_path / "a.safetensors", {"classes": '["hole", "scratch", "stain"]'})
    views = 1 if len(shape) == 2 else 2
    assert features.read(tmp_path / "a.safetensors").feature.shape == (9, views, 1, 8)


def broken(path, what):
    tensors = {"features": torch.randn(4, 2, 1, 8), "labels": torch.tensor([0, 1, 2, 0])}
    header = {"classes": '["hole", "scratch", "stain"]'}
    if what == "label":
        tensors["labels"][0] = 3
    elif what == "nan":
        tensors["features"][1, 0, 0, 0] = float("nan")
    elif what == "count":
        tensors["labels"] = tensors["labels"][:3]
    elif what == "names":
        tensors = {"other": tensors["features"]}
    elif what == "header":
        header = {"classes": "[hole"}
    elif what == "classes":
        header = {}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, header)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:100])
    if what == "text":
        path.write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("label", "labels from 0 to 3 for 3 classes"),
        ("nan", "not finite"),
        ("count", "4 features, 3 labels"),
        ("names", "holds other"),
        ("header", "is not JSON"),
        ("classes", "0 classes"),
        ("cut", "not a readable safetensors file"),
        ("text", "not a readable safetensors file"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, what, told):
    broken(tmp_path / "bad.safetensors", what)
    with pytest.raises(UserError, match=told) as caught:
        features.read(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        {
            "features": torch.ones(4, 27, 3, 8).half(),
            "labels": torch.tensor([0, 1, 0, 1]),
            "classes": ["a", "b"],
        },
        [{"feat": torch.ones(27, 3, 8), "label": name} for name in "abab"],
        [(torch.ones(27, 3, 8), k) for k in (0, 1, 0, 1)],
    ],
)
def test_caches_saved_by_torch_are_read_safely(tmp_path, content):
    torch.save(content, tmp_path / "support.pt")
    store = features.read(tmp_path / "support.pt")
    assert store.feature.shape == (4, 27, 3, 8)
    assert store.label.tolist() == [0, 1, 0, 1]
    assert len(store.classes) == 2


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("content", [Evil(), {"a": 1}, [], [torch.ones(3)]])
def test_other_files_of_torch_are_refused(tmp_path, content, capsys):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt"):
        features.read(tmp_path / "x.pt")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_the_published_samplings(size):
    for seed, places in enumerate(PUBLISHED[size].split()):
        assert sampling.published([0] * size, 5, seed) == [int(c) for c in places]


def test_published_samplings_leave_the_global_generator_alone():
    state = random.getstate()
    sampling.published([0, 1] * 4, 2, 3)
    assert random.getstate() == state


@pytest.mark.parametrize("rule", [sampling.published, sampling.drawn])
def test_supports_are_nested_and_balanced(rule):
    labels = [0, 1, 2] * 7
    chosen = [set(rule(labels, shot, 4)) for shot in (1, 3, 5)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert [len(c) for c in chosen] == [3, 9, 15]


def test_groups_are_drawn_apart():
    groups = ["a", "a", "a", "b", "", ""]
    for number in range(20):
        chosen = sampling.drawn([0] * 6, 4, number, groups=groups)
        assert len({groups[i] for i in chosen if groups[i]}) == 2
        assert {4, 5} <= set(chosen)


def episodes(support=None, query=None, unknown=(), **options):
    task = make_task(support or made(), query or made(6), unknown=unknown)
    return FeatureEpisodes([task], **{"shot": 2, "samplings": 4, **options})


def test_an_episode_is_one_sampling_asked_about_every_query():
    found = episodes()
    assert len(found) == 4
    episode = found[1]
    assert episode.support_feature.shape == (6, 2, 8)
    assert episode.query_feature.shape == (6, 2, 8)
    assert sorted(episode.support_label.tolist()) == [1, 1, 2, 2, 3, 3]
    assert episode.query_label.tolist() == [1, 2, 3, 1, 2, 3]
    assert torch.equal(episode.support_feature, found[1].support_feature)
    assert not torch.equal(episode.support_feature, found[2].support_feature)
    other = episodes(seed=1)[1]
    assert not torch.equal(episode.support_feature, other.support_feature)
    with pytest.raises(IndexError):
        found[4]


def test_classes_are_matched_by_name():
    query = made(6, classes=("stain", "hole"))
    assert episodes(query=query)[0].query_label.tolist() == [3, 1, 3, 1, 3, 1]


def test_unknown_classes_leave_the_support():
    episode = episodes(made(text=torch.eye(3)), unknown=["scratch"])[0]
    assert torch.equal(episode.support.text, torch.eye(3)[[0, 2]])
    assert episode.classes == ("hole", "stain")
    assert episode.query_label.tolist() == [1, 0, 2, 1, 0, 2]
    assert sorted(episode.support_label.tolist()) == [1, 1, 2, 2]


def test_misfits_are_told():
    with pytest.raises(UserError, match=r"hole has 3, .*scratch has 3, .*stain has 3"):
        episodes(shot=5)
    with pytest.raises(UserError, match=r"2 views x 3 tokens x width 8 and .* width 16"):
        make_task(made(), made(width=16))
    with pytest.raises(UserError, match="classes that the support lacks: crack"):
        make_task(made(), made(classes=("hole", "crack", "stain")))
    with pytest.raises(UserError, match="two backbones"):
        make_task(made(config={"backbone": "a"}), made(config={"backbone": "b"}))
    with pytest.raises(UserError, match="no class dent"):
        make_task(made(), made(), unknown=["dent"])


def test_the_data_module_reads_feature_files(tmp_path):
    for name, number in (("a", 9), ("b", 6)):
        features.write(tmp_path / f"{name}.safetensors", made(number, product="bolt"))
    files = {"support": str(tmp_path / "a.safetensors"), "query": str(tmp_path / "b.safetensors")}
    data = DataModule(protocol="features", shot=1, batch_size=3, features={"samplings": 7}, **files)
    data.setup()
    assert data.info.classes == CLASSES
    assert data.info.tasks == {"classify"}
    assert [len(batch) for batch in data.test_dataloader()] == [3, 3, 1]
    assert data.dataset("train")[0].support_feature.shape == (9, 2, 8)
    with pytest.raises(UserError, match="no images"):
        DataModule(**files).setup()
    with pytest.raises(UserError, match="no such feature file"):
        DataModule(protocol="features", **files | {"query": "nowhere.safetensors"}).setup()
