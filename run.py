"""The only entry point: ``python run.py method=sofs data=toy``; ``--help`` lists the choices."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

import hydra
from omegaconf import DictConfig

from fewspect.engine import front


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one mode; everything heavy is imported only now."""
    from fewspect.engine.main import run  # noqa: PLC0415 - --help must not pay for torch

    return run(cfg)


if __name__ == "__main__":
    front.guard(main, Path(__file__).resolve().parent / "conf")
