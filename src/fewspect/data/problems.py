"""What is wrong with a folder, as values: collected first, reported once, by name."""

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
