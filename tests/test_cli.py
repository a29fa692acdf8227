"""The command line from outside: quick help, kind mistakes."""

import os
import subprocess
import sys

import pytest
import warm
from cli import FAST, ROOT, environment, run

PROBE = """
import sys, runpy
sys.argv = ["run.py", *{arguments!r}]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(sorted({{"torch", "lightning", "torchvision", "wandb", "timm"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_config_need_no_torch(arguments, tmp_path):
    code = PROBE.format(arguments=arguments, path=str(ROOT / "run.py"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.rstrip().endswith("[]")


def test_an_option_of_one_data_set_holds_for_every_other(tmp_path):
    done = run("data=folder", "data.root=x", "data.val_episodes=3", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\n  val_episodes: 3\n" in done.stdout


def test_help_lists_every_choice(tmp_path):
    out = run("--help", cwd=tmp_path).stdout
    for group in ("method", "data", "backbone", "trainer", "logger", "experiment"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            line = next(x for x in out.splitlines() if x.strip().split(" ")[0] == file.stem)
            assert len(line.split()) > 2, f"{file} has no headline"
    for mode in ("train", "test", "predict", "generate", "export", "check"):
        assert mode in out


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["method=soffs"], "method=soffs does not exist", "Did you mean sofs?"),
        (["data=visio"], "data=visio does not exist", "Did you mean vision?"),
        (["backbone=tini"], "backbone=tini does not exist", "Did you mean tiny?"),
        (["trainer=gpus"], "trainer=gpus does not exist", "Did you mean gpu?"),
        (["metod=sofs"], "no option metod", "Did you mean method?"),
        (["data.shots=5"], "no option data.shots", "Did you mean data.shot?"),
        (["data=folder", "data.text_episodes=5"], "no option data.text_episodes", "data has: batch_size"),
        (["sed=1"], "no option sed", "Did you mean seed?"),
        (
            ["method.head.reduce_dims=3"],
            "no option method.head.reduce_dims",
            "Did you mean method.head.reduce_dim?",
        ),
        (["seed=["], "Cannot read the argument", "quote"),
        (["nonsense"], "Cannot read the argument", "data.shot=5"),
        (["run=nowhere", "mode=test"], "no such folder", "logs/"),
        (["resume=true"], "needs the folder", "run="),
        (["mode=trian"], "mode=trian does not exist", "Did you mean train?"),
    ],
)
def test_mistakes_are_two_lines(arguments, says, hint, tmp_path):
    assert_two_lines(run(*arguments, cwd=tmp_path), says, hint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (
            ["method=srgan", "trainer.gradient_clip_val=1.0"],
            "Srgan has no gradient that the trainer could clip",
            "trainer.gradient_clip_val=null",
        ),
        (
            ["method=sofs", "+data.protocol=plain"],
            "SOFS does not work with data.protocol=plain",
            "Set data.protocol=episodic",
        ),
    ],
)
def test_mistakes_that_the_parts_find_are_two_lines(arguments, says, hint, tmp_path):
    assert_two_lines(warm.run(*arguments, *FAST, cwd=tmp_path), says, hint)


def assert_two_lines(done, says, hint):
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("Error: ")
    assert says in lines[0]
    assert hint in lines[1]
    assert "+" not in lines[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data.shot=abc"], "data.shot='abc'"),
        (["data=folder"], "data.root must be given"),
        (["+trainer.max_epoch=3"], "trainer.max_epoch"),
        (["seed=x"], "seed='x'"),
        (["checkpoint=no.ckpt", "mode=test"], "no.ckpt"),
        (["mode=predict"], "trained weights"),
    ],
)
def test_wrong_values_are_found_before_anything_is_built(arguments, says, tmp_path):
    done = warm.run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_debug_shows_the_traceback(tmp_path):
    done = run("mode=trian", "debug=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_threads_are_shared_out_only_where_a_launcher_says_how_many_there_are(monkeypatch):
    """Lightning starts the processes of trainer=ddp itself and divides the cores unless that is done."""
    from fewspect.engine import environment as surroundings

    monkeypatch.setattr(surroundings.os, "cpu_count", lambda: 16)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    surroundings.prepare()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    surroundings.prepare()
    assert os.environ["OMP_NUM_THREADS"] == "4"
