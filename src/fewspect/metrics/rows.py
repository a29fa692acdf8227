"""Metric state that is a table of integers: mergeable, exact and independent of which process saw what.

A few-shot test meets an unknown number of classes, and under DDP every process meets other ones. Therefore
nothing here is indexed by a class number. Every row carries the 62-bit hash of its class name, and a
second state holds the spelled names as integers, so that gathering both tables is all that the processes
must do to agree.

Letters: N rows, C columns.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from fewspect.types import Episode

NAME_WORDS = 63
"""Longest name that is spelled in full: 63 integers of 8 bytes; longer ones are cut, their hash is not."""


BLOCK = 128
"""Rows that are allocated at once. A small tensor kept for every image would lie between the large ones that
come and go, and glibc then takes new memory for every image (measured: 0.8 MB for each of 1024 x 1024)."""

EMPTY = -1
"""First column of a row that is allocated but not used; hashes are not negative."""


def name_hash(name: str) -> int:
    """Hash a name to 62 bits, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 2


def encode_name(name: str) -> list[int]:
    """Spell a name as one row: its hash, then ``NAME_WORDS`` integers of UTF-8 bytes."""
    data = name.encode("utf-8", "replace")[: 8 * NAME_WORDS].ljust(8 * NAME_WORDS, b"\0")
    return [name_hash(name), *np.frombuffer(data, dtype="<i8").tolist()]


def decode_names(rows: np.ndarray) -> dict[int, str]:
    """Read the rows of ``encode_name``, (N, 1 + NAME_WORDS), as hash -> name."""
    spelled = {int(row[0]): row[1:].astype("<i8").tobytes().rstrip(b"\0") for row in rows}
    return {key: data.decode("utf-8", "ignore") for key, data in spelled.items()}


def class_name(episode: Episode) -> str:
    """Name of the few-shot class that an episode counts for (``product/class``)."""
    return episode.name.strip("/") or "all"


def product_name(episode: Episode) -> str:
    """Name under which an episode is ranked: scores are comparable within one product only."""
    return episode.product or class_name(episode)


def query_key(episode: Episode, position: int) -> int:
    """Identity of one query image, so that repeats with other supports are known to share it."""
    if position < len(episode.paths):
        return name_hash(episode.paths[position])
    return name_hash(f"{episode.index}/{position}")


class RowMetric(Metric):
    """Base of metrics whose states are integer tables, gathered by concatenation.

    A process that saw nothing holds tables of zero rows (not empty lists): collective calls stay aligned.
    ``compute`` leaves ``table`` (plain rows per class) and ``notes`` (sentences on what is missing) behind.

    Attributes:
        title: Heading of a table of its own; empty = the rows belong to the main table.
        shown: Columns that are printed; None = all. Records and loggers have all of them.
    """

    title = ""
    shown: tuple[str, ...] | None = None

    higher_is_better = True
    full_state_update = False
    names: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._widths: dict[str, int] = {}
        self._open: dict[str, tuple[Tensor, int]] = {}  # block that is being filled, rows in use
        self._seen: set[int] = set()
        self.table: list[dict[str, str | int | float]] = []
        self.notes: list[str] = []
        self.add_table("names", 1 + NAME_WORDS)

    def add_table(self, name: str, width: int) -> None:
        """Declare a state of (N, width) int64 rows."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._widths[name] = width
        self._seed(name)

    def _seed(self, name: str) -> None:
        setattr(self, name, [torch.zeros(0, self._widths[name], dtype=torch.int64, device=self.device)])

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._seen.clear()
        self._open.clear()
        self.table, self.notes = [], []
        for name in self._widths:
            self._seed(name)

    def keep(self, name: str, rows: Tensor) -> None:
        """Append (N, width) rows, whose first column is not negative, to a state."""
        rows = rows.to(self.device)
        while len(rows):
            block, used = self._block(name)
            part = rows[: BLOCK - used]
            block[used : used + len(part)] = part
            self._open[name] = block, used + len(part)
            rows = rows[len(part) :]

    def _block(self, name: str) -> tuple[Tensor, int]:
        """A block with room; a new one if it is full or the state was replaced (moved, gathered, reset)."""
        blocks, found = getattr(self, name), self._open.get(name)
        if found is not None and found[1] < BLOCK and any(found[0] is block for block in blocks):
            return found
        blocks.append(torch.full((BLOCK, self._widths[name]), EMPTY, dtype=torch.int64, device=self.device))
        return blocks[-1], 0

    def learn(self, name: str) -> int:
        """Return the hash of a class name; the first time, store its spelling too."""
        key = name_hash(name)
        if key not in self._seen:
            self._seen.add(key)
            self.keep("names", torch.tensor([encode_name(name)]))
        return key

    def read(self, name: str) -> np.ndarray:
        """Return a state as one (N, C) array, whether it is local (list) or gathered (tensor)."""
        state = getattr(self, name)
        rows = (torch.cat(list(state)) if isinstance(state, list) else state).cpu().numpy()
        used = rows[:, 0] != EMPTY
        return rows if used.all() else rows[used]
