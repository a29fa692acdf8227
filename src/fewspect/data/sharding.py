"""Who handles which item: sharding without padding for evaluation, and a training order that can be resumed.

Items are numbered ``epoch * length + i``; the data set turns that number back into (epoch, i), so worker
processes need no state and may live through all epochs.
"""

from collections.abc import Iterator

from torch.utils.data import Dataset, Sampler

from fewspect.errors import UserError


class Numbers(Dataset[int]):
    """Items that are their own numbers, for a method that holds the data and draws from them itself.

    Args:
        length: Items per epoch.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> int:
        return int(item)


class ShardSampler(Sampler[int]):
    """Rank r takes items r, r + world, ...: every item once over all ranks, none twice.

    Args:
        length: Number of items.
        rank: This process.
        world: Number of processes.
    """

    def __init__(self, length: int, rank: int = 0, world: int = 1) -> None:
        self.items = range(rank, length, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class ResumableSampler(Sampler[int]):
    """Order of a training epoch, the same number of full batches for every rank.

    Step t of a run on one process with batches of n * b sees the same items as step t of n processes with
    batches of b. The incomplete rest of an epoch is dropped (another part of the data each epoch, since the
    data set shuffles).

    Args:
        length: Items per epoch.
        rank: This process.
        world: Number of processes.
        batch_size: Items per step and process.

    Raises:
        UserError: When an epoch does not hold one full batch.
    """

    def __init__(self, length: int, rank: int = 0, world: int = 1, batch_size: int = 1) -> None:
        steps = length // (world * batch_size)
        if steps == 0:
            raise UserError(
                f"An epoch has {length} episodes, one step needs {world * batch_size}.",
                "Lower data.batch_size or raise data.episodes.",
            )
        self.length, self.rank, self.world = length, rank, world
        self.count = steps * batch_size
        self.epoch = 0
        self._resumed = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def resume(self, epoch: int, start: int) -> None:
        """Skip the first ``start`` items of this process in epoch ``epoch``; other epochs are not touched."""
        self.epoch = epoch
        self._resumed = (epoch, start)

    def __iter__(self) -> Iterator[int]:
        skipped = self._resumed[1] if self._resumed[0] == self.epoch else 0
        offset = self.epoch * self.length
        for at in range(skipped, self.count):
            yield offset + at * self.world + self.rank

    def __len__(self) -> int:
        """Items of a full epoch, also while resuming: Lightning adds the batches done before by itself."""
        return self.count
