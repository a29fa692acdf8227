"""Which names a config may build: our own parts and a short list of harmless building blocks.

A config can come from a stranger's run folder. Every ``_target_`` of the resolved tree is checked before
anything is
built: the name by this list, and the object it leads to by where it was defined, so that
``fewspect.draws.torch.load`` is no way around. Only top-level classes and functions count: no
``from_pretrained``, no ``load_from_checkpoint``.
"""

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fewspect.errors import UserError

PACKAGES = (
    "fewspect.methods",
    "fewspect.backbones",
    "fewspect.data",
    "fewspect.metrics",
    "fewspect.callbacks",
    "torch.optim",
    "torch.nn.modules",
    "torchvision.transforms.v2",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.strategies",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "torchmetrics",
    "diffusers.schedulers",
)
"""A target begins with one of these, and so does the module in which it is defined. wandb is reached through
``lightning.pytorch.loggers`` only."""

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def targets(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any config value
    """Yield (config path, ``_target_``) of every node of a plain tree, also inside lists."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for position, value in enumerate(node):
            yield from targets(value, f"{path}[{position}]")


def require(tree: Any, extra: Sequence[str] = ()) -> None:  # noqa: ANN401 - any config value
    """Refuse a resolved tree that names anything outside the list.

    Args:
        tree: Plain dicts and lists, interpolations resolved.
        extra: Packages that the user allowed on the command line.

    Raises:
        UserError: Names the config path and the target.
    """
    for path, target in targets(tree):
        if not isinstance(target, str) or not DOTTED.fullmatch(target) or not _listed(target, extra):
            raise _refused(path, target)
        defined = locate(target, path)
        home = f"{getattr(defined, '__module__', '')}.{getattr(defined, '__qualname__', '?.?')}"
        plain = inspect.isclass(defined) or inspect.isfunction(defined)
        if not plain or "." in defined.__qualname__ or not _listed(home, extra):
            raise _refused(path, target)


def locate(target: str, path: str = "") -> Any:  # noqa: ANN401 - class or function
    """Import what a (listed) dotted name leads to.

    Raises:
        UserError: There is no such thing.
    """
    module, _, name = target.rpartition(".")
    while module:
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{path}: {target} needs {error.name}.", f"Install it: pip install {error.name}"
                ) from error
            module, _, last = module.rpartition(".")
            name = f"{last}.{name}"
            continue
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
        break
    raise UserError(f"{path}: there is no {target}.", "Correct _target_ in this config file.")


def _listed(name: str, extra: Sequence[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in (*PACKAGES, *extra))


def _refused(path: str, target: object) -> UserError:
    package = str(target).split(".", maxsplit=1)[0]
    return UserError(
        f"{path or 'config'}: _target_={target} is not allowed.",
        f"If you trust that package, add allow=[{package}] to the command line.",
    )
