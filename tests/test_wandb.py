"""What Weights & Biases keeps of a run, read back from its offline file by wandb itself."""

import csv
import json
import subprocess
import sys

import pytest
from cli import FAST, ROOT, command, environment, run

from fewspect.engine import loggers
from fewspect.errors import UserError


def offline(folder):
    """Content of the one offline run of a folder, as ``wandb leet`` tells it."""
    (place,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(place)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def curve(place, name):
    path = place / "logs" / "sweeps" / "mine" / "0" / "metrics.csv"
    return [float(r["value"]) for r in csv.DictReader(path.open()) if r["name"] == name]


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
    assert summary["val/miou"] == {"max": pytest.approx(max(curve(tmp_path, "val/miou")), abs=1e-6)}
    assert summary["test/miou"] == pytest.approx(recorded["test/miou"])
    assert summary["panels/test"]["count"] >= 1
    assert summary["test/results"]["nrows"] >= 1


def test_a_run_of_a_sweep_knows_its_sweep(tmp_path):
    assert loggers.sweep_of(tmp_path / "logs" / "sweeps" / "mine" / "0") == "mine"
    assert loggers.sweep_of(tmp_path / "logs" / "sofs" / "toy" / "x") is None


def test_no_login_is_told_in_two_lines(tmp_path, monkeypatch):
    import wandb

    def init(**options):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match="No API key configured") as told:
        loggers.build(tmp_path, {"objective": "val/miou"}, kind="wandb", mode="online")
    assert "logger.mode=offline" in told.value.hint
    assert "\n" not in told.value.message


POISON = """
import torch
from fewspect.methods.sofs.method import SOFS

class Poison(SOFS):
    def losses(self, batch):
        found = super().losses(batch)
        if self.global_step == 1:
            found["dice"] = found["dice"] * torch.nan
        return found
"""


@pytest.mark.slow
def test_a_failed_run_ends_as_failed(tmp_path):
    (tmp_path / "poison.py").write_text(POISON)
    options = ("method._target_=poison.Poison", "allow=[poison]", "logger=wandb", "hydra.run.dir=bad")
    done = subprocess.run(
        command(*FAST, *options), cwd=tmp_path, env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    kept = offline(tmp_path / "bad")
    assert kept["exit_code"] == 1
    assert kept["state"] in ("failed", "crashed")
    assert json.loads((tmp_path / "bad" / "run.json").read_text())["status"] == "failed"


def test_every_curve_is_summed_up_by_what_is_better():
    found = dict(loggers.summaries("val/miou", "max"))
    assert found["val/miou"] == found["val/*"] == "max"
    assert found["val/loss"] == found["val/false_alarm_rate"] == found["train/*"] == "min"
    assert dict(loggers.summaries("val/loss", "min"))["val/loss"] == "min"


def test_the_workspace_names_metrics_that_are_logged():
    spec = json.loads((ROOT / "docs" / "wandb_workspace.json").read_text())
    source = "".join(p.read_text() for p in (ROOT / "src" / "fewspect" / "metrics").glob("*.py"))
    panels = [p["options"] for section in spec["sections"] for p in section["panels"]]
    shown = [n for p in panels for n in (*p.get("metrics", ()), *p.get("y", ()))]
    names = [n for n in shown if not n.startswith("train/")]
    assert names
    for name in names:
        assert name.partition("/")[2].removeprefix("m") in source
