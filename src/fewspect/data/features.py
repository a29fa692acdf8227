"""The feature store: what frozen networks said about every item, computed once, shared by heads and shots.

One safetensors file holds the items of one product and one split: ``features`` (N, V, T, D) float16 or
float32 (V views, T tokens; (N, D) and (N, V, D) are read as well), ``labels`` (N,) int64 positions in the
class list (-1 = unknown), and optionally ``text`` (C, D), ``thumbs`` (N, 4, h, w) uint8 (colour and mask of a
small picture). The header holds ``format``, ``classes``, ``config`` (JSON: backbone, views, ...),
``product``, and per item ``ids``, ``groups`` (what a split must not tear apart) and ``paths``, each a JSON
list.

Nothing in a file is ever run: safetensors, or ``torch.load(weights_only=True)`` for caches of the original
MVREC.

Example:
    >>> write(path, FeatureSet(torch.rand(6, 1, 1, 8), torch.arange(6) % 2, ("hole", "scratch")))
    >>> read(path).token("class").shape
    torch.Size([6, 1, 8])
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewspect.data.caches import read_cache
from fewspect.errors import UserError

log = logging.getLogger(__name__)

FORMAT = "fewspect-features-1"
LISTS = ("ids", "groups", "paths", "texts")
Token = Literal["class", "patches", "both", "all"]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features of the items of one product and one split.

    Attributes:
        feature: (N, V, T, D) float16 or float32: item, view, token, width. Not normalised.
        label: (N,) int64 position in ``classes``; -1 = unknown.
        classes: Class names; their order is that of the answers.
        text: (C, D) features of a description of every class, or None.
        thumb: (N, 4, h, w) uint8: small picture of every item and its mask (0 or 255), or None.
        ids: One name per item, or empty.
        groups: Per item, what an episode must not tear apart (same tile, same part); empty text = alone.
        paths: Image file per item, or empty.
        texts: Description per class, or empty.
        product: The inspected object.
        config: How the features were made (backbone, views, ...); plain values.
    """

    feature: Tensor
    label: Tensor
    classes: tuple[str, ...]
    text: Tensor | None = None
    thumb: Tensor | None = None
    ids: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    product: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __len__(self) -> int:
        return len(self.label)

    @property
    def counts(self) -> dict[str, int]:
        """Number of items per class, in class order."""
        found = torch.bincount(self.label[self.label >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))

    def token(self, which: Token = "class") -> Tensor:
        """Features (N, V, D'): class token, mean of the patch tokens, both side by side, or every token."""
        return chosen(self.feature, which)

    def take(self, places: Sequence[int]) -> "FeatureSet":
        """The items at these places, in this order."""
        at = torch.as_tensor(list(places), dtype=torch.int64)
        lists = {k: tuple(v[i] for i in places) for k in LISTS[:3] if (v := getattr(self, k))}
        thumb = None if self.thumb is None else self.thumb[at]
        return replace(self, feature=self.feature[at], label=self.label[at], thumb=thumb, **lists)

    def only(self, classes: Sequence[str]) -> "FeatureSet":
        """The items of these classes, labelled by this list; items whose class is unknown are left out."""
        place = {self.classes.index(name): k for k, name in enumerate(classes) if name in self.classes}
        kept = self.take([i for i, k in enumerate(self.label.tolist()) if k in place])
        text = None if self.text is None else self.text[[self.classes.index(c) for c in classes]]
        texts = tuple(self.texts[self.classes.index(c)] for c in classes) if self.texts else ()
        label = torch.tensor([place[k] for k in kept.label.tolist()], dtype=torch.int64)
        return replace(kept, label=label, classes=tuple(classes), text=text, texts=texts)


def chosen(tokens: Tensor, which: Token) -> Tensor:
    """``FeatureSet.token`` of tokens (N, V, T, D)."""
    if which == "class" or tokens.shape[2] == 1:
        return tokens[:, :, 0]
    if which == "all":
        return tokens.flatten(2)
    patches = tokens[:, :, 1:].float().mean(2).to(tokens.dtype)  # (N, V, D)
    return patches if which == "patches" else torch.cat([tokens[:, :, 0], patches], -1)


def check(made: FeatureSet, where: str) -> FeatureSet:
    """Demand consistent shapes, finite numbers and labels within the class list.

    Raises:
        UserError: Says what does not fit.
    """
    feature, label, number = made.feature, made.label, len(made.label)
    problems = [
        (feature.ndim != 4 or not feature.is_floating_point(), f"features are {_kind(feature)}"),
        (label.ndim != 1 or len(feature) != number, f"{len(feature)} features, {number} labels"),
        (not number or not made.classes, f"{number} items of {len(made.classes)} classes"),
        (len(set(made.classes)) < len(made.classes), "a class is listed twice"),
        (made.text is not None and len(made.text) != len(made.classes), "one text feature per class needed"),
        (bool(made.texts) and len(made.texts) != len(made.classes), "one text per class needed"),
        (made.thumb is not None and len(made.thumb) != number, "one small picture per item needed"),
    ]
    problems += [
        (bool(getattr(made, k)) and len(getattr(made, k)) != number, f"{len(getattr(made, k))} {k}")
        for k in LISTS[:3]
    ]
    found = [text for wrong, text in problems if wrong]
    if not found and (label.min() < -1 or label.max() >= len(made.classes)):
        found = [f"labels from {label.min()} to {label.max()} for {len(made.classes)} classes"]
    if not found and not bool(torch.isfinite(feature).all()):
        found = ["some features are not finite numbers"]
    if found:
        raise UserError(f"{where}: not a usable feature file: {'; '.join(found)}.", _HINT)
    return made


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


_HINT = "Expected: features (N, views, tokens, width), labels (N,), header 'classes'; see data/features.py."


# -- files ---------------------------------------------------------------------------------------------------


def write(path: Path | str, made: FeatureSet) -> None:
    """Write a feature file, whole or not at all.

    Raises:
        UserError: The content is inconsistent, see ``check``.
    """
    check(made, str(path))
    path = Path(path)
    tensors = {"features": made.feature, "labels": made.label, "text": made.text, "thumbs": made.thumb}
    header = {"format": FORMAT, "classes": json.dumps(made.classes), "product": made.product}
    header["config"] = json.dumps(made.config, sort_keys=True, default=str)
    header |= {k: json.dumps(getattr(made, k)) for k in LISTS if getattr(made, k)}
    kept = {k: v.contiguous() for k, v in tensors.items() if v is not None}
    header["content"] = _content(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    try:
        save_file(kept, part, header)
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


def read(path: Path | str) -> FeatureSet:
    """Read a feature file (``.safetensors``), or a cache of the original MVREC (``.pt``).

    Raises:
        UserError: Missing, damaged, or not a feature file; names it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"{path}: no such feature file.", "Set data.support and data.query to existing files."
        )
    if path.suffix in (".pt", ".pth"):
        feature, label, classes = read_cache(path)
        return check(FeatureSet(_four(feature), label, classes, config={"cache": "original"}), str(path))
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}).", "Write it again.") from error
    if not {"features", "labels"} <= set(tensors):
        names = ", ".join(tensors) or "nothing"
        raise UserError(f"{path}: holds {names}, no 'features' and 'labels'.", _HINT)
    lists = {k: tuple(str(v) for v in _json(header, k, path, list)) for k in ("classes", *LISTS)}
    made = FeatureSet(
        _four(tensors["features"]),
        tensors["labels"].long(),
        text=tensors.get("text"),
        thumb=tensors.get("thumbs"),
        product=header.get("product") or header.get("object", ""),
        config=_config(header, path),
        **lists,  # type: ignore[arg-type]
    )
    if "content" in header and header["content"] != _content(tensors):
        raise UserError(f"{path} is damaged: its content is not what was written.", "Write it again.")
    return check(made, str(path))


def kept(path: Path | None, make: Callable[[], FeatureSet]) -> FeatureSet:
    """Features from a cache file, or made and kept there; a damaged file or a full disk costs only time.

    Args:
        path: The file; None = no cache.
        make: Makes the features.
    """
    if path is not None and path.is_file():
        try:
            return read(path)
        except UserError as error:
            log.warning("%s The features are made anew.", error.message)
    made = make()
    if path is not None:
        try:
            write(path, made)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written (%s): the features are not kept.", path, error)
    return made


def _content(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names and values."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _four(feature: Tensor) -> Tensor:
    """(N, D) and (N, V, D) with one view and one token where they say nothing of them."""
    if feature.ndim == 2:
        return feature[:, None, None]
    return feature[:, :, None] if feature.ndim == 3 else feature


def _json(header: Mapping[str, str], key: str, path: Path, kind: type) -> Any:  # noqa: ANN401
    try:
        value = json.loads(header[key]) if key in header else kind()
    except ValueError as error:
        raise UserError(f"{path}: '{key}' of its header is not JSON ({error}).", _HINT) from error
    if not isinstance(value, kind):
        raise UserError(f"{path}: '{key}' of its header is not a {kind.__name__}.", _HINT)
    return value


def _config(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    """How the features were made; foreign files say it in single words."""
    known = {k: header[k] for k in ("backbone", "views", "tokens") if k in header}
    return _json(header, "config", path, dict) if "config" in header else known


def require_alike(support: FeatureSet, query: FeatureSet, where: tuple[str, str]) -> None:
    """Demand that two sets can be compared.

    Raises:
        UserError: Other widths, views or tokens, or another backbone; names both.
    """
    shapes = [tuple(s.feature.shape[1:]) for s in (support, query)]
    if shapes[0] != shapes[1]:
        told = " and ".join(
            f"{w} has {v} views x {t} tokens x width {d}" for w, (v, t, d) in zip(where, shapes, strict=True)
        )
        raise UserError(f"The features do not belong together: {told}.", "Use files of one backbone.")
    made = [s.config.get("backbone") for s in (support, query)]
    if None not in made and made[0] != made[1]:
        raise UserError(
            f"The features come from two backbones: {where[0]} from {made[0]}, {where[1]} from {made[1]}.",
            "Use files of one backbone.",
        )
