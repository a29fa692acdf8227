"""Counter-based randomness: every draw is a pure function of (seed, stream, index).

No generator is ever advanced across items, so episodes and augmentations are the same for any number of
workers, ranks or prefetched batches, and a run that is killed resumes with exactly the numbers it would have
drawn.

Example:
    >>> rng(0, "episode", 3, 17).integers(10) == rng(0, "episode", 3, 17).integers(10)
    True
"""

import hashlib

import numpy as np
import torch


def key(seed: int, stream: str, *index: int) -> int:
    """Hash (seed, stream, index…) to a 63-bit integer.

    Args:
        seed: The run's seed.
        stream: What is drawn, e.g. ``"episode"`` or ``"augment"``; streams never share numbers.
        index: Any number of counters, e.g. epoch and item.
    """
    text = "/".join([str(int(seed)), stream, *(str(int(i)) for i in index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, stream: str, *index: int) -> np.random.Generator:
    """NumPy generator for one item of one stream (data side: crops, supports, augmentation)."""
    return np.random.Generator(np.random.Philox(key(seed, stream, *index)))


def generator(seed: int, stream: str, *index: int) -> torch.Generator:
    """Torch CPU generator for one item of one stream (model side: initialisation, sampling)."""
    return torch.Generator().manual_seed(key(seed, stream, *index))
