"""``mode=evaluate``: a generated set beside the real one; what can be said without training anything.

Every feature comes from the chosen ``backbone=``, and every number that depends on it names it: a Frechet
distance on ``tiny`` is not FID. The column ``real`` is the same number for the real images that the generator
has seen against those it has not, i.e. what a perfect generator would reach.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.callbacks import draw
from fewspect.callbacks.panels import write_png
from fewspect.callbacks.record import FILE, FORMAT, git_state, plain, versions, write_record
from fewspect.data.extra import content, seen
from fewspect.data.index import Index, load_image
from fewspect.data.labelled import truth
from fewspect.data.readers import folder
from fewspect.data.readers.generated import MANIFEST
from fewspect.draws import rng
from fewspect.engine import build, tables
from fewspect.errors import UserError
from fewspect.metrics import generation, masks
from fewspect.metrics.memorisation import FLAG, entropy, nearest, thumbnails, usual
from fewspect.nn.windows import squash
from fewspect.types import Sample

GRID = 16
"""Feature maps are averaged to at most so many cells a side before they are compared cell by cell."""

FEW = 3
"""Below four images in a set its neighbourhoods and intervals mean nothing."""

SHOWN = 8
"""Samples on the page of near copies."""

Row = dict[str, str | int | float]


@dataclass
class Looked:
    """What the backbone sees in a list of images; first axis N.

    Attributes:
        samples: The images.
        small: Thumbnails.
        image: (N, D) mean features of the images.
        defect: (M, D) mean features of the surroundings of the masks, of images that have one.
        cells: Rows for comparisons cell by cell.
        area: (N,) marked share of the image.
        contrast: (N,) see ``masks.contrast``.
        regions: (N,) number of connected regions.
    """

    samples: list[Sample]
    small: Tensor
    image: Tensor
    defect: Tensor
    cells: Tensor
    area: np.ndarray
    contrast: np.ndarray
    regions: np.ndarray


@dataclass
class Report:
    """What is printed and written.

    Attributes:
        rows: One per measure: ``measure`` (its name), ``generated``, ``real``.
        samples: One per sample.
        notes: Sentences.
    """

    rows: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, measure: str, generated: float | str, real: float | str = "") -> None:
        """Add a row; what is not a number is left out."""
        cells = {"generated": generated, "real": real}
        self.rows.append({"measure": measure, **{k: v for k, v in cells.items() if not _nan(v)}})

    def metrics(self) -> dict[str, float]:
        """All numbers by name, ``<measure>`` and ``real/<measure>``; an indented row belongs to the last."""
        names, pairs, above = {"generated": "", "real": "real/"}, [], ""
        for row in self.rows:
            measure = str(row["measure"])
            inside = measure.startswith(" ")
            above = above if inside else measure
            name = f"{above}: {measure.strip()}" if inside else measure
            pairs += [(names[k] + name, row.get(k)) for k in names]
        return {name: float(v) for name, v in pairs if isinstance(v, int | float)}


def evaluate(real: Index, place: Path, backbone: Backbone, *, limit: int, seed: int, page: Path) -> Report:
    """Compare a generated set with the real one.

    Args:
        real: The real data set.
        place: Folder of the generated set.
        backbone: Feature extractor.
        limit: Images of each set that are looked at.
        seed: Of their choice.
        page: Where the picture of the samples closest to training images goes.

    Raises:
        UserError: The folder holds no images with masks, or the real set none to compare with.
    """
    report = Report()
    made = folder.read(str(place))
    wrong = [p for p in made.check() if p.level == "error"]
    bad = {p.path for p in wrong}
    ours = _some([s for s in made.samples if s.label >= 0 and str(s.image) not in bad], limit, seed)
    if not ours:
        raise UserError(f"{place} holds no image to evaluate.", "Name a folder of mode=generate.")
    known, fresh = _divided(real, made, place, report)
    if len(known) < FEW or len(fresh) < FEW:
        raise UserError(
            f"The data set has {len(known)} images to compare with, {FEW} are needed.",
            "Its products and classes must be those of the generated set; mode=check shows them.",
        )
    look = _Look(backbone, max(backbone.side, backbone.stride))
    sets = [look(ours, made.classes)]
    sets += [
        look(_some(part, limit, seed), real.classes) for part in (fresh, [s for s in known if s.regions])
    ]
    shown = look(_some(known, limit, seed), real.classes)
    apart = {s.image for s in known}.isdisjoint(s.image for s in fresh)
    _fidelity(report, *sets, apart=apart, name=backbone.name)
    _memory(report, sets[0], shown, page, backbone.name)
    report.add("files or labels that are wrong", len(wrong))
    _masks(report, sets[0], sets[1], made.classes, place)
    report.notes += [
        f"features: {backbone.name}, last layer, mean over the image or the surroundings of the mask",
        f"compared: {len(ours)} generated, {len(sets[1].samples)} real ones"
        + (f" that the generator has not seen, {len(known)} that it has" if apart else ""),
    ]
    if min(len(ours), len(sets[1].samples)) <= backbone.dim:
        report.notes.append(
            f"fewer images than features ({backbone.dim}): Frechet distances are too large, "
            "trust the kernel distance"
        )
    report.notes += [f"problem: {p}" for p in wrong[:5]]
    return report


class _Look:
    """Features of images by one backbone."""

    def __init__(self, backbone: Backbone, side: int) -> None:
        self.backbone, self.side = backbone.eval(), side

    @torch.inference_mode()
    def __call__(self, samples: list[Sample], classes: Sequence[str]) -> Looked:
        small, image, defect, cells, area, contrast, regions = [], [], [], [], [], [], []
        for sample in samples:
            pixels = load_image(sample)
            mask = truth(sample, classes, pixels.shape[1:])
            maps = self._maps(pixels)
            small.append(thumbnails([pixels]))
            image.append(maps[-1].mean((2, 3)))
            cells.append(generation.perceptual([_coarse(m) for m in maps]).float())
            area.append(float((mask > 0).double().mean()))
            contrast.append(masks.contrast(torch.cat(maps, 1)[0], mask))
            regions.append(draw.components((mask > 0).numpy())[1])
            if bool((mask > 0).any()):
                top, bottom, left, right = masks.box_around(mask)
                defect.append(self._maps(pixels[:, top:bottom, left:right])[-1].mean((2, 3)))
        empty = torch.zeros(0, self.backbone.dim)
        return Looked(
            samples,
            small=torch.cat(small) if small else empty,
            image=torch.cat([empty, *image]),
            defect=torch.cat([empty, *defect]),
            cells=torch.cat(cells) if cells else empty,
            area=np.array(area),
            contrast=np.array(contrast),
            regions=np.array(regions),
        )

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        return [m.float() for m in self.backbone(squash(pixels, self.side)[None]).maps()]


def _coarse(maps: Tensor) -> Tensor:
    size = [min(GRID, s) for s in maps.shape[-2:]]
    return F.adaptive_avg_pool2d(maps, (size[0], size[1]))


def _some(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    chosen = sorted(rng(seed, "evaluate").permutation(len(samples))[:limit].tolist())
    return [samples[k] for k in chosen]


def _divided(real: Index, made: Index, place: Path, report: Report) -> tuple[list[Sample], list[Sample]]:
    """Real images that the generator has seen (good ones, too), and defective ones that it has not."""
    products = set(made.products) & set(real.products) or set(real.products)
    classes = {c for s in made.samples for c in s.regions}
    mine = [s for s in real.samples if s.product in products]
    defects = [s for s in mine if classes & set(s.regions)]
    listed = seen(place)
    if not listed:
        report.notes.append("nothing says what the generator has seen: all real images count as both")
        return defects, defects
    known = [s for s in mine if content(s.image) in listed]
    images = {s.image for s in known}
    fresh = [s for s in defects if s.image not in images]
    if not known:
        raise UserError(
            f"The data set has none of the {len(listed)} images that the generator of {place} has seen.",
            "Evaluate with the data set that it was trained on (data=... data.root=...).",
        )
    return (known, fresh) if fresh else (known, [s for s in known if s.regions])


def _fidelity(report: Report, ours: Looked, fresh: Looked, known: Looked, *, apart: bool, name: str) -> None:
    """Distances of distributions, precision and recall; of whole images and of defects."""
    for part in ("image", "defect"):
        target = getattr(fresh, part)

        def both(
            function: Callable[[Tensor, Tensor], Any], part: str = part, target: Tensor = target
        ) -> list:
            rows = [getattr(looked, part) for looked in ((ours, known) if apart else (ours,))]
            few = [len(r) <= FEW or len(target) <= FEW for r in rows]
            return [None if f else function(target, r) for r, f in zip(rows, few, strict=True)]

        where = {"image": "images", "defect": "defects"}[part]
        report.add(f"Frechet distance ({name}, {where})", *_floats(both(generation.frechet)))
        kernel = both(generation.kernel_distance)
        report.add(f"kernel distance x 1000 ({name}, {where})", *_floats([k and 1000 * k[0] for k in kernel]))
        report.add("  95 % interval, half width", *_floats([k and 1000 * k[1] for k in kernel]))
        overlap = both(generation.precision_recall)
        report.add(f"precision ({where})", *_floats([o and o[0] for o in overlap]))
        report.add(f"recall ({where})", *_floats([o and o[1] for o in overlap]))
        cover = both(generation.density_coverage)
        report.add(f"density ({where})", *_floats([c and c[0] for c in cover]))
        report.add(f"coverage ({where})", *_floats([c and c[1] for c in cover]))


def _memory(report: Report, ours: Looked, known: Looked, page: Path, name: str) -> None:
    """Diversity, and which samples are near copies of training images."""
    away, owner = nearest(ours.cells, known.cells)
    report.add(
        f"distance within clusters (IC-LPIPS' form, {name})",
        float(generation.spread_in_clusters(ours.cells, owner)),
        float(generation.spread_in_clusters(known.cells, torch.zeros(len(known.samples)))),
    )
    report.add(
        "entropy of nearest training images, bits",
        entropy(owner, len(known.samples)),
        float(np.log2(len(known.samples))),
    )
    pixels = nearest(ours.small, known.small)
    ratios = {"pixels": (pixels[0] / usual(known.small), pixels[1]), name: (away / usual(known.cells), owner)}
    for space, (ratio, _) in ratios.items():
        report.add(f"near copies of training images ({space}), share", float((ratio < FLAG).double().mean()))
        report.add(f"  ratio to the nearest one ({space}), median", float(ratio.median()))
    for k, sample in enumerate(ours.samples):
        row: Row = {
            "image": sample.image.name,
            "product": sample.product,
            "classes": "+".join(sample.regions),
        }
        for space, (ratio, which) in ratios.items():
            row[f"nearest_{space}"] = "/".join(known.samples[int(which[k])].image.parts[-3:])
            row[f"ratio_{space}"] = round(float(ratio[k]), 4)
        row["flagged"] = int(any(float(r[k]) < FLAG for r, _ in ratios.values()))
        row |= {"area": float(ours.area[k]), "contrast": float(ours.contrast[k])}
        report.samples.append(row)
    closest = torch.argsort(ratios["pixels"][0])[:SHOWN].tolist()
    strips = [
        draw.strip(
            [
                ("generated", _tile(ours.samples[k])),
                ("nearest, pixels", _tile(known.samples[int(pixels[1][k])])),
                (f"nearest, {name}", _tile(known.samples[int(owner[k])])),
            ],
            f"{ours.samples[k].image.name}   ratio {float(ratios['pixels'][0][k]):.2f} pixels, "
            f"{float(ratios[name][0][k]):.2f} {name}",
        )
        for k in closest
    ]
    write_png(draw.sheet(strips), page)


def _tile(sample: Sample) -> np.ndarray:
    return draw.fit(draw.to_array(load_image(sample)), draw.TILE // 2)


def _masks(report: Report, ours: Looked, real: Looked, classes: Sequence[str], place: Path) -> None:
    """Are labels valid, sizes as real ones, and is what is marked what differs?"""
    report.add(
        "samples with an empty mask, share", float((ours.area == 0).mean()), float((real.area == 0).mean())
    )
    pairs = {
        "defect area, share of the image": "area",
        "regions per image": "regions",
        "contrast of what is marked": "contrast",
    }
    for title, key in pairs.items():
        one, two = (getattr(looked, key) for looked in (ours, real))
        one, two = one[(ours.area > 0) & ~np.isnan(one)], two[(real.area > 0) & ~np.isnan(two)]
        report.add(f"{title}, median", *(float(np.median(v)) if len(v) else float("nan") for v in (one, two)))
        report.add("  largest difference of the distributions (KS)", masks.ks_distance(one, two))
    for name in classes:
        shares = [float(np.mean([name in s.regions for s in looked.samples])) for looked in (ours, real)]
        report.add(f"images that show {name}, share", *shares)
    try:
        rows = json.loads((place / MANIFEST).read_text("utf-8")).get("samples", [])
    except (OSError, ValueError, AttributeError):
        rows = []
    for key in ("change_inside", "change_outside"):
        values = [r[key] for r in rows if isinstance(r, dict) and isinstance(r.get(key), int | float)]
        if values:
            side = key.removeprefix("change_")
            report.add(f"change {side} of the mask to the good image, grey levels", float(np.mean(values)))


def _nan(value: float | str) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _floats(values: Sequence[Any]) -> list[float]:
    return [float("nan") if v is None else float(v) for v in values]


def conclude(tree: dict[str, Any], place: Path | None, folder: Path, facts: dict[str, Any]) -> None:
    """Evaluate, print the table, and write ``run.json``, ``results.csv``, ``samples.csv`` and a picture.

    Args:
        tree: What ``build.resolve`` returned.
        place: The generated set.
        folder: The run folder.
        facts: What ``run.json`` says about the config.

    Raises:
        UserError: No set was named; see ``evaluate``.
    """
    if place is None:
        raise UserError(
            "mode=evaluate needs a generated set.",
            "Add evaluate.generated=<folder> to data=... data.root=<real>, or run=<run of mode=generate>.",
        )
    index, backbone = build.make(tree["data"]).index, build.make(tree["backbone"])
    asked = build.Evaluate(**(tree.get("evaluate") or {}))
    page = folder / "panels" / "nearest.png"
    report = evaluate(index, place, backbone, limit=asked.limit, seed=tree["seed"], page=page)
    tables.save(report.rows, folder)
    tables.save(report.samples, folder, "samples.csv")
    about = {"format": FORMAT, **facts, "versions": versions(), "git": git_state()}
    told = {"status": "done", "generated": place.name, "notes": report.notes}
    write_record(folder / FILE, {**about, **told, "metrics": plain(report.metrics())})
    tables.show_evaluation(report.rows, report.notes)
    tables.farewell(folder)
