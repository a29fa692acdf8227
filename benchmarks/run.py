"""Run the benchmarks: ``python benchmarks/run.py [--only NAME] [--quick]``; writes ``docs/benchmarks.md``."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console

from benchmarks import report

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
NAMES = (
    "support", "precision", "loader", "memory", "startup", "detection", "ssim", "neighbours", "subspace",
    "heads", "views", "centres", "paste",
)  # fmt: skip
"""Modules of this folder; each has ``measure(*, quick) -> Report``."""


def main() -> None:
    """Measure, print one table, write the page."""
    options = _arguments()
    torch.set_num_threads(report.THREADS)
    console = Console()
    reports, load = {}, {}
    for name in options.only or NAMES:
        measure: Callable[..., report.Report] = import_module(f"benchmarks.{name}").measure
        load[name] = os.getloadavg()[0]
        with console.status(f"{name} …"):
            reports[name] = measure(quick=options.quick)
        if not options.quick:  # after each one: a later failure does not lose it
            report.write(PAGE, reports, NAMES, load)
    console.print(report.console(reports))
    console.print("nothing written (--quick)" if options.quick else f"written: {PAGE.relative_to(ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmarks of Fewspect")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing is written")
    return parser.parse_args()


if __name__ == "__main__":
    main()
