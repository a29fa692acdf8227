"""The SLURM launcher: what the cluster would be given, and sweeps on a cluster of shell scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import ROOT, environment
from test_sweep import JOB, place, status, tries

from hydra_plugins.slurm_launcher import Attempt, SlurmLauncher

pytest.importorskip("submitit")
pytestmark = pytest.mark.slow

COMMANDS = {
    "srun": """
while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
exec "$@"
""",
    "sbatch": """
here=$(dirname "$0"); cp "$1" "$here/script.sh"
last=$(grep -oP -- "--array=0-\\K[0-9]+" "$1" || true)
echo "Submitted batch job 77"
for k in $(seq 0 ${last:-0}); do
  ( export SLURM_JOB_ID=77; id=77
    [ -n "$last" ] && export SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$k SLURM_JOB_ID=$((77 + k)) && id=77_$k
    touch "$here/again.$id"
    while [ -e "$here/again.$id" ]; do rm "$here/again.$id"; bash "$here/script.sh"; done
  ) > "$here/out.$k" 2>&1 &
done
""",
    "scontrol": """touch "$(dirname "$0")/again.$2" """,
    "sacct": "echo 'JobID|State|NodeList'",
    "scancel": "true",
}


@pytest.fixture
def cluster(tmp_path):
    """Shell scripts that do what SLURM's commands do, on this machine."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, body in COMMANDS.items():
        (folder / name).write_text("#!/bin/bash\n" + body)
        (folder / name).chmod(0o755)
    return folder


def begin(cwd, *options, paths=(), more=None, **deeds):
    surroundings = environment() | {"DEEDS": json.dumps({k.strip("_"): v for k, v in deeds.items()})}
    surroundings["PATH"] = os.pathsep.join([*map(str, paths), surroundings["PATH"]])
    command = [sys.executable, str(JOB), "-m", "hydra/launcher=slurm", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=surroundings | (more or {}), **pipes)


def sweep(cwd, *options, **how):
    process = begin(cwd, *options, **how)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_the_script_asks_for_a_task_per_device(tmp_path):
    options = ("launcher.gpus=8", "launcher.nodes=2", "launcher.timeout=90", "launcher.n_jobs=3")
    site = "launcher.slurm={partition: gpu, account: me, cpus_per_task: 12, mem_gb: 64, setup: [load x]}"
    code, out, err = sweep(tmp_path, "seed=0,1", *options, site, "launcher.dry_run=true")
    assert code == 0, err
    asked = {line.removeprefix("#SBATCH --") for line in out.splitlines() if line.startswith("#SBATCH")}
    assert {
        "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "time=90", "partition=gpu", "account=me",
        "cpus-per-task=12", "mem=64GB", "signal=USR2@180", "open-mode=append",
    } <= asked  # fmt: skip
    assert "load x" in out
    assert "submitit.core._submit" in out
    assert not list(tmp_path.rglob("run.json"))
    assert not list(tmp_path.rglob(".submitit")), "nothing was sent"


def test_a_job_of_many_devices_says_so_to_its_trainer(tmp_path):
    launcher = SlurmLauncher(gpus=8, nodes=2)
    from hydra_plugins.process_launcher import Job

    made = launcher._attempt(Job(0, ("method=sofs", "trainer.strategy=fsdp"), tmp_path / "0"))
    assert made.options == (
        "method=sofs", "trainer.strategy=fsdp", "++trainer.devices=8", "++trainer.num_nodes=2",
    )  # fmt: skip
    alone = SlurmLauncher()._attempt(Job(0, ("method=sofs",), tmp_path / "0"))
    assert alone.options == ("method=sofs",)


def test_a_queued_again_job_goes_on_in_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a b=c"
    made = Attempt(("python", "run.py"), ("seed=1",), folder)
    assert made.arguments() == ["seed=1", f"hydra.run.dir='{folder}'"]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
    assert made.arguments()[0] == "seed=1", "nothing was saved"
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert made.arguments() == [f"run='{folder}'", "resume=true"]
    trusted = Attempt(("python", "run.py"), ("seed=1", "allow=[mine]", "debug=true"), folder)
    assert trusted.arguments() == [f"run='{folder}'", "resume=true", "allow=[mine]", "debug=true"]
    other = Attempt(("python", "run.py"), ("seed=1", "mode=inspect"), folder)
    assert other.arguments() == [*other.options, f"hydra.run.dir='{folder}'"], "only a training goes on"
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert made.arguments()[2:] == ["hydra.output_subdir=null", "hydra.job.name=run_3"]


@pytest.mark.parametrize("kind", ["local", "debug"])
def test_a_sweep_by_submitit_s_stand_ins(tmp_path, kind):
    code, out, err = sweep(tmp_path, "seed=0,1,2", f"launcher.cluster={kind}", _1="raise")
    assert code == 2, err
    assert [status(tmp_path, k) == "done" for k in range(3)] == [True, False, True]
    assert "1 of 3 jobs have no result: 1 (exit code 1)." in err
    code, out, err = sweep(tmp_path, "seed=0,1,2", f"launcher.cluster={kind}")
    assert code == 0, err
    assert [tries(tmp_path, k) for k in range(3)] == [1, 2, 1], "only what was missing ran"
    assert "3 run(s) per cell" in out


def test_a_sweep_on_a_cluster(tmp_path, cluster):
    code, out, err = sweep(tmp_path, "seed=0,1", paths=[cluster])
    assert code == 0, err
    assert "--array=0-1%2" in (cluster / "script.sh").read_text()
    assert [status(tmp_path, k) for k in (0, 1)] == ["done", "done"]
    assert out.splitlines()[-1] == str(place(tmp_path))


def test_a_job_whose_time_is_up_is_queued_again(tmp_path, cluster):
    process = begin(tmp_path, "seed=0", paths=[cluster], _0="wait")
    end = time.monotonic() + 60
    while time.monotonic() < end and not ((tmp_path / "logs").exists() and status(tmp_path, 0) == "running"):
        time.sleep(0.1)
    told = [pid for pid, words in running(tmp_path) if "submitit.core._submit" in words]
    assert len(told) == 1
    os.kill(told[0], signal.SIGUSR2)  # what SLURM sends before the end
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (status(tmp_path, 0), tries(tmp_path, 0)) == ("done", 2)
    assert not running(tmp_path)


def running(folder):
    """Processes that were started with a path in a folder: (pid, arguments)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace")
        except OSError:  # it has ended
            continue
        if str(folder) in words:
            found.append((int(path.parent.name), words))
    return found


def test_what_is_missing_is_said_in_two_lines(tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError('not here', name='submitit')")
    lines = {}
    for name, more in (
        ("extra", {"PYTHONPATH": str(tmp_path)}),
        ("cluster", {"PATH": str(Path(sys.executable).parent)}),
    ):
        code, _, err = sweep(tmp_path, "seed=0,1", more=more)
        assert code == 2
        lines[name] = err.strip().splitlines()
        assert len(lines[name]) == 2, err
    assert lines["extra"] == [
        "Error: hydra/launcher=slurm needs submitit.",
        "Install it: pip install 'fewspect[slurm]'",
    ]
    assert lines["cluster"][0].startswith("Error: There is no SLURM here")
    assert "login node" in lines["cluster"][1]


def test_a_wrong_option_of_sbatch_is_named(tmp_path, cluster):
    code, _, err = sweep(tmp_path, "seed=0,1", "launcher.slurm={partitoin: gpu}", paths=[cluster])
    assert code == 2
    assert "partitoin" in err
    assert "Traceback" not in err


def test_a_search_is_not_sent(tmp_path):
    code, _, err = sweep(tmp_path, "hydra/sweeper=search", "seed=int(interval(0,9))")
    assert code == 2
    assert err.strip().splitlines()[0] == "Error: A search runs on this machine, not on SLURM."
    assert not list(tmp_path.rglob("study.db"))


def test_the_extra_is_declared():
    assert "submitit" in (ROOT / "pyproject.toml").read_text()
