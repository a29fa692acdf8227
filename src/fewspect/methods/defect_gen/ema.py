"""A running average of a network's weights (specification 4.1, 11.1).

The original averages with 0.9999 from the first step on, so that after 1000 steps nine tenths of it are the
initial weights, and never uses the average. Here the decay grows with the number of steps.
"""

import copy

import torch
from torch import nn

WARMUP = 10
"""Steps that the early average looks back over: its decay is (1 + n) / (10 + n) after n updates."""


class Average(nn.Module):
    """The averaged copy of a network.

    Args:
        net: The network; copied.
        decay: Share of the average that stays at each update.
        warmup: Begin with a smaller decay; false = original.
    """

    def __init__(self, net: nn.Module, decay: float = 0.9999, *, warmup: bool = True) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.updates: torch.Tensor

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take the network's present weights in."""
        done = int(self.updates)
        decay = min(self.decay, (1 + done) / (WARMUP + done)) if self.warmup else self.decay
        for mine, theirs in zip(self.net.parameters(), net.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)
        self.updates += 1
