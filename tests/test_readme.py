"""The commands of the README's section on own images run as they are written."""

import csv
import json
import re

import pytest
from cli import FAST, ROOT, run

from fewspect.data.toy.layouts import write


def commands(section):
    """Arguments of ``python run.py`` in a section of the README, without comments."""
    text = (ROOT / "README.md").read_text("utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^python run\.py (.*?)\s*(?:#.*)?$", text, re.MULTILINE)


COMMANDS, FIVE = commands("Your own images"), commands("Five commands")
SMALL = ("data.workers=0", "data.batch_size=2")
"""Appended: the same work on fewer images."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("user")
    defects = ["blob", "hole"]
    write(place / "my_parts", "pairs_binary", products=["wood"], defects=defects, side=64, images=6, good=8)
    for name, good in (("good_parts", 6), ("new_parts", 2)):
        write(place / name, "flat", products=["wood"], defects=[], side=64, images=0, good=good)
    detect = ("method=patch_nn", "data=folder", "data.root=good_parts", "data.workers=0", "trainer=cpu")
    inspect = ("mode=inspect", "data=folder", "data.root=my_parts", "data.workers=0", "trainer=smoke")
    for options, folder in (
        (FAST, "logs/sofs/toy/first"),
        (detect, "logs/patch_nn/folder/first"),
        (inspect, "logs/subspace/folder/first"),
    ):
        done = run(*options, f"hydra.run.dir={folder}", cwd=place)
        assert done.returncode == 0, done.stderr
    return place


def test_the_section_has_commands():
    assert len(COMMANDS) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("line", [c for c in COMMANDS if "SOFS_model.pth" not in c])
def test_a_command_of_the_readme_runs(line, place):
    """The authors' checkpoint (370 MB) is left to tests/methods/test_sofs_checkpoint.py."""
    arguments = line.replace("<run>", "first").split()
    smoke = () if any(a.startswith("run=") for a in arguments) else ("trainer=smoke",)
    done = run(*arguments, *SMALL, *smoke, cwd=place)
    assert done.returncode == 0, done.stderr
    if "mode=predict" in arguments:
        (table,) = (place / done.stdout.splitlines()[-1]).rglob("predictions.csv")
        rows = list(csv.DictReader(table.open()))
        assert rows
        assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.slow
def test_the_five_commands_run_one_after_the_other(tmp_path):
    """On a smaller factory; ``<run>`` is what the first one printed."""
    assert len(FIVE) == 5
    folder = ""
    for line in FIVE:
        arguments = [a.replace("logs/subspace/toy/<run>", folder) for a in line.split()]
        small = FAST if "data=toy" in arguments else ()
        done = run(*arguments, *small, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
        folder = folder or done.stdout.splitlines()[-1]
    assert list((tmp_path / folder).rglob("predictions.csv"))
    assert (tmp_path / folder / "export" / "onnx" / "model.onnx").is_file()
    (sweep,) = (tmp_path / "logs" / "sweeps").iterdir()
    assert [json.loads((sweep / str(k) / "run.json").read_text())["status"] for k in range(4)] == ["done"] * 4
    (page,) = (tmp_path / "logs" / "compare").rglob("comparison.html")
    assert "GFLOP / image" in page.read_text("utf-8")
