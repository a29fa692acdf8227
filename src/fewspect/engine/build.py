"""From a composed config to objects: resolve, refuse what is not allowed, check against signatures, build.

``make`` is the only place that calls Hydra's ``instantiate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from fewspect.data.bank import ViewOptions
from fewspect.data.module import DataModule
from fewspect.engine import allow, check, loggers
from fewspect.errors import UserError
from fewspect.inspection import Options as Inspection
from fewspect.methods.base import Method
from fewspect.methods.classifier import Classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The scalars of ``conf/config.yaml`` and their types."""

    mode: str
    seed: int = 0
    run: str | None = None
    resume: bool = False
    checkpoint: str | None = None
    objective: str = "val/miou"
    name: str | None = None
    tags: Sequence[str] = ()
    compile: bool = False
    allow: Sequence[str] = ()
    debug: bool = False
    alpha: float | None = None
    format: Literal["onnx", "torch_export"] = "onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """The group ``generate`` of ``conf/config.yaml`` and its types."""

    count: int = 64
    folder: str | None = None
    batch: int = 16
    reject: float | None = None
    complete: bool = False
    classes: str | Sequence[str] | None = None
    product: str | None = None
    mask: str | None = None
    normal: str | None = None
    region: str | None = None
    start: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """The group ``evaluate`` of ``conf/config.yaml`` and its types."""

    generated: str | None = None
    limit: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect(Inspection):
    """The group ``inspect`` of ``conf/config.yaml``: what is reported, and how classes are told apart."""

    classifier: Classifier
    views: Mapping[str, Any] = field(default_factory=dict[str, Any])
    schema: ClassVar[dict[str, Any]] = {"views": ViewOptions}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The group ``export`` of ``conf/config.yaml`` and its types."""

    of: str | None = None
    samples: int = 16


ELSEWHERE = ("runs", "compare", "launcher", "search", "n_trials")
"""Options of comparisons and sweeps, which are no part of a run."""


def resolve(cfg: DictConfig, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Plain dicts of the config, with every target allowed and every option fitting its constructor.

    Args:
        cfg: The composed config.
        extra: Packages allowed on the command line.

    Raises:
        UserError: Names every misfit, or the option that must be given.
    """
    tree = {key: value for key, value in _plain(cfg).items() if key not in ELSEWHERE}
    allow.require(tree, extra)
    groups = {key: value for key, value in tree.items() if isinstance(value, dict)}
    options = {key: value for key, value in tree.items() if key not in groups}
    check.require(
        groups | {"": options},
        {
            "trainer": pl.Trainer,
            "logger": loggers.build,
            "inspect": Inspect,
            "generate": Generate,
            "evaluate": Evaluate,
            "export": Export,
            "": Options,
        },
    )
    return tree


def resolve_group(cfg: DictConfig, group: str, extra: Sequence[str] = ()) -> dict[str, Any]:
    """``resolve`` for one group: ``mode=check`` explains a folder even when something else is wrong."""
    tree = _plain(cfg)
    allow.require(tree[group], extra)
    check.require({group: tree[group]})
    return tree[group]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        tree: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise UserError(f"{key} must be given.", f"Add {key}=... to the command line.") from error
    return tree


def require_mode(tree: dict[str, Any]) -> None:
    """Refuse a mode that the method has no answer to, before anything is read.

    Raises:
        UserError: A generator is asked about images, or another method for data.
    """
    kind, mode = allow.locate(tree["method"]["_target_"], "method"), tree["mode"]
    makes = getattr(kind, "task", "") == "generate"
    if makes and (mode in ("test", "predict", "export") or (mode == "train" and kind.fit_kind == "none")):
        what = "learns nothing before it draws" if mode == "train" else "makes images, it answers none"
        raise UserError(f"{kind.__name__} {what}.", "Use mode=generate.")
    if mode == "generate" and not makes:
        raise UserError(f"{kind.__name__} generates nothing.", "Choose a generator, e.g. method=paste.")


def make(node: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever the target is
    """Build one node of a resolved tree; constructors get plain lists and dicts."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and (isinstance(cause, InstantiationException)):
            cause = cause.__cause__
        raise cause or error from None


def parts(tree: dict[str, Any]) -> tuple[DataModule, Method]:
    """Data and method of a resolved tree, seeded; the method knows the data."""
    pl.seed_everything(tree["seed"], workers=True, verbose=False)
    data = make(tree["data"])
    data.setup("fit")
    method = make(tree["method"])
    method.setup_data(data.info)
    return data, method
