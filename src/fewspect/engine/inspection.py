"""``mode=inspect``: fit on good images, describe the labelled defects, inspect everything else, keep it all.

The run folder gets ``inspection.csv`` (a row per image), ``regions.csv`` (a row per region),
``inspection.html`` (for people), ``predictions/`` (maps, masks, overlays) and ``inspector.safetensors``: the
one file that gives the same decisions again, ``mode=inspect run=<folder> data.root=<new parts>``. What it was
made with cannot be changed any more, but for ``REPORTED``.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewspect.callbacks import draw
from fewspect.callbacks.files import Names, write_atomic
from fewspect.callbacks.predictions import write_prediction
from fewspect.data.bank import FeatureBank, ViewOptions
from fewspect.data.features import FeatureSet
from fewspect.data.index import Index
from fewspect.engine import allow, build, checkpoints, folders, tables
from fewspect.engine.session import Session, concluded
from fewspect.errors import UserError
from fewspect.inspection import Inspection, Inspector, Options, described
from fewspect.methods.calibration import Rules
from fewspect.methods.detector import Detector
from fewspect.report import inspection as report
from fewspect.types import Sample

log = logging.getLogger(__name__)

ARTEFACT, TABLE, REGIONS, PAGE = "inspector.safetensors", "inspection.csv", "regions.csv", "inspection.html"
FORMAT = "fewspect-inspector-1"
OF_THE_INSPECTOR = ("method", "backbone", "inspect", "seed")
"""Groups of the config that an artefact brings along; data come from the command."""

REPORTED = ("least", "most", "mm_per_pixel")
"""Options of ``inspect`` that a command may change: they say what is reported, not what is a defect."""

DETECTOR, EXAMPLES = "detector/", "examples/"
EVERY = 25
"""Images after which the tables are written: a crash loses fewer."""

PICTURES, SIDE = 200, 320
"""Pictures in the page, defects first, and their longest side in pixels."""

Row = dict[str, str | int | float]


def inspect(cfg: DictConfig, folder: Path, extra: list[str]) -> None:
    """Inspect the query images of ``data``; see the module."""
    tree = build.resolve(cfg, extra)
    kept = _chosen(tree)
    held = None if kept is None else _read(kept, extra)
    if held is not None:
        _refuse_other(tree, held)
        said = {k: tree["inspect"][k] for k in REPORTED if f"inspect.{k}" in _said()}
        tree |= held["tree"] | {"inspect": held["tree"]["inspect"] | said}
    _demand(tree)
    with concluded(tree, folder, "predict") as s:
        s.record.setup(s.trainer, s.method, "inspect")
        inspector = _made(s) if held is None else _restored(s, held)
        if held is None:
            _keep(folder / ARTEFACT, inspector, s)
        rows, told = _inspected(s, inspector)
        s.record.record["metrics"] |= {f"inspect/{k}": v for k, v in told.items() if _is_number(v)}
        s.record.finish(s.trainer, "done")
        tables.show_inspection(told, rows)
    tables.farewell(folder)


def _chosen(tree: dict[str, Any]) -> Path | None:
    """The artefact to go on with: of ``run=``, or ``checkpoint=``; None = fit one.

    Raises:
        UserError: It is not there.
    """
    if not tree["run"] and not tree["checkpoint"]:
        return None
    path = Path(tree["checkpoint"] or Path(tree["run"]) / ARTEFACT)
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such inspector.",
            f"mode=inspect without run= makes one; it lies in the run folder as {ARTEFACT}.",
        )
    return path


def _said() -> set[str]:
    """Keys that the command names."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {folders.key_of(o) for o in overrides}


def _refuse_other(tree: dict[str, Any], held: dict[str, Any]) -> None:
    """Refuse what an inspector was made with and a command cannot change any more.

    Raises:
        UserError: ``alpha`` or an option of ``inspect`` is another one.
    """
    kept = held["tree"]
    asked = {"alpha": (tree["alpha"], (kept["method"].get("threshold") or {}).get("alpha", Rules().alpha))}
    for key in sorted(_said()):
        group, _, rest = key.partition(".")
        if group == "inspect" and rest and rest not in REPORTED:
            asked[key] = (_at(tree, key), _at(kept, key))
    for key, (new, made) in asked.items():
        if new != made and (key != "alpha" or new is not None):
            raise UserError(
                f"{key}={new}: {held['path']} was made with {made}.",
                "Leave it out, or make another inspector: mode=inspect without run= and checkpoint=.",
            )


def _at(tree: Any, key: str) -> Any:  # noqa: ANN401 - any config node
    """Value of a dotted key; None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _demand(tree: dict[str, Any]) -> None:
    """Put ``alpha`` where it belongs, and refuse methods that cannot decide about an image."""
    kind = allow.locate(tree["method"]["_target_"], "method")
    if not issubclass(kind, Detector):
        raise UserError(
            f"mode=inspect needs a detector that learns from good images, {kind.__name__} is none.",
            "Choose method=subspace, patch_nn, dino_recon or an autoencoder.",
        )
    alpha = tree.get("alpha")
    if alpha is not None and not 0 < alpha < 1:
        raise UserError(f"alpha={alpha} is no share of good images.", "Give e.g. alpha=0.05.")
    if alpha is not None:
        tree["method"].setdefault("threshold", {})["alpha"] = alpha


# -- making and keeping --------------------------------------------------------------------------------------


def _bank(tree: dict[str, Any]) -> FeatureBank:
    return FeatureBank(build.make(tree["backbone"]), ViewOptions(**tree["inspect"]["views"]))


def _options(tree: dict[str, Any]) -> Options:
    return Options(**{k: v for k, v in tree["inspect"].items() if k not in ("classifier", "views")})


def _made(s: Session) -> Inspector:
    """Fit the detector, then describe the examples with it."""
    if s.method.fit_kind != "none":
        s.trainer.fit(s.method, datamodule=s.data, weights_only=True)
    paths = [s.folder / folders.CHECKPOINTS / name for name in (folders.BEST, folders.LAST)]
    best = next((p for p in paths if p.is_file()), None)
    checkpoints.load(best, s.method)
    assert isinstance(s.method, Detector)  # _demand
    if s.method.fit_kind == "none":
        s.trainer.validate(s.method, datamodule=s.data, verbose=False)
    bank, options = _bank(s.tree), _options(s.tree)
    alone = Inspector(s.method, bank, None, None, options)
    examples = described(alone, s.data.index) if options.classify else {}
    for product, made in examples.items():
        log.info("%s: examples %s", product, ", ".join(f"{k} {v}" for k, v in made.counts.items()))
    if options.classify and not examples:
        log.info("No labelled defect among the training images: regions are called 'defect'.")
    return Inspector(s.method, bank, _classifier(s.tree, examples), examples, options)


def _classifier(tree: dict[str, Any], examples: dict[str, FeatureSet]) -> Any:  # noqa: ANN401
    """The few-shot classifier; it rejects only where every class has two examples to learn that from."""
    node = dict(tree["inspect"]["classifier"])
    fewest = min((min(made.counts.values()) for made in examples.values()), default=0)
    if examples and fewest < 2 and node.get("reject") is not None:
        log.warning("A class has one example only: no region is called unknown. Give two of each.")
        node["reject"] = None
    return build.make(node)


def _keep(path: Path, inspector: Inspector, s: Session) -> None:
    """Write the artefact, whole or not at all."""
    checkpoint: dict[str, Any] = {"state_dict": inspector.detector.state_dict()}
    inspector.detector.on_save_checkpoint(checkpoint)
    tensors = {DETECTOR + k: v.contiguous().cpu() for k, v in checkpoint["state_dict"].items()}
    told = []
    for number, (product, made) in enumerate(inspector.examples.items()):
        name = f"{EXAMPLES}{number}/"
        tensors |= {name + "feature": made.feature.contiguous(), name + "label": made.label.contiguous()}
        told.append({"product": product, "classes": made.classes, "ids": made.ids})
    tree = {k: s.tree[k] for k in OF_THE_INSPECTOR}
    about = {
        "format": FORMAT,
        "tree": json.dumps(tree),
        "examples": json.dumps(told),
        "bank": json.dumps(inspector.bank.config),
        "checkpoint": json.dumps(checkpoint["fewspect"]),
    }
    write_atomic(path, lambda file: file.write(save(tensors, about)))


def _read(path: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Content of an artefact: its part of the config (checked), tensors and what describes them.

    Raises:
        UserError: It is damaged, or something else.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        told = {k: json.loads(header[k]) for k in ("tree", "examples", "bank", "checkpoint")}
        known = header["format"] == FORMAT and set(told["tree"]) == set(OF_THE_INSPECTOR)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no readable inspector ({error}).", "Copy the file again.") from error
    if not known:
        raise UserError(f"{path}: an inspector of another version.", "Make it again with mode=inspect.")
    allow.require(told["tree"], extra)
    return told | {"tensors": tensors, "path": path}


def _restored(s: Session, held: dict[str, Any]) -> Inspector:
    """The inspector of an artefact.

    Raises:
        UserError: The backbone is not the one it was made with, or the file is incomplete.
    """
    assert isinstance(s.method, Detector)  # _demand
    state = {k.removeprefix(DETECTOR): v for k, v in held["tensors"].items() if k.startswith(DETECTOR)}
    checkpoint = {"state_dict": state, "fewspect": held["checkpoint"]}
    s.method.on_load_checkpoint(checkpoint)
    try:
        s.method.load_state_dict(checkpoint["state_dict"])
        examples = dict(_examples(held))
    except (RuntimeError, KeyError) as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{held['path']}: the inspector is incomplete ({what}).", "Make it again.") from error
    bank = _bank(s.tree)
    if examples and bank.config["weights"] != held["bank"]["weights"]:
        raise UserError(
            f"{held['path']}: its examples were described by other weights of the backbone.",
            "Use the backbone file that it was made with.",
        )
    device = s.trainer.strategy.root_device
    s.method.to(device)
    return Inspector(s.method, bank, _classifier(s.tree, examples), examples, _options(s.tree))


def _examples(held: dict[str, Any]) -> Iterator[tuple[str, FeatureSet]]:
    for number, told in enumerate(held["examples"]):
        name = f"{EXAMPLES}{number}/"
        feature, label = held["tensors"][name + "feature"], held["tensors"][name + "label"]
        classes, ids = tuple(told["classes"]), tuple(told["ids"])
        yield told["product"], FeatureSet(feature, label, classes, ids=ids, product=told["product"])


# -- inspecting ----------------------------------------------------------------------------------------------


def _inspected(s: Session, inspector: Inspector) -> tuple[list[Row], report.Summary]:
    """Inspect every image, write as it goes on, and the page at the end."""
    asked = s.data.dataset("predict")
    samples: Sequence[Sample] = asked.samples  # type: ignore[union-attr] - protocol plain, see Detector
    names, rows, regions = Names(), list[Row](), list[Row]()
    pictures: list[tuple[bool, str, bytes]] = []
    scale = s.tree["inspect"]["mm_per_pixel"]
    try:
        for sample, episode in zip(samples, asked, strict=True):
            begin = time.perf_counter()
            image = episode.query_image[0]
            found = inspector(image, sample.product)
            name = names(sample.image.stem, str(sample.image))
            write_prediction(s.folder / "predictions", name, image, found.answer)
            row = _row(sample, found, s.data.index, scale)
            rows.append(row | {"seconds": round(time.perf_counter() - begin, 4), "name": name})
            regions += _region_rows(str(sample.image), found, scale)
            pictures.append((found.defect, name, _thumbnail(image, found)))
            pictures = _first(pictures)
            if len(rows) % EVERY == 0:
                _save(s.folder, rows, regions)
    finally:
        _save(s.folder, rows, regions)
    shown = {name: picture for _, name, picture in pictures}
    known = [name for made in inspector.examples.values() for name in made.classes]
    told = report.summary(rows, regions, known)
    title = f"Inspection of {s.tree['data'].get('root') or 'the toy factory'}"
    folders.write(s.folder / PAGE, report.to_html(rows, regions, shown, told, title))
    return rows, told


def _save(folder: Path, rows: list[Row], regions: list[Row]) -> None:
    tables.save(rows, folder, TABLE)
    tables.save(regions, folder, REGIONS)


def _first(pictures: list[tuple[bool, str, bytes]]) -> list[tuple[bool, str, bytes]]:
    """The first pictures, those of defects rather than those of good images."""
    if len(pictures) <= PICTURES:
        return pictures
    last_good = next((k for k in reversed(range(len(pictures))) if not pictures[k][0]), len(pictures) - 1)
    return pictures[:last_good] + pictures[last_good + 1 :]


def _row(sample: Sample, found: Inspection, index: Index, scale: float | None) -> Row:
    """One image as plain values; the truth where it is known."""
    named = [r.name for r in found.regions]
    area, length = sum(r.area for r in found.regions), max((r.length for r in found.regions), default=0)
    truth = "" if sample.label < 0 and not sample.regions else "good" if sample.label == 0 else "defect"
    row: Row = {
        "file": str(sample.image),
        "product": sample.product,
        "decision": "defect" if found.defect else "good",
        "score": found.score,
        "calibrated": round(found.calibrated, 6),
        "class": named[0] if named else "",
        "classes": ";".join(dict.fromkeys(named)),
        "regions": len(named),
        **_sizes(area, length, scale),
        "truth": truth,
        "truth_class": "",
    }
    if sample.label > 0 or sample.regions:
        own = sample.regions or (index.classes[sample.label - 1],)
        row["truth_class"] = ";".join(own)
    return row


def _region_rows(file: str, found: Inspection, scale: float | None) -> Iterator[Row]:
    for number, region in enumerate(found.regions, start=1):
        x, y, width, height = region.box
        known = {} if math.isnan(region.probability) else {"probability": round(region.probability, 4)}
        yield {
            "file": file,
            "region": number,
            "class": region.name,
            **known,
            **{"x": x, "y": y, "width": width, "height": height},
            **_sizes(region.area, region.length, scale),
            "peak": region.peak,
        }


def _sizes(area: int, length: float, scale: float | None) -> Row:
    """Sizes in pixels, and in millimetres where the scale is known."""
    row: Row = {"area_pixels": area, "length_pixels": round(length, 1)}
    if scale is not None:
        row |= {"area_mm2": round(area * scale**2, 4), "length_mm": round(length * scale, 3)}
    return row


def _thumbnail(image: Tensor, found: Inspection) -> bytes:
    """JPEG of an image with its regions outlined."""
    assert found.answer.mask is not None
    view = draw.fit(draw.to_array(image), SIDE)
    mask = draw.fit_mask(found.answer.mask[0].numpy() > 0, SIDE)
    return report.jpeg(draw.outline(view, mask, draw.PREDICTION))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
