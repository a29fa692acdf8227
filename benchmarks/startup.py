"""How long a user waits for an answer that needs no network."""

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import subject
from benchmarks.report import Figure, Report

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (("--help",), ("--cfg", "job"))


def measure(*, quick: bool) -> Report:
    """Each command several times."""
    times = 1 if quick else 5
    figures = []
    for command in COMMANDS:
        _call(command)
        taken = [subject.seconds(lambda c=command: _call(c))[0] for _ in range(times)]
        text = f"{statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f})"
        figures.append(Figure(f"`python run.py {' '.join(command)}`", text))
    return Report(
        title="Start-up",
        what="Wall time until `run.py` has printed what it offers, or the composed config, and ended.",
        how=f"{times} processes each after one uncounted, median (smallest to largest).",
        figures=figures,
        notes=["Our aim is about one second: nothing heavy (torch, Lightning) is imported for it."],
    )


def _call(arguments: tuple[str, ...]) -> None:
    subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, check=True, capture_output=True)
