"""What a sweep shows: its jobs while they run, and the comparison of their results. No torch in here."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fewspect.engine import folders, tables
from fewspect.errors import UserError
from fewspect.report import page, records
from fewspect.report import tables as report

log = logging.getLogger(__name__)

REFRESH = 2.0
"""Seconds between two looks at the records of running jobs."""

STATES = {"done": "green", "skipped": "green", "running": "cyan", "failed": "red", "timed out": "red"}


class Job(Protocol):
    """What is shown of a job."""

    number: int
    overrides: tuple[str, ...]
    folder: Path
    state: str
    began: float

    @property
    def reason(self) -> str:
        """Why it failed."""
        ...


def announce(place: Path, jobs: Sequence[tuple[int, str, Sequence[str]]]) -> None:
    """List what a sweep would do: number, state of its folder, options."""
    table = Table(title=escape(f"dry run: {place}"), title_justify="left")
    for name in ("job", "would", "options"):
        table.add_column(name)
    shared = _shared([overrides for _, _, overrides in jobs])
    for number, found, overrides in jobs:
        would = {"new": "start", "done": "be skipped"}.get(found, f"continue ({found})")
        table.add_row(str(number), would, escape(_own(overrides, shared)))
    Console(width=None if Console().is_terminal else 160).print(table)


@contextmanager
def watched(place: Path, jobs: Sequence[Job], *, compare: bool = True) -> Iterator[None]:
    """Show the jobs while they run, a line per change where there is no terminal; compare them at the end."""
    console = Console(width=None if Console().is_terminal else 160)
    over = threading.Event()
    if console.is_terminal:
        with Live(
            get_renderable=lambda: _table(place, jobs), console=console, refresh_per_second=1 / REFRESH
        ):
            yield
    else:
        teller = threading.Thread(target=_tell, args=(jobs, over), daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
    if compare:
        _compare(place)


def failure(place: Path, jobs: Sequence[Job]) -> UserError | None:
    """What to say when jobs failed; None when none did."""
    failed = [j for j in jobs if j.state in ("failed", "timed out")]
    if not failed:
        return None
    named = ", ".join(f"{j.number} ({j.reason})" for j in failed)
    return UserError(
        f"{len(failed)} of {len(jobs)} jobs have no result: {named}.",
        f"See {place}/<job>/job.log; the same command again runs only those.",
    )


def _compare(place: Path) -> None:
    """Print and write the comparison of what is finished."""
    try:
        runs, others = records.collect([str(place)])
        if not runs:
            return
        comparison = report.compare(runs)
    except UserError as error:
        log.info("%s %s", error.message, error.hint)
        return
    folders.write(place / "comparison.html", page.to_html(comparison, others, place.name))
    folders.write(place / "comparison.csv", report.to_csv(comparison))
    tables.show_comparison(comparison, others)
    tables.farewell(place)


def _tell(jobs: Sequence[Job], over: threading.Event) -> None:
    """Log every change of a job's state."""
    known = {j.number: "waiting" for j in jobs}
    shared = _shared([j.overrides for j in jobs])
    while True:
        last = over.is_set()
        for job in jobs:
            if known[job.number] != job.state:
                known[job.number] = job.state
                more = f": {job.reason}" if job.state in ("failed", "timed out") else ""
                log.info("job %d %s%s  %s", job.number, job.state, more, _own(job.overrides, shared))
        if last:
            return
        over.wait(0.2)


def _table(place: Path, jobs: Sequence[Job]) -> Table:
    table = Table(title=escape(str(place)), title_justify="left")
    for name in ("job", "state", "time", "epoch", "value", "options"):
        table.add_column(name, justify="right" if name in ("job", "time", "epoch", "value") else "left")
    shared = _shared([j.overrides for j in jobs])
    for job in jobs:
        record = folders.record(job.folder) if job.state != "waiting" else {}
        value = folders.objective(job.folder) if record else None
        style = STATES.get(job.state, "dim")
        table.add_row(
            str(job.number),
            f"[{style}]{job.state}[/{style}]",
            _clock(time.monotonic() - job.began) if job.state == "running" else "",
            str(record.get("epoch", "")),
            "" if value is None else f"{value:.4f}",
            escape(_own(job.overrides, shared)),
        )
    return table


def _shared(options: Sequence[Sequence[str]]) -> set[str]:
    """Options that all of several jobs have; nothing of a single one."""
    return set.intersection(*map(set, options)) if len(options) > 1 else set()


def _own(overrides: Sequence[str], shared: set[str]) -> str:
    """Options that tell a job from the others, without the plus signs that only Hydra needs."""
    return " ".join(o.lstrip("+") for o in overrides if o not in shared)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
