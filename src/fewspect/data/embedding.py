"""Features of whole images by a frozen backbone as a feature store, computed once per files and weights.

Two tokens per image: the class token (mean of the patch tokens where a network has none), and the deviation
of the patch tokens, which tells textures apart; the layers of a backbone lie side by side.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewspect.data import features
from fewspect.data.facts import pixel_options
from fewspect.data.features import FeatureSet
from fewspect.data.index import Index, load_image
from fewspect.errors import UserError
from fewspect.nn.loading import digest
from fewspect.nn.windows import squash
from fewspect.types import Sample

log = logging.getLogger(__name__)

BATCH = 32


def embedded(index: Index, backbone: nn.Module, *, side: int, cache: str | None = None) -> FeatureSet:
    """Features of all images that are labelled with a class; good and unlabelled ones are left out.

    Args:
        index: The images; classes are called ``product/class`` where there are several products.
        backbone: Any backbone of the framework.
        side: Side in pixels to which images are squashed.
        cache: Folder of feature files; None = none.

    Raises:
        UserError: No image is labelled with a class, or one is unreadable.
    """
    samples = [s for s in index.samples if s.label > 0]
    if not samples:
        raise UserError("No image is labelled with a class.", "Run mode=check to see the data set.")
    config = {"backbone": getattr(backbone, "name", type(backbone).__name__), "side": side}
    path = Path(cache) / f"{_key(index, samples, backbone, config)}.safetensors" if cache else None
    return features.kept(path, lambda: _made(index, samples, backbone, config))


def _made(index: Index, samples: Sequence[Sample], backbone: nn.Module, config: dict[str, Any]) -> FeatureSet:
    several = len({s.product for s in samples}) > 1
    names = [
        f"{s.product}/{index.classes[s.label - 1]}" if several else index.classes[s.label - 1]
        for s in samples
    ]
    classes = tuple(sorted(set(names)))
    log.info("features of %d images by %s", len(samples), config["backbone"])
    parts = []
    with torch.inference_mode():
        for start in range(0, len(samples), BATCH):
            views = [squash(load_image(s), int(config["side"])) for s in samples[start : start + BATCH]]
            parts.append(tokens(backbone(torch.stack(views))))
    return FeatureSet(
        torch.cat(parts)[:, None].clone(),  # (N, 1, 2, D)
        torch.tensor([classes.index(n) for n in names]),
        classes,
        groups=tuple(s.group for s in samples),
        paths=tuple(str(s.image) for s in samples),
        config=config,
    )


def tokens(found: Any) -> Tensor:  # noqa: ANN401 - the contract's Features, which data may not import
    """Two tokens (B, 2, D) of a backbone's answer."""
    deviation = torch.cat([t.float().std(1) for t in found.tokens], -1)
    heads = found.cls if found.cls is not None else [t.float().mean(1) for t in found.tokens]
    first = torch.cat([h.float() for h in heads], -1)
    if first.shape != deviation.shape:  # an embedding of its own width stands alone
        return first[:, None]
    return torch.stack([first, deviation], 1)


def _key(index: Index, samples: Sequence[Sample], backbone: nn.Module, config: dict[str, Any]) -> str:
    """Name of the cache: files by path, size and time of change, how they are read; weights by values."""
    sha = hashlib.sha256(repr((sorted(config.items()), digest(backbone))).encode())
    for s in samples:
        facts = s.image.stat()
        told = (str(s.image), index.classes[s.label - 1], s.product, s.group, *pixel_options(s))
        sha.update(repr((*told, facts.st_size, facts.st_mtime_ns)).encode())
    return sha.hexdigest()[:32]
