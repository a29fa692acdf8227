"""What Weights & Biases keeps of a run, read back from its offline file by wandb itself."""

import json
import subprocess
import sys

import pytest
from cli import FAST, run

from fewspect.engine import loggers


def offline(folder):
    """Content of the one offline run of a folder, as ``wandb leet`` tells it."""
    (place,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(place)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_a_dashboard_can_filter_group_and_show(tmp_path):
    done = run(*FAST, "logger=wandb", "tags=[first]", "hydra.run.dir=logs/sweeps/mine/0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = offline(tmp_path / "logs" / "sweeps" / "mine" / "0")
    assert (kept["state"], kept["exit_code"]) == ("finished", 0)
    assert kept["tags"] == ["first", "sofs", "toy", "tiny", "1-shot"]
    assert kept["config"]["choices"]["method"] == "sofs"
    assert kept["config"]["data"]["shot"] == 1
    summary = kept["summary"]
    recorded = json.loads((tmp_path / "logs/sweeps/mine/0/run.json").read_text())["metrics"]
    assert summary["test/miou"] == pytest.approx(recorded["test/miou"])
    assert summary["panels/test"]["count"] >= 1
    assert summary["test/results"]["nrows"] >= 1


def test_a_run_of_a_sweep_knows_its_sweep(tmp_path):
    assert loggers.sweep_of(tmp_path / "logs" / "sweeps" / "mine" / "0") == "mine"
    assert loggers.sweep_of(tmp_path / "logs" / "sofs" / "toy" / "x") is None
