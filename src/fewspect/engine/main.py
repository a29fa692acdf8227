"""The modes: each is one function of a session, and all end in one table and the path of the run folder."""

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fewspect.engine import environment, folders, front, help
from fewspect.errors import UserError

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float | None:
    """Run ``cfg.mode``; a mistake of the user ends a single run here, a sweep goes on with its next job."""
    hydra = HydraConfig.get()
    try:
        return _run(cfg, Path(hydra.runtime.output_dir), list(hydra.overrides.task))
    except UserError as error:
        if hydra.mode == RunMode.MULTIRUN:
            raise
        sys.exit(front.tell(error, sys.argv[1:]))


def _run(cfg: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    if cfg.mode not in MODES:
        hint = f"{help.nearest(str(cfg.mode), MODES)} Choose one of: {', '.join(MODES)}."
        raise UserError(f"mode={cfg.mode} does not exist.", hint.strip())
    if cfg.mode not in LIGHT:
        environment.prepare()
    if cfg.run:
        cfg = folders.restore(cfg, overrides, folders.recorded(Path(cfg.run)))
    with ExitStack() as stack:
        if environment.is_first_process():
            stack.enter_context(folders.lock(folder))
            if cfg.mode != "check" and cfg.resume:
                _continue(cfg, folder, overrides)
            elif cfg.mode != "check":
                folders.save(cfg, folder)
        return MODES[cfg.mode](cfg, folder, allowed(overrides))


def _continue(cfg: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Keep the options of a run that goes on, once they are known to fit: a mistake must not stay in it."""
    from fewspect.engine import build  # noqa: PLC0415

    build.resolve(cfg, allowed(overrides))
    folders.save(cfg, folder, overrides)


def allowed(overrides: list[str]) -> list[str]:
    """Packages of ``allow=[...]`` on this command line; a list in a file does not count."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: PLC0415

    parsed = OverridesParser.create().parse_overrides([o for o in overrides if o.startswith("allow=")])
    values = [o.value() for o in parsed]
    return [str(p) for value in values for p in (value if isinstance(value, list) else [value])]


def train(cfg: DictConfig, folder: Path, extra: list[str]) -> float | None:
    """Fit, test the best checkpoint, and return the objective."""
    from fewspect.engine import build, checkpoints  # noqa: PLC0415
    from fewspect.engine.session import concluded, report  # noqa: PLC0415

    if cfg.checkpoint:
        raise UserError(
            "checkpoint= has no effect on mode=train.",
            "Use run=<folder> resume=true, or mode=test or predict.",
        )
    start = None
    if cfg.resume:
        start, notice = checkpoints.resume_point(folder)
        if notice:
            log.warning(notice)
    tree = build.resolve(cfg, extra)
    with concluded(tree, folder, "test") as s:
        tested = s.data.tests and s.method.task != "generate"
        if tested:
            s.data.require_test()
        else:
            s.record.final = "fit"
        if s.method.fit_kind != "none":
            s.trainer.fit(s.method, datamodule=s.data, ckpt_path=start, weights_only=True)
        paths = [folder / folders.CHECKPOINTS / name for name in (folders.BEST, folders.LAST)]
        best = next((p for p in paths if p.is_file()), None)
        if not tested:
            log.info(UNTESTED[s.method.task == "generate"], folder)
            return report(s)
        s.trainer.test(s.method, datamodule=s.data, ckpt_path=best, verbose=False, weights_only=True)
        return report(s)


def test(cfg: DictConfig, folder: Path, extra: list[str]) -> float | None:
    """Test a checkpoint (or the untrained method) and return the objective."""
    from fewspect.engine import build, checkpoints  # noqa: PLC0415
    from fewspect.engine.session import concluded, report  # noqa: PLC0415

    path = folders.chosen_checkpoint(cfg)
    tree = build.resolve(cfg, extra)
    with concluded(tree, folder, "test") as s:
        if cfg.run and path is None and not s.method.ready:
            raise _no_weights(cfg)
        own = checkpoints.own_or_loaded(path, s.method)
        s.trainer.test(s.method, datamodule=s.data, ckpt_path=own, verbose=False, weights_only=True)
        return report(s)


def predict(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Write masks, probabilities and a table for the images of ``data``."""
    from fewspect.engine import build, checkpoints  # noqa: PLC0415
    from fewspect.engine.session import concluded, report  # noqa: PLC0415

    path = folders.chosen_checkpoint(cfg)
    # normal supports, features and a run without training may do without: the others are told at once
    ready = cfg.run or cfg.data.get("shot") == 0 or cfg.data.get("protocol") == "features"
    if path is None and not ready:
        raise _no_weights(cfg)
    tree = build.resolve(cfg, extra)
    with concluded(tree, folder, "predict") as s:
        if path is None and not s.method.ready:
            raise _no_weights(cfg)
        own = checkpoints.own_or_loaded(path, s.method)
        s.trainer.predict(
            s.method, datamodule=s.data, ckpt_path=own, return_predictions=False, weights_only=True
        )
        report(s)


def _no_weights(cfg: DictConfig) -> UserError:
    """There is nothing to answer with: none was named, or those of a finished run were removed."""
    if cfg.run:
        return UserError(f"run={cfg.run}: its checkpoints are gone.", "Choose another run, or train again.")
    return UserError(f"mode={cfg.mode} needs trained weights.", "Add run=<folder> or checkpoint=<file>.")


def generate(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Draw samples and write them as a data set that ``data=folder`` reads."""
    from fewspect.callbacks.samples import write_set  # noqa: PLC0415
    from fewspect.engine import build, checkpoints, wishes  # noqa: PLC0415
    from fewspect.engine.drawing import Shown  # noqa: PLC0415
    from fewspect.engine.session import concluded, facts  # noqa: PLC0415
    from fewspect.engine.tables import farewell  # noqa: PLC0415
    from fewspect.methods.generator import Generator  # noqa: PLC0415

    tree = build.resolve(cfg, extra)
    if tree["generate"]["count"] < 1:
        raise UserError(f"generate.count={tree['generate']['count']}: nothing to draw.", "Give 1 or more.")
    target = Path(tree["generate"]["folder"] or folder / GENERATED)
    with concluded(tree, folder, "predict") as s:
        assert isinstance(s.method, Generator)  # build.require_mode
        s.record.setup(s.trainer, s.method, "generate")
        path = None if s.method.ready else folders.chosen_checkpoint(cfg)
        if path is None and not s.method.ready:
            raise _no_weights(cfg)
        checkpoints.load(path, s.method)
        s.method.eval().to(s.trainer.strategy.root_device)
        training, shown = list(s.data.dataset("train")), Shown()
        s.method.observe(training)
        for episode in training:
            shown.add(episode)
        asked = build.Generate(**tree["generate"])  # a run may be older than an option
        draw = wishes.drawer(s.method, asdict(asked), training, tree["seed"])
        needed = s.method.classes if asked.complete else ()
        made = shown.drawn(draw, asked.count, batch=asked.batch, reject=asked.reject, needed=needed)
        about = {"method": facts(tree)["method"], "seed": tree["seed"], "config": tree["method"]}
        about |= {**s.method.about(), "seen": shown.digests}
        with s.trainer.precision_plugin.forward_context():
            write_set(target, made, s.method.classes, about)
        s.record.finish(s.trainer, "done")
        log.info("Read it with data=folder data.root=%s", target)
    farewell(folder)


def evaluate(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Set a generated data set beside the real one: distances, copies, masks; nothing is trained."""
    from fewspect.engine import build, evaluation  # noqa: PLC0415
    from fewspect.engine.session import facts  # noqa: PLC0415

    tree = build.resolve(cfg, extra)
    named = (tree.get("evaluate") or {}).get("generated")
    own = Path(cfg.run) / GENERATED if cfg.run else None
    evaluation.conclude(tree, Path(named) if named else own, folder, facts(tree))


def export(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Write one file that answers images by itself, compared with the run on its own data."""
    from fewspect.engine import artefact, build, checkpoints  # noqa: PLC0415
    from fewspect.engine.session import concluded  # noqa: PLC0415
    from fewspect.engine.tables import farewell  # noqa: PLC0415

    path = folders.chosen_checkpoint(cfg)
    tree = build.resolve(cfg, extra)
    options = build.Export(**tree.get("export", {}))
    with concluded(tree, folder, "predict") as s:
        if path is None and not s.method.ready:
            raise _no_weights(cfg)
        checkpoints.load(path, s.method)
        s.record.setup(s.trainer, s.method, "export")
        agreed = artefact.export(
            s.data, s.method, folder, tree.get("format", "onnx"), of=options.of, samples=options.samples
        )
        s.record.record["parity"] = agreed.plain()
        s.record.finish(s.trainer, "done")
    told = f"{agreed.samples} samples, {agreed.sizes} sizes: score within {agreed.score:.1e}"
    log.info("%s, map within %.1e, decisions equal", told, agreed.map)
    farewell(folder)


def check(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Explain the data folder, validate the config, and pass one batch through on the CPU."""
    from fewspect.engine import build, tryout  # noqa: PLC0415

    del folder
    tryout.explain(build.resolve_group(cfg, "data", extra))
    tryout.one_batch(build.resolve(cfg, extra))
    print("everything fits")


def compare(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Set finished runs side by side: tables on the terminal, ``comparison.{html,md,csv}`` in the folder."""
    from omegaconf import OmegaConf  # noqa: PLC0415

    from fewspect.engine import tables  # noqa: PLC0415
    from fewspect.report import page, records  # noqa: PLC0415
    from fewspect.report import tables as report  # noqa: PLC0415

    del extra
    if cfg.runs is None:
        raise UserError(
            "mode=compare needs runs to compare.", "Add runs=logs/sofs, or runs='[logs/a,logs/b]'."
        )
    patterns = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    runs, others = records.collect(patterns)
    if not runs:
        raise UserError(
            f"None of the {len(others)} runs has a test result yet.",
            f"The first is {others[0].folder}: {others[0].status}.",
        )
    asked = OmegaConf.to_container(cfg.compare)
    assert isinstance(asked, dict)
    lists = {str(k): [v] if isinstance(v, str) else v for k, v in asked.items()}
    comparison = report.compare(runs, **lists)
    title = "Comparison of " + ", ".join(patterns)
    for name, text in (
        ("html", page.to_html(comparison, others, title)),
        ("md", report.to_markdown(comparison)),
        ("csv", report.to_csv(comparison)),
    ):
        folders.write(folder / f"comparison.{name}", text)
    tables.show_comparison(comparison, others)
    tables.farewell(folder)


def inspect(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Judge parts by good images and a few labelled defects: decision, place, class and size."""
    from fewspect.engine import inspection  # noqa: PLC0415

    inspection.inspect(cfg, folder, extra)


MODES: dict[str, Callable[[DictConfig, Path, list[str]], float | None]] = {
    "train": train,
    "test": test,
    "predict": predict,
    "inspect": inspect,
    "generate": generate,
    "evaluate": evaluate,
    "export": export,
    "check": check,
    "compare": compare,
}
GENERATED = "generated"
"""Where ``mode=generate`` puts its set in the run folder."""

UNTESTED = {
    False: "No defective image to test on; ask about new parts with mode=predict run=%s",
    True: "Draw samples with mode=generate run=%s",
}
LIGHT = ("compare",)
"""Modes that need neither torch nor Lightning."""
