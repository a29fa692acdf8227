"""What a classifier said, as rows and pictures: answers per query, confident mistakes, confusion counts.

Pictures need the small images that travel with the features; without them only the confusion counts are
drawn.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from fewspect.callbacks import draw
from fewspect.types import Episode, Prediction

Row = dict[str, str | int | float]

CELL, MARGIN = 56, 12
"""Pixels of a cell of the confusion picture, and around it."""

TILE = 160
MOST_CLASSES = 8
"""So many classes are shown beside a mistake."""


def answers(prediction: Prediction) -> tuple[list[int], list[float]]:
    """Label of every query (from 1; -1 = unknown) and the probability of its likeliest class."""
    assert prediction.logits is not None
    prob, place = prediction.logits.softmax(-1).max(-1)
    label = prediction.extra.get("label", place + 1)
    return [int(k) for k in label.tolist()], [float(p) for p in prob.tolist()]


def class_of(episode: Episode, label: int) -> str:
    """Name of a label."""
    return episode.classes[label - 1] if label > 0 else "unknown"


def answer_rows(episode: Episode, prediction: Prediction) -> list[Row]:
    """One row per query for the table of predictions."""
    labels, probs = answers(prediction)
    names = [*episode.paths, *(f"query_{i:05d}" for i in range(len(episode.paths), len(labels)))]
    score = [0.0] * len(labels) if prediction.score is None else prediction.score.tolist()
    return [
        {
            "file": name,
            "class": episode.product,
            "status": "ok",
            "score": value,
            "decision": class_of(episode, label),
            "probability": round(prob, 6),
            "episode": episode.index,
        }
        for name, value, label, prob in zip(names, score, labels, probs, strict=False)
    ]


class Mistakes:
    """The most confident mistakes of a test, one picture per query.

    Args:
        count: How many are kept.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._seen: set[str] = set()
        self._heap: list[tuple[float, int, int, str, Image.Image]] = []

    def add(self, episode: Episode, prediction: Prediction) -> None:
        """Take the mistakes of one episode; a query that was drawn before is left out."""
        if not episode.query_image.shape[-1]:
            return
        labels, probs = answers(prediction)
        truth = episode.query_label.tolist()
        wrong = [q for q, (a, b) in enumerate(zip(labels, truth, strict=True)) if b >= 0 and a != (b or -1)]
        for q in sorted(wrong, key=lambda q: -probs[q]):
            name = episode.paths[q] if q < len(episode.paths) else f"{episode.product}#{q}"
            full = len(self._heap) == self.count
            if name in self._seen or (full and probs[q] <= self._heap[0][0]):
                continue
            self._seen.add(name)
            push = heapq.heapreplace if full else heapq.heappush
            push(self._heap, (probs[q], -episode.index, -q, name, mistake(episode, q, labels[q], probs[q])))

    def page(self) -> Image.Image | None:
        """All of them below each other, the most confident first; None when there is none."""
        worst = sorted(self._heap, key=lambda entry: entry[:3], reverse=True)
        return draw.sheet([entry[4] for entry in worst]) if worst else None


def mistake(episode: Episode, q: int, said: int, prob: float) -> Image.Image:
    """The query with its mask, and a support of its class, of the class that was said, and of others."""
    truth = int(episode.query_label[q])
    first = [k for k in (truth, said) if k > 0]
    order = list(dict.fromkeys([*first, *range(1, len(episode.classes) + 1)]))[:MOST_CLASSES]
    tiles = [("asked", _outlined(episode.query_image[q], episode.query_mask[q]))]
    for label in order:
        places = (episode.support_label == label).nonzero()[:, 0].tolist()
        if places:
            picture = _outlined(episode.support_image[places[0]], episode.support_mask[places[0]])
            mark = {truth: " (true)", said: " (said)"}.get(label, "")
            tiles.append((f"{class_of(episode, label)}{mark}", picture))
    name = episode.paths[q] if q < len(episode.paths) else f"#{q}"
    told = f"{class_of(episode, truth)}, said {class_of(episode, said)} ({prob:.0%})"
    return draw.strip(tiles, f"{episode.product}   {told}   {name}")


def _outlined(image: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    marked = draw.fit_mask(mask.cpu().numpy() == 1, TILE)
    return draw.outline(draw.fit(draw.to_array(image), TILE), marked if not marked.all() else ~marked)


def confusion(names: Sequence[str], matrix: np.ndarray, title: str = "") -> Image.Image:
    """Counts as a picture: truth in rows, answers in columns, colour = share of the row.

    Args:
        names: K class names.
        matrix: (K, K + 1) counts, the last column for ``unknown``; left out when nothing is there.
        title: One line above.
    """
    columns = [*names, "unknown"] if matrix[:, -1].any() else list(names)
    matrix = matrix[:, : len(columns)]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    font = draw.font(14)
    left = MARGIN + int(max(font.getlength(n) for n in names)) + MARGIN
    top = MARGIN + (24 if title else 0) + int(max(font.getlength(n) for n in columns)) + MARGIN
    size = left + CELL * len(columns) + MARGIN, top + CELL * len(names) + MARGIN + 18
    page = Image.new("RGB", size, draw.PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((MARGIN, MARGIN), title, draw.INK, font=draw.font(16))
    for i, name in enumerate(names):
        pen.text((left - MARGIN // 2, top + CELL * i + CELL // 2), name, draw.INK, font=font, anchor="rm")
    for j, name in enumerate(columns):
        page.paste(_upright(name), (left + CELL * j + CELL // 2 - 9, top - MARGIN // 2 - _length(name)))
    colours = draw.heat(share)
    for i, j in np.ndindex(*matrix.shape):
        x, y = left + CELL * j, top + CELL * i
        pen.rectangle((x + 1, y + 1, x + CELL - 2, y + CELL - 2), fill=tuple(int(c) for c in colours[i, j]))
        if matrix[i, j]:
            ink = draw.PAPER if share[i, j] > 0.6 else draw.INK
            pen.text((x + CELL // 2, y + CELL // 2), str(matrix[i, j]), ink, font=font, anchor="mm")
    foot = "rows: truth, columns: answer, colour: share of the row"
    pen.text((MARGIN, size[1] - 20), foot, (170, 170, 178), font=draw.font(12))
    return page


def _length(text: str) -> int:
    return int(draw.font(14).getlength(text)) + 2


def _upright(text: str) -> Image.Image:
    """A text turned by a quarter, to be read from below."""
    line = Image.new("RGB", (_length(text), 18), draw.PAPER)
    ImageDraw.Draw(line).text((0, 0), text, draw.INK, font=draw.font(14))
    return line.transpose(Image.Transpose.ROTATE_90)
