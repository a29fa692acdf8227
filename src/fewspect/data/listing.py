"""Which files of a folder are images: sorted, case-insensitive, blind to the litter of operating systems."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fewspect.data.problems import Problem
from fewspect.errors import UserError

IMAGE_ENDINGS = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".tif",
        ".tiff",
        ".bmp",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".jp2",
    }
)
MASK_ENDINGS = IMAGE_ENDINGS | {".npy"}
UNSUPPORTED = frozenset(
    {".heic", ".heif", ".avif", ".dcm", ".exr", ".cr2", ".nef", ".arw", ".dng", ".raw", ".psd", ".svg"}
)
"""Picture formats that users have and we have no decoder for."""

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True, slots=True)
class Listing:
    """Content of one folder.

    Attributes:
        images: Sorted by name.
        problems: Dangling links, unreadable folders, pictures without a decoder.
        ignored: Number of other files (text, archives, tables).
        deeper: Number of images left out because they lie in sub-folders.
    """

    images: tuple[Path, ...] = ()
    problems: tuple[Problem, ...] = ()
    ignored: int = 0
    deeper: int = 0


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Return the image files of ``folder``, sorted; see ``scan`` for what was left out."""
    return list(scan(folder, recursive=recursive).images)


def scan(folder: str | Path, *, recursive: bool = False, endings: frozenset[str] = IMAGE_ENDINGS) -> Listing:
    """List a folder.

    Links to files are followed, links to folders too unless they lead back to a folder already seen.

    Raises:
        UserError: ``folder`` is missing or a file.
    """
    root = require_folder(folder)
    images: list[Path] = []
    problems: list[Problem] = []
    ignored = deeper = 0
    for path in _walk(root, problems, {root.resolve()}):
        ending = path.suffix.lower()
        if ending in endings and not recursive and path.parent != root:
            deeper += 1
        elif not path.exists():
            problems.append(Problem(str(path), "dangling-link", "link leads nowhere"))
        elif ending in endings:
            images.append(path)
        elif ending in UNSUPPORTED:
            problems.append(Problem(str(path), "unsupported", f"no decoder for {ending} files", "warning"))
        else:
            ignored += 1
    return Listing(tuple(sorted(images)), tuple(problems), ignored, deeper)


def require_folder(folder: str | Path) -> Path:
    """Return ``folder`` as a path.

    Raises:
        UserError: It is missing, or a file.
    """
    path = Path(folder)
    if not path.exists():
        raise UserError(f"{path}: folder not found", "Set data.root to the folder that holds the data set.")
    if not path.is_dir():
        raise UserError(
            f"{path}: is a file, a folder is needed", "Set data.root to the folder that holds the data set."
        )
    return path


def subfolders(folder: Path) -> list[Path]:
    """Visible sub-folders, sorted by name; empty when ``folder`` is none."""
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if not hidden(p) and p.is_dir())
    except PermissionError:  # ``scan`` reports it
        return []


def hidden(path: Path) -> bool:
    """True for names that start with a dot (``._x.jpg``, ``.DS_Store``) and operating-system litter."""
    return path.name.startswith(".") or path.name.lower() in LITTER


def _walk(folder: Path, problems: list[Problem], seen: set[Path]) -> Iterator[Path]:
    """Yield every visible file below ``folder`` once, in sorted order."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        problems.append(Problem(str(folder), "unreadable", f"folder cannot be listed ({error.strerror})"))
        return
    for path in entries:
        if hidden(path):
            continue
        if not path.is_dir():
            yield path
        elif (real := path.resolve()) not in seen:
            seen.add(real)
            yield from _walk(path, problems, seen)
