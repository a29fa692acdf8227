"""Class texts as vectors: what the zero-shot side conditions on.

``Ngrams`` needs no download and understands nothing: it counts hashed words and letter groups, so that texts
are close when they share words or stems ("dark spots", "dark spotted"). Synonyms are strangers to it. It has
nothing
in common with images: what its vectors look like on pictures must be learned from classes with images.

Letters: C classes, T width.

Example:
    >>> Ngrams(dim=64)([["a thin dark line"], ["a long dark line", "a hairline crack"]]).shape
    torch.Size([2, 64])
"""

import re
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.backbones.clip import TextTower
from fewspect.errors import UserError

STOP = frozenset(
    ("a", "an", "the", "of", "on", "in", "and", "or", "to", "with", "over", "into", "from", "by", "at")
)
"""Words that say nothing about a surface."""

LETTERS = (3, 4, 5)
"""Lengths of letter groups."""

Texts = Sequence[Sequence[str]]
"""Per class one or more descriptions."""


class TextEncoder:
    """Base of all text encoders.

    Attributes:
        name: Identity, part of cache keys and reports.
        partner: Name of the image backbone whose features live in the same space; empty = none does.
    """

    name = ""
    partner = ""

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """One description as a vector (T,)."""

    def __call__(self, texts: Texts) -> Tensor:
        """Mean direction (C, T) of each class's descriptions, length 1.

        Raises:
            UserError: A class without any text.
        """
        if empty := [k for k, group in enumerate(texts) if not any(t.strip() for t in group)]:
            raise UserError(f"Class {empty[0]} has no text.", "Give it a name or a description.")
        rows = [
            torch.stack([F.normalize(self.encode(t), dim=0) for t in group if t.strip()]).mean(0)
            for group in texts
        ]
        return F.normalize(torch.stack(rows), dim=-1)


class Ngrams(TextEncoder):
    """Hashed words and letter groups.

    Args:
        dim: Width T.
        letters: Weight of letter groups beside words.

    Raises:
        UserError: No width.
    """

    def __init__(self, dim: int = 256, letters: float = 0.5) -> None:
        if dim < 1:
            raise UserError(f"encoder.dim={dim} is no width.", "Give e.g. 256.")
        self.dim, self.letters = dim, letters
        self.name = f"ngrams{dim}_{letters:g}"

    def encode(self, text: str) -> Tensor:
        """Counts (dim,) by hash, the square root of each; a hash gives place and sign."""
        words = [w for w in re.findall(r"\w+", text.lower().replace("_", " ")) if w not in STOP]
        words = words or re.findall(r"\w+", text.lower()) or [text]
        counts = Counter({f"w:{w}": 1.0 for w in words})
        for word in words:
            marked = f"<{word}>"
            groups = [marked[i : i + n] for n in LETTERS for i in range(len(marked) - n + 1)]
            for group in groups:
                counts[f"l:{group}"] += self.letters / len(groups) ** 0.5
        vector = torch.zeros(self.dim)
        for key, count in counts.items():
            place = zlib.crc32(key.encode())
            vector[place % self.dim] += (1 if place >> 31 else -1) * count**0.5
        return vector


TEMPLATES = (
    "a photo of {}.",
    "a close-up photo of {}.",
    "a cropped photo of {}.",
    "a grey-scale photo of {}.",
    "a blurry photo of {}.",
    "a close-up of a metal surface with {}.",
    "a photo of a surface defect: {}.",
)
"""Sentences around a description whose directions are averaged."""


class ClipText(TextEncoder):
    """CLIP's text tower with an ensemble of sentences; comparable with the image tower of the same name.

    Args:
        name: As that of the image backbone, e.g. ``clip_vitb32``.
        weights: See ``backbones.clip``; the same file as the image tower's.
        sha256: Expected digest of the file, or the beginning of it.
        templates: Sentences with one ``{}``; the paper's is ``a photo of a {}``.

    Raises:
        UserError: A sentence without a place, or weights that are missing or do not fit.
    """

    def __init__(
        self,
        name: str = "clip_vitb32",
        weights: str | None = None,
        *,
        sha256: str = "",
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        if wrong := [t for t in templates if t.count("{}") != 1]:
            raise UserError(
                f"encoder.templates: '{wrong[0]}' has no place {{}}.", "Write e.g. 'a photo of {}'."
            )
        self.tower = TextTower(name, weights, sha256=sha256)
        self.name, self.partner, self.templates = name, name, tuple(templates)

    def encode(self, text: str) -> Tensor:
        """Mean direction (D,) of the sentences."""
        found = self.tower([t.replace("{}", text) for t in self.templates])
        return F.normalize(found, dim=-1).mean(0)
