"""The process launcher: what fails hurts nobody, what is missing is made, nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import environment

JOB = Path(__file__).with_name("sweep_job.py")
SIX = "seed=0,1,2,3,4,5"


def begin(cwd, *options, **deeds):
    """A sweep in a process; ``_3="kill"`` says what the job with seed 3 does."""
    surroundings = environment() | {"DEEDS": json.dumps({k.strip("_"): v for k, v in deeds.items()})}
    command = [sys.executable, str(JOB), "-m", "hydra/launcher=process", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=surroundings, **pipes)


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
    assert out.count("start") == 2
    assert not (tmp_path / "logs").exists() or not list(place(tmp_path).glob("[0-9]"))


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
        return sweep_folder("process", "now")

    same = named("method=sofs,vae", "seed=0,1", "launcher.n_jobs=2")
    assert same == named("seed=0,1", "method=sofs,vae")
    assert same != named("method=sofs,vae", "seed=0,1,2")
    assert Path(same).name.startswith("sofs-vae-")
    assert sweep_folder("basic", "now") == f"logs/sweeps/now-{os.getpid()}"
