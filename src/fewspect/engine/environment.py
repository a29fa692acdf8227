"""What surrounds a run: seeds, threads and log lines (versions and git state are in ``callbacks.record``)."""

import logging
import os
import warnings

NOISE = (
    ".*does not have many workers.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*ModelCheckpoint.*could not find the monitored key.*",
    ".*dirpath has changed.*",
    ".*your dataloader is not resumable.*",  # ours is, by position
    ".*sync_dist=True.*",  # our metrics gather by themselves
    ".*isinstance.treespec, LeafSpec.*",
)
"""Beginnings of warnings that say nothing to the user."""


def prepare() -> None:
    """One log line per message, and a sensible number of threads for spawned processes."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, _local_world()))))
    import lightning.pytorch  # noqa: F401, PLC0415 - adds its handlers now; not for --help

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers print each line once
        logging.getLogger(name).setLevel(logging.WARNING)  # no tips, no list of absent accelerators
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def _local_world() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process owns the run folder (the others of a DDP run only compute)."""
    return not any(
        int(os.environ.get(name, "0") or 0) for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    )
