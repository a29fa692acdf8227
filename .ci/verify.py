"""Check that the installed torch and torchvision are the pinned pair and belong together.

A wheel of another build (CPU beside CUDA) installs without complaint and fails later, at
``torchvision::nms``. The imports also write the bytecode, here rather than in the first run.
"""

import sys
from importlib.metadata import version
from pathlib import Path


def main(lock: str) -> str | None:
    """Return what is wrong, or None."""
    words = Path(lock).read_text("utf-8").split()
    pins = dict(word.split("==") for word in words if word.count("==") == 1)
    for name in ("torch", "torchvision"):
        if version(name).partition("+")[0] != pins[name]:
            return (
                f"{name} {version(name)} is installed, {pins[name]} is pinned: remove .venv, then make setup."
            )
    try:
        import lightning.pytorch  # noqa: F401, PLC0415 - after the cheap check
        import torch  # noqa: PLC0415
        from torchvision.ops import nms  # noqa: PLC0415

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        return (
            f"torch {version('torch')} and torchvision {version('torchvision')} do not fit together: {error}"
        )
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
