"""Large tensors in pieces of bounded size; in one piece where torch.export makes a graph of open sizes."""

import torch
from torch import Tensor


def exporting() -> bool:
    """Whether a graph is being made by torch.export."""
    known = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # since torch 2.7
    return bool(known())


def pieces(tensor: Tensor, size: int, dim: int = 0) -> tuple[Tensor, ...]:
    """``tensor.split(size, dim)``, or all of it."""
    return (tensor,) if exporting() else tensor.split(size, dim)
