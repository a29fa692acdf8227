"""What is wrong with a folder, as values: collected first, reported once, by name."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["error", "warning", "notice"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about one file.

    Attributes:
        path: The file (for a sample: its image).
        kind: Short machine-readable name, e.g. ``unreadable`` or ``wrong-size``.
        detail: One sentence for people.
        level: ``error``: cannot be used; ``warning``: usable but suspicious; ``notice``: how it was read.
    """

    path: str
    kind: str
    detail: str
    level: Level = "error"

    def __str__(self) -> str:
        """One line for a report."""
        return f"{self.path}: {self.detail} [{self.kind}]"

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return asdict(self)


def summary(problems: Iterable[Problem], where: str) -> list[tuple[Level, str]]:
    """One line per level and kind: the first, and how many more there are, with a word on ``where``."""
    kinds: dict[tuple[Level, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.level, problem.kind].append(problem)
    return [(level, _line(found, where)) for (level, _), found in kinds.items()]


def _line(found: list[Problem], where: str) -> str:
    first = str(found[0]).removeprefix(": ")
    return f"{first}, and {len(found) - 1} more ({where})" if len(found) > 1 else first
