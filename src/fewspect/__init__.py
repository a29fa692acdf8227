"""Fewspect: few-shot industrial visual inspection with one command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewspect.export.reader import Exported

__version__ = "0.1.0"


def load(folder: Any, *, trust: bool = False) -> "Exported":  # noqa: ANN401 - a path or its text
    """Open what ``mode=export`` has written, see ``export.reader.load``; no configuration, no Hydra."""
    from fewspect.export import reader  # noqa: PLC0415 - --help must not pay for torch

    return reader.load(folder, trust=trust)
