"""Use an exported model without the run, its configuration or Hydra: load, then ask.

Example:
    >>> import fewspect
    >>> predictor = fewspect.load("logs/patch_nn/folder/20261121-201010-77/export/onnx")
    >>> predictor(image).decision        # (3, H, W) uint8, any size
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn.morphology import clean
from fewspect.types import Prediction

ABOUT = "export.json"
FORMAT = 1
WHERE = ("", "onnx", "torch_export", "export/onnx", "export/torch_export")
"""Where a folder is searched: the export itself, or the run that was exported."""

Run = Callable[[dict[str, Tensor]], list[Tensor]]


class Exported:
    """An exported model; answers as the run that it was made from.

    Args:
        about: Content of ``export.json``.
        run: From named inputs to outputs in order.
    """

    def __init__(self, about: Mapping[str, Any], run: Run) -> None:
        self.about, self._run = about, run
        self.classes: tuple[str, ...] = tuple(about["classes"])

    def __call__(
        self, image: Tensor | np.ndarray, mask: Tensor | None = None, box: Tensor | None = None
    ) -> Prediction:
        """Answer one image.

        Args:
            image: (3, H, W) uint8, or float in [0, 1]; where the model takes features: (Q, V, D).
            mask: (H, W), non-zero = the instance that is asked about, where the model wants one; float in
                [0, 1] for a soft one.
            box: (4,) x1, y1, x2, y2 of the instance; None = of the mask.

        Raises:
            UserError: The image is no image, too small, or a mask is missing.
        """
        names = [one["name"] for one in self.about["inputs"]]
        if names == ["feature"]:
            given = {"feature": torch.as_tensor(image).float()}
        else:
            given = {"image": self._image(torch.as_tensor(image))}
            if "mask" in names:
                given |= _instance(mask, box, given["image"])
        found = dict(zip((o["name"] for o in self.about["outputs"]), self._run(given), strict=True))
        return self._prediction(found)

    def _image(self, image: Tensor) -> Tensor:
        if image.is_floating_point():
            image = (image * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8)
        least = int(self.about["least_side"])
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise UserError(
                f"An image is (3, height, width) uint8 or float in [0, 1]; got {tuple(image.shape)} "
                f"{str(image.dtype).removeprefix('torch.')}.",
                "Bring colours first: image.permute(2, 0, 1); repeat a grey image three times.",
            )
        if min(image.shape[1:]) < least:
            raise UserError(
                f"This model takes images from {least} x {least} pixels on; got {tuple(image.shape[1:])}.",
                "Enlarge the image first.",
            )
        return image

    def _prediction(self, found: dict[str, Tensor]) -> Prediction:
        if "probability" in found:
            log_prob = found["probability"].clamp(min=1e-12).log()
            return Prediction(logits=log_prob, score=found["score"], extra={"label": found["label"]})
        decision = found["decision"][None] if "decision" in found else None
        return Prediction(
            prob=found["map"][None],
            mask=self._cleaned(found["mask"], found["map"])[None],
            score=found["score"][None],
            decision=decision,
            scale=tuple(self.about.get("scale", (0.0, 1.0))),
        )

    def _cleaned(self, mask: Tensor, values: Tensor) -> Tensor:
        """What the method's ``clean`` leaves of the mask."""
        options = dict(self.about.get("clean") or {})
        low = options.pop("low", None)
        if low is None and not any(options.values()):
            return mask
        weak = None if low is None else (values > low * self.about["threshold"]["pixel"]).numpy()
        return torch.from_numpy(clean(mask.numpy() > 0, weak, **options)).to(torch.uint8)


def load(folder: str | Path, *, trust: bool = False) -> Exported:
    """Open an exported model.

    Args:
        folder: The folder with ``export.json``, or the run folder.
        trust: Read ``torch_export`` files, too: unlike ONNX, torch's reader of them can run code that
            somebody has put inside.

    Raises:
        UserError: There is none, it is damaged, or it is not to be trusted.
    """
    place = next((p for w in WHERE if (p := Path(folder) / w / ABOUT).is_file()), None)
    if place is None:
        raise UserError(f"{folder}: no {ABOUT} in it.", "Make one: mode=export run=<folder> format=onnx.")
    about = _read(place)
    path = place.parent / Path(str(about["model"])).name  # never outside of the folder
    if not path.is_file() or digest(path) != about["sha256"]:
        raise UserError(
            f"{path} is missing, damaged, or not the file that {ABOUT} describes.",
            "Copy the folder again, or repeat mode=export.",
        )
    if about["format"] == "torch_export" and not trust:
        raise UserError(
            f"{path}: torch's reader of this format can run code that is hidden in the file.",
            "If you made it yourself, load(folder, trust=True); otherwise use format=onnx.",
        )
    return Exported(about, opened(path, about["format"], [o["name"] for o in about["inputs"]]))


def opened(path: Path, kind: str, inputs: list[str]) -> Run:
    """A model file as a function.

    Raises:
        UserError: ``onnxruntime`` is missing.
    """
    if kind == "torch_export":
        module = torch.export.load(path).module()

        def run_program(given: dict[str, Tensor]) -> list[Tensor]:
            with torch.inference_mode():
                return list(module(*(given[name] for name in inputs)))

        return run_program
    try:
        import onnxruntime  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("An ONNX model needs onnxruntime.", "Install it: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run_session(given: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {name: given[name].numpy() for name in inputs})
        return [torch.from_numpy(np.array(one)) for one in found]

    return run_session


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text("utf-8"))
        if about["format_version"] != FORMAT:
            raise UserError(
                f"{path} has format version {about['format_version']}, this program reads {FORMAT}.",
                "Repeat mode=export with this program.",
            )
        _ = about["model"], about["sha256"], about["inputs"], about["outputs"], about["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read.", "Repeat mode=export.") from error
    return about


def _instance(mask: Tensor | None, box: Tensor | None, image: Tensor) -> dict[str, Tensor]:
    """Mask and box as the graph takes them."""
    if mask is not None and not mask.is_floating_point():
        mask = (mask != 0).float()  # an index mask says 1, 2, ...
    if mask is None or mask.shape != image.shape[1:] or not bool((255 * mask).round().any()):
        raise UserError(
            "This model tells instances apart, each by its mask of the image's size.",
            "Give mask=(height, width), non-zero where the defect is.",
        )
    mask = (255 * mask.clamp(0, 1)).round().to(torch.uint8)
    if box is None:
        rows, columns = (torch.nonzero((mask > 0).any(axis)).flatten() for axis in (1, 0))
        box = torch.stack([columns[0], rows[0], columns[-1], rows[-1]])
    return {"mask": mask, "box": box.float()}
