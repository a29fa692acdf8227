"""Peak memory of a large image through ``Predictor``, each case in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import subject
from benchmarks.report import THREADS, Figure, Report, below, true
from fewspect.inference import Predictor
from fewspect.nn.windows import tile

ROOT = Path(__file__).resolve().parents[1]
CASES = ("tiny", "vit_small")
SIDE, QUICK_SIDE = 4096, 1024
LIMIT = 2.5
"""GB, i.e. 10^9 bytes."""


def measure(*, quick: bool) -> Report:
    """Every case in a fresh process."""
    side = QUICK_SIDE if quick else SIDE
    figures: list[Figure] = []
    for case in CASES:
        found = _spawn(case, side)
        name = f"{found['backbone']} at {found['side']} px, {found['windows']} windows"
        figures += [
            below(f"{name}: peak memory", found["peak"] / 1e9, LIMIT, " GB"),
            Figure(f"{name}: of this before the image came", f"{found['before'] / 1e9:.3g} GB"),
            Figure(f"{name}: time", f"{found['seconds']:.0f} s"),
            true(f"{name}: every pixel answered, finite", found["whole"]),
        ]
    return Report(
        title="Memory of a large image",
        what=f"A query of {side} x {side} pixels through `Predictor`, windows without overlap, four at once, "
        "1-shot with 4 support views.",
        how="A fresh process per case; peak resident memory of the whole process, interpreter and libraries "
        "included (`VmHWM`: as `ru_maxrss`, without the peak inherited from the process that started it).",
        figures=figures,
    )


def _spawn(case: str, side: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.memory", case, str(side)]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths.strip(os.pathsep)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: str, side: int) -> dict:
    """Predict one image and say what it took."""
    torch.set_num_threads(THREADS)
    method = subject.sofs({"tiny": subject.tiny, "vit_small": subject.vit_small}[case]())
    predictor, size = Predictor(method), method.sliding.side
    images, masks = subject.pictures(4, size)
    state = predictor.support(list(images), list(masks))
    query = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    before = peak()
    taken, prediction = subject.seconds(lambda: predictor(query, state))
    assert prediction.prob is not None
    whole = prediction.prob.shape == (1, side, side) and bool(prediction.prob.isfinite().all())
    number = len(tile(side, side, method.sliding.crop_size, method.sliding.overlap))
    weights = subject.tiny_weights() if case == "tiny" else "random weights"
    return {
        "backbone": f"{method.net.backbone.name} ({weights})",
        "side": size,
        "windows": number,
        "before": before,
        "peak": peak(),
        "seconds": taken,
        "whole": whole,
    }


def peak() -> int:
    """Largest resident memory of this process so far in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(run_case(sys.argv[1], int(sys.argv[2]))))
