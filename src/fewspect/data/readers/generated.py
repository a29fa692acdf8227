"""Data sets that ``mode=generate`` has written: their manifest names the classes of the index masks."""

import json
from pathlib import Path

from fewspect.errors import UserError

MANIFEST = "manifest.json"
KIND = "fewspect-generated"
FORMAT = 1


def generated(base: Path) -> tuple[str, ...]:
    """Class names in label order; empty where the folder is no generated data set.

    Raises:
        UserError: It is one, but of a newer format, or its class names are no texts.
    """
    try:
        content = json.loads((base / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return ()
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return ()
    names = content.get("classes")
    if content.get("format") != FORMAT or not isinstance(names, list) or not names:
        raise UserError(f"{base / MANIFEST}: not of format {FORMAT}.", "Generate the data set again.")
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{base / MANIFEST}: class names are texts.", "Generate the data set again.")
    return tuple(names)
