"""The whole question of an inspection: is this part good? If not: where, what and how large is the defect?

A detector that learned from good images decides by a threshold with a promised false-alarm rate and marks
pixels; every marked region is looked at in several views, and a few-shot classifier says which of the known
defects it is, or that it is none of them; its size comes from the mask.

Example:
    >>> inspector = Inspector(detector, bank, classifier, examples)
    >>> found = inspector(image, product="screw")          # image (3, H, W) uint8
    >>> found.defect, [(r.name, r.area, r.length) for r in found.regions]
    (True, [('scratch', 181, 42.4)])
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from torch import Tensor

from fewspect.data.bank import FeatureBank, thumb
from fewspect.data.features import FeatureSet, Token
from fewspect.data.index import Index
from fewspect.data.instances import FULL, Instance, Picture, find, load
from fewspect.errors import UserError
from fewspect.methods.classifier import Classifier
from fewspect.methods.detector import Detector, choose
from fewspect.types import Prediction, State, Support

DEFECT, UNKNOWN = "defect", "unknown"
"""Name of a region where no class is known, and of one that is none of the known classes."""

EXAMPLES = ("train", "val", "support")
"""Splits whose labelled defects are the examples."""

NEIGHBOURS = np.ones((3, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is reported.

    Attributes:
        classify: Tell classes apart, where examples are labelled.
        token: Which tokens of the features the classifier sees.
        least: Regions with fewer pixels are not reported, unless an image has no other.
        most: So many regions per image, the largest first.
        mm_per_pixel: Side of a pixel in millimetres; None = sizes in pixels alone.
    """

    classify: bool = True
    token: Token = "class"
    least: int = 10
    most: int = 5
    mm_per_pixel: float | None = None

    def __post_init__(self) -> None:
        if self.mm_per_pixel is not None and not self.mm_per_pixel > 0:
            raise UserError(f"inspect.mm_per_pixel={self.mm_per_pixel} is no length.", "Give e.g. 0.05.")
        if self.most < 1 or self.least < 1:
            raise UserError(
                f"inspect.most={self.most}, inspect.least={self.least}: nothing would be reported.",
                "Give 1 or more.",
            )


@dataclass(frozen=True, slots=True)
class Region:
    """One marked region of a defective image.

    Attributes:
        box: x, y, width, height in pixels.
        area: In pixels.
        length: Largest distance between two of its corners (Feret diameter), in pixels.
        peak: Largest value of the anomaly map inside.
        name: Class, ``unknown``, or ``defect`` where no class is known.
        probability: Of the class among the known ones, in [0, 1]; NaN where no class is known.
    """

    box: tuple[int, int, int, int]
    area: int
    length: float
    peak: float
    name: str = DEFECT
    probability: float = math.nan


@dataclass(frozen=True, slots=True)
class Inspection:
    """The answer about one image.

    Attributes:
        defect: The decision.
        score: Raw image score.
        calibrated: Share of good images with a lower score, in [0, 1].
        regions: What was found, the largest first; empty for a good image.
        answer: The detector's, with the mask of the regions (empty for a good image).
    """

    defect: bool
    score: float
    calibrated: float
    regions: tuple[Region, ...]
    answer: Prediction


class Inspector:
    """A fitted detector, and a classifier with its examples.

    Args:
        detector: With thresholds, i.e. fitted or restored.
        bank: Describes regions; must be the one that described the examples.
        classifier: Tells classes apart; None = it is not asked.
        examples: Product -> described examples of its defects; a product without any is not classified.
        options: See ``Options``.

    Raises:
        UserError: The detector has no thresholds.
    """

    def __init__(
        self,
        detector: Detector,
        bank: FeatureBank,
        classifier: Classifier | None = None,
        examples: Mapping[str, FeatureSet] | None = None,
        options: Options | None = None,
    ) -> None:
        if not detector.calibrations.known:
            raise UserError(
                "The detector has no thresholds yet.", "Fit it on good images, or restore an inspector."
            )
        self.detector, self.bank, self.classifier = detector.eval(), bank, classifier
        self.options = options or Options()
        wanted = classifier is not None and self.options.classify
        self.examples = dict(examples or {}) if wanted else {}
        self._states = {product: self._adapted(made) for product, made in self.examples.items()}

    @torch.inference_mode()
    def __call__(self, image: Tensor, product: str = "") -> Inspection:
        """Inspect one image.

        Args:
            image: (3, H, W) uint8.
            product: The inspected object; any text where only one was learned.

        Raises:
            UserError: Several products are known, and this is none of them.
        """
        product = choose(product, self.detector.calibrations.known)
        device = self.detector.device
        state = self.detector.adapt(_nothing(image, product))
        found = self.detector.detect(image.to(device), state, product).to("cpu")
        assert found.score is not None
        assert found.decision is not None
        assert found.mask is not None
        defect = bool(found.decision[0])
        regions, mask = self._regions(found) if defect else ([], torch.zeros_like(found.mask[0]))
        named = self._named(image, regions, product)
        return Inspection(
            defect,
            float(found.score[0]),
            float(found.extra["calibrated"][0]),
            tuple(named),
            replace(found, mask=mask[None]),
        )

    def marked(self, image: Tensor, product: str) -> Tensor:
        """Mask (H, W) uint8 in {0, 1} of an image that is known to be defective, whatever its score."""
        product = choose(product, self.detector.calibrations.known)
        state = self.detector.adapt(_nothing(image, product))
        with torch.inference_mode():
            found = self.detector.detect(image.to(self.detector.device), state, product).to("cpu")
        return self._regions(found)[1]

    # -- regions

    def _regions(self, found: Prediction) -> tuple[list[tuple[Region, np.ndarray]], Tensor]:
        """Regions of a defective image with their masks (H, W), and the mask of all of them."""
        assert found.mask is not None
        assert found.prob is not None
        heat, mask = found.prob[0].numpy(), found.mask[0].numpy() > 0
        if not mask.any():
            mask = _summit(heat)
        label, count = ndimage.label(mask, structure=NEIGHBOURS)  # type: ignore[misc]
        areas = np.bincount(label.ravel(), minlength=count + 1)[1:]
        order = sorted(range(count), key=lambda k: (-areas[k], k))
        kept = [k for k in order if areas[k] >= self.options.least] or order[:1]
        regions = [self._region(label == k + 1, heat) for k in kept[: self.options.most]]
        shown = np.isin(label, [k + 1 for k in kept])
        return regions, torch.from_numpy(shown.astype(np.uint8))

    @staticmethod
    def _region(mask: np.ndarray, heat: np.ndarray) -> tuple[Region, np.ndarray]:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
        return Region(box, int(mask.sum()), extent(mask), float(heat[mask].max())), mask

    # -- classes

    def _named(
        self, image: Tensor, regions: Sequence[tuple[Region, np.ndarray]], product: str
    ) -> list[Region]:
        """Regions with the names of their classes."""
        if not regions or product not in self._states:
            return [region for region, _ in regions]
        assert self.classifier is not None
        pictures = [
            Picture(image, torch.from_numpy(mask.astype(np.uint8)) * FULL, _corners(region), True)
            for region, mask in regions
        ]
        seen = FeatureSet(self.bank.describe(pictures), torch.zeros(len(pictures), dtype=torch.int64), ("",))
        answer = self.classifier.predict(seen.token(self.options.token).float(), self._states[product])
        assert answer.logits is not None
        prob = answer.logits.softmax(-1)
        label = answer.extra.get("label", prob.argmax(-1) + 1).tolist()
        classes = self.examples[product].classes
        return [
            replace(r, name=UNKNOWN if k < 1 else classes[k - 1], probability=float(p.max()))
            for (r, _), k, p in zip(regions, label, prob, strict=True)
        ]

    def _adapted(self, made: FeatureSet) -> State:
        """The classifier's state for the examples of one product."""
        assert self.classifier is not None
        number = len(made)
        support = Support(
            torch.zeros(number, 3, 0, 0),
            torch.zeros(number, 0, 0, dtype=torch.uint8),
            made.label + 1,
            torch.ones(number),
            made.classes,
            feature=made.token(self.options.token).float(),
            product=made.product,
        )
        with torch.no_grad():
            return self.classifier.adapt(support)


def described(inspector: Inspector, index: Index) -> dict[str, FeatureSet]:
    """Examples of the defects of every product: the labelled images of the training side.

    A drawn mask says where the defect is; where none is drawn, the inspector's detector says it.

    Args:
        inspector: Its detector and bank do the work.
        index: The data set.

    Returns:
        Product -> features with the classes that have an example; products without any are left out.
    """
    found: dict[str, FeatureSet] = {}
    for product in index.products:
        part = index.filter(product=product)
        examples = [e for split in EXAMPLES for e in find(part, split) if e.cls]
        if not examples:
            continue
        pictures = [_picture(inspector, example) for example in examples]
        classes = tuple(c for c in part.classes if any(e.cls == c for e in examples))
        found[product] = FeatureSet(
            inspector.bank.describe(pictures),
            torch.tensor([classes.index(e.cls) for e in examples]),
            classes,
            thumb=torch.stack([thumb(p) for p in pictures]),
            ids=tuple(e.name for e in examples),
            groups=tuple(e.group for e in examples),
            product=product,
            config=inspector.bank.config,
        )
    return found


def extent(mask: np.ndarray) -> float:
    """Largest distance between two corners of the pixels of a boolean mask (H, W): the Feret diameter."""
    rows = np.flatnonzero(mask.any(1))
    left = mask[rows].argmax(1)
    right = mask.shape[1] - mask[rows][:, ::-1].argmax(1)
    ends = [(y + dy, x) for y, a, b in zip(rows, left, right, strict=True) for x in (a, b) for dy in (0, 1)]
    points = np.unique(np.asarray(ends, dtype=float), axis=0)
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _summit(heat: np.ndarray) -> np.ndarray:
    """Where no pixel is marked: the region around the highest value down to half its height."""
    label, _ = ndimage.label(heat >= (np.median(heat) + heat.max()) / 2, structure=NEIGHBOURS)  # type: ignore[misc]
    return label == label[np.unravel_index(int(heat.argmax()), heat.shape)]


def _picture(inspector: Inspector, example: Instance) -> Picture:
    """Pixels of an example and of its mask."""
    picture = load(example)
    if picture.drawn:
        return picture
    mask = inspector.marked(picture.image, example.sample.product)
    return load(example, picture.image, mask * FULL)


def _corners(region: Region) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of the outermost pixels."""
    x, y, width, height = region.box
    return float(x), float(y), float(x + width - 1), float(y + height - 1)


def _nothing(image: Tensor, product: str) -> Support:
    """A support without images, which names the product."""
    mask = torch.zeros(0, *image.shape[1:], dtype=torch.uint8)
    label, count = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    return Support(torch.zeros(0, *image.shape), mask, label, count, product=product)
