"""Stands for ``run.py`` in tests of launchers: composes the same config, then does what ``DEEDS`` says.

``DEEDS`` is a JSON object in the environment: seed -> ``work`` (default), ``raise``, ``kill``, ``sleep``,
``wait`` (sleeps once, then works), or ``memory`` (fails for want of memory once, then works). No torch, so a
job takes a second.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402

from fewspect.engine import front  # noqa: E402

WORDS = {"raise": "a mistake of ours", "memory": " ".join(["CUDA", "out", "of", "memory"])}
"""What failing jobs say; spelled so that a traceback's source line does not say it, too."""


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def main(cfg):
    """One job."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with (folder / "tries.txt").open("a") as file:
        file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')} {time.time()}\n")
    deed = json.loads(os.environ.get("DEEDS", "{}")).get(str(cfg.seed), "work")
    record = {"status": "running", "seed": cfg.seed, "choices": {"method": "sofs", "data": "toy"}}
    record |= {"config": {"seed": cfg.seed}, "objective": {"name": "val/miou", "value": cfg.seed / 10}}
    (folder / "run.json").write_text(json.dumps(record))
    tries = len((folder / "tries.txt").read_text().splitlines())
    if deed == "sleep" or (deed == "wait" and tries == 1):
        time.sleep(600)
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "raise" or (deed == "memory" and tries == 1):
        raise RuntimeError(WORDS[deed])
    (folder / "end.txt").write_text(str(time.time()))
    done = record | {"status": "done", "metrics": {"test/miou": cfg.seed / 10}}
    (folder / "run.json").write_text(json.dumps(done))


if __name__ == "__main__":
    front.guard(main, ROOT / "conf")
