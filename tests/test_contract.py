"""What every method of ``conf/method`` promises, and how the base drives methods without gradients."""

import functools
from collections.abc import Mapping
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from cli import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from fewspect.engine import build, folders
from fewspect.errors import UserError
from fewspect.methods.base import Method
from fewspect.methods.detector import Detector
from fewspect.methods.segmenter import Segmenter
from fewspect.nn.loading import digest
from fewspect.types import DataInfo, Episode, Prediction, Support

CONF = ROOT / "conf"
SIDE = 64
PRODUCTS, DEFECTS = ("board", "wood"), ("blob", "burn", "dent", "hole", "scratch")
SIZES = [(64, 64), (96, 80), (40, 100), (30, 20), (1, 7)]


def class_of(path):
    """The class that a file of ``conf/method`` names, in its own package or in the global one."""
    node = OmegaConf.load(path)
    return get_class((node if "_target_" in node else node["method"])["_target_"])


CLASSES = {p.stem: class_of(p) for p in sorted((CONF / "method").glob("*.yaml"))}
SEGMENTERS = [name for name, kind in CLASSES.items() if issubclass(kind, Segmenter)]
DETECTORS = [name for name, kind in CLASSES.items() if issubclass(kind, Detector)]
GRADIENT = [name for name, kind in CLASSES.items() if kind.fit_kind == "gradient"]
FITTED = [name for name, kind in CLASSES.items() if kind.fit_kind != "none"]
EVERY = pytest.mark.parametrize("name", SEGMENTERS)
TRAINED = pytest.mark.parametrize("name", [n for n in SEGMENTERS if CLASSES[n].fit_kind == "gradient"])
GOOD_ALONE = pytest.mark.parametrize("name", [n for n in SEGMENTERS if not CLASSES[n].needs_defect])
DEFECT_NEEDED = pytest.mark.parametrize("name", [n for n in SEGMENTERS if CLASSES[n].needs_defect])
LEARNING = pytest.mark.parametrize("name", GRADIENT)
SAVED = pytest.mark.parametrize("name", FITTED)
SPECIAL = {name: ("data.side=128",) for name in ("bergmann_ae", "red_net", "ssim_ae_lite")} | {
    "gccs": ("data.ways.way=2", "data.ways.query=1", "data.ways.runs=16", "data.ways.cache=null"),
    "defect_gen": ("method.steps=4",),
}
"""Overrides of methods whose code would have no cell at ``SIDE`` pixels, or too few pictures per class."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("factory")


@pytest.fixture(scope="module")
def tree(root):
    def made(name, *overrides):
        OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
        small = (
            f"method={name}",
            "backbone.weights=none",
            f"data.root={root}",
            f"data.side={SIDE}",
            "data.workers=0",
            "data.batch_size=2",
            "data.test_episodes=16",
            f"data.reader.side={SIDE}",
            "data.reader.images_per_class=3",
            "data.reader.val_per_class=1",
            "data.reader.test_per_class=2",
            "data.reader.good=6",
            f"+data.reader.products=[{','.join(PRODUCTS)}]",
            f"+data.reader.defects=[{','.join(DEFECTS)}]",
        )
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return build.resolve(compose("config", [*small, *SPECIAL.get(name, ()), *overrides]))

    return made


@pytest.fixture(scope="module")
def parts(tree):
    def made(name, *overrides):
        data, method = build.parts(tree(name, *overrides))
        return data, method.eval()

    return made


@pytest.fixture(scope="module")
def ready(parts):
    """One (data, method) per method; tests that change the method build their own."""
    return functools.cache(parts)


def photo(height, width, seed=0):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def normal(support):
    return replace(support, mask=torch.zeros_like(support.mask), label=torch.zeros_like(support.label))


def contents(method):
    """Everything that a method holds besides Lightning's own bookkeeping."""
    tensors = dict(method.state_dict(keep_vars=True)) | dict(method.named_buffers())
    attributes = {k: set(vars(m)) for k, m in method.named_modules()}
    return attributes, {k: (v.data_ptr(), v.detach().clone()) for k, v in tensors.items()}


def same(one, two):
    pairs = [(getattr(one, k), getattr(two, k)) for k in ("prob", "mask", "score", "decision", "image")]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def answer(method, episode):
    return method.answers([episode])[0]


def awake(method):
    """Layers that begin at zero let nothing through: give them values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in method.parameters():
            if p.requires_grad and not p.any():
                torch.nn.init.normal_(p, std=0.1)


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **quiet,
        **options,
    )


def test_there_is_something_to_test():
    assert SEGMENTERS
    assert DETECTORS
    assert {"gradient", "single_pass"} <= {CLASSES[name].fit_kind for name in FITTED}


# -- answers -------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_answers_have_the_size_of_the_image(ready, name, size, whole):
    data, method = ready(name)
    with torch.inference_mode():
        state = method.adapt(data.dataset("test")[0].support)
        found = method.segment(photo(*size), state, whole=whole)
    assert found.prob.shape == found.mask.shape == (1, *size)
    assert found.prob.dtype == torch.float32
    assert found.mask.dtype == torch.uint8
    assert found.prob.min() >= 0
    assert found.prob.max() <= 1
    assert set(found.mask.unique().tolist()) <= {0, 1}
    assert torch.equal(found.score, found.prob.amax((1, 2)))
    assert torch.equal(found.mask == 1, found.prob > method.sliding.threshold)


@EVERY
def test_queries_are_answered_one_by_one_or_together(ready, name):
    data, method = ready(name)
    queries = torch.rand(3, 3, SIDE, SIDE, generator=torch.manual_seed(1))
    with torch.inference_mode():
        state = method.adapt(data.dataset("test")[0].support)
        together = method.predict(queries, state).prob
        alone = torch.cat([method.predict(q[None], state).prob for q in queries])
    assert together.shape == (3, SIDE, SIDE)
    assert torch.allclose(together, alone, atol=1e-5)


@LEARNING
def test_two_calls_and_two_builds_are_bit_equal(parts, name):
    (data, one), (_, two) = parts(name), parts(name)
    episode = data.dataset("test")[1]
    first = answer(one, episode)
    assert same(first, answer(one, episode))
    assert same(first, answer(two, episode))
    assert digest(one) == digest(two)


@LEARNING
def test_the_seed_decides_the_initial_weights(parts, name):
    assert digest(parts(name)[1]) != digest(parts(name, "seed=1")[1])


@EVERY
def test_the_state_is_returned_and_not_kept(ready, name):
    data, method = ready(name)
    first, second = data.dataset("test")[0], data.dataset("test")[-1 + len(data.dataset("test"))]
    query = first.query_image[0]
    with torch.inference_mode():
        method.segment(query, method.adapt(first.support))  # lazy things, if any, have happened
        before = contents(method)
        state = method.adapt(first.support)
        expected = method.segment(query, state)
        other = method.segment(query, method.adapt(second.support))
        assert not torch.equal(other.prob, expected.prob), "the support does not matter"
        assert same(method.segment(query, state), expected)
    attributes, tensors = contents(method)
    assert attributes == before[0]
    assert tensors.keys() == before[1].keys()
    assert all(p == before[1][k][0] and torch.equal(v, before[1][k][1]) for k, (p, v) in tensors.items())


@DEFECT_NEEDED
def test_good_supports_alone_are_refused_before_anything_runs(parts, name):
    with pytest.raises(UserError, match="these supports show none"):
        parts(name, "data.shot=0", "data.normal_shot=2")


@GOOD_ALONE
def test_supports_without_defect_give_an_anomaly_map(parts, name):
    data, method = parts(name, "data.shot=0", "data.normal_shot=2")
    assert data.info.detect
    support = data.dataset("test")[0].support
    assert not support.mask.any()
    with torch.inference_mode():
        state = method.adapt(support)
        known = method.predict(support.image, state).prob
        strange = method.predict(torch.rand(2, 3, SIDE, SIDE, generator=torch.manual_seed(2)), state).prob
    assert known.max() < 1e-3, "the supports themselves are not abnormal"
    assert strange.mean() > 0.05


@GOOD_ALONE
def test_the_anomaly_map_ignores_labels_and_names(ready, name):
    data, method = ready(name)
    episode = data.dataset("test")[0]
    plain = normal(episode.support)
    named = replace(plain, label=plain.label + 1, classes=("other",))
    with torch.inference_mode():
        one, two = (method.segment(episode.query_image[0], method.adapt(s)) for s in (plain, named))
    assert same(one, two)


# -- learning ------------------------------------------------------------------------------------------------


@LEARNING
def test_gradients_reach_every_trainable_parameter(parts, name):
    data, method = parts(name)
    if not method.automatic_optimization:
        pytest.skip("its own tests step its optimisers")
    awake(method)
    losses = method.train().losses([data.dataset("train")[i] for i in range(2)])
    assert all(v.ndim == 0 and v.isfinite() for v in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    missing = [
        k for k, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not missing
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)


@LEARNING
def test_half_precision_stays_close(parts, name):
    data, method = parts(name)
    for part in method.modules():  # an untrained network says nothing with the statistics it starts from
        if isinstance(part, torch.nn.BatchNorm2d):
            part.train()
    if not method.automatic_optimization:
        pytest.skip("its own tests step its optimisers")
    if method.task == "generate":
        awake(method)
    batch = [data.dataset("train")[i] for i in range(2)]
    torch.manual_seed(0)  # the same noise for both
    exact = method.losses(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = method.losses(batch)
        method.eval()
        rough = answer(method, data.dataset("test")[0])
    assert {k: v.dtype for k, v in half.items()} == {k: v.dtype for k, v in exact.items()}
    assert all(abs(half[k] - exact[k]) < 0.05 * exact[k].abs() + 0.02 for k in exact)
    assert any(not torch.equal(half[k], exact[k]) for k in exact), "autocast did nothing"
    sharp = answer(method, data.dataset("test")[0])
    if method.task == "generate":
        assert (rough.image - sharp.image).abs().mean() < 0.05
    else:
        assert (rough.prob - sharp.prob).abs().mean() < 0.05


@TRAINED
def test_episodes_of_a_batch_do_not_mix(parts, name):
    """Different numbers of views are filled up with views of count 0, whatever those show."""
    data, method = parts(name, "data.crop_size=32")
    full = [e for e in data.dataset("train") if len(e.support_count) == 4][:3]
    short = [first_views(e, n) for e, n in zip(full, (1, 4, 2), strict=True)]
    by_hand = [filled(e, 4) for e in short]
    with torch.no_grad():
        ours, theirs = method.losses(short), method.losses(by_hand)
        alone = [method.losses([e]) for e in short]
        swapped = method.losses(short[::-1])
    for key, value in ours.items():
        assert torch.allclose(value, theirs[key], atol=1e-5)
        assert torch.allclose(value, torch.stack([a[key] for a in alone]).mean(), atol=1e-5)
        assert torch.allclose(value, swapped[key], atol=1e-5)


def first_views(episode, number):
    keys = ("support_image", "support_mask", "support_label", "support_count")
    return replace(episode, **{k: getattr(episode, k)[:number] for k in keys})


def filled(episode, number):
    """The same episode with noise that is marked as padding."""
    more = number - len(episode.support_count)
    noise = torch.rand(more, 3, SIDE, SIDE, generator=torch.manual_seed(more))
    marks = torch.ones(more, SIDE, SIDE, dtype=torch.uint8)
    return replace(
        episode,
        support_image=torch.cat([episode.support_image, noise]),
        support_mask=torch.cat([episode.support_mask, marks]),
        support_label=torch.cat([episode.support_label, torch.ones(more, dtype=torch.int64)]),
        support_count=torch.cat([episode.support_count, torch.zeros(more)]),
    )


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    """A method that has learnt for two steps, and its checkpoint."""
    known = {}

    def made(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            data, method = parts(name)
            start = digest(method)
            detects = name in DETECTORS  # their validation sets the thresholds
            limits = {"limit_train_batches": 2, "limit_val_batches": 3 if detects else 0}
            fit = trainer(folder, max_epochs=1, **limits)
            fit.fit(method, datamodule=data)
            fit.save_checkpoint(folder / "x.ckpt")
            assert digest(method) != start, "nothing was learnt"
            known[name] = (data, method.eval(), folder / "x.ckpt")
        return known[name]

    return made


@SAVED
def test_a_checkpoint_restores_the_answers(saved, parts, tmp_path, name):
    data, method, path = saved(name)
    _, other = parts(name, "seed=5")
    episode = data.dataset("test")[0]
    expected = answer(method, episode)
    if method.task == "generate":
        other.seed = method.seed  # a sample is a function of the seed, too
    if method.fit_kind == "gradient":
        assert not same(answer(other, episode), expected)
    test = trainer(tmp_path, limit_test_batches=1)
    test.test(other, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    assert same(answer(other.eval(), episode), expected)
    assert (expected.decision is not None) == (name in DETECTORS)


@SAVED
def test_a_checkpoint_holds_plain_values_and_nothing_frozen(saved, name):
    data, method, path = saved(name)
    content = torch.load(path, weights_only=True)
    frozen = {f"{part}.{k}" for part, module in method.frozen_parts() for k in module.state_dict()}
    assert content["state_dict"].keys() == method.state_dict().keys() - frozen
    kinds = {type(leaf) for leaf in leaves(content)}
    assert kinds <= {torch.Tensor, torch.nn.Parameter, int, float, str, bool, type(None)}, kinds
    info = content["fewspect"]["info"]
    assert DataInfo(**info | {"tasks": frozenset(info["tasks"])}) == data.info


def leaves(value):
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list | tuple | set):
        return [value]
    return [leaf for item in value for leaf in leaves(item)]


@SAVED
@pytest.mark.parametrize("change", ["values", "layers"])
def test_another_backbone_is_refused(saved, parts, tmp_path, name, change):
    data, trained, path = saved(name)
    if not [*trained.frozen_parts()]:
        pytest.skip("it has no backbone")
    _, other = parts(name, *(["backbone.layers=[4,5,6]"] if change == "layers" else []))
    if change == "values":
        _, backbone = next(other.frozen_parts())
        next(backbone.parameters()).data.view(-1)[0] += 1
    with pytest.raises(UserError, match=r"another (net\.)?backbone"):
        trainer(tmp_path).test(other, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)


# -- methods without gradients -------------------------------------------------------------------------------


class Mean(Method):
    """Remembers the mean of the good images: sees the training set, differentiates nothing."""

    task = "segment"
    fit_kind = "single_pass"

    def __init__(self):
        super().__init__()
        self.events = []
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("mean", torch.zeros(3))
        self.setup_data(DataInfo())

    def observe(self, batch):
        self.events.append([e.index for e in batch])
        self.total += sum(e.support_image.mean((0, 2, 3)) for e in batch)

    def finish(self):
        self.events.append("finish")
        self.mean = self.total / 8

    def validation_step(self, batch, batch_idx):
        self.events.append("validated")

    def adapt(self, support):
        return support

    def predict(self, images, state):
        return Prediction(prob=(images - self.mean[:, None, None]).abs().amax(1))


class Untrained(Mean):
    fit_kind = "none"


class Watch(Callback):
    """What a callback that saves at the end of an epoch would save."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(pl_module.mean.clone())


def loader(number):
    episodes = [
        Episode(
            support_image=torch.full((1, 3, 8, 8), float(i)),
            support_mask=torch.zeros(1, 8, 8, dtype=torch.uint8),
            support_label=torch.zeros(1, dtype=torch.int64),
            support_count=torch.ones(1),
            query_image=torch.zeros(1, 3, 8, 8),
            query_mask=torch.zeros(1, 8, 8, dtype=torch.uint8),
            query_label=torch.zeros(1, dtype=torch.int64),
            classes=("x",),
            index=i,
        )
        for i in range(number)
    ]
    return DataLoader(episodes, batch_size=2, collate_fn=list)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_single_pass_sees_every_batch_and_concludes_before_it_is_judged(tmp_path, limit):
    method, watch = Mean(), Watch()
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=limit, callbacks=[watch])
    fit.fit(method, loader(8), loader(2))
    batches = [[0, 1], [2, 3], [4, 5], [6, 7]][:limit]
    assert method.events == [*batches, "finish", "validated"] * 2
    assert fit.global_step == 0, "something was optimised"
    assert watch.seen[0].sum() > 0, "the state saved at the end of the epoch lacks what was concluded"


def test_a_method_without_training_has_nothing_to_optimise(tmp_path):
    method = Untrained()
    assert method.configure_optimizers() is None
    with pytest.raises(NotImplementedError, match="not trained by gradient"):
        method.training_step([], 0)
    trainer(tmp_path).validate(method, loader(4), verbose=False)
    assert method.events == ["validated", "validated"]


def test_a_task_that_the_data_do_not_allow_is_refused():
    method = Mean()
    with pytest.raises(UserError, match="this data set allows: classify, detect"):
        method.setup_data(DataInfo(tasks=frozenset({"classify", "detect"})))
    method.setup_data(DataInfo(tasks=frozenset({"segment"}), side=3))
    assert method.info.side == 3


def test_the_support_of_an_episode_is_its_first_half():
    episode = next(iter(loader(1)))[0]
    assert isinstance(episode.support, Support)
    assert episode.support.image is episode.support_image
