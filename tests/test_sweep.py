"""The process launcher: what fails hurts nobody, what is missing is made, nothing is left running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import environment

pytestmark = pytest.mark.slow  # a sweep is a process of processes

JOB = Path(__file__).with_name("sweep_job.py")
SIX = "seed=0,1,2,3,4,5"


def begin(cwd, *options, **deeds):
    """A sweep in a process; ``_3="kill"`` says what the job with seed 3 does."""
    surroundings = environment() | {"DEEDS": json.dumps({k.strip("_"): v for k, v in deeds.items()})}
    command = [sys.executable, str(JOB), "-m", "hydra/launcher=process", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=surroundings, preexec_fn=hear_ctrl_c, **pipes)  # noqa: PLW1509 - no threads here


def hear_ctrl_c():
    """A shell's background job ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sweep(cwd, *options, **deeds):
    process = begin(cwd, *options, **deeds)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def place(cwd):
    (found,) = (cwd / "logs" / "sweeps").iterdir()
    return found


def status(cwd, job):
    path = place(cwd) / str(job) / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else "new"


def tries(cwd, job):
    return len((place(cwd) / str(job) / "tries.txt").read_text().splitlines())


def test_four_of_six_survive_and_the_same_command_makes_the_other_two(tmp_path):
    code, out, err = sweep(tmp_path, SIX, "launcher.n_jobs=2", "launcher.retries=0", _1="kill", _4="raise")
    assert code == 2
    assert err.splitlines()[-2:] == [
        "Error: 2 of 6 jobs have no result: 1 (killed by signal 9), 4 (exit code 1).",
        f"See {place(tmp_path)}/<job>/job.log; the same command again runs only those.",
    ]
    assert "Traceback" not in err
    assert [status(tmp_path, k) == "done" for k in range(6)] == [True, False, True, True, False, True]
    assert "a mistake of ours" in (place(tmp_path) / "4" / "job.log").read_text()
    assert "4 run(s) per cell" in out
    code, out, _ = sweep(tmp_path, SIX, "launcher.n_jobs=2", "launcher.retries=0")
    assert code == 0
    assert "6 run(s) per cell" in out
    assert [tries(tmp_path, k) for k in (0, 2, 3, 5)] == [1] * 4, "finished jobs were not touched"
    assert out.splitlines()[-1] == str(place(tmp_path))
    assert (place(tmp_path) / "comparison.html").is_file()


def test_a_lack_of_memory_is_tried_again_a_mistake_is_not(tmp_path):
    code, _, err = sweep(tmp_path, "seed=0,1", "launcher.retries=1", _0="memory", _1="raise")
    assert code == 2
    assert "1 of 2 jobs have no result: 1 (exit code 1)." in err
    assert (status(tmp_path, 0), tries(tmp_path, 0), tries(tmp_path, 1)) == ("done", 2, 1)


def test_a_job_that_takes_too_long_is_stopped(tmp_path):
    code, _, err = sweep(tmp_path, "seed=0,1", "launcher.timeout=0.1", "launcher.n_jobs=2", _0="sleep")
    assert code == 2
    assert "0 (timed out)" in err
    assert status(tmp_path, 1) == "done"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_sweep_stops_its_jobs(tmp_path, signum):
    process = begin(tmp_path, "seed=0,1,2", "launcher.n_jobs=2", _0="sleep", _1="sleep")
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(
        (tmp_path / "logs").exists() and status(tmp_path, k) == "running" for k in (0, 1)
    ):
        time.sleep(0.1)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert status(tmp_path, 2) == "new"
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running


def test_every_job_has_a_gpu_of_its_own(tmp_path):
    code, _, _ = sweep(tmp_path, "seed=0,1,2,3", "launcher.gpus=[[0,1],[2,3]]")
    assert code == 0
    spans = {}
    for k in range(4):
        gpus, begin = (place(tmp_path) / str(k) / "tries.txt").read_text().split()
        end = (place(tmp_path) / str(k) / "end.txt").read_text()
        spans.setdefault(gpus, []).append((float(begin), float(end)))
    assert set(spans) == {"0,1", "2,3"}
    for times in spans.values():
        (_, first), (second, _) = sorted(times)
        assert first <= second, "two jobs on one slot at a time"


def test_a_dry_run_starts_nothing(tmp_path):
    code, out, _ = sweep(tmp_path, "seed=0,1", "launcher.dry_run=true")
    assert code == 0
    assert len(re.findall(r"\bstart\b", out)) == 2
    assert [p.name for p in place(tmp_path).iterdir()] == ["multirun.yaml"]


def test_a_place_with_odd_characters(tmp_path):
    odd = tmp_path / "a b=c's ü"
    odd.mkdir()
    code, _, err = sweep(odd, "seed=0,1", _1="memory")
    assert code == 0, err
    assert [status(odd, k) for k in (0, 1)] == ["done", "done"]


def test_a_sweep_s_folder_follows_from_what_is_asked(monkeypatch):
    from fewspect.engine.folders import sweep_folder

    def named(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", "-m", *arguments])
        return sweep_folder("process", "basic", "now")

    same = named("method=sofs,vae", "seed=0,1", "launcher.n_jobs=2")
    assert same == named("seed=0,1", "method=sofs,vae")
    assert same != named("method=sofs,vae", "seed=0,1,2")
    named("method=sofs,vae", "seed=0,1")
    assert Path(same).name.startswith("sofs-vae-")
    assert same == sweep_folder("slurm", "basic", "now"), "a grid goes on elsewhere"
    assert same != sweep_folder("basic", "search", "now"), "a search is told nothing of a grid"
    assert sweep_folder("basic", "basic", "now") == f"logs/sweeps/now-{os.getpid()}"


SPACE = "seed=int(interval(0,9))"


def searched(cwd, total, **deeds):
    surroundings = environment() | {"DEEDS": json.dumps({k.strip("_"): v for k, v in deeds.items()})}
    options = [SPACE, "hydra/sweeper=search", f"n_trials={total}", "launcher.n_jobs=2", "launcher.retries=0"]
    return subprocess.Popen(
        [sys.executable, str(JOB), "-m", *options], cwd=cwd, env=surroundings,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def trials(cwd):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{place(cwd) / 'study.db'}"
    return optuna.load_study(study_name="search", storage=storage).trials


def test_a_search_that_was_killed_goes_on(tmp_path):
    process = searched(tmp_path, 6, **{f"_{k}": "sleep" for k in range(10)})
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(
        (tmp_path / "logs").exists() and status(tmp_path, k) == "running" for k in (0, 1)
    ):
        time.sleep(0.1)
    jobs = [int(line.split()[0]) for line in processes() if str(tmp_path) in line and "run.dir" in line]
    process.kill()
    for job in jobs:
        os.kill(job, signal.SIGKILL)
    process.communicate()
    assert {t.state.name for t in trials(tmp_path)} == {"RUNNING"}
    asked = [t.params for t in trials(tmp_path)]
    process = searched(tmp_path, 6)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = trials(tmp_path)
    assert [t.state.name for t in found] == ["COMPLETE"] * 6
    assert [t.params for t in found[:2]] == asked, "what was under way is not asked anew"
    assert [t.value for t in found] == [t.params["seed"] / 10 for t in found]
    assert out.splitlines()[-1] == str(place(tmp_path))
    process = searched(tmp_path, 7)
    process.communicate(timeout=300)
    assert len(trials(tmp_path)) == 7, "the number of trials is a total"


def test_a_failed_trial_is_told_and_the_search_goes_on(tmp_path):
    process = searched(tmp_path, 4, **{f"_{k}": "raise" for k in range(5)})
    _, err = process.communicate(timeout=300)
    found = trials(tmp_path)
    for trial in found:
        assert trial.state.name == ("FAIL" if trial.params["seed"] < 5 else "COMPLETE")
    assert process.returncode == (0 if any(t.value is not None for t in found) else 2), err


def test_a_search_has_no_dry_run(tmp_path):
    code, _, err = sweep(tmp_path, "hydra/sweeper=search", SPACE, "launcher.dry_run=true")
    assert code == 2
    assert "a search has none before it begins" in err
    assert not list(tmp_path.rglob("study.db"))


def processes():
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "low", "high", "kind"),
    [
        ("range(1,4)", 1, 3, int),
        ("int(interval(2,5))", 2, 5, int),
        ("tag(log,interval(0.001,0.1))", 0.001, 0.1, float),
        ("range(0.5,2.5,0.5)", 0.5, 2.0, float),
        ("range(0.1,0.7,0.1)", 0.1, 0.6, float),
        ("range(0.1,1.0,0.25)", 0.1, 0.85, float),
    ],
)
def test_proposals_lie_in_what_was_written(text, low, high, kind):
    optuna = pytest.importorskip("optuna")
    from hydra_plugins import search_sweeper as search

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    override = search._parsed("a.b", text)
    values = [search._suggested(study.ask(), "a.b", override) for _ in range(200)]
    assert all(isinstance(v, kind) for v in values)
    assert min(values) >= low
    assert max(values) <= high
    if "range" in text:
        assert (min(values), max(values)) == (low, high)
    if kind is int:
        assert set(values) == set(range(low, high + 1))
    assert all(search._parsed("x", f"choice({search._written(v)},0)") for v in values[:3])


@pytest.mark.parametrize("text", ["range(1,8,2)", "range(0,10,3)", "range(8,1,-2)"])
def test_every_value_of_a_range_is_proposed(text):
    optuna = pytest.importorskip("optuna")
    from hydra_plugins import search_sweeper as search

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    override = search._parsed("a.b", text)
    found = {search._suggested(study.ask(), "a.b", override) for _ in range(200)}
    assert found == set(override.sweep_iterator())


def test_an_empty_range_is_refused():
    from fewspect.errors import UserError
    from hydra_plugins import search_sweeper as search

    with pytest.raises(UserError, match="empty range"):
        search._parsed("a.b", "range(5,5)")


@pytest.mark.parametrize("value", ["a b", "it's", "1e-3", None, True, 3, 0.25, "null"])
def test_a_proposal_is_written_so_that_it_reads_back(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hydra_plugins import search_sweeper as search

    again = OverridesParser.create().parse_override(f"key={search._written(value)}").value()
    assert (str(again) if isinstance(value, str) else again) == value
