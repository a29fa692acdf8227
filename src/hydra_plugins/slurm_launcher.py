"""Hydra launcher that sends every job of a sweep to a SLURM cluster (submitit).

``python run.py -m method=sofs,subspace seed=0,1 hydra/launcher=slurm launcher.gpus=8 launcher.nodes=2``

Every job is the same ``run.py`` call that the process launcher would make, once per GPU (``tasks_per_node``
is the number of devices, as Lightning wants it). When its time is up or it is preempted, a job saves its
state and is put into the queue again, where it goes on in the same folder. The same command again sends what
is missing.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.utils import JobReturn

from fewspect.engine import folders
from fewspect.errors import UserError
from hydra_plugins.process_launcher import GRACE, TICK, Job, ProcessLauncher, arguments

if TYPE_CHECKING:
    import submitit

POLL = 5.0
"""Seconds between two looks at the queue."""

DAY = 24 * 60
WARNING_S = 180
"""Seconds before the end of a job's time at which it is told to save."""

PLACE = ".submitit"
"""Folder of scripts and outputs inside the sweep folder."""

RANKS = ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALRANK")


@dataclass
class Attempt:
    """What runs on a node: one ``run.py`` process per task; a job that has a checkpoint goes on from it.

    Attributes:
        command: Interpreter and ``run.py``.
        options: Options of the job.
        folder: Its run folder.
        process: The process while it runs.
    """

    command: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False, compare=False)

    def __call__(self) -> None:
        """Run until the end.

        Raises:
            RuntimeError: The process failed.
        """
        self.process = subprocess.Popen(
            [*self.command, *self.arguments()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_deaf,  # noqa: PLW1509 - one thread
        )
        while self.process.poll() is None:  # a blocking wait would keep ``checkpoint`` from waiting, too
            time.sleep(TICK)
        if self.process.returncode:
            raise RuntimeError(f"{self.folder}: exit code {self.process.returncode}")

    def arguments(self) -> list[str]:
        """Options of the process of this task: from the start, or from where the folder says it stopped."""
        options = arguments(self.options, self.folder)
        rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
        if rank == "0":  # the first process of a job owns its folder
            return options
        return [*options, "hydra.output_subdir=null", f"hydra.job.name=run_{rank}"]

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Let the process save its state; what submitit is to queue again: the same."""
        import submitit  # noqa: PLC0415

        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        return submitit.helpers.DelayedSubmission(Attempt(self.command, self.options, self.folder))


class SlurmLauncher(ProcessLauncher):
    """See the module.

    Args:
        gpus: GPUs per node; 0 = none, one process.
        nodes: Nodes per job.
        n_jobs: Jobs at a time; None = as many as the cluster gives.
        timeout: Minutes that a job may take before it is queued again; None = a day.
        retries: How often a job is queued again after its time was up.
        dry_run: List the jobs and show the script.
        cluster: ``slurm``; ``local`` and ``debug`` are submitit's stand-ins on this machine.
        slurm: Further options of submitit (``cpus_per_task``, ``mem_gb``) and of sbatch (``partition``,
            ``account``, ``qos``, ``constraint``, ``setup``).
    """

    def __init__(
        self,
        *,
        gpus: int | Sequence[Any] = 0,
        nodes: int = 1,
        n_jobs: int | None = None,
        timeout: float | None = None,
        retries: int = 1,
        dry_run: bool = False,
        cluster: Literal["slurm", "local", "debug"] = "slurm",
        slurm: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(gpus, int):
            gpus = len(gpus)
        super().__init__(n_jobs=n_jobs, timeout=timeout, retries=retries, dry_run=dry_run)
        self.gpus, self.nodes, self.most = gpus, nodes, n_jobs
        self.cluster, self.slurm = cluster, dict(slurm or {})

    def run(self, options: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        """See ``ProcessLauncher.run``; a dry run shows the script, too."""
        assert self.config is not None
        _submitit()
        if self.dry_run:
            place = Path(str(self.config.hydra.sweep.dir)).resolve()
            print(self.script(place))
        return super().run(options)

    def script(self, place: Path) -> str:
        """What sbatch would be given for a job of a sweep folder."""
        slurm = _submitit().slurm.slurm  # its executor would want a cluster
        renamed = slurm.SlurmExecutor._equivalence_dict()
        given = {k.removeprefix("slurm_"): v for k, v in self.parameters().items()}
        given = {renamed.get(k, k): v for k, v in given.items()}
        if "mem" in given:
            given["mem"] = slurm._convert_mem(given["mem"])
        folder = place / PLACE / "%j"
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        return slurm._make_sbatch_string(command=command, folder=folder, **given)

    def parameters(self) -> dict[str, Any]:
        """Options of submitit's executor."""
        tasks = max(1, self.gpus)
        named = {
            "name": "fewspect",
            "timeout_min": int(self.timeout or DAY),
            "nodes": self.nodes,
            "tasks_per_node": tasks,
            "slurm_signal_delay_s": WARNING_S,
        }
        named |= {"gpus_per_node": self.gpus} if self.gpus else {}
        named |= {"slurm_array_parallelism": self.most} if self.most else {}
        plain = ("cpus_per_task", "mem_gb", "name", "stderr_to_stdout")
        return named | {(k if k in plain else f"slurm_{k}"): v for k, v in self.slurm.items()}

    def _run(self, jobs: Sequence[Job]) -> None:
        """Send what is missing and wait."""
        waiting = [j for j in jobs if j.state == "waiting"]
        if not waiting:
            return
        _reachable()
        executor = self._executor(waiting[0].folder.parent)
        with executor.batch():
            sent = [executor.submit(self._attempt(job)) for job in waiting]
        under_way = dict(zip((j.number for j in waiting), sent, strict=True))
        try:
            while any(j.state in ("waiting", "running") for j in waiting):
                for job in waiting:
                    self._look(job, under_way[job.number])
                time.sleep(POLL if self.cluster == "slurm" else TICK)
        except BaseException:
            for job in waiting:
                if job.state in ("waiting", "running"):
                    under_way[job.number].cancel()
            raise

    def _look(self, job: Job, sent: "submitit.Job[None]") -> None:
        """Take over what the queue and the folder say of a job."""
        if job.state not in ("waiting", "running"):
            return
        if job.state == "waiting" and folders.state(job.folder) == "running":
            job.state, job.began = "running", time.monotonic()
        try:
            if not sent.done():
                return
            failed = sent.exception() is not None
        except Exception:  # submitit's debug jobs run when they are looked at, and raise what they meet
            failed = True
        job.state = "failed" if failed or folders.state(job.folder) != "done" else "done"
        job.code = int(failed)

    def _attempt(self, job: Job) -> Attempt:
        """A job as it runs on a node, on all the devices that it gets."""
        job.folder.mkdir(parents=True, exist_ok=True)
        told = {folders.key_of(o) for o in job.overrides}
        many = self.gpus * self.nodes > 1
        devices = {
            "trainer.devices": self.gpus,
            "trainer.num_nodes": self.nodes,
            "trainer.strategy": "ddp",
        }
        more = [f"++{key}={value}" for key, value in devices.items() if many and key not in told]
        command = (sys.executable, str(Path(sys.argv[0]).resolve()))
        return Attempt(command, (*job.overrides, *more), job.folder)

    def _executor(self, place: Path) -> "submitit.AutoExecutor":
        kit = _submitit()
        try:
            executor = kit.AutoExecutor(
                place / PLACE / "%j", cluster=self.cluster, slurm_max_num_timeout=self.retries
            )
        except RuntimeError as error:
            raise UserError(
                f"There is no SLURM here: {error}",
                "Start the sweep on a login node, or use hydra/launcher=process.",
            ) from error
        try:
            executor.update_parameters(**self.parameters())
        except (NameError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"launcher.slurm does not fit: {first}",
                "It takes options of sbatch with _ for -, e.g. launcher.slurm={partition:gpu}.",
            ) from error
        return executor


def _submitit() -> Any:  # noqa: ANN401 - a module that may not be there
    """The module submitit.

    Raises:
        UserError: It is not installed.
    """
    try:
        import submitit  # noqa: PLC0415 - Hydra imports this file at every start
    except ImportError as error:
        raise UserError(
            "hydra/launcher=slurm needs submitit.", "Install it: pip install 'fewspect[slurm]'"
        ) from error
    return submitit


def _reachable() -> None:
    """Let processes on other nodes find this package, also in a clone that was not installed."""
    source = str(Path(folders.__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *(p for p in known if p and p != source)])


def _deaf() -> None:
    """SLURM's warning reaches every process of a job; the run is told by ``Attempt.checkpoint``."""
    for name in ("SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
