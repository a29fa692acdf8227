"""The `paste` generator: images with masks per second."""

import tempfile

import torch

from benchmarks import subject
from benchmarks.report import Figure, Report, at_least
from fewspect.data.labelled import LabelledDataset, chosen
from fewspect.data.readers import toy
from fewspect.methods.paste.method import Paste
from fewspect.types import DataInfo

SIDE, IMAGES, QUICK_IMAGES = 128, 200, 20
FLOOR = 100.0


def measure(*, quick: bool) -> Report:
    """Look at toy pictures once, then draw on one core."""
    images, threads = QUICK_IMAGES if quick else IMAGES, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paste = _taught(folder)
            paste.generate(range(10))
            best = min(subject.seconds(lambda: paste.generate(range(images)))[0] for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    return Report(
        title="Paste generator",
        what=f"Images of {SIDE} px with their masks: real defects of two toy products onto good images.",
        how=f"{images} samples three times, the best; one thread, nothing is written.",
        figures=[
            at_least("images/s", images / best, FLOOR, ""),
            Figure("time per image", f"{1e3 * best / images:.1f} ms"),
        ],
    )


def _taught(folder: str) -> Paste:
    index = toy.read(folder, images_per_class=3, val_per_class=1, good=6, products=["wood", "board"])
    paste = Paste()
    paste.setup_data(DataInfo(index.classes, tasks=index.tasks, side=SIDE, protocol="labelled"))
    for item in LabelledDataset(chosen(index, "train", None, 4, 0), index.classes, side=SIDE):
        paste.observe([item])
    return paste
