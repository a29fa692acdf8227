"""Files that are whole or absent, and file names that are safe and never collide."""

import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MAX_BYTES = 150
"""Longest file name without ending, in UTF-8 bytes (file systems allow 255 with ending)."""
UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write through a temporary file in the same folder: readers see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)  # noqa: PTH105 - Path.replace is the same call
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """A hidden folder to fill; it takes the place of ``path`` (absent or empty) when the block ends.

    If the block raises, nothing of it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        work.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        yield work
        if path.exists():
            path.rmdir()
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def digest(text: str) -> str:
    """Eight hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def safe_name(text: str) -> str:
    """Turn any text into one path component that every file system takes; cut names end with a hash."""
    text = text.encode("utf-8", "replace").decode()
    name = UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip(" ").rstrip(".") or "_"
    name = f"_{name}" if RESERVED.fullmatch(name) or name.startswith(".") else name
    if len(name.encode()) <= MAX_BYTES:
        return name
    return f"{name.encode()[: MAX_BYTES - 9].decode(errors='ignore')}-{digest(text)}"


class Names:
    """Hands out file names: the plain name first, with a hash of its origin when that is taken.

    Args:
        always: Append the hash every time, so that processes that do not know of each other agree.
    """

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self.taken: dict[str, str] = {}

    def __call__(self, text: str, origin: str) -> str:
        """Name for ``text``; ``origin`` tells apart what may share it (same origin = same name)."""
        name = safe_name(text)
        tries = [f"{name}-{digest(origin)}"] if self.always else [name, f"{name}-{digest(origin)}"]
        tries += [f"{name}-{digest(f'{origin}#{k}')}" for k in range(9)]
        for candidate in tries:
            if self.taken.setdefault(candidate.casefold(), origin) == origin:
                return candidate
        raise AssertionError(name)  # nine collisions of a 32-bit hash
