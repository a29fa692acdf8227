"""The reference benchmark: every task on the data at hand, ``docs/results.md`` and ``docs/benchmark.html``.

``python -m benchmarks.everything --root ../shared/data`` (or ``make benchmark ROOT=...``) counts what is on
both sides of the splits, runs each task in a process of its own, and rewrites both pages after each of them.
Finished rows are kept in ``benchmarks/results``, so a stopped benchmark goes on where it was; ``--render``
rewrites the pages from them and measures nothing.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import (
    choices,
    classifiers,
    contamination,
    detectors,
    downstream,
    inspection,
    margin,
    page,
    segmenters,
    steps,
    surfaces,
    tables,
)
from benchmarks.page import Section
from benchmarks.tables import RESULTS, ROOT
from fewspect.callbacks.files import write_atomic

TASKS: dict[str, ModuleType] = {
    "segmenters": segmenters,
    "classifiers": classifiers,
    "choices": choices,
    "surfaces": surfaces,
    "detectors": detectors,
    "inspection": inspection,
    "downstream": downstream,
    "steps": steps,
    "margin": margin,
}
"""In the order of the page; each has ``TITLE, ASKED, PUBLISHED, made(rows)`` and ``main``."""

FEATURES = "features_bottle_valid.safetensors"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing task by task, then write both pages."""
    options = _arguments(argv)
    failed = []
    for name in [] if options.render else ["contamination", *(options.only or TASKS)]:
        if command := _command(name, options):
            print(f"== {name}", flush=True)
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                failed.append(name)
            render(options.results, options.docs)
    render(options.results, options.docs)
    if failed:
        print(f"not finished: {', '.join(failed)}; the same command goes on there", file=sys.stderr)
        sys.exit(1)


def render(results: Path = RESULTS, docs: Path = ROOT / "docs") -> None:
    """Rewrite the tables of ``results.md`` and all of ``benchmark.html`` from the row files."""
    sections = []
    for name, module in TASKS.items():
        rows = tables.read(results / f"{name}.jsonl")
        made = module.made(rows)
        tables.write(made, docs / "results.md", show=False)
        sections.append(Section(name, module.TITLE, module.ASKED, module.PUBLISHED, made, rows, _told(name)))
    clean = contamination.made(tables.read(results / "contamination.jsonl"))
    tables.write(clean, docs / "results.md", show=False)
    text = page.page(sections, clean[0] if clean else None)
    write_atomic(docs / "benchmark.html", lambda file: file.write(text.encode()))
    print(f"written: {docs / 'results.md'}, {docs / 'benchmark.html'}")


def _told(name: str) -> str:
    """The command of a task as a user types it."""
    own = {"choices": f"--features {FEATURES}", "margin": "", "steps": ""}
    more = own.get(name, "--root <folder of the data sets>")
    return f"python -m benchmarks.{name} {more}".strip()


def _command(name: str, options: argparse.Namespace) -> list[str]:
    """The command of a task; none where its data are not there."""
    rows = options.results / f"{name}.jsonl"
    words = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(rows)]
    words += ["--page", str(options.docs / "results.md"), "--threads", str(options.threads)]
    if name == "choices":
        return [*words, "--features", str(options.features)] if options.features else []
    return [*words, "--root", str(options.root)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everything", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that holds the data sets")
    parser.add_argument("--features", type=Path, help=f"{FEATURES}, for the task choices")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), help="these tasks")
    parser.add_argument("--render", action="store_true", help="rewrite the pages, measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the row files")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    for name in ("root", "results", "docs", "features"):
        if value := getattr(options, name):
            setattr(options, name, value.resolve())
    return options


if __name__ == "__main__":
    tables.started(main)
