"""The matrix: every method on every layout learns, is tested and answers new images, or says why it cannot.

Small sets of the toy factory, a few steps each; exports are tested in ``test_export.py``.
"""

import csv
import itertools
import re
import signal

import pytest
import torch
from omegaconf import open_dict
from test_conf import composed, names
from test_contract import CLASSES

from fewspect.data.toy import layouts
from fewspect.engine import main
from fewspect.errors import UserError
from fewspect.methods.detector import Detector
from fewspect.methods.generator import Generator

pytestmark = pytest.mark.slow

SIDE = 64
OWN = ("mvtec", "magnetic_tile", "vision", "defect_spectrum", "visa", "chip")
DATA = {name: name if name in OWN else "folder" for name in layouts.LAYOUTS if name != "vision_rle"}
"""Layout -> the value of ``data=`` that reads it; run lengths are left to the reader's tests."""

OPTIONS = {
    "pairs_index": ("data.reader.mask_type=index",),
    **{
        name: ("data.fold=null", "data.reader.objects=[board]", "data.reader.test_objects=[wood]")
        for name in ("vision", "defect_spectrum")
    },
}
SPECIAL = {
    "gccs": ("data.ways.way=2", "data.ways.query=1", "data.ways.runs=4", "data.ways.cache=null"),
    "mvrec": (
        "data.features.cache=null",
        "data.features.samplings=2",
        "data.features.views.kind=none",
        "backbone.side=32",
    ),
    "defect_gen": (
        *("method.net.width=32", "method.net.mult=[1]", "method.net.patch=4", "method.net.attention=[]"),
        *("method.net.middle=false", "method.steps=2", "data.side=32"),
    ),
} | {name: ("data.side=128",) for name in ("bergmann_ae", "red_net", "ssim_ae_lite")}

DETECTORS = {name for name, kind in CLASSES.items() if issubclass(kind, Detector)}
FEW_SHOT, GENERATORS = {"sofs", "incontext", "ridge"}, {"paste", "defect_gen"}
OTHERS = {"mvrec", "gccs", "segmenter"}

UNMASKED = "is for task 'segment', this data set allows"
NO_MASK = "No image to learn from has a mask"
GOOD_ONLY = "these supports show none"
NO_CLASS = "No class is left to learn from"
NO_SUPPORT = "No support for: blob, chip, hole, scratch"
NOTHING = "has no (good )?image to learn from"
NO_DEFECT = "there is no defect with a mask beside good images"
GOOD_TRAINS = {  # published detection layouts: defects are in the test folder only
    "sofs": "The validation gave no val/miou",
    **dict.fromkeys(("incontext", "ridge"), GOOD_ONLY),
    **{"mvrec": NO_SUPPORT, "gccs": NO_CLASS},
    **{"defect_gen": NOTHING, "paste": NO_DEFECT},
}
REFUSED = {
    "mvtec": GOOD_TRAINS,
    "visa": GOOD_TRAINS,
    "chip": {
        **dict.fromkeys(("sofs", "defect_gen"), UNMASKED),
        "paste": NO_DEFECT,
        **dict.fromkeys(("incontext", "ridge"), GOOD_ONLY),
        **{"mvrec": NO_SUPPORT, "gccs": NO_CLASS, "segmenter": NO_MASK},
    },
    "classes": {
        **dict.fromkeys((*FEW_SHOT, "defect_gen"), UNMASKED),
        **{"paste": "shows a defect and has no mask", "segmenter": NO_MASK},
    },
    "flat": {
        **dict.fromkeys((*FEW_SHOT, "defect_gen"), UNMASKED),
        **{"mvrec": "There is no defective image", "gccs": "No image is labelled", "paste": NO_DEFECT},
        "segmenter": "has no image for test",
    },
    "support_query": {
        **dict.fromkeys(DETECTORS | GENERATORS, NOTHING),
        **{"sofs": "No train episode can be made", "gccs": "Episodes of 2 classes were asked for"},
    },
    "magnetic_tile": {"gccs": NO_CLASS},
}
"""Layout -> method -> what the refusal says."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(autouse=True)
def surroundings():
    """What a run changes in its process."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_method_is_in_one_group():
    groups = (DETECTORS, FEW_SHOT, GENERATORS, OTHERS)
    assert sorted(itertools.chain(*groups)) == names("method")


@pytest.mark.parametrize(("layout", "method"), list(itertools.product(DATA, CLASSES)))
def test_a_method_works_on_a_layout_or_says_why_not(layout, method, place):
    reason = REFUSED.get(layout, {}).get(method)
    if reason is None:
        work(layout, method, place)
        return
    with pytest.raises(UserError) as told:
        work(layout, method, place)
    assert re.search(reason, told.value.message)
    assert told.value.hint


def work(layout, method, place):
    """Train and test, then answer new images or draw new ones; the table must hold an answer for each."""
    root = place / "data" / layout
    if not root.exists():
        defects = ("blob", "chip", "hole", "scratch")
        layouts.write(root, layout, side=SIDE, products=("board", "wood"), defects=defects, images=6, good=8)
    generates = issubclass(CLASSES[method], Generator)
    folder = place / f"{layout}-{method}"
    learns = not generates or CLASSES[method].fit_kind != "none"
    if learns:
        step("train", folder, layout, method, root)
    if generates:
        run = (f"run={folder}",) if learns else ()
        step("generate", place / f"{folder.name}-drawn", layout, method, root, "generate.count=2", *run)
        assert len(list((place / f"{folder.name}-drawn" / "generated" / "images").rglob("*.png"))) == 2
        return
    asked = place / f"{folder.name}-asked"
    step("predict", asked, layout, method, root, f"run={folder}")
    (table,) = asked.rglob("predictions.csv")
    rows = list(csv.DictReader(table.open()))
    assert rows
    assert {row["status"] for row in rows} == {"ok"}


def step(mode, folder, layout, method, root, *more):
    folder.mkdir(parents=True)
    small = (
        *(f"mode={mode}", f"method={method}", f"data={DATA[layout]}", f"data.root={root}"),
        *(f"data.side={SIDE}", "data.workers=0", "data.batch_size=2"),
        *("trainer=smoke", "logger=none", "backbone.weights=none"),
    )
    cfg = composed(*small, *OPTIONS.get(layout, ()), *SPECIAL.get(method, ()), *more)
    with open_dict(cfg):
        main.MODES[mode](cfg, folder, [])


@pytest.mark.parametrize("mode", ["test", "predict"])
def test_a_finished_run_without_its_checkpoints_is_refused(mode, place):
    folder = place / f"bare-{mode}"
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "done"}')
    root = place / "data" / "pairs_binary"
    if not root.exists():
        layouts.write(root, "pairs_binary", side=SIDE, products=("wood",), defects=("hole", "blob"), images=6)
    with pytest.raises(UserError, match="its checkpoints are gone"):
        step(mode, place / f"{folder.name}-asked", "pairs_binary", "sofs", root, f"run={folder}")
