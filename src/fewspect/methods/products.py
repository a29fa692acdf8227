"""What a detector has learned, product by product, as tensors that every checkpoint holds."""

from typing import Any
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn


class Products(nn.ModuleDict):
    """Named tensors per product: buffers, so they are saved, loaded and moved with the method.

    Neither the products nor the shapes have to be known before a checkpoint is loaded: what the checkpoint
    holds is what there is afterwards.

    Example:
        >>> products = Products()
        >>> products.keep("M4.screw", rows=torch.zeros(3, 2))
        >>> list(products.state_dict()), products.known
        (['+M4%2Escrew.rows'], ('M4.screw',))
    """

    @property
    def known(self) -> tuple[str, ...]:
        """Names of the products."""
        return tuple(unquote(key[1:]) for key in self)

    def keep(self, product: str, **tensors: Tensor) -> None:
        """Replace what is known about a product."""
        self._fill(_key(product), tensors)

    def of(self, product: str) -> dict[str, Tensor]:
        """The tensors of a product that is known."""
        return dict(self[_key(product)].named_buffers())

    def _fill(self, key: str, tensors: dict[str, Tensor]) -> None:
        part = nn.Module()
        for name, value in tensors.items():
            part.register_buffer(name, value)
        self[key] = part

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in state_dict.items():
            key, _, tensor = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and tensor.isidentifier():  # the rest is refused as unexpected
                found.setdefault(key, {})[tensor] = torch.empty_like(value)
        self.clear()
        for key, tensors in found.items():
            self._fill(key, tensors)  # their values are copied by the caller, which visits the children next
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _key(product: str) -> str:
    """A name as the name of a module: never empty, no dots."""
    return "+" + quote(product, safe=" ").replace(".", "%2E")
