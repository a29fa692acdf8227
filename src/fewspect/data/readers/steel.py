"""Several sets of metal surfaces read as one, so that sources can be held out: NEU, X-SDD, magnetic tiles.

``<root>/neu`` and ``<root>/x_sdd`` (see ``folder``) and ``<root>/magnetic_tile``; what is not there is left
out. Good tiles are left out, too: the question is which defect it is. A product is a source; tiles keep their
groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fewspect.data.index import Index
from fewspect.data.listing import require_folder
from fewspect.data.readers import folder, magnetic_tile
from fewspect.errors import UserError

SOURCES: dict[str, Callable[[str], Index]] = {
    "neu": partial(folder.read, layout="pairs", product="neu"),
    "x_sdd": partial(folder.read, layout="classes", product="x_sdd"),
    "magnetic_tile": magnetic_tile.read,
}


def read(root: str, *, fold: str | None = None, sources: Sequence[str] = tuple(SOURCES)) -> Index:
    """Read all sources below a folder.

    Args:
        root: Folder that holds the sources.
        fold: This source is tested, the others train; None = nothing is held out.
        sources: Which to read.

    Raises:
        UserError: Missing root, no such source, or none of them is there.
    """
    base = Path(require_folder(root))
    if unknown := sorted(({*sources} | ({fold} if fold else set())) - set(SOURCES)):
        raise UserError(f"There is no source {', '.join(unknown)}.", f"Choose from {', '.join(SOURCES)}.")
    found = {name: SOURCES[name](str(base / name)) for name in sources if (base / name).is_dir()}
    if not found or (fold and fold not in found):
        raise UserError(
            f"{base}: no folder {fold or ' or '.join(sources)}.",
            "Set data.root to the folder of the sources.",
        )
    classes = tuple(sorted({c for index in found.values() for c in index.classes}))
    samples = [
        replace(
            s,
            product=name,
            label=1 + classes.index(index.classes[s.label - 1]),
            split="test" if name == fold else "train",
        )
        for name, index in found.items()
        for s in index.samples
        if s.label > 0
    ]
    problems = tuple(p for index in found.values() for p in index.problems)
    return Index(samples, classes, frozenset({"classify"}), problems)  # type: ignore[arg-type]
