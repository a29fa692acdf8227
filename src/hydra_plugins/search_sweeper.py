"""Hydra sweeper that searches instead of trying everything: Optuna proposes, processes answer.

``python run.py -m method=sofs data=toy hydra/sweeper=search search=sofs_lr n_trials=40``

The study is a SQLite file in the sweep folder, which follows from the command: the same command again
continues it, trials that were under way resume in their folders, and ``n_trials`` is the total.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fewspect.errors import UserError
from hydra_plugins.process_launcher import ProcessLauncher

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

STUDY = "study.db"
OF_A_CLUSTER = ("nodes", "cluster", "slurm")
"""Options of ``launcher`` that processes on this machine do not take."""

SIMPLE = (type(None), bool, int, float, str)


class SearchSweeper(Sweeper):
    """See the module.

    Args:
        n_trials: Number of trials, those of earlier calls included.
        space: Dotted key -> sweep in Hydra's grammar: ``choice(a,b)``, ``interval(0,1)``,
            ``tag(log,interval(1e-4,1e-2))``, ``range(1,8)``, ``int(interval(1,8))`` for whole numbers.
        direction: ``maximize``, ``minimize``, or ``auto`` = by the name of the objective.
        seed: Seed of the proposals.
    """

    def __init__(
        self,
        n_trials: int = 20,
        space: Mapping[str, str] | None = None,
        direction: str = "auto",
        seed: int = 0,
    ) -> None:
        self.n_trials, self.space = n_trials, dict(space or {})
        self.direction, self.seed = direction, seed
        self.config: DictConfig | None = None
        self.launcher: ProcessLauncher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every sweeper; jobs are processes, whatever launcher is the default.

        Raises:
            UserError: The launcher that was chosen is another one.
        """
        if config.hydra.runtime.choices.get("hydra/launcher") == "slurm":
            raise UserError(
                "A search runs on this machine, not on SLURM.",
                "Leave hydra/launcher out, and start it inside a job of the cluster.",
            )
        self.config = config
        options: Any = OmegaConf.to_container(config.launcher, resolve=True)
        options = {k: v for k, v in options.items() if k not in OF_A_CLUSTER}
        self.launcher = ProcessLauncher(**options, compare=False)
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:  # noqa: ANN401 - Hydra's signature
        """Ask, run and tell until ``n_trials`` trials have ended; show the best."""
        assert self.config is not None and self.launcher is not None
        if self.launcher.dry_run:
            raise UserError(
                "launcher.dry_run lists jobs, and a search has none before it begins.", "Leave it out."
            )
        space = {**self.space, **_swept(arguments)}
        if not space:
            raise UserError(
                "There is nothing to search.", "Add search=<name>, or sweep a key: data.shot=range(1,6)."
            )
        proposals = {key: _parsed(key, text) for key, text in space.items()}
        fixed = [a for a in arguments if _key(a) not in proposals]
        place = Path(str(self.config.hydra.sweep.dir)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        study = _study(place, self._maximise(), self.seed)
        try:
            self._search(study, proposals, fixed)
        finally:
            _show(study, place)
        if not any(t.state.name == "COMPLETE" for t in study.trials):
            raise UserError("No trial has a result.", f"See {place}/<trial>/job.log.")
        return study.best_value

    def _search(self, study: "optuna.Study", proposals: Mapping[str, Override], fixed: Sequence[str]) -> None:
        import optuna  # noqa: PLC0415

        assert self.launcher is not None
        waiting = [t for t in study.trials if t.state == optuna.trial.TrialState.RUNNING]  # of a killed call
        while True:
            batch = [(t.number, dict(t.params)) for t in waiting[: self.launcher.n_jobs]]
            waiting = waiting[len(batch) :]
            while len(batch) < self.launcher.n_jobs and len(study.trials) < self.n_trials:
                trial = study.ask()
                params = {key: _suggested(trial, key, o) for key, o in proposals.items()}
                batch.append((trial.number, params))
            if not batch:
                return
            jobs = {n: [*fixed, *(f"{k}={_written(v)}" for k, v in params.items())] for n, params in batch}
            for number, outcome in zip(jobs, self.launcher.run(jobs), strict=True):
                _tell(study, number, outcome)

    def _maximise(self) -> bool:
        if self.direction != "auto":
            return self.direction == "maximize"
        from fewspect.report.tables import is_better_high  # noqa: PLC0415 - Hydra imports this at every start

        assert self.config is not None
        return is_better_high(str(self.config.objective))


def _study(place: Path, maximise: bool, seed: int) -> "optuna.Study":
    try:
        import optuna  # noqa: PLC0415
    except ImportError as error:
        raise UserError("hydra/sweeper=search needs Optuna.", "pip install 'fewspect[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{place / STUDY}",
        direction="maximize" if maximise else "minimize",
        load_if_exists=True,
    )
    # a sampler that starts anew with the same seed would repeat its first proposals
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _tell(study: "optuna.Study", number: int, outcome: JobReturn) -> None:
    import optuna  # noqa: PLC0415

    value = outcome.return_value if outcome.status == JobStatus.COMPLETED else None
    state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
    study.tell(number, value, state=state)


def _swept(arguments: Sequence[str]) -> dict[str, str]:
    """Options of the command line that are sweeps: key -> sweep as it was written."""
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    return {o.get_key_element(): str(o.input_line).partition("=")[2] for o in parsed if o.is_sweep_override()}


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def _parsed(key: str, text: str) -> Override:
    override = OverridesParser.create().parse_override(f"{key}={text}")
    if not override.is_sweep_override():
        raise UserError(
            f"search: {key}={text} is one value.", "Write choice(a,b), interval(0,1) or range(1,8)."
        )
    if isinstance(override.value(), ChoiceSweep):
        values = list(override.sweep_iterator())
        if not all(isinstance(v, SIMPLE) for v in values):
            raise UserError(f"search: {key} has choices that are no plain values.", f"It says {text}.")
    elif isinstance(override.value(), RangeSweep) and not list(override.sweep_iterator()):
        raise UserError(f"search: {key}={text} is an empty range.", "It ends before its stop: range(1,8).")
    return override


def _rounded(value: float) -> float:
    """A number without what adding up steps has left in its last digits."""
    return float(f"{value:.12g}")


def _suggested(trial: "optuna.Trial", key: str, override: Override) -> Any:  # noqa: ANN401 - a plain value
    sweep = override.value()
    if isinstance(sweep, ChoiceSweep):
        choices: Any = list(override.sweep_iterator())
        return trial.suggest_categorical(key, choices)
    if isinstance(sweep, RangeSweep):
        values: Any = list(override.sweep_iterator())  # its stop is not among them
        low, high, step = min(values), max(values), abs(sweep.step)
        if all(isinstance(v, int) for v in (low, high, step)):
            return trial.suggest_int(key, low, high, step=int(step))
        return trial.suggest_float(key, _rounded(low), _rounded(high), step=step)
    assert isinstance(sweep, IntervalSweep)
    assert sweep.start is not None and sweep.end is not None
    logarithmic = "log" in sweep.tags
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):
        return trial.suggest_int(key, sweep.start, sweep.end, log=logarithmic)
    return trial.suggest_float(key, sweep.start, sweep.end, log=logarithmic)


def _written(value: Any) -> str:  # noqa: ANN401 - a plain value
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) else str(value)


def _show(study: "optuna.Study", place: Path) -> None:
    from rich.console import Console  # noqa: PLC0415 - Hydra imports this at every start
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    done = [t for t in study.trials if t.value is not None]
    if done:
        keys = sorted({k for t in done for k in t.params})
        table = Table(title=f"{len(study.trials)} trials, {len(done)} with a result", title_justify="left")
        for name in ("trial", "value", *keys):
            table.add_column(escape(name), justify="right")
        sign = -1 if study.direction.name == "MAXIMIZE" else 1
        for t in sorted(done, key=lambda t: sign * float(t.value or 0.0))[:10]:
            values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(t.params.get, keys))
            table.add_row(str(t.number), f"{t.value:.4f}", *map(escape, values))
        Console(width=None if Console().is_terminal else 160).print(table)
    print(place, flush=True)
