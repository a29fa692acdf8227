"""``mode=check``: explain a data folder before a run, every finding by name, as text and as JSON values."""

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewspect.data.facts import pixel_cap
from fewspect.data.index import Index
from fewspect.data.listing import require_folder, scan
from fewspect.data.masks import read_index
from fewspect.data.problems import Problem
from fewspect.data.readers import folder
from fewspect.data.readers.layouts import detect
from fewspect.errors import UserError

if TYPE_CHECKING:
    from rich.console import Group

Reader = Callable[..., Index]
HISTOGRAM_FILES = 500
"""Mask values are counted in at most this many files."""

SHOWN_PER_KIND = 10
SHOWN_VALUES = 12


def report(root: str, read: Reader = folder.read, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Everything known about a folder, JSON-able; a reader that gives up is a finding, not an exception.

    Keys: ``root, layout, counts, classes, tasks, sizes, mask_values, problems, hints``.

    Raises:
        UserError: ``root`` is missing, a file, or an empty folder.
    """
    return _look(root, read, options)[0]


def _look(root: str, read: Reader, options: dict[str, Any]) -> tuple[dict[str, Any], Index | None]:
    """The report, and the index if the folder could be read."""
    if inspect.signature(read).parameters["root"].default is not inspect.Parameter.empty:
        read(root, **options)  # it needs no folder: it writes its data where there are none (the toy factory)
    base = require_folder(root)
    if not any(base.iterdir()):
        raise UserError(
            f"{base}: the folder is empty", "Set data.root to the folder that holds the data set."
        )
    layout = detect(base, options.get("table")) if read is folder.read else {read.__module__: "as configured"}
    result: dict[str, Any] = {"root": str(base), "layout": layout, "hints": []}
    try:
        index = read(root, **options)
    except UserError as error:
        failed = [Problem(str(base), "reader", error.message.removeprefix(f"{base}: "))]
        found = {**_nothing(), "problems": _plain(failed + _loose(base)), "hints": [error.hint]}
        return result | found, None
    problems = index.check(decode=True)
    return result | _measured(index) | {"problems": _plain(problems), "hints": _hints(problems)}, index


def explain(root: str, read: Reader = folder.read, **options: Any) -> "Group":  # noqa: ANN401 - reader's own
    """``report`` for people, as one rich renderable.

    Raises:
        UserError: Like ``report``.
    """
    from rich.console import Group  # noqa: PLC0415 - only needed here
    from rich.text import Text  # noqa: PLC0415

    found, index = _look(root, read, options)
    parts: list[Any] = [Text(line) for line in lines(found)]
    if index is not None:
        parts.insert(1, index.describe())
    return Group(*parts)


def lines(found: dict[str, Any]) -> list[str]:
    """The report as plain lines."""
    layout = "; ".join(f"{name}: {why}" for name, why in found["layout"].items()) or "none recognised"
    text = [f"{found['root']}: layout {layout}"]
    tables = [name for name in ("counts", "sizes", "mask_values") if found[name]]
    text += [name.replace("_", " ") + ": " + _pairs(found[name]) for name in tables]
    for level in ("error", "warning", "notice"):
        entries = [p for p in found["problems"] if p["level"] == level]
        kinds = dict.fromkeys(p["kind"] for p in entries)
        text += [line for kind in kinds for line in _kind_lines(entries, level, kind)]
    return (
        text
        + [f"hint: {hint}" for hint in found["hints"] if hint]
        + ([] if found["problems"] else ["no problems"])
    )


def _pairs(table: dict[str, int]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in table.items())


def _kind_lines(entries: list[dict[str, str]], level: str, kind: str) -> list[str]:
    """One heading, then the first files by name."""
    named = [f"  {p['path']}: {p['detail']}" for p in entries if p["kind"] == kind]
    more = len(named) - SHOWN_PER_KIND
    return [
        f"{level} {kind} ({len(named)}):",
        *named[:SHOWN_PER_KIND],
        *([f"  ... and {more} more"] * (more > 0)),
    ]


def _plain(problems: list[Problem]) -> list[dict[str, str]]:
    return [p.to_dict() for p in problems]


def _nothing() -> dict[str, Any]:
    return {"counts": {}, "classes": [], "tasks": [], "sizes": {}, "mask_values": {}}


def _loose(base: Path) -> list[Problem]:
    """Without an index: still name the files that are no images."""
    return list(scan(base, recursive=True).problems)


def _measured(index: Index) -> dict[str, Any]:
    facts = index.measure(index.samples)
    sizes = Counter(f"{f.height} x {f.width}" for f in facts if f.height)
    shown = dict(sizes.most_common(SHOWN_PER_KIND))
    if len(sizes) > SHOWN_PER_KIND:
        shown["other sizes"] = len(sizes) - SHOWN_PER_KIND
    return {
        "counts": {(name or "(no split)"): count for name, count in index.splits.items()},
        "classes": list(index.classes),
        "tasks": sorted(index.tasks),
        "sizes": shown,
        "mask_values": mask_values(index),
    }


def mask_values(index: Index) -> dict[str, int]:
    """Pixels per stored mask value over the first files; colour masks count as ``colour``."""
    files = {
        r.path: pixel_cap(s)
        for s in index.samples
        for rs in s.regions.values()
        for r in rs
        if r.path is not None
    }
    total: Counter[str] = Counter()
    for path, cap in list(files.items())[:HISTOGRAM_FILES]:
        try:
            values, counts = np.unique(read_index(path, max_pixels=cap), return_counts=True)
        except UserError as error:
            total["colour" if "colour" in error.message else "unreadable"] += 1
            continue
        total.update({str(v): int(n) for v, n in zip(values.tolist(), counts.tolist(), strict=True)})
    if len(total) <= SHOWN_VALUES:
        return dict(sorted(total.items(), key=lambda item: item[0].zfill(6)))
    common = dict(total.most_common(SHOWN_VALUES))
    return {**common, "other values": sum(total.values()) - sum(common.values())}


def _hints(problems: list[Problem]) -> list[str]:
    kinds = {p.kind for p in problems}
    advice = {
        "inverted": "If the masks mark good pixels, set data.reader.mask_invert=true.",
        "wrong-size": "Save every mask at the size of its image, or set data.reader.resize_masks=true.",
        "missing-mask": "Name masks like their images, or add their ending to data.reader.mask_suffixes.",
        "two-masks": "Keep one mask per image, or shorten data.reader.mask_suffixes.",
        "duplicate": "Remove the copies: a score on images that were in the support is worthless.",
    }
    hints = [text for kind, text in advice.items() if kind in kinds]
    if any(p.level == "error" for p in problems):
        hints.append("data.on_bad_file=skip runs without the files that have errors.")
    return hints
