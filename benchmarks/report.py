"""What a benchmark reports, and how it is shown: a table on the console, a section of ``docs/benchmarks.md``.

Every section names the machine and the day it was measured on, so one section can be measured again alone.
"""

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich import box
from rich.table import Table

THREADS = 2
"""All benchmarks compute with so many threads."""

INTRO = """# Benchmarks

Measured by `python benchmarks/run.py` (`--only NAME` measures one section again, `--quick` tries everything
with tiny sizes and writes nothing). Each number was taken in one run on the machine named in its section;
what carries over to another machine is the ratio, not the seconds. "Required" is what we hold ourselves to;
no test asserts a time. Speed does not depend on the values of weights, so large backbones run with random
ones.
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: What it is.
        value: The number with its unit.
        required: What is asked of it; empty = reported only.
        met: Whether it is what is asked; None where nothing is.
    """

    name: str
    value: str
    required: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """``yes``, ``NO`` or nothing."""
        return {True: "yes", False: "NO", None: ""}[self.met]


@dataclass(frozen=True, slots=True)
class Report:
    """All of one benchmark.

    Attributes:
        title: Heading.
        what: What is compared.
        how: How it was measured.
        figures: The numbers.
        notes: What a reader must know to judge them.
    """

    title: str
    what: str
    how: str
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default=())


def at_least(name: str, value: float, bound: float, unit: str = "x") -> Figure:
    """A figure that should not be below ``bound``."""
    return Figure(name, f"{value:.2f}{unit}", f">= {bound:g}{unit}", value >= bound)


def at_most(name: str, value: float, bound: float, unit: str = "x", *, digits: int = 2) -> Figure:
    """A figure that should not be above ``bound``."""
    return Figure(name, f"{value:.{digits}f}{unit}", f"<= {bound:g}{unit}", value <= bound)


def below(name: str, value: float, bound: float, unit: str) -> Figure:
    """A figure that must stay below ``bound``."""
    return Figure(name, f"{value:.3g}{unit}", f"< {bound:g}{unit}", value < bound)


def true(name: str, value: bool) -> Figure:
    """Something that has to be so."""
    return Figure(name, "yes" if value else "no", "yes", value)


def equal(name: str, difference: float, tolerance: float) -> Figure:
    """Outputs of two routes: their largest difference."""
    return Figure(name, f"{difference:.1e}", f"<= {tolerance:.0e}", difference <= tolerance)


def machine() -> str:
    """Processor, cores, memory, versions and day; neither host name nor paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{processor()}, {cores} cores, {memory:.0f} GiB RAM; Python {platform.python_version()}, "
        f"torch {torch.__version__}, {THREADS} threads, float32 unless said; {today}."
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def console(reports: Mapping[str, Report]) -> Table:
    """One table of all figures."""
    table = Table("benchmark", "figure", "value", "required", "met", box=box.SIMPLE_HEAD)
    for name, report in reports.items():
        for index, figure in enumerate(report.figures):
            style = "red" if figure.met is False else None
            first = name if index == 0 else ""
            table.add_row(first, figure.name, figure.value, figure.required, figure.verdict, style=style)
        table.add_section()
    return table


def write(path: Path, reports: Mapping[str, Report], names: Sequence[str], load: Mapping[str, float]) -> None:
    """Replace the sections of ``reports`` in a page and keep the others, in the order of ``names``.

    Args:
        path: The page; made when it is not there.
        reports: Benchmark name -> what it measured now.
        names: All benchmarks in order.
        load: Benchmark name -> load average of the machine when it began.
    """
    sections = _sections(path.read_text("utf-8")) if path.exists() else {}
    sections |= {name: _section(report, load[name]) for name, report in reports.items()}
    body = [f"<!-- {name} -->\n{sections[name].strip()}\n" for name in names if name in sections]
    path.write_text("\n".join([INTRO, *body]), "utf-8")


def _sections(page: str) -> dict[str, str]:
    parts = re.split(r"^<!-- (\w+) -->$", page, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _section(report: Report, load: float) -> str:
    rows = [f"| {f.name} | {f.value} | {f.required} | {f.verdict} |" for f in report.figures]
    return "\n".join(
        [
            f"## {report.title}\n",
            f"**What.** {report.what}\n",
            f"**How.** {report.how}\n",
            "| figure | measured | required | met |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"* {note}" for note in report.notes),
            "",
            f"Machine: {machine()} Load average at the start: {load:.1f}.",
        ]
    )
