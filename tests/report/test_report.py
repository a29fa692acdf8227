"""Comparisons of finished runs: what is found, grouped, tested and drawn; nothing of it needs torch."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from cli import ROOT, environment
from PIL import Image

from fewspect.errors import UserError
from fewspect.report import charts, page, records, statistics, tables

CLASSES = ("wood/dent", "wood/stain", "tile/crack")


def folder_of_run(place, method, data, seed, *, shift=0.0, status="done", episodes=True, **config):
    """A run whose IoU is 0.5 + shift and a noise that all methods of a seed share."""
    run = place / f"{method}_{data}_{seed}_{len(config)}_{'_'.join(map(str, config.values()))}"
    (run / "panels").mkdir(parents=True)
    draw = np.random.default_rng(seed)
    rows, sums = [], {c: [0, 0] for c in CLASSES}
    for k in range(60):
        union = int(draw.integers(50, 400))
        hit = int(union * np.clip(0.5 + shift + draw.normal(0, 0.2), 0, 1))
        name, score = CLASSES[k % 3], float(draw.normal(k % 2 + shift))
        sums[name][0] += hit
        sums[name][1] += union
        rows.append([k, name, f"a/{k}.png", k % 2, score, int(score > 0), int(hit > union / 2), hit, union])
    miou = float(np.mean([i / u for i, u in sums.values()]))
    if episodes:
        with (run / "episodes.csv").open("w", newline="") as file:
            head = "index,class,query,label,score,decision,correct,intersection,union"
            csv.writer(file).writerows([head.split(","), *rows])
    with (run / "metrics.csv").open("w", newline="") as file:
        curve = [(e, 10 * e, "val/miou", miou * (1 - 0.7**e)) for e in range(1, 9)]
        csv.writer(file).writerows([("epoch", "step", "name", "value"), *curve])
    picture = np.kron(draw.integers(0, 255, (4, 16, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    Image.fromarray(picture).save(run / "panels" / f"test_iou_{miou:.3f}_{method}.png")
    record = {
        "status": status,
        "seed": seed,
        "choices": {"method": method, "data": data},
        "config": {"seed": seed, "data": {"shot": 1, "seed": seed, "root": str(place)} | config},
        "metrics": {"test/miou": miou, "test/fb_iou": miou / 2 + 0.4, "val/miou": miou},
        "objective": {"name": "val/miou", "direction": "max"},
        "wall_seconds": 360.0,
        "peak_memory_mib": {"rss": 900 + seed},
        "milliseconds_per_image": 12.5,
        "parameters": {"all": 2_000_000, "trained": 500_000},
    }
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sweep")
    for seed in range(3):
        for data in ("toy", "vision"):
            folder_of_run(place, "sofs", data, seed, shift=0.15)
            folder_of_run(place, "ridge", data, seed, shift=0.0)
            folder_of_run(place, "ridge2", data, seed, shift=0.001)
    folder_of_run(place, "sofs", "neu", 0, status="failed")
    return place


@pytest.fixture(scope="module")
def comparison(place):
    return tables.compare(records.collect([str(place)])[0])


def test_runs_are_found_and_grouped(place, comparison):
    runs, others = records.collect([str(place)])
    assert (len(runs), [r.status for r in others]) == (18, ["failed"])
    assert comparison.rows == ("method",)
    assert comparison.column_names == [("toy",), ("vision",)]
    assert comparison.row_names[0] == ("sofs",)
    cell = comparison.cell(("sofs",), ("toy",), "test/miou")
    values = [
        r.metrics["test/miou"] for r in runs if r.record["choices"] == {"method": "sofs", "data": "toy"}
    ]
    assert cell.count == 3
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.half == pytest.approx(4.303 * np.std(values, ddof=1) / math.sqrt(3))
    assert comparison.cost(("sofs",), ("toy",), "hours") == pytest.approx(0.1)


def test_a_run_made_twice_is_one_observation(tmp_path):
    first = folder_of_run(tmp_path / "a", "sofs", "toy", 0)
    second = folder_of_run(tmp_path / "b", "sofs", "toy", 0)
    record = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(
        json.dumps(record | {"mode": "test"}).replace(str(tmp_path / "b"), str(tmp_path / "a"))
    )
    later = time.time() + 5
    os.utime(second / "run.json", (later, later))
    assert [r.folder for r in records.collect([str(tmp_path)])[0]] == [second]
    assert first.is_dir()


def test_what_differs_makes_rows_and_seeds_do_not(tmp_path):
    for shot in (1, 5):
        for seed in (0, 1):
            folder_of_run(tmp_path, "sofs", "toy", seed, shot=shot)
    runs, _ = records.collect([str(tmp_path)])
    assert records.varying(runs) == ["data.shot"]
    found = tables.compare(runs)
    assert found.rows == ("method", "data.shot")
    assert {row for row, _ in found.groups} == {("sofs", "1"), ("sofs", "5")}
    assert tables.compare(runs, columns=["shot"], rows=["method"]).column_names == [("1",), ("5",)]


@pytest.mark.parametrize(
    ("configs", "key"),
    [
        ([{"checkpoint": "a.ckpt"}, {"checkpoint": "b.ckpt"}], "checkpoint"),
        ([{"objective": "val/miou"}, {"objective": "val/dice"}], "objective"),
        ([{"trainer": {"gradient_clip_val": v}} for v in (0.1, None)], "trainer.gradient_clip_val"),
        ([{"trainer": {"limit_test_batches": v}} for v in (2, None)], "trainer.limit_test_batches"),
        ([{"data": {"root": v}} for v in ("x/caps", "x/bolts")], "data.root"),
        ([{"data": {"root": v}} for v in ("2024/caps", "2025/caps")], "data.root"),
        ([{"method": {"head": {"_target_": v}}} for v in ("a.A", "a.B")], "method.head._target_"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_runs_that_differ_are_rows_of_their_own(tmp_path, configs, key):
    for k, config in enumerate(configs):
        run_of_rows(tmp_path, f"m{k}", [{"index": 0}], config=config, miou=0.5)
    runs, _ = records.collect([str(tmp_path)])
    assert len(runs) == 2
    found = tables.compare(runs)
    assert (found.rows, {len(g) for g in found.groups.values()}) == (("method", key), {1})


@pytest.mark.parametrize(
    "configs",
    [
        [{"data": {"workers": v}} for v in (0, 4)],
        [{"trainer": {"accelerator": v, "precision": "32-true"}} for v in ("cpu", "cuda")],
        [{"trainer": {"log_every_n_steps": v}} for v in (1, 10)],
    ],
    ids=["workers", "accelerator", "logging"],
)
def test_where_and_how_fast_a_run_was_made_makes_no_other_one(tmp_path, configs):
    for k, config in enumerate(configs):
        run_of_rows(tmp_path, f"m{k}", [{"index": 0}], config=config, miou=0.5)
    assert len(records.collect([str(tmp_path)])[0]) == 1


def test_one_data_set_on_two_machines_is_one_row(tmp_path):
    for seed, place in enumerate(("laptop/caps", "cluster/caps")):
        run_of_rows(tmp_path, f"m{seed}", [{"index": 0}], seed, config={"data": {"root": place}}, miou=0.5)
    assert tables.compare(records.collect([str(tmp_path)])[0]).rows == ("method",)


def test_a_small_steady_gain_is_found_where_intervals_overlap(comparison):
    verdict = comparison.verdicts
    assert verdict[("ridge",), ("toy",)].word == "lower"
    assert verdict[("ridge",), ("toy",)].basis == "episodes"
    best = comparison.cell(("sofs",), ("toy",), "test/miou")
    star = {line[0]: line[1].endswith("*") for line in tables.grid(comparison, "test/miou")[1:]}
    assert star == {"sofs": True, "ridge": False, "ridge2": False}
    assert best.half > 0


def test_equal_methods_cannot_be_told_apart(tmp_path):
    for seed in range(3):
        folder_of_run(tmp_path, "a", "toy", seed)
        folder_of_run(tmp_path, "b", "toy", seed)
    verdicts = tables.compare(records.collect([str(tmp_path)])[0]).verdicts
    assert [v.word for v in verdicts.values()] == ["not distinguishable"]


@pytest.mark.parametrize("metric", ["miou", "accuracy", "image_auroc"])
def test_statistics_of_resamples_equal_a_slow_count(place, metric):
    run = records.collect([str(place)])[0][0]
    table = statistics._table(run)
    statistic = statistics.STATISTICS[metric]
    weights = statistics._weights(table, statistic)[:5]
    assert (weights[0] == 1).all()
    assert all(w.sum() == len(table["class"]) for w in weights)
    fast = statistic.of(table, weights)
    for w, value in zip(weights, fast, strict=True):
        rows = np.repeat(np.arange(len(w)), w.astype(int))
        assert value == pytest.approx(slow(metric, {k: v[rows] for k, v in table.items()}))
    assert fast[0] == pytest.approx(run.metrics.get(f"test/{metric}", fast[0]))


def run_of_rows(place, name, rows, seed=0, config=None, **metrics):
    """A run that says what is given: rows of ``episodes.csv`` and metrics of the test."""
    folder = place / name
    folder.mkdir(parents=True)
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    record = {
        "status": "done",
        "seed": seed,
        "choices": {"method": name.rstrip("0123456789"), "data": "d"},
        "config": {"seed": seed} | (config or {}),
        "metrics": {f"test/{k}": v for k, v in metrics.items()},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return records.Run(folder, record)


def test_image_scores_are_ranked_within_products_as_the_metric_does(tmp_path):
    """Scores of two products on two scales: within each they are perfect, pooled they are not."""
    draw = np.random.default_rng(0)

    def rows(score):
        found = []
        for product, offset in (("nut", 0.0), ("wood", 10.0)):
            for k in range(40):
                label = (k % 2) if k else -1
                row = {"index": len(found), "class": f"{product}/defect", "query": f"{product}/{k}"}
                found.append(row | {"label": label, "score": score(label, offset), "product": product})
        return found

    perfect = rows(lambda label, offset: offset + label + 0.1 * draw.random())
    noisy = rows(lambda label, _: label + 0.8 * draw.normal())
    areas = [
        float(np.mean([slow_area([r for r in some if r["product"] == p]) for p in ("nut", "wood")]))
        for some in (perfect, noisy)
    ]
    assert areas[0] == 1
    a = run_of_rows(tmp_path, "a", perfect, image_auroc=areas[0])
    b = run_of_rows(tmp_path, "b", noisy, image_auroc=areas[1])
    verdict = statistics.paired([a], [b], "test/image_auroc")
    assert (verdict.basis, verdict.word) == ("episodes", "higher")
    assert verdict.difference == pytest.approx(areas[0] - areas[1])


@pytest.mark.parametrize("classes", [lambda i: "a+b", lambda i: f"a+c{i}"], ids=["one task", "drawn tasks"])
def test_samplings_of_a_classifier_are_resampled(tmp_path, classes):
    """All samplings ask the same queries first: they are not one observation."""
    draw, share = np.random.default_rng(0), {}
    for name in ("a", "b"):
        share[name] = 0.8 + 0.1 * draw.normal(size=30)
        rows = [
            {"index": i, "class": f"steel/{classes(i)}", "query": "q0", "correct": v, "product": "steel"}
            for i, v in enumerate(share[name])
        ]
        run_of_rows(tmp_path, name, rows, accuracy=share[name].mean())
    runs, _ = records.collect([str(tmp_path)])
    verdict = statistics.paired([runs[0]], [runs[1]], "test/accuracy")
    assert (verdict.basis, verdict.word) == ("episodes", "not distinguishable")
    error = np.std(share["a"] - share["b"]) / math.sqrt(30)
    assert verdict.high - verdict.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_what_the_episodes_do_not_say_is_tested_by_runs(tmp_path):
    """IoU per class of label masks is not in the table, and one episode says nothing about its variance."""
    rows = [
        {"index": k, "class": "steel/a", "query": f"q{k}", "intersection": 5 + k, "union": 10, "correct": 1}
        for k in range(3)
    ]
    for seed in range(3):
        run_of_rows(tmp_path, f"a{seed}", rows, seed, miou=0.3 + 0.01 * seed, accuracy=1.0)
        run_of_rows(tmp_path, f"b{seed}", rows[:1] * 3, seed, miou=0.5, accuracy=1.0)
    runs, _ = records.collect([str(tmp_path)])
    a, b = ([r for r in runs if r.folder.name.startswith(n)] for n in "ab")
    verdict = statistics.paired(a, b, "test/miou")
    assert (verdict.basis, verdict.word) == ("runs", "lower")
    assert statistics.paired(b[:1], b[1:2], "test/accuracy") is None


def in_process(command, cwd):
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def slow(metric, t):
    if metric == "accuracy":
        return np.mean([t["correct"][t["product"] == name].mean() for name in np.unique(t["product"])])
    if metric == "miou":
        names = np.unique(t["class"])
        return np.mean(
            [t["intersection"][t["class"] == n].sum() / t["union"][t["class"] == n].sum() for n in names]
        )
    rows = [dict(zip(t, values, strict=True)) for values in zip(*t.values(), strict=True)]
    names = np.unique(t["product"])
    return np.nanmean([slow_area([r for r in rows if r["product"] == n]) for n in names])


def slow_area(rows):
    """Area under the ROC curve of rows of one product, as pairs."""
    bad, good = ([r["score"] for r in rows if r["label"] == one] for one in (1, 0))
    return np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good]) if bad and good else np.nan


def test_without_episodes_the_seeds_are_paired(tmp_path):
    for seed in range(4):
        for name, shift in (("a", 0.0), ("b", 0.1)):
            folder_of_run(tmp_path, name, "toy", seed, shift=shift, episodes=False)
    verdicts = tables.compare(records.collect([str(tmp_path)])[0]).verdicts
    assert [(v.basis, v.word) for v in verdicts.values()] == [("runs", "lower")]


def test_mistakes_are_named(place, tmp_path):
    runs, _ = records.collect([str(place)])
    with pytest.raises(UserError, match="No run folder"):
        records.collect([str(tmp_path)])
    with pytest.raises(UserError, match="no run has mio"):
        tables.compare(runs, metrics=["mio"])
    with pytest.raises(UserError, match=r"method\.nothing"):
        tables.compare(runs, rows=["method.nothing"])


def test_a_broken_record_is_listed_not_fatal(tmp_path):
    folder_of_run(tmp_path, "sofs", "toy", 0)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"status": "do')
    runs, others = records.collect([str(tmp_path)])
    assert len(runs) == 1
    assert [r.status for r in others] == ["unreadable"]


def test_the_table_reads_back(comparison):
    rows = list(csv.DictReader(tables.to_csv(comparison).splitlines()))
    assert len(rows) == 6 * 2
    for row in rows:
        cell = comparison.cell((row["method"],), (row["data"],), row["metric"])
        assert float(row["mean"]) == cell.mean
    assert tables.to_markdown(comparison).count("| sofs |") == 3


def test_the_page_asks_nothing_of_the_network_and_shows_everything(place, comparison):
    _, others = records.collect([str(place)])
    text = page.to_html(comparison, others, "A <b> & more")
    assert all(link.startswith("data:") for link in re.findall(r"(?:src|href)=[\"']?([^\"'>]*)", text))
    assert "url(" not in text
    assert "A &lt;b&gt; &amp; more" in text
    assert text.count("<svg") == 2 + 2
    assert text.count("data:image/jpeg") == 3
    assert "failed" in text


def test_what_is_better_is_decided_once():
    """Checkpoints, searches and comparisons follow one rule."""
    from fewspect.engine.session import direction_of
    from fewspect.metrics.suites import LOWER_IS_BETTER

    small = [*LOWER_IS_BETTER, "loss"]
    assert not any(tables.is_better_high(f"val/{name}") for name in small)
    assert {direction_of(f"val/{name}") for name in small} == {"min"}
    assert direction_of("val/miou") == "max"
    assert tables.is_better_high("test/image_auroc")


def test_names_in_brackets_reach_the_terminal(comparison, place, capsys):
    """Rich takes [x] for a style."""
    from fewspect.engine import tables as terminal

    rows = [{"class": "screw [new]/scratch", "[iou]": 0.5}]
    terminal.show({"": rows, "types [a]": rows}, {"x[b]": 1.0}, ["see [/c] and [red]"], "test [d]")
    terminal.show_evaluation([{"measure": "images that show [e]"}], ["a [/f]"])
    told = capsys.readouterr().out
    for name in ("screw [new]/scratch", "[iou]", "[a]", "x[b]", "[/c] and [red]", "[d]", "[e]", "[/f]"):
        assert name in told


def test_charts_bear_what_cannot_be_drawn():
    assert charts.bars([("a", math.nan, 0.0)], "x") == ""
    assert charts.lines({"a": [(0, math.nan)]}, "x") == ""
    assert "nan" not in charts.bars([("a", 0.3, math.nan), ("b", -0.2, 0.1)], "x")
    assert charts.lines({"a": [(0.0, 1.0)]}, "x").count("polyline") == 1


def test_the_command_writes_three_files_without_torch(place, tmp_path):
    code = (
        "import sys, runpy; sys.argv=['run.py','mode=compare',{!r},'hydra.run.dir=out']\n"
        "try: runpy.run_path({!r}, run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    ).format(f"runs={place}", str(ROOT / "run.py"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("out")
    assert {p.name for p in (tmp_path / "out").glob("comparison.*")} == {
        "comparison.html",
        "comparison.md",
        "comparison.csv",
    }


def test_compare_without_runs_says_so(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), "mode=compare"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Add runs=")
