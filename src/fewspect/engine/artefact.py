"""``mode=export``: one file that answers images by itself, written only after it has been seen to agree.

What is exported answers as ``mode=predict`` does: for a few-shot method with the supports of its first
question about a product and class (``export.of``), for a detector with what it has learned about a product.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewspect.callbacks.record import versions
from fewspect.data import instances
from fewspect.data.describing import Describer
from fewspect.data.module import DataModule
from fewspect.engine import folders
from fewspect.errors import UserError
from fewspect.export import making, parity, reader
from fewspect.export.reader import ABOUT, Exported
from fewspect.methods.base import Method
from fewspect.methods.graphs import FeatureGraph, Graph, InstanceGraph
from fewspect.types import Episode, Prediction

log = logging.getLogger(__name__)

DTYPES = {"image": "uint8", "mask": "uint8", "box": "float32", "feature": "float32"}
MEANING = {
    "image": "(3, height, width), R G B, original size",
    "mask": "(height, width), 0 to 255: the instance",
    "box": "x1, y1, x2, y2 of the instance in pixels",
    "feature": "(items, views, width)",
    "map": "(height, width), higher = more likely defective; never clamped",
    "score": "of the image, never clamped; classifiers: (items,)",
    "decision": "1 = defective",
    "probability": "(items, classes)",
    "label": "position in classes from 1 on; -1 = none of them",
}

Case = tuple[dict[str, Tensor], Prediction]
"""Inputs of one question, and what the run answers."""


def export(
    data: DataModule, method: Method, folder: Path, kind: making.Format, *, of: str | None, samples: int
) -> parity.Parity:
    """Write ``model.*`` and ``export.json`` into a folder.

    Args:
        data: The data of the run: supports, and images to compare on.
        method: With its weights.
        folder: Where to write.
        kind: ``onnx`` or ``torch_export``.
        of: ``product`` or ``product/class``; None = the only one there is.
        samples: How many images are compared; of several sizes where there are.

    Raises:
        UserError: The method cannot be exported, it is not said what is meant, or the answers differ.
    """
    method.eval()
    episodes = _questions(data)
    if type(method).exported is Method.exported:
        method.exported(episodes[0])  # says why not
    asked = _chosen(episodes, of, by_product=data.protocol == "plain")
    with torch.no_grad():
        graph, cases = _graph(data, method.exported(asked[0]), asked, method, samples)
        graph.eval()
        found = list(cases)
    if not found:
        raise UserError("There is no image to compare the exported model on.", "Name data with test images.")
    target = folder / making.FILES[kind]
    part = target.with_name(f".part-{target.name}")
    about = _about(graph, asked[0], method, kind)
    try:
        log.info("making %s", target.name)
        example = max((inputs for inputs, _ in found), key=lambda i: i[graph.about.inputs[0]].numel())
        making.write(graph, [_example(example[name], name, graph) for name in graph.about.inputs], part, kind)
        exported = Exported(about, reader.opened(part, kind, list(graph.about.inputs)))
        agreed = parity.compare(_pairs(exported, found), about["threshold"].get("image"))
        agreed.require()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    told = about | {"sha256": reader.digest(target), "parity": agreed.plain(), "versions": versions()}
    folders.write(folder / ABOUT, json.dumps(told, indent=2, ensure_ascii=False))
    return agreed


def _questions(data: DataModule) -> list[Episode]:
    """All that ``mode=predict`` would ask; lazily read, so only what is looked at costs."""
    return data.dataset("predict")  # type: ignore[return-value] - a sequence of episodes


def _chosen(episodes: Sequence[Episode], of: str | None, *, by_product: bool) -> list[Episode]:
    """The questions about one product (and class)."""
    groups: dict[str, list[Episode]] = {}
    for k in range(len(episodes)):
        episode = episodes[k]
        groups.setdefault(episode.product if by_product else episode.name, []).append(episode)
    names = ", ".join(sorted(groups))
    wanted = [name for name in groups if of in (None, name, name.partition("/")[0])]
    if not wanted:
        raise UserError(f"export.of={of}: there is nothing of that name.", f"There are: {names}.")
    if len(wanted) > 1:
        raise UserError(
            f"An exported model answers one question, this run knows {len(wanted)}.",
            f"Choose with export.of=...: {names}.",
        )
    return groups[wanted[0]]


def _graph(
    data: DataModule, graph: Graph, asked: Sequence[Episode], method: Method, samples: int
) -> tuple[Graph, Iterator[Case]]:
    """What is exported, and the cases to compare."""
    if not isinstance(graph, FeatureGraph):
        return graph, _images(asked, method, samples)
    known = data.source.instances(asked[0].product) if data.protocol == "features" else None
    if known is None:  # features came from files: the model takes features
        return graph, _features(asked[0], method, samples)
    found, bank = known
    drawn = bool(found[0].regions)
    names = ("image", "mask", "box") if drawn else ("image",)
    facts = {"views": {k: v for k, v in bank.config.items() if k not in ("weights", "version")}}
    described = Describer(bank, data.source.options.token, drawn=drawn)
    alike = [i for i in found if bool(i.regions) == drawn]
    return InstanceGraph(described, graph, names, facts), _instances(alike, asked[0], method, data, samples)


def _images(asked: Sequence[Episode], method: Method, samples: int) -> Iterator[Case]:
    for episode in _spread(asked, samples):
        question = replace(asked[0], query_image=episode.query_image, query_mask=episode.query_mask)
        yield {"image": episode.query_image[0]}, method.answers([question])[0]


def _features(episode: Episode, method: Method, samples: int) -> Iterator[Case]:
    assert episode.query_feature is not None, "the contract of this protocol"
    feature = episode.query_feature[:samples].float()
    yield {"feature": feature}, method.answers([replace(episode, query_feature=feature)])[0]


def _instances(
    found: Sequence[instances.Instance], episode: Episode, method: Method, data: DataModule, samples: int
) -> Iterator[Case]:
    known = data.source.instances(episode.product)
    assert known is not None, "looked up before"
    for instance in _spread(found, samples):
        picture = instances.load(instance)
        feature = known[1].compute([instance], episode.classes, episode.product)
        question = replace(episode, query_feature=feature.token(data.source.options.token).float())
        given = {"image": picture.image, "mask": picture.mask, "box": torch.tensor(picture.box)}
        yield given if instance.regions else {"image": picture.image}, method.answers([question])[0]


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    """At most so many of a list, evenly."""
    count = max(1, min(number, len(items)))
    return [items[k * len(items) // count] for k in range(count)]


def _example(value: Tensor, name: str, graph: Graph) -> Tensor:
    """An input whose open axes equal no constant of the graph, so that nothing is taken for fixed."""
    if name == "feature":
        return value.repeat(3, 1, 1)[:3]
    if name == "box":
        return value
    least = graph.about.least
    height, width = (max(least + 1, n) + extra for n, extra in zip(value.shape[-2:], (3, 11), strict=True))
    rows, columns = (torch.arange(n) % m for n, m in zip((height, width), value.shape[-2:], strict=True))
    return value[..., rows, :][..., columns].contiguous()


def _pairs(
    exported: Exported, cases: Sequence[Case]
) -> Iterator[tuple[Prediction, Prediction, tuple[int, ...]]]:
    for given, expected in cases:
        first = given.get("image", given.get("feature"))
        assert first is not None, "every graph takes one of the two"
        answer = exported(first, given.get("mask"), given.get("box"))
        yield expected, answer, tuple(first.shape[-2:])


def _about(graph: Graph, episode: Episode, method: Method, kind: str) -> dict[str, Any]:
    """``export.json`` without digest and figures."""
    about = graph.about

    def told(name: str) -> dict[str, str]:
        meaning = "(height, width), non-zero = defective" if name == "mask" else MEANING[name]
        return {"name": name, "meaning": meaning}

    return {
        "format_version": reader.FORMAT,
        "format": kind,
        "model": making.FILES[kind],
        "method": type(method).__name__,
        "product": episode.product,
        "classes": list(about.classes),
        "inputs": [{"name": n, "dtype": DTYPES[n], "meaning": MEANING[n]} for n in about.inputs],
        "outputs": [told(n) for n in about.outputs],
        "least_side": max(2, about.least),
        "largest_side": making.LARGEST,
        "threshold": {},
        **about.facts,
    }
