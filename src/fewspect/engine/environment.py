"""What surrounds a run: threads and log lines (versions and git state are in ``callbacks.record``)."""

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
    """One log line per message, and its share of the cores for a process of several on this machine.

    Without a launcher that says how many there are nothing is set: Lightning shares the cores out when it
    starts processes itself, but leaves alone what is set already.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:
        share = (os.cpu_count() or 1) // max(1, int(os.environ["LOCAL_WORLD_SIZE"]))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    import lightning.pytorch  # noqa: F401, PLC0415 - adds its handlers now; not for --help

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers print each line once
        logging.getLogger(name).setLevel(logging.WARNING)  # no tips, no list of absent accelerators
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def is_first_process() -> bool:
    """Whether this process owns the run folder (the others of a DDP run only compute)."""
    return not any(
        int(os.environ.get(name, "0") or 0) for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    )
