"""How files of torch are read (tensors and plain values, nothing in them is ever run); digests of weights."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewspect.errors import UserError


def content(path: Path, *, mapped: bool = False) -> Any:  # noqa: ANN401 - whatever the file holds
    """What a file saved by torch holds, on the CPU.

    Args:
        path: The file.
        mapped: Read tensors from the disk when they are used, to look at a large file in passing.

    Raises:
        UserError: The file is damaged, or would run code when loaded.
    """
    try:
        archive = zipfile.is_zipfile(path)  # what torch has written since 2020
        if archive:
            _require_whole(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and archive)
    except Exception as error:  # torn zip, pickled code: every damage has its own family of errors
        raise UserError(
            f"{path}: no readable checkpoint of tensors and plain values ({type(error).__name__}).",
            "Copy the file again; pickled code is never loaded.",
        ) from error


def _require_whole(path: Path) -> None:
    """Compare an archive with its checksums; torch itself does not look at them."""
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{name} is damaged")


def digest(network: nn.Module) -> str:
    """SHA-256 over names and values of a network's tensors and a backbone's choice of layers."""
    sha = hashlib.sha256(repr(getattr(network, "layers", ())).encode())
    for name, value in sorted(network.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()
