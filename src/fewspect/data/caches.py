"""Feature caches that the original MVREC released: ``torch.save`` files, read without running anything.

Their inner layout is not documented. What is understood: a mapping (or pair) of one feature tensor and as
many labels, or a list of items, each a mapping or pair of a feature tensor (V, T, D) and a label. Labels are
whole numbers or class names. Anything else is refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn import loading

LABEL_KEYS = ("label", "labels", "y", "target", "targets", "cls", "class", "class_name")
NAME_KEYS = ("classes", "class_names", "label_names")

Content = tuple[Tensor, Tensor, tuple[str, ...]]
"""Features (N, ...), labels (N,) and class names."""


def read_cache(path: Path) -> Content:
    """Read one cache.

    Returns:
        Features (N, V, T, D) or with fewer axes, labels (N,) as positions in the class names.

    Raises:
        UserError: The file cannot be read safely, or holds something else.
    """
    content = loading.content(path)
    names = _names(content)
    found = _whole(content) or _items(content)
    if found is None:
        raise UserError(
            f"{path}: no feature tensor with as many labels in it.",
            "Expected: a mapping of features and labels, or a list of such items; see data/caches.py.",
        )
    features, labels = found
    return (features, *_numbered(labels, names))


def _names(content: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever the file holds
    if not isinstance(content, Mapping):
        return ()
    value = next((content[k] for k in NAME_KEYS if k in content), ())
    return tuple(str(v) for v in value) if isinstance(value, list | tuple) else ()


def _split(item: Any) -> tuple[Tensor, Any] | None:  # noqa: ANN401
    """Feature tensor and what labels it, of a mapping or a pair."""
    if isinstance(item, Mapping):
        lower = {str(k).lower(): v for k, v in item.items()}
        label = next((lower[k] for k in LABEL_KEYS if k in lower), None)
        floats = [v for v in lower.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim]
        return (floats[0], label) if len(floats) == 1 and label is not None else None
    if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], Tensor):
        return (item[0], item[1]) if item[0].is_floating_point() else None
    return None


def _whole(content: Any) -> tuple[Tensor, list[int | str]] | None:  # noqa: ANN401
    """One tensor of all features beside all labels."""
    found = _split(content)
    if found is None:
        return None
    labels = found[1].tolist() if isinstance(found[1], Tensor) else found[1]
    fits = isinstance(labels, list | tuple) and len(labels) == len(found[0]) and found[0].ndim > 1
    return (found[0], list(labels)) if fits else None


def _items(content: Any) -> tuple[Tensor, list[int | str]] | None:  # noqa: ANN401
    """A list of items, one feature tensor each."""
    rows = list(content.values()) if isinstance(content, Mapping) else content
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        return None
    pairs = [_split(row) for row in rows]
    if any(p is None for p in pairs):
        return None
    features = [p[0] for p in pairs if p is not None]
    labels: list[Any] = [p[1].tolist() if isinstance(p[1], Tensor) else p[1] for p in pairs if p]
    if len({f.shape for f in features}) > 1 or not all(isinstance(x, int | str) for x in labels):
        return None
    return torch.stack(features), labels


def _numbered(labels: list[int | str], names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Positions and names; names that are nowhere given are the numbers themselves, or sorted."""
    if all(isinstance(x, int) for x in labels):
        names = names or tuple(f"class_{k}" for k in range(max(int(x) for x in labels) + 1))
        return torch.tensor([int(x) for x in labels]), names
    names = names or tuple(sorted({str(x) for x in labels}))
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place.get(str(x), -1) for x in labels]), names
