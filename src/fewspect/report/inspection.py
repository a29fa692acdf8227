"""The report of ``mode=inspect``: its summary, and one HTML page with a card per defective image."""

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from fewspect.report.page import document, table

Row = Mapping[str, str | int | float]
Summary = dict[str, str | int | float]

QUALITY = 82
UNKNOWN = "unknown"
SHOWN = ("decision", "class", "score", "calibrated", "regions", "area_pixels", "length_pixels", "area_mm2")
HEADS = {
    "calibrated": "good images below, %",
    "area_pixels": "area, px",
    "length_pixels": "length, px",
    "area_mm2": "area, mm²",
    "length_mm": "length, mm",
}


def summary(rows: Sequence[Row], regions: Sequence[Row], known: Sequence[str] = ()) -> Summary:
    """Counts, and how right they were where the truth is known.

    Args:
        rows: One per image, as in ``inspection.csv``.
        regions: One per region, as in ``regions.csv``.
        known: Classes that had examples.

    Returns:
        Always ``images``, ``defective``, ``found/<class>`` (images whose largest region has this name) and
        ``regions``. With good images among them ``false_alarms`` of ``good_images`` and
        ``false_alarm_rate``; with defects ``detected`` of ``defects`` and ``detection_rate``. Of the detected
        defects of known classes: ``named`` were given a class, ``class_accuracy`` of these the right one,
        the share ``abstained`` was called unknown. Of those of other classes (``new``): ``new_unknown``, the
        share that was called unknown. Rates are in [0, 1].
    """
    called = [r for r in rows if r["decision"] == "defect"]
    told: Summary = {"images": len(rows), "defective": len(called), "regions": len(regions)}
    told |= {f"found/{name}": n for name, n in sorted(Counter(str(r["class"]) for r in called).items())}
    good = [r for r in rows if r["truth"] == "good"]
    defects = [r for r in rows if r["truth"] == "defect"]
    if good:
        alarms = sum(r["decision"] == "defect" for r in good)
        told |= {"good_images": len(good), "false_alarms": alarms, "false_alarm_rate": alarms / len(good)}
    if defects:
        detected = [r for r in defects if r["decision"] == "defect"]
        told |= {"defects": len(defects), "detected": len(detected)}
        told["detection_rate"] = len(detected) / len(defects)
        told |= _named([r for r in detected if r["truth_class"]], set(known))
    return told


def _named(detected: Sequence[Row], known: set[str]) -> Summary:
    """How right the names of detected defects are."""
    told: Summary = {}
    ours = [r for r in detected if known & _truth(r)]
    new = [r for r in detected if not known & _truth(r)] if known else []
    if ours:
        named = [r for r in ours if r["class"] != UNKNOWN]
        told |= {"named": len(named), "abstained": 1 - len(named) / len(ours)}
        if named:
            told["class_accuracy"] = sum(str(r["class"]) in _truth(r) for r in named) / len(named)
    if new:
        told |= {"new": len(new), "new_unknown": sum(r["class"] == UNKNOWN for r in new) / len(new)}
    return told


def _truth(row: Row) -> set[str]:
    """Classes that an image is known to show."""
    return set(str(row["truth_class"]).split(";"))


def sentences(told: Summary) -> list[str]:
    """The summary in words."""
    found = {k.removeprefix("found/"): v for k, v in told.items() if k.startswith("found/")}
    names = ", ".join(f"{v} {k}" for k, v in found.items())
    called = f"{told['defective']} of {told['images']} images are called defective"
    lines = [f"{called}: {names}." if names else f"{called}."]
    if "good_images" in told:
        rate = f"{100 * float(told['false_alarm_rate']):.1f} %"
        alarms = f"{told['false_alarms']} of {told['good_images']} good images"
        lines.append(f"{alarms} are among them ({rate} false alarms).")
    if "defects" in told:
        rate = f"{100 * float(told['detection_rate']):.1f} %"
        lines.append(f"{told['detected']} of {told['defects']} known defects were detected ({rate}).")
    if "class_accuracy" in told:
        right, open_ = 100 * float(told["class_accuracy"]), 100 * float(told["abstained"])
        lines.append(
            f"{told['named']} of those were given a class, {right:.1f} % the right one; "
            f"{open_:.1f} % were called unknown."
        )
    if "new" in told:
        share = 100 * float(told["new_unknown"])
        what = f"{told['new']} detected defects are of classes without examples"
        lines.append(f"{what}: {share:.1f} % were called unknown.")
    return lines


def short(rows: Sequence[Row]) -> dict[str, str]:
    """File -> what is left of its path without the folder that all have in common."""
    files = [str(r["file"]) for r in rows]
    common = os.path.commonpath([os.path.dirname(f) for f in files]) if files else ""  # noqa: PTH120
    return {f: os.path.relpath(f, common) for f in files}


def to_html(
    rows: Sequence[Row],
    regions: Sequence[Row],
    pictures: Mapping[str, bytes],
    told: Summary,
    title: str = "Inspection",
) -> str:
    """The whole page; no request leaves it.

    Args:
        rows: One per image; ``name`` tells which picture is its own.
        regions: One per region.
        pictures: Name -> JPEG of an image with its regions outlined.
        told: What ``summary`` returned.
        title: Heading.
    """
    of: dict[str, list[Row]] = {}
    for region in regions:
        of.setdefault(str(region["file"]), []).append(region)
    ranked = sorted(rows, key=lambda r: (r["decision"] != "defect", -float(r["score"])))
    seen = [r for r in ranked if str(r["name"]) in pictures]
    names = short(rows)
    cards = [
        _card(r, names[str(r["file"])], of.get(str(r["file"]), []), pictures[str(r["name"])]) for r in seen
    ]
    bad = sum(r["decision"] == "defect" for r in seen)
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(s)}</p>" for s in sentences(told))]
    if bad:
        parts.append(f'<h2>Called defective</h2><div class="cards">{"".join(cards[:bad])}</div>')
    columns = [c for c in SHOWN if any(c in r for r in rows)]
    lines = [["image", *(HEADS.get(c, c) for c in columns)]]
    lines += [[names[str(r["file"])], *(cell(r, c) for c in columns)] for r in ranked]
    parts += ["<h2>All images</h2>", table(lines)]
    if seen[bad:]:
        parts.append(f'<h2>Called good</h2><div class="cards">{"".join(cards[bad:])}</div>')
    return document(title, "".join(parts))


def cell(row: Row, column: str) -> str:
    """A value as it is shown, four digits of a number."""
    value = row.get(column, "")
    if column == "calibrated":
        return f"{100 * float(value):.1f}"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def jpeg(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as JPEG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _card(row: Row, name: str, regions: Sequence[Row], picture: bytes) -> str:
    source = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    name = escape(name)
    wrong = row["truth"] in ("good", "defect") and row["truth"] != row["decision"]
    truth = f" · is {escape(str(row['truth_class'] or row['truth']))}" if row["truth"] else ""
    lines = "".join(f"<li>{_told(region)}</li>" for region in regions)
    return (
        f'<figure class="card{" wrong" if wrong else ""}"><img loading="lazy" alt="{name}" src="{source}">'
        f"<figcaption><b>{name}</b><br>above {100 * float(row['calibrated']):.0f} % of good images{truth}"
        f"{f'<ol>{lines}</ol>' if lines else ''}</figcaption></figure>"
    )


def _told(region: Row) -> str:
    """One region in words."""
    name = escape(str(region["class"]))
    known = region.get("probability") not in (None, "")
    sure = f" {100 * float(region['probability']):.0f} %" if known else ""
    size = f"{region['area_pixels']} px, {region['length_pixels']} px long"
    if "length_mm" in region:
        size = f"{region['area_mm2']} mm², {region['length_mm']} mm long"
    return f"<b>{name}</b>{sure}, {size}"
