"""Call ``run.py`` the way a user does: in a process of its own, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FAST = (
    "trainer=smoke",
    "backbone.weights=none",
    "data.workers=0",
    "data.batch_size=2",
    "data.reader.images_per_class=4",
    "data.reader.val_per_class=2",
    "data.reader.test_per_class=2",
    "data.reader.good=6",
    "data.side=64",
    "+data.reader.products=[board,wood]",
)
"""A toy run of seconds."""


def command(*arguments):
    return [sys.executable, str(ROOT / "run.py"), *arguments]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}


def run(*arguments, cwd, timeout=300):
    """Finished process with text output."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
