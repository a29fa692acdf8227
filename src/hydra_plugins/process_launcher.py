"""Hydra launcher that gives every job of a sweep a process and a run folder of its own.

``python run.py -m method=sofs,subspace seed=0,1,2 hydra/launcher=process launcher.n_jobs=2``

A job that fails, is killed or runs out of memory hurts no other one. The sweep folder follows from the
command, so the same command again runs what is missing: finished jobs are skipped, stopped ones resume.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fewspect.engine import folders
from fewspect.errors import UserError

log = logging.getLogger(__name__)

LOG = "job.log"
TICK, GRACE = 0.2, 60.0
"""Seconds between two looks at the jobs; seconds that a stopped job has to save its state."""

OUT_OF_MEMORY = ("OutOfMemoryError", "out of memory", "DefaultCPUAllocator: can't allocate memory")
TRAIN, OF_A_CALL = "mode=train", ("mode", "allow", "debug")
"""What a job does that goes on where it stopped; options that its folder does not remember."""

TAIL = 4000
"""Bytes at the end of a job's log that are searched."""


class Outcome(JobReturn):
    """What a job gave; a failed one raises its error without Hydra's own line before it."""

    @property
    def return_value(self) -> Any:  # noqa: ANN401 - Hydra's signature
        """The objective.

        Raises:
            UserError: The job has none.
        """
        if self.status == JobStatus.COMPLETED:
            return self._return_value
        raise self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:  # noqa: ANN401
        self._return_value = value


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        number: Position in the sweep, name of its folder.
        overrides: Options of the job.
        folder: Its run folder.
        process: The process while it runs.
        slot: GPUs it may see, e.g. ``0`` or ``0,1``; None = all.
        began: When the process was started, in seconds.
        tries: How often it was started.
        state: ``waiting``, ``running``, ``done``, ``skipped``, ``failed`` or ``timed out``.
        code: Exit code of the last process; negative: the signal that killed it.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    slot: str | None = None
    began: float = 0.0
    tries: int = 0
    state: str = "waiting"
    code: int = 0
    output: IO[bytes] | None = field(default=None, repr=False)

    @property
    def reason(self) -> str:
        """Why it failed."""
        if self.state == "timed out":
            return "timed out"
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class ProcessLauncher(Launcher):
    """See the module.

    Args:
        n_jobs: Jobs at a time; None = one per GPU slot, or one.
        gpus: Number of GPUs, or their ids, or groups of ids (``[[0,1],[2,3]]``: two GPUs per job); every job
            gets one entry. Empty: jobs see all GPUs.
        timeout: Minutes after which a job is stopped; None = never.
        retries: How often a job is started again that a signal or a lack of memory ended.
        dry_run: List the jobs and what would happen to each.
        compare: Print and write the comparison of all finished jobs at the end.
    """

    def __init__(
        self,
        *,
        n_jobs: int | None = None,
        gpus: int | Sequence[Any] = (),
        timeout: float | None = None,
        retries: int = 1,
        dry_run: bool = False,
        compare: bool = True,
    ) -> None:
        super().__init__()
        self.slots = _slots(gpus)
        self.n_jobs = n_jobs or max(1, len(self.slots))
        self.timeout, self.retries, self.dry_run, self.compare = timeout, retries, dry_run, compare
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every launcher."""
        del hydra_context, task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs with consecutive numbers and wait for all of them, see ``run``."""
        return self.run(dict(enumerate(job_overrides, initial_job_idx)))

    def run(self, options: Mapping[int, Sequence[str]]) -> list[JobReturn]:
        """Run jobs and wait for all of them.

        Args:
            options: Number of a job, which names its folder -> its options.

        Returns:
            One outcome per job: its objective, or the error that says what became of the whole sweep.
        """
        from fewspect.engine import sweeps  # noqa: PLC0415 - Hydra imports this file at every start

        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        place = Path(str(self.config.hydra.sweep.dir)).resolve()
        jobs = [Job(k, _own(overrides), place / str(k)) for k, overrides in options.items()]
        for job in jobs:
            if folders.state(job.folder) == "done":
                job.state = "skipped"
        if self.dry_run:
            sweeps.announce(place, [(j.number, folders.state(j.folder), j.overrides) for j in jobs])
            return [self._outcome(job, None) for job in jobs]
        place.mkdir(parents=True, exist_ok=True)
        with _sigterm_as_ctrl_c(), sweeps.watched(place, jobs, compare=self.compare):
            self._run(jobs)
        failure = sweeps.failure(place, jobs)
        return [self._outcome(job, failure) for job in jobs]

    def _run(self, jobs: Sequence[Job]) -> None:
        slots: list[str | None] = [*self.slots] or [None]
        free = (slots * self.n_jobs)[: self.n_jobs]
        try:
            while any(j.state in ("waiting", "running") for j in jobs):
                for job in (j for j in jobs if j.state == "running"):
                    if self._ended(job):
                        free.append(job.slot)
                for job in (j for j in jobs if j.state == "waiting"):
                    if not free:
                        break
                    job.slot = free.pop(0)
                    self._start(job)
                time.sleep(TICK)
        except BaseException:
            _stop([j for j in jobs if j.state == "running"])
            raise

    def _start(self, job: Job) -> None:
        """Start a job anew, or where its folder says that it stopped."""
        job.folder.mkdir(parents=True, exist_ok=True)
        options = arguments(job.overrides, job.folder)
        cores = max(1, (os.cpu_count() or 1) // self.n_jobs)
        surroundings = {"OMP_NUM_THREADS": str(cores), **os.environ}
        if job.slot is not None:
            surroundings["CUDA_VISIBLE_DEVICES"] = job.slot
        job.output = (job.folder / LOG).open("ab")
        job.process = subprocess.Popen(
            [sys.executable, str(Path(sys.argv[0]).resolve()), *options],
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=job.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which lets every job save its state
        )
        job.state, job.began, job.tries = "running", time.monotonic(), job.tries + 1

    def _ended(self, job: Job) -> bool:
        """Whether a running job is over; decides what becomes of it."""
        assert job.process is not None
        running = job.process.poll() is None
        late = running and self.timeout is not None and time.monotonic() - job.began > 60 * self.timeout
        if late:
            _stop([job])
        elif running:
            return False
        assert job.output is not None
        job.output.close()
        job.code = job.process.wait()
        if late:
            job.state = "timed out"
        elif job.code == 0:
            job.state = "done"
        elif job.tries <= self.retries and (job.code < 0 or _out_of_memory(job.folder / LOG)):
            job.state = "waiting"
        else:
            job.state = "failed"
        return True

    def _outcome(self, job: Job, failure: UserError | None) -> JobReturn:
        done = Outcome(overrides=list(job.overrides), working_dir=str(job.folder))
        good = self.dry_run or job.state in ("done", "skipped")
        done.status = JobStatus.COMPLETED if good else JobStatus.FAILED
        done.return_value = folders.objective(job.folder) if good else failure
        return done


def arguments(overrides: Sequence[str], folder: Path) -> list[str]:
    """Options of a job's process: from the start, or from where its folder says that it stopped.

    A training goes on; what belongs to a call is no part of a run and is said again. Other modes start over.
    """
    told = {folders.key_of(o): o for o in overrides}
    saved = any((folder / folders.CHECKPOINTS).glob("*.ckpt"))
    if saved and folders.state(folder) != "new" and told.get("mode", TRAIN) == TRAIN:
        return [f"run={quoted(folder)}", "resume=true", *(told[k] for k in OF_A_CALL if k in told)]
    return [*overrides, f"hydra.run.dir={quoted(folder)}"]


def _own(overrides: Sequence[str]) -> tuple[str, ...]:
    """Options of a job without those of the launcher."""
    return tuple(o for o in filter_overrides(list(overrides)) if not o.startswith("launcher."))


def _slots(gpus: int | Sequence[Any]) -> list[str]:
    """Values of ``CUDA_VISIBLE_DEVICES``, one per job that may run at a time."""
    if isinstance(gpus, int):
        return [str(k) for k in range(gpus)]
    return [
        ",".join(map(str, g)) if isinstance(g, Sequence) and not isinstance(g, str) else str(g) for g in gpus
    ]


def _stop(jobs: Sequence[Job]) -> None:
    """Ask jobs to save and leave; kill those that do not within ``GRACE`` seconds."""
    for job in jobs:
        _signal(job, signal.SIGTERM)
    end = time.monotonic() + GRACE
    for job in jobs:
        assert job.process is not None
        try:
            job.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(job, signal.SIGKILL)
            job.process.wait()


def _signal(job: Job, number: int) -> None:
    """Send a signal to a job and whatever it has started."""
    assert job.process is not None
    try:
        os.killpg(job.process.pid, number)
    except ProcessLookupError:
        return


def _out_of_memory(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        text = file.read().decode("utf-8", "replace")
    return any(words in text for words in OUT_OF_MEMORY)


def quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the jobs the way Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
