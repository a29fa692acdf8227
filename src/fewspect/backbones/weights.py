"""Where a checkpoint comes from, and how it gets into a module: safely, completely or with a message.

``weights`` of every backbone is one of: ``None`` or ``"none"`` (deterministic random), a file path, ``"hub"``
(the official file, downloaded because the configuration says so) or ``"hub:<owner>/<name>"`` (a repository on
the Hugging Face hub). Nothing else ever touches the network. Files are read with ``weights_only=True`` or as
safetensors, no fallback.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fewspect import draws
from fewspect.errors import UserError

FOLDER = "data/weights"
"""Where the shipped configuration expects downloaded files."""

LISTED = 10
"""So many names are listed in a message."""

State = dict[str, Tensor]


def fetch(weights: str | Path | None, name: str, url: str = "", sha256: str = "") -> State | None:
    """Read the checkpoint that a configuration names.

    Args:
        weights: See the module.
        name: The backbone, for messages.
        url: The official file, used for ``"hub"`` only.
        sha256: Expected digest or the beginning of it; empty = unknown.

    Returns:
        Names and tensors, or None when random weights are wanted.

    Raises:
        UserError: No such file, wrong digest, not a checkpoint, or nothing could be downloaded.
    """
    if weights is None or str(weights).lower() == "none":
        return None
    text = str(weights)
    if text == "hub":
        path = _download(url, name)
    elif text.startswith("hub:"):
        path = _from_hub(text.removeprefix("hub:"), name)
    else:
        path = Path(text).expanduser()
    _check_file(path, name, url, sha256)
    return read_state(path)


def _check_file(path: Path, name: str, url: str, sha256: str) -> None:
    if not path.is_file():
        origin = f"Download {url} and put it there" if url else f"Put the file under {FOLDER}/"
        hub = "backbone.weights=hub (download), " if url else ""
        raise UserError(
            f"Backbone {name}: no weights file {path}.",
            f"{origin}; or {hub}backbone.weights=none (random) or backbone=tiny.",
        )
    if sha256 and not digest(path).startswith(sha256.lower()):
        raise UserError(
            f"{path}: SHA-256 is {digest(path)[:16]}…, expected {sha256[:16]}….", "Download the file again."
        )


def digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, name: str) -> Path:
    if not url:
        raise UserError(
            f"Backbone {name} has no official download.", "Give a file path or backbone.weights=none."
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise UserError(
            f"Backbone {name}: {url} could not be downloaded ({error}).",
            f"Put the file under {FOLDER}/ and give its path, or choose backbone.weights=none.",
        ) from error
    return path


def _from_hub(repository: str, name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - only when the configuration names the hub

        return Path(hf_hub_download(repository, "model.safetensors"))
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"Backbone {name}: hub:{repository} could not be loaded ({type(error).__name__}).",
            f"Check the name and the connection, or put the file under {FOLDER}/ and give its path.",
        ) from error


def read_state(path: Path) -> State:
    """Read tensors from a ``.safetensors`` file or a torch checkpoint; nothing in it is ever run.

    An outer ``state_dict`` and a ``module.`` prefix are taken off.

    Raises:
        UserError: The file does not exist, is damaged, or holds something other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - optional format

            content = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own family of errors
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}).",
            "Expected: tensors saved by torch or safetensors.",
        ) from error
    return clean(content, str(path))


def clean(content: object, where: str) -> State:
    """Take an outer ``state_dict`` and a common ``module.`` prefix off.

    Raises:
        UserError: Something other than a mapping from names to tensors.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise UserError(
            f"{where} does not hold a mapping from names to tensors.", "Is it a checkpoint of this network?"
        )
    state = {str(k): v for k, v in content.items()}
    wrapped = all(k.startswith("module.") for k in state)
    return {k.removeprefix("module."): v for k, v in state.items()} if wrapped else state


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Demand the same names and shapes.

    Raises:
        UserError: Lists what is missing, unexpected or of another shape.
    """
    problems = {
        "missing": [k for k in expected if k not in given],
        "unexpected": [k for k in given if k not in expected],
        "other shape": [
            f"{k} {tuple(given[k].shape)} instead of {tuple(v.shape)}"
            for k, v in expected.items()
            if k in given and given[k].shape != v.shape
        ],
    }
    found = [f"{kind} ({len(names)}): {_listing(names)}" for kind, names in problems.items() if names]
    if found:
        raise UserError(
            f"{where} does not fit the network. " + "; ".join(found) + ".",
            "Choose the checkpoint of this network, or the network of this checkpoint.",
        )


def _listing(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def load_into(module: nn.Module, state: State, where: str) -> None:
    """Copy a checkpoint into a module, all of it or nothing.

    Raises:
        UserError: Names or shapes do not match.
    """
    compare(module.state_dict(), state, where)
    module.load_state_dict(state)


@torch.no_grad()
def randomise(module: nn.Module, name: str) -> None:
    """Deterministic random weights: a function of the network's name only, whatever was drawn before.

    Matrices and kernels: normal with variance 1 / fan-in; norms 1 and 0; position tables and tokens normal
    with standard deviation 0.02; layer scales 1.
    """
    random = draws.generator(0, name)
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            value.zero_()
        elif value.ndim >= 2:
            token = key.endswith(("_token", "pos_embed"))
            deviation = 0.02 if token else 1 / math.sqrt(math.prod(value.shape[1:]))
            value.copy_(torch.randn(value.shape, generator=random) * deviation)
        else:
            value.fill_(1.0 if key.endswith(("weight", "gamma", "running_var")) else 0.0)
