"""Faults of disk, memory, network and strangers' files: nothing lost, no code run, file and remedy named.

Others are beside what they concern: signals at random steps in ``test_run``, bombs and torn images in
``data/test_images``, paths that lead out of a folder in ``data/test_readers``, targets in ``test_conf``.
"""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli import FAST, ROOT, command, environment, run
from omegaconf import OmegaConf
from test_run import LONG, last, same_end, status, steps

from fewspect.data import features
from fewspect.data.features import FeatureSet
from fewspect.engine import checkpoints, folders, front
from fewspect.errors import UserError
from fewspect.methods.ridge.method import Ridge

SENTINEL = "sentinel"


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def state(number=1):
    values = torch.arange(5000, dtype=torch.float32)
    return {"pytorch-lightning_version": "2.6.4", "state_dict": {"w": values}, "n": number}


# -- checkpoints ---------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys, torch
from pathlib import Path
from fewspect.engine import checkpoints
save = torch.save

def die(content, file):
    save(content, file)
    if content["n"] == 3:
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = die
for n in (1, 2, 3):
    checkpoints.AtomicIO().save_checkpoint({"state_dict": {}, "n": n}, Path(sys.argv[1]) / "last.ckpt")
"""


@pytest.mark.slow
def test_a_kill_inside_a_save_loses_nothing(tmp_path):
    keep = tmp_path / "checkpoints"
    surroundings = environment() | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", DYING, str(keep)], env=surroundings, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(keep.glob(".*.part"))) == 1, "it was killed in the middle"
    path, notice = checkpoints.resume_point(tmp_path)
    assert (path, notice) == (keep / "last.ckpt", "")
    assert torch.load(path, weights_only=True)["n"] == 2
    assert torch.load(keep / "previous.ckpt", weights_only=True)["n"] == 1
    assert not list(keep.glob(".*.part")), "the next run cleans up"


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["half", "empty", "flip", "text"])
def test_a_damaged_checkpoint_is_named_and_never_used(tmp_path, damage):
    io, keep = checkpoints.AtomicIO(), tmp_path / "checkpoints"
    io.save_checkpoint(state(1), keep / "last.ckpt")
    io.save_checkpoint(state(2), keep / "last.ckpt")
    damaged = keep / "last.ckpt"
    whole = damaged.read_bytes()
    if damage == "flip":
        flip(damaged)
    else:
        damaged.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"oops"}[damage])
    path, notice = checkpoints.resume_point(tmp_path)
    assert path == keep / "previous.ckpt"
    assert "last.ckpt is damaged" in notice
    with pytest.raises(UserError, match=r"last\.ckpt: no readable checkpoint") as error:
        checkpoints.own_or_loaded(damaged, torch.nn.Identity())
    assert "Copy the file again" in error.value.hint


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.AtomicIO().save_checkpoint(state(), path)
    whole = path.read_bytes()
    values = whole.index(torch.arange(5000, dtype=torch.float32).numpy().tobytes())
    for place in range(values, values + 20000, 1999):
        path.write_bytes(whole)
        flip(path, place / len(whole))
        assert not checkpoints.readable(path), place
    path.write_bytes(whole)
    assert checkpoints.readable(path)


def test_pickled_code_in_a_checkpoint_is_never_run(tmp_path):
    trap, keep = tmp_path / SENTINEL, tmp_path / "checkpoints"
    keep.mkdir()
    torch.save({"state_dict": {}, "x": Evil(trap)}, keep / "last.ckpt")
    with pytest.raises(UserError, match="damaged"):
        checkpoints.resume_point(tmp_path)
    with pytest.raises(UserError, match="no readable checkpoint") as error:
        checkpoints.load(keep / "last.ckpt", torch.nn.Identity())
    assert "never loaded" in error.value.hint
    assert folders.brought_backbone({"checkpoint": str(keep / "last.ckpt")}) == []
    torch.save(Evil(trap), tmp_path / "cache.pt")
    with pytest.raises(UserError, match=r"cache\.pt: no readable checkpoint"):
        features.read(tmp_path / "cache.pt")
    assert not trap.exists()
    torch.load(keep / "last.ckpt", weights_only=False)
    assert trap.exists(), "the trap works"


def test_a_checkpoint_of_another_method_says_so(tmp_path):
    from fewspect.backbones.tiny import Tiny

    torch.save(state(), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="does not fit Ridge") as error:
        checkpoints.load(tmp_path / "x.ckpt", Ridge(Tiny(None, side=32, width=16)))
    assert "run=<folder>" in error.value.hint


def test_a_checkpoint_that_a_trainer_cannot_load_says_so():
    """Test, predict and resume load through Lightning."""
    from fewspect.engine.session import _told

    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 1).load_state_dict(torch.nn.Linear(3, 1).state_dict())
    told = _told(caught.value)
    assert isinstance(told, UserError)
    assert told.message.startswith("The checkpoint does not fit Linear: size mismatch for weight")
    other = RuntimeError("something else")
    assert _told(other) is other


def test_checkpoints_are_kept_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for number in (1, 2, 3):
        checkpoints.AtomicIO().save_checkpoint(state(number), tmp_path / "last.ckpt")
    kept = {p.name: torch.load(p, weights_only=True)["n"] for p in tmp_path.iterdir()}
    assert kept == {"last.ckpt": 3, "previous.ckpt": 2}


def test_training_from_a_checkpoint_is_refused(tmp_path):
    from fewspect.engine import main

    cfg = OmegaConf.create({"mode": "train", "checkpoint": "some.ckpt", "resume": False})
    with pytest.raises(UserError, match=r"checkpoint= has no effect on mode=train\.") as told:
        main.train(cfg, tmp_path, [])
    assert "resume=true" in told.value.hint


# -- caches --------------------------------------------------------------------------------------------------


def some(number=4):
    values = torch.rand(number, 2, 1, 64, generator=torch.manual_seed(0))
    return FeatureSet(values.half(), torch.arange(number) % 2, ("a", "b"), config={"backbone": "tiny"})


@pytest.mark.parametrize("damage", ["half", "empty", "flip", "pickle"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage, caplog):
    path = tmp_path / "x.safetensors"
    features.write(path, some())
    whole = path.read_bytes()
    if damage == "flip":
        flip(path, 0.9)
    elif damage == "pickle":
        torch.save(Evil(tmp_path / SENTINEL), path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        features.read(path)
    made = features.kept(path, some)
    assert torch.equal(made.feature, some().feature)
    assert "x.safetensors" in caplog.text
    assert "made anew" in caplog.text
    assert torch.equal(features.read(path).feature, some().feature), "and kept again"
    assert not (tmp_path / SENTINEL).exists()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, caplog):
    with small_files(2000):
        made = features.kept(tmp_path / "x.safetensors", lambda: some(400))
    assert len(made) == 400
    assert "not kept" in caplog.text
    assert not list(tmp_path.iterdir())


# -- a full disk ---------------------------------------------------------------------------------------------


class small_files:  # noqa: N801 - reads as a verb
    """No file may grow beyond so many bytes: what a full disk does, for this process alone."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_leaves_the_last_state(tmp_path):
    io, path = checkpoints.AtomicIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(state(1), path)
    with small_files(5000), pytest.raises(UserError, match=r"last\.ckpt cannot be written") as error:
        io.save_checkpoint(state(2), path)
    assert "Make room" in error.value.hint
    assert torch.load(path, weights_only=True)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_elsewhere_is_two_lines(capsys):
    def broken():
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    assert front._guarded(broken, ROOT / "conf", []) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        "Error: metrics.csv cannot be written: No space left on device.",
        "Make room on the disk; run=<folder> resume=true continues from the last saved state.",
    ]


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_in_two_lines_and_goes_on_later(tmp_path):
    done = run(*LONG, "hydra.run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "whole" / "checkpoints" / "last.ckpt").stat().st_size
    full = subprocess.run(
        command(*LONG, "hydra.run.dir=full"), cwd=tmp_path, env=environment(), capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)), check=False,
    )  # fmt: skip
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert full.stderr.strip().splitlines()[-2].startswith("Error: ")
    assert ".ckpt cannot be written" in full.stderr
    assert status(tmp_path / "full") == "failed"
    assert not list((tmp_path / "full").rglob("*.part"))
    again = run("run=full", "resume=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    same_end(last(tmp_path / "full"), last(tmp_path / "whole"))


# -- other people's configs ----------------------------------------------------------------------------------


def test_yaml_cannot_make_objects(tmp_path):
    trap = tmp_path / SENTINEL
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{trap}']")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        folders.restore(OmegaConf.create({"run": str(tmp_path)}), [], [])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(f"- !!python/object/apply:os.mkdir ['{trap}']")
    with pytest.raises(UserError, match=r"overrides\.yaml cannot be read"):
        folders.recorded(tmp_path)
    assert not trap.exists()


@pytest.mark.slow
def test_a_run_folder_from_a_stranger_runs_no_code(tmp_path):
    strange = tmp_path / "strange"
    (strange / ".hydra").mkdir(parents=True)
    (strange / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "x": Evil(tmp_path / SENTINEL)}, strange / "checkpoints" / "best.ckpt")
    done = run("--cfg", "job", *FAST, cwd=tmp_path)
    config = OmegaConf.create(done.stdout)
    config.method._target_ = "os.mkdir"
    config.method.path = str(tmp_path / SENTINEL)
    OmegaConf.save(config, strange / "config.yaml")
    recorded = ["allow=[os]", "hydra.run.dir=/tmp/elsewhere", "+hydra.job.env_set.X=1"]
    OmegaConf.save(recorded, strange / ".hydra" / "overrides.yaml")
    done = run("mode=test", f"run={strange}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "_target_=os.mkdir is not allowed" in done.stderr
    assert not (tmp_path / SENTINEL).exists()
    assert {p.name for p in tmp_path.iterdir()} == {"strange"}, "nothing left the run folder"


# -- processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dead_loader_worker_ends_the_run_kindly_and_it_goes_on(tmp_path):
    slow = ("data.workers=1", "data.batch_size=2", *(o for o in LONG if not o.startswith("data.workers")))
    slow = tuple(o for o in slow if not o.startswith("trainer.limit_train"))
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            command(*slow, "hydra.run.dir=killed"), cwd=tmp_path, env=environment(), stdout=out, stderr=out
        )
        while process.poll() is None and steps(tmp_path / "killed") < 3:
            time.sleep(0.02)
        for worker in workers_of(process.pid):
            os.kill(worker, signal.SIGKILL)
        assert process.wait(60) == 2, (tmp_path / "out.txt").read_text()
    text = (tmp_path / "out.txt").read_text()
    assert "A loader process ended" in text
    assert "lower data.workers" in text
    assert "Traceback" not in text
    assert status(tmp_path / "killed") == "failed"
    shorter = ("trainer.max_epochs=1", "trainer.limit_train_batches=5")
    again = run("run=killed", "resume=true", *shorter, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def workers_of(pid):
    asked = ["ps", "--ppid", str(pid), "-o", "pid="]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return [int(x) for x in found.stdout.split() if x]


ISOLATED = """
import socket
from pathlib import Path

def refuse(self, address, *rest):
    if self.family != getattr(socket, "AF_UNIX", None):
        Path({mark!r}).write_text(repr(address))
        raise OSError("no network")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: (_ for _ in ()).throw(OSError("no network"))
"""


@pytest.mark.slow
def test_no_network_no_home_and_odd_places(tmp_path):
    """Spaces, quotes, an equals sign and letters of other alphabets; nothing is asked of the network."""
    odd = tmp_path / "a b=c's ü 工場"
    odd.mkdir()
    (tmp_path / "sitecustomize.py").write_text(ISOLATED.format(mark=str(tmp_path / "asked")))
    surroundings = environment() | {
        "HOME": "/dev/null/nowhere", "XDG_CACHE_HOME": "/dev/null/x", "MPLCONFIGDIR": "/dev/null/y",
        "LC_ALL": "C", "PYTHONPATH": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        command(*FAST, "name='ü'"), cwd=odd, env=surroundings, capture_output=True, text=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = odd / done.stdout.splitlines()[-1]
    assert status(folder) == "done"
    again = subprocess.run(
        command("mode=predict", f"run={folders_quoted(folder)}"), cwd=tmp_path, env=surroundings,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert list(folder.rglob("predictions.csv"))
    assert not (tmp_path / "asked").exists()
    download = ("backbone=dinov2_vits14", "backbone.weights=hub", "data.side=56")
    missing = subprocess.run(
        command(*FAST, *download), cwd=odd, env=surroundings,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert missing.returncode == 2, missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 2, missing.stderr


def folders_quoted(path):
    from hydra_plugins.process_launcher import quoted

    return quoted(path)


# -- numbers -------------------------------------------------------------------------------------------------

POISON = """
import torch
from fewspect.methods.sofs.method import SOFS

class Poison(SOFS):
    def losses(self, batch):
        found = super().losses(batch)
        if self.global_step == 3:
            found["dice"] = found["dice"] * torch.nan
        return found
"""


@pytest.mark.slow
def test_nan_stops_before_it_is_learned(tmp_path):
    (tmp_path / "poison.py").write_text(POISON)
    surroundings = environment() | {"PYTHONPATH": str(tmp_path)}
    asked = command(*LONG, "method._target_=poison.Poison", "allow=[poison]", "hydra.run.dir=run")
    done = subprocess.run(asked, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "the loss is nan at step 3" in done.stderr
    assert "queries: " in done.stderr
    assert "lower the learning rate" in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    kept = [p for p in (tmp_path / "run" / "checkpoints").glob("*.ckpt")]
    assert all(v.isfinite().all() for p in kept for v in last_of(p).values())


def last_of(path):
    content = torch.load(path, weights_only=True)["state_dict"]
    return {k: v for k, v in content.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def test_features_that_are_not_finite_are_refused(tmp_path):
    values = some().feature.clone()
    values[1, 0, 0, 3] = torch.nan
    with pytest.raises(UserError, match=r"x\.safetensors"):
        features.write(tmp_path / "x.safetensors", replace(some(), feature=values))
    assert not Path(tmp_path / "x.safetensors").exists()


def test_an_objective_that_nothing_measures_is_told_in_our_words():
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from fewspect.engine.session import _told

    theirs = "`ModelCheckpoint(monitor='val/miou')` could not find the monitored key in the metrics: []."
    told = _told(MisconfigurationException(theirs))
    assert isinstance(told, UserError)
    assert "val/miou" in told.message
    assert "objective=" in told.hint
    other = MisconfigurationException("something else")
    assert _told(other) is other
