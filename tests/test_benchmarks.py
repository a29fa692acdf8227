"""The table benchmarks: cells, marks, row files, both pages, and what is on both sides of a split."""

import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from cli import ROOT, environment
from PIL import Image
from scipy import stats

sys.path.insert(0, str(ROOT))

from benchmarks import contamination, detectors, everything, inspection, page, segmenters, surfaces, tables
from benchmarks.tables import Table, Value

from fewspect.data.index import Index
from fewspect.errors import UserError
from fewspect.types import Sample


@pytest.mark.parametrize("number", [1, 2, 3, 4, 11, 20])
def test_a_cell_is_mean_and_interval_of_students_t(number):
    numbers = [random.Random(number * 100 + k).uniform(0, 100) for k in range(number)]
    text = str(tables.value(numbers))
    mean = sum(numbers) / number
    if number == 1:
        assert text == f"{mean:.1f}"
        return
    deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (number - 1))
    low, high = stats.t.interval(0.95, number - 1, mean, deviation / math.sqrt(number))
    shown, half = map(float, text.split(" ± "))
    assert abs(shown - mean) <= 0.051
    assert abs(half - (high - low) / 2) <= 0.051


def test_cells_without_numbers_signs_and_marks():
    assert tables.value([]) == ""
    assert str(tables.value([1.0, 3.0], interval=False)) == "2.0"
    assert str(tables.value([1.0], sign=True)) == "+1.0"
    assert Value(1, 0.5, mark="best").markdown() == "**1.0 ± 0.5**"
    assert Value(1, 0.5, mark="tie").markdown() == "1.0 ± 0.5 *"


def test_put_replaces_what_is_between_the_marks_and_nothing_else(tmp_path):
    page_file = tmp_path / "results.md"
    page_file.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb <!-- xx -->\nc\n<!-- /xx -->\n")
    assert tables.put(page_file, "x", r"new \1 body")
    assert (
        page_file.read_text() == "a\n<!-- x -->\nnew \\1 body\n<!-- /x -->\nb <!-- xx -->\nc\n<!-- /xx -->\n"
    )
    assert tables.put(page_file, "x", "")
    assert tables.put(page_file, "xx", "d")
    assert page_file.read_text() == "a\n<!-- x -->\n\n<!-- /x -->\nb <!-- xx -->\nd\n<!-- /xx -->\n"
    before = page_file.read_bytes()
    assert not tables.put(page_file, "y", "nothing")
    assert page_file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.md"]


def test_a_row_file_survives_a_kill_in_the_middle_of_a_line(tmp_path, capsys):
    path = tmp_path / "sub" / "rows.jsonl"
    assert tables.read(path) == []
    tables.append(path, {"seed": 0, "miou": 0.5})
    tables.append(path, {"seed": 1, "miou": 0.25})
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[1])):
        path.write_bytes(whole[: len(whole) - 1 - cut])
        assert [r["seed"] for r in tables.read(path)] == [0]
    tables.append(path, {"seed": 2, "miou": 0.75})
    assert [r["seed"] for r in tables.read(path)] == [0, 2]
    path.write_bytes(path.read_bytes()[:-1])  # whole but for the end of the line
    tables.append(path, {"seed": 3, "miou": 1.0})
    rows = tables.read(path)
    assert [r["seed"] for r in rows] == [0, 2, 3]
    assert {"machine", "date", "backbone"} <= rows[0].keys()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == rows[-1]
    path.write_text('{"seed": 0}\nnonsense\n{"seed": 1}\n')
    with pytest.raises(UserError, match="line 2"):
        tables.read(path)


def rows_of(draw):
    """Synthetic rows of several tasks, some of them partial."""
    detected = [
        {
            "set": "screw",
            "method": method,
            "seed": seed,
            "milliseconds": 20 + 9 * draw.random(),
            "megabytes": 1.5,
        }
        | {key: draw.random() for key, factor in detectors.COLUMNS.values() if factor == 100}
        for method in ("patch_nn", "subspace")
        for seed in range(3)
    ]
    inspected = [
        {"set": "tiles with labelled defects", "split": k, "false_alarm_rate": draw.random() / 10}
        for k in range(4)
    ]
    cells = [
        {"set": "magnetic_tile", "fold": fold, "method": "ridge", "shot": 1, "seed": seed, "fit_seconds": 0.0}
        | {key: draw.random() for key, _ in segmenters.COLUMNS.values()}
        | {f"iou magnetic_tile/class{fold}": draw.random(), "milliseconds": 7.7}
        for fold in (0, 1)
        for seed in (0, 1, 2)
        if (fold, seed) != (1, 2)
    ]
    cells.append(
        {"set": "magnetic_tile", "fold": 0, "method": "sofs", "shot": 5, "seed": 0, "skipped": "too few"}
    )
    known = [
        {
            "table": "main",
            "fold": "neu",
            "shot": shot,
            "row": name,
            "accuracy": draw.random(),
            "accuracy_ci95": 0.01,
        }
        for shot in (0, 1)
        for name in list(surfaces.ROWS)[:3]
    ]
    return {"detectors": detected, "inspection": inspected, "segmenters": cells, "surfaces": known}


def test_a_seed_counts_where_it_has_all_folds_of_the_others():
    rows = [r for r in rows_of(random.Random(0))["segmenters"] if "skipped" not in r]
    (made,) = segmenters.made(rows)
    (line,) = made.lines
    seeds = [np.mean([r["miou"] for r in rows if r["seed"] == seed]) * 100 for seed in (0, 1)]
    shown = line[list(made.head).index("mIoU")]
    assert shown.mean == pytest.approx(np.mean(seeds))
    assert shown.half == pytest.approx(stats.t.ppf(0.975, 1) * np.std(seeds, ddof=1) / math.sqrt(2))
    assert line[-1] == "2 + 2"
    only = [100 * r["iou magnetic_tile/class1"] for r in rows if r["fold"] == 1]
    assert line[list(made.head).index("class1")].mean == pytest.approx(np.mean(only))


class Text(HTMLParser):
    """Text of a page, and whether every tag that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "rect", "path", "html", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "path", "html"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_both_pages_show_every_number_of_the_rows_and_ask_nobody(tmp_path, capsys):
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    docs.mkdir()
    (docs / "results.md").write_text((ROOT / "docs" / "results.md").read_text("utf-8"), "utf-8")
    rows = rows_of(random.Random(1))
    rows["contamination"] = [
        {"task": "detectors", "set": "screw", "part": "p", "learned": 10, "asked": 14, "groups": 0}
        | {"same_picture": 0, "same_group": 0, "copies": 3}
    ]
    for name, part in rows.items():
        (results / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    everything.main(["--render", "--results", str(results), "--docs", str(docs)])
    written, shown = (docs / "results.md").read_text("utf-8"), (docs / "benchmark.html").read_text("utf-8")
    modules = (detectors, inspection, segmenters, surfaces)
    made = [t for m in modules for t in m.made(rows[m.__name__.rpartition(".")[2]])]
    assert len(made) == 5
    reader = Text()
    reader.feed(shown)
    assert reader.open == []
    text = " ".join(reader.words)
    for cell in [str(c) for t in made for line in t.lines for c in line]:
        assert cell.replace("`", "") in text
    for t in made:
        assert t.markdown() in written
    for foreign in ("http", "src=", "url(", "@import"):
        assert foreign not in shown.lower()
    assert "too few" in text
    assert "may meet as support and query" in text
    assert "What generated images are worth" in text.partition("Not measured yet")[2]
    before = (docs / "benchmark.html").read_bytes()
    everything.main(["--render", "--results", str(results), "--docs", str(docs)])
    assert (docs / "benchmark.html").read_bytes() == before


def test_the_page_without_any_row_says_what_to_run(tmp_path):
    (tmp_path / "results.md").write_text("<!-- margin -->\nkept\n<!-- /margin -->\n")
    everything.main(["--render", "--results", str(tmp_path), "--docs", str(tmp_path)])
    shown = (tmp_path / "benchmark.html").read_text("utf-8")
    assert shown.count("python -m benchmarks.") == len(everything.TASKS)
    assert "kept" in (tmp_path / "results.md").read_text()


def test_bars_are_as_long_as_their_numbers():
    made = Table(
        "t", "t", ("row", "points"), [["a", Value(80, 30)], ["b", Value(20, 5)]], best={"points": "max"}
    )
    drawn = page.chart(made, "points")
    lengths = [
        float(w) for w in re.findall(r'width="([\d.]+)" height="10" rx="3" class="(?:bar|top)"', drawn)
    ]
    assert lengths == pytest.approx([0.8 * page.WIDTH, 0.2 * page.WIDTH])
    assert f"M{0.5 * page.WIDTH:.1f}" in drawn
    assert f"H{page.WIDTH:.1f}" in drawn  # 110 is cut at the end of the drawing
    assert drawn.count('class="top"') == 1


def test_every_table_has_its_marks_in_the_page():
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    names = re.findall(r"<!-- /(.+?) -->", text)
    assert len(names) == len(set(names))
    for name in names:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
    for made in (t for m in (detectors, inspection, segmenters, surfaces) for t in m.made(_all(m))):
        assert made.name in names


def _all(module):
    return rows_of(random.Random(2))[module.__name__.rpartition(".")[2]]


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures; 6 has the pixels of 0 under another format and name, 7 those of 5."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 9, 7, 3), np.uint8)
    samples = []
    for k, source in enumerate((0, 1, 2, 3, 4, 5, 0, 5)):
        path = tmp_path / f"{k}.{'bmp' if k >= 6 else 'png'}"
        Image.fromarray(noise[source]).save(path)
        samples.append(Sample(path, label=1, group="tile" if k in (1, 4) else ""))
    return samples


def test_a_planted_copy_and_a_torn_group_are_found(pictures):
    contamination.require((pictures[:3], pictures[3:4]), "clean")
    with pytest.raises(UserError, match=r"half: .*0\.png is learned from.*same picture as .*6\.bmp"):
        contamination.require((pictures[:3], pictures[5:]), "half")
    with pytest.raises(UserError, match=r"1\.png is learned from.*same part as .*4\.png"):
        contamination.require((pictures[:3], pictures[3:5]), "half")
    found = contamination.count(pictures[:3], pictures[3:])
    assert found == {"learned": 3, "asked": 5, "groups": 1, "same_picture": 1, "same_group": 1, "copies": 1}
    (made,) = contamination.made([{"task": "t", "set": "s", "part": "p", **found}])
    assert "are on both sides" in page.page([], made)


def test_a_refusal_is_two_lines_and_exit_code_2(pictures, capsys):
    with pytest.raises(SystemExit) as stopped:
        tables.started(lambda: contamination.require((pictures[:3], pictures[5:]), "half"))
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "0.png" in told[0]
    assert "6.bmp" in told[0]


def test_a_copy_stays_once(pictures):
    kept = contamination.without_copies(Index(tuple(pictures)))
    assert [s.image.name for s in kept.samples] == [f"{k}.png" for k in range(6)]


def test_many_splits_are_one_line():
    sizes = [
        {"learned": 10 + k, "asked": 5, "groups": 0, "same_picture": 0, "same_group": k % 2}
        for k in range(20)
    ]
    rows = [{"task": "t", "set": "s", "part": f"split {k}", "copies": 0, **s} for k, s in enumerate(sizes)]
    (made,) = contamination.made(rows)
    assert made.lines == [["t", "s", "20 splits", "10 to 29", "5", "0", "0", "10", "0"]]


@pytest.mark.slow
def test_the_command_measures_skips_and_goes_on(tmp_path):
    """Two cells, one of which has too few pictures; again: nothing is measured."""
    from fewspect.data.toy.layouts import write

    root, rows = tmp_path / "data", tmp_path / "rows.jsonl"
    write(
        root / "neu_seg",
        "pairs_index",
        products=["wood"],
        defects=["blob", "hole"],
        side=64,
        images=6,
        good=0,
    )
    command = [sys.executable, "-m", "benchmarks.segmenters", "--root", str(root), "--out", str(rows)]
    command += ["--methods", "incontext", "--seeds", "0", "--sets", "neu_seg"]
    command += ["--page", str(tmp_path / "results.md")]
    results = tmp_path / "results.md"
    results.write_text("<!-- segmenters neu_seg -->\n<!-- /segmenters neu_seg -->\n")
    told = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run(command, check=False, **told)
    assert done.returncode == 0, done.stderr
    assert "incontext" in results.read_text()
    found = {r["shot"]: r for r in tables.read(rows)}
    assert 0 <= found[1]["miou"] <= 1
    assert found[1]["parameters"] > found[1]["trained"] >= 0
    assert "skipped" in found[5]
    before = rows.read_bytes()
    segmenters.main(command[3:])
    assert rows.read_bytes() == before
