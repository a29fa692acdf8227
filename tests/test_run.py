"""The modes end to end on toy data, and runs that are stopped, killed, damaged and resumed."""

import csv
import json
import signal
import subprocess
import time

import pytest
import torch
from cli import FAST, command, environment
from omegaconf import OmegaConf
from warm import run

from fewspect.engine import checkpoints, folders
from fewspect.errors import UserError

LONG = (
    *FAST[1:],
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=5",
    "trainer.limit_test_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
)


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def steps(folder):
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    return max((int(r["step"]) for r in rows if (r["step"] or "").isdigit()), default=-1)


def stop_at(folder, step, signum, cwd, *options):
    with (cwd / "out.txt").open("w") as out:
        asked = command(*LONG, *options, f"hydra.run.dir={folder}")
        process = subprocess.Popen(asked, cwd=cwd, env=environment(), stdout=out, stderr=out)
        while process.poll() is None and steps(folder) < step:
            time.sleep(0.02)
        process.send_signal(signum)
        return process.wait(60)


def same_end(again, whole):
    assert again["global_step"] == whole["global_step"]
    assert again["state_dict"].keys() == whole["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again["state_dict"][name]), name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(place):
    done = run(*FAST, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / done.stdout.splitlines()[-1], done


@pytest.fixture(scope="module")
def whole(place):
    done = run(*LONG, "hydra.run.dir=whole", cwd=place)
    assert done.returncode == 0, done.stderr
    return last(place / "whole")


def test_options_of_another_data_set_are_not_carried_over(tmp_path):
    (tmp_path / ".hydra").mkdir()
    recorded = ["data=toy", "+data.reader.good=6", "data.fold=1", "data.side=64", "method.seed=3"]
    OmegaConf.save(recorded, tmp_path / ".hydra" / "overrides.yaml")
    (tmp_path / "config.yaml").write_text("mode: train")
    run = f"run={tmp_path}"
    assert folders.with_choices_of_run([run, "seed=1"]) == [*recorded, run, "seed=1"]
    kept = ["data.side=64", "method.seed=3"]
    assert folders.with_choices_of_run([run, "data=folder"]) == [*kept, run, "data=folder"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ridge", "incontext"])
def test_a_method_without_training_is_tested_by_the_plain_command(method, tmp_path):
    done = run(f"method={method}", *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "miou" in done.stdout


@pytest.mark.slow
def test_train_leaves_a_run_folder(trained):
    folder, done = trained
    assert status(folder) == "done"
    for name in (
        "config.yaml",
        "metrics.csv",
        "run.log",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "panels",
    ):
        assert (folder / name).exists(), name
    lines = [x for x in done.stderr.splitlines() if x.strip()]
    assert len(lines) == len(set(lines)), "a log line appears twice"
    assert "Tip" not in done.stderr
    record = json.loads((folder / "run.json").read_text())
    assert record["choices"] == {"method": "sofs", "data": "toy", "backbone": "tiny", "trainer": "smoke"}
    assert record["milliseconds_per_image"] > 0
    assert 0 < record["parameters"]["trained"] < record["parameters"]["all"]


@pytest.mark.slow
def test_the_episodes_of_a_test_add_up_to_its_result(trained):
    folder, _ = trained
    sums = {}
    for row in csv.DictReader((folder / "episodes.csv").open()):
        hit, union = sums.get(row["class"], (0, 0))
        sums[row["class"]] = (hit + int(row["intersection"]), union + int(row["union"]))
        assert not row["query"].startswith("/")
    known = [hit / union for hit, union in sums.values() if union]
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert sum(known) / len(known) == pytest.approx(metrics["test/miou"], abs=1e-6)


@pytest.mark.slow
def test_test_and_predict_use_the_run(trained, place):
    folder, _ = trained
    before = (folder / "run.json").read_text()
    for mode in ("test", "predict"):
        done = run(f"mode={mode}", f"run={folder}", "data.shot=2", cwd=place)
        assert done.returncode == 0, done.stderr
        new = next(p for p in folder.glob(f"{mode}-*"))
        assert status(new) == "done"
        assert OmegaConf.load(new / "config.yaml").data.shot == 2
        assert OmegaConf.load(new / "config.yaml").data.side == 64
    assert (new / "predictions" / "predictions.csv").exists()
    assert (folder / "run.json").read_text() == before


@pytest.mark.slow
def test_check_explains(place):
    done = run("mode=check", *FAST, cwd=place)
    assert done.returncode == 0, done.stderr
    for word in ("layout", "batch", "losses", "answer", "memory", "everything fits"):
        assert word in done.stdout


@pytest.mark.slow
def test_check_explains_a_folder_that_no_method_can_use(place):
    (place / "odd").mkdir(exist_ok=True)
    (place / "odd" / "notes.txt").write_text("no image")
    done = run("mode=check", "data=folder", "data.root=odd", "backbone.weights=none", cwd=place)
    assert done.returncode == 2
    assert "odd" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "step", "end"),
    [
        (signal.SIGTERM, 7, (143, "interrupted")),
        (signal.SIGINT, 2, (130, "interrupted")),
        (signal.SIGKILL, 8, (-9, "running")),
    ],
)
def test_a_stopped_run_continues_as_if_nothing_had_happened(signum, step, end, place, whole):
    folder = place / f"stopped_{signum}"
    assert (stop_at(folder, step, signum, place), status(folder)) == end
    done = run(f"run={folder}", "resume=true", cwd=place)
    assert done.returncode == 0, done.stderr
    assert status(folder) == "done"
    same_end(last(folder), whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["srgan"])
def test_a_killed_detector_continues_as_if_nothing_had_happened(method, place):
    options = (f"method={method}", "data.episodes=10", "method.evaluate.side=64")
    done = run(*LONG, *options, f"hydra.run.dir=whole_{method}", cwd=place)
    assert done.returncode == 0, done.stderr
    folder = place / f"killed_{method}"
    assert stop_at(folder, 8, signal.SIGKILL, place, *options) == -9
    done = run(f"run={folder}", "resume=true", cwd=place)
    assert done.returncode == 0, done.stderr
    same_end(last(folder), last(place / f"whole_{method}"))


@pytest.mark.slow
def test_a_killed_single_pass_starts_over(place):
    options = ("method=subspace", "trainer.limit_train_batches=1.0")
    done = run(*LONG, *options, "hydra.run.dir=whole_subspace", cwd=place)
    assert done.returncode == 0, done.stderr
    folder = place / "killed_subspace"
    with (place / "out.txt").open("w") as out:
        asked = command(*LONG, *options, f"hydra.run.dir={folder}")
        process = subprocess.Popen(asked, cwd=place, env=environment(), stdout=out, stderr=out)
        while process.poll() is None and not (folder / "run.json").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -9
    done = run(f"run={folder}", "resume=true", cwd=place)
    assert done.returncode == 0, done.stderr
    same_end(last(folder), last(place / "whole_subspace"))


@pytest.mark.slow
def test_resume_without_a_checkpoint_starts_over(trained, place):
    folder, _ = trained
    fresh = place / "fresh"
    (fresh / ".hydra").mkdir(parents=True)
    for name in ("config.yaml", ".hydra/overrides.yaml"):
        (fresh / name).write_text((folder / name).read_text())
    done = run(f"run={fresh}", "resume=true", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "starts over" in done.stderr
    assert status(fresh) == "done"


def test_a_damaged_checkpoint_falls_back(tmp_path):
    keep = tmp_path / "checkpoints"
    io = checkpoints.AtomicIO()
    assert checkpoints.resume_point(tmp_path)[0] is None
    io.save_checkpoint({"state_dict": {}, "n": 1}, keep / "last.ckpt")
    io.save_checkpoint({"state_dict": {}, "n": 2}, keep / "last.ckpt")
    assert checkpoints.resume_point(tmp_path) == (keep / "last.ckpt", "")
    assert sorted(p.name for p in keep.iterdir()) == ["last.ckpt", "previous.ckpt"]
    (keep / "last.ckpt").write_bytes((keep / "last.ckpt").read_bytes()[:100])
    path, notice = checkpoints.resume_point(tmp_path)
    assert path == keep / "previous.ckpt"
    assert "damaged" in notice
    assert torch.load(path, weights_only=True)["n"] == 1
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        checkpoints.resume_point(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    io = checkpoints.AtomicIO()
    io.save_checkpoint({"state_dict": {}, "n": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"bad": lambda: 0}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["n"] == 1


def test_a_folder_has_one_writer(tmp_path):
    with folders.lock(tmp_path), pytest.raises(UserError, match="another process"):
        folders.lock(tmp_path)
    folders.lock(tmp_path).close()


def test_a_recorded_run_never_brings_permissions(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(
        "[data.shot=2, 'allow=[os]', mode=test, hydra.run.dir=x, method=sofs]"
    )
    (tmp_path / "config.yaml").write_text("a: 1")
    assert folders.with_choices_of_run([f"run={tmp_path}", "method=other"]) == [
        "data.shot=2",
        f"run={tmp_path}",
        "method=other",
    ]


@pytest.mark.slow
def test_a_mistake_in_a_resume_does_not_stay_in_the_run(trained, place):
    folder = place / "mistaken"
    (folder / ".hydra").mkdir(parents=True)
    names = ("config.yaml", ".hydra/overrides.yaml")
    before = {name: (trained[0] / name).read_text() for name in names}
    for name in names:
        (folder / name).write_text(before[name])
    for wrong in ("data.batch_size=many", "mode=check"):
        done = run(f"run={folder}", "resume=true", wrong, cwd=place)
        assert (done.returncode == 2) == (wrong != "mode=check"), done.stderr
        assert {name: (folder / name).read_text() for name in names} == before
    done = run(f"run={folder}", "resume=true", "data.batch_size=1", cwd=place)
    assert done.returncode == 0, done.stderr
    assert OmegaConf.load(folder / "config.yaml").data.batch_size == 1
    assert "data.batch_size=1" in folders.recorded(folder)
    assert "data.batch_size=2" not in folders.recorded(folder)
