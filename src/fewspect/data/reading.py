"""From a reader and the options of a data module to the call that reads the data set."""

import inspect
from collections.abc import Callable
from typing import Any

from fewspect.data.index import Index
from fewspect.errors import UserError


def reading(reader: Callable[..., Index] | None, **options: Any) -> Callable[[], Index]:  # noqa: ANN401
    """Return the reader with those options that are given and that it takes.

    Raises:
        UserError: ``category`` is asked of a reader that knows no products, ``fold`` of one without folds.
    """
    if reader is None:
        return _without_images
    if options.get("category") == "all":
        options["category"] = None
    given = {k: v for k, v in options.items() if v is not None}
    taken = inspect.signature(reader).parameters
    if "category" in given and "category" not in taken:
        raise UserError(
            f"data.category={given['category']}: this data set is not divided into categories.",
            "Leave data.category out.",
        )
    if "fold" in given and "fold" not in taken:
        raise UserError(f"data.fold={given['fold']}: this data set has no folds.", "Leave data.fold out.")
    return lambda: reader(**{k: v for k, v in given.items() if k in taken})


def _without_images() -> Index:
    raise UserError(
        "This data set holds features, no images.", "Choose a method with data.protocol=features."
    )
