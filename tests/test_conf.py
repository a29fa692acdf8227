"""Every choice composes and fits its constructors; nothing foreign is built."""

import itertools

import pytest
from cli import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fewspect.engine import allow, build, check, folders
from fewspect.errors import UserError

CONF = ROOT / "conf"


def names(group):
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def composed(*overrides):
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides))
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = "somewhere"
    return cfg


@pytest.mark.parametrize(("method", "data"), list(itertools.product(names("method"), names("data"))))
def test_every_method_fits_every_data_set(method, data):
    build.resolve(composed(f"method={method}", f"data={data}"))


def pairs():
    """Every method with one backbone that it does not start with, and every backbone with one method."""
    return [(m, "dinov2_vits14") for m in names("method")] + [("patch_nn", b) for b in names("backbone")]


@pytest.mark.parametrize(("method", "backbone"), pairs())
def test_methods_and_backbones_fit(method, backbone):
    tree = build.resolve(composed(f"method={method}", f"backbone={backbone}"))
    assert tree["method"].get("backbone", tree["backbone"]) == tree["backbone"]


@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_recipe_fits(experiment):
    build.resolve(composed(f"experiment={experiment}"))
    head = (CONF / "experiment" / f"{experiment}.yaml").read_text("utf-8")
    assert "Command:" in head
    assert "Expected:" in head
    assert "Hardware:" in head


@pytest.mark.parametrize("trainer", names("trainer"))
@pytest.mark.parametrize("logger", names("logger"))
def test_every_trainer_and_logger_fits(trainer, logger):
    build.resolve(composed(f"trainer={trainer}", f"logger={logger}"))


@pytest.mark.parametrize("search", names("search"))
def test_every_search_asks_for_options_that_exist(search):
    from hydra_plugins.search_sweeper import _parsed

    method = max((m for m in names("method") if search.startswith(m)), key=len)
    cfg = composed(f"search={search}", f"method={method}")
    assert cfg.search
    for key, text in cfg.search.items():
        assert OmegaConf.select(cfg, key, default="absent") != "absent", key
        assert _parsed(key, text).is_sweep_override()
    build.resolve(cfg)


def test_all_problems_at_once():
    with pytest.raises(UserError) as caught:
        build.resolve(
            composed(
                "data=folder",
                "data.shot=abc",
                "+data.shots=3",
                "seed=1.5",
                "data.on_bad_file=maybe",
                "+trainer.max_epoch=3",
            )
        )
    text = caught.value.message
    for part in (
        "data.shot='abc': expected a whole number",
        "data.shots: there is no such option. Did you mean shot?",
        "seed=1.5: expected a whole number",
        "one of strict, skip",
        "trainer.max_epoch: there is no such option. Did you mean max_epochs?",
    ):
        assert part in text


def test_missing_value_is_named():
    cfg = composed()
    cfg.data.root = "???"
    with pytest.raises(UserError, match=r"data\.root must be given"):
        build.resolve(cfg)


class Base:
    def __init__(self, *, seed: int = 0) -> None: ...


class Child(Base):
    def __init__(
        self, width: int, *, names: list[str] | None = None, pair: tuple[float, float] = (0, 1), **rest
    ) -> None: ...


def part(width: int = 1) -> None: ...


Child.schema = {"names": part}


def test_options_follow_to_the_base_constructor():
    assert list(check.parameters(Child)) == ["width", "names", "pair", "seed"]


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int | None, True),
        (None, int, False),
        ([1, 2], list[int], True),
        ([1, "a"], list[int], False),
        ([1.0, 2.0], tuple[float, float], True),
        ([1.0], tuple[float, float], False),
        ("a", list[str], False),
        ({"a": 1}, dict[str, int], True),
    ],
)
def test_simple_annotations(value, hint, fits):
    assert check.fits(value, hint) is fits


ATTACKS = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "torch.optim.swa_utils.torch.load",
    "torch.nn.modules.module.torch.hub.load",
    "fewspect.draws.torch.load",
    "fewspect.data.images.os.system",
    "fewspect.data.module.os.system",
    "fewspect.methods.base.torch.load",
    "fewspect.methods.sofs.method.SOFS.load_from_checkpoint",
    "fewspect.engine.main.run",
    "fewspect",
    "hydra.utils.call",
    "functools.partial",
    "pickle.load",
    "importlib.import_module",
    "torchmetrics.metric.torch.load",
    "shutil.rmtree",
    "",
    7,
    None,
    ["os", "system"],
]


@pytest.mark.parametrize("target", ATTACKS, ids=str)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"a": {"b": t}},
        lambda t: {"a": [0, [t]]},
        lambda t: {"_target_": "torchmetrics.MeanMetric", "x": t},
    ],
    ids=["plain", "nested", "list", "argument"],
)
def test_foreign_targets_are_refused(target, wrap):
    with pytest.raises(UserError):
        allow.require(wrap({"_target_": target}))


@pytest.mark.parametrize(
    "attack",
    [
        {"method": {"_target_": "${evil}"}, "evil": "os.system"},
        {"method": "${evil}", "evil": {"_target_": "os.system", "command": "true"}},
        {"method": {"_target_": "${a}.${b}"}, "a": "os", "b": "system"},
        {"method": {"x": "${oc.create:{_target_: os.system}}"}},
        {"method": {"_target_": "\\${evil}"}, "evil": "os.system"},
        {"method": {"x": [{"y": "${evil}"}]}, "evil": {"_target_": "torch.load"}},
    ],
)
def test_interpolated_targets_are_refused(attack):
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    cfg = OmegaConf.merge(cfg, OmegaConf.create(attack))
    with pytest.raises(UserError, match="not allowed"):
        build.resolve(cfg)


def test_allowing_counts_on_the_command_line_only():
    cfg = composed("allow=[cli]")
    cfg.method._target_ = "cli.run"
    with pytest.raises(UserError, match="not allowed"):
        build.resolve(cfg)
    allow.require({"_target_": "cli.run"}, ["cli"])


def test_allowed_building_blocks_are_found():
    for target in ("torchmetrics.MeanMetric", "fewspect.methods.sofs.method.SOFS", "torch.optim.AdamW"):
        allow.require({"_target_": target})
    with pytest.raises(UserError, match="there is no"):
        allow.require({"_target_": "fewspect.methods.sofs.method.Sofs"})
