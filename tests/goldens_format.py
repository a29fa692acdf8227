"""Reader of golden folders: ``<folder>/<method>/manifest.json`` and the files it lists (format 1).

A manifest says how inputs and parameters are drawn again and how close every stored output has to be; a test
only computes outputs by name. ``Golden.compare`` fails if an output with a tolerance was not computed.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1
STATISTICS: dict[str, Callable[[np.ndarray, int], float]] = {
    "sum": lambda x, _: float(x.sum(dtype=np.float64)),
    "first": lambda x, _: float(x.flat[0]),
    "last": lambda x, _: float(x.flat[-1]),
    "mean": lambda x, _: float(x.mean(dtype=np.float64)),
    "std": lambda x, ddof: float(x.std(dtype=np.float64, ddof=ddof)),
    "max_abs": lambda x, _: float(np.abs(x).max()),
}


class Golden:
    """One file of a golden folder with its manifest entry."""

    def __init__(self, folder: Path, name: str, spec: dict[str, Any]) -> None:
        self.folder, self.name, self.spec = folder, name, spec
        self._content: Any = None

    def __getitem__(self, field: str) -> Any:
        return self.spec[field]

    def get(self, field: str, default: Any = None) -> Any:
        return self.spec.get(field, default)

    @property
    def content(self) -> Any:
        """Arrays by key, or the decoded JSON."""
        if self._content is None:
            path = self.folder / self.name
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    self._content = {k: arrays[k] for k in arrays}
            else:
                self._content = json.loads(path.read_text())
        return self._content

    def other(self, name: str) -> "Golden":
        """A companion file."""
        return Golden(self.folder, name, {})

    def stored(self, key: str) -> Any:
        """A stored value; a dotted key walks into tables, over all rows of a list."""
        if key in self.content:
            return self.content[key]
        value: Any = self.content
        for part in key.split("."):
            value = [row[part] for row in value] if isinstance(value, list) else value[part]
        return value

    # -- inputs and parameters ------------------------------------------------------------------------------

    def draws(self) -> dict[str, Any]:
        """Draw the inputs again and check them against the stored control values."""
        drawn: dict[str, Any] = {}
        for group in self["inputs"]:
            rng = np.random.default_rng(group["seed"])
            for draw in group["draws"]:
                repeat = draw.get("repeat", 1)
                arrays = [_draw(rng, draw) for _ in range(repeat)]
                drawn[draw["name"]] = arrays if repeat > 1 else arrays[0]
        for check in self.get("checks", []):
            arrays = drawn[check["of"]]
            rows = [statistics(a, check["stats"]) for a in (arrays if isinstance(arrays, list) else [arrays])]
            assert np.allclose(np.ravel(self.stored(check["key"])), np.ravel(rows), rtol=1e-6, atol=1e-3), (
                check
            )
        return drawn

    def fill(self, net: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Values of a network's parameters by the rule of the manifest; shapes come from ``tensors``."""
        rule = self["fill"][net]
        assert rule["rule"] == "crc32_normal", rule
        missing = set(rule["scale"]) - set(tensors)
        assert not missing, f"scaled tensors that the network lacks: {missing}"
        return {
            k: torch.from_numpy(
                _filled(rule["prefix"] + k, v, rule["gain"]) * rule["scale"].get(k, 1.0)
            ).float()
            if v.is_floating_point()
            else torch.zeros_like(v)
            for k, v in tensors.items()
        }

    # -- outputs --------------------------------------------------------------------------------------------

    def compare(
        self, outputs: Mapping[str, Any], stored: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Compare everything that has a tolerance; stored slices and statistics are taken from full outputs.

        Returns:
            Largest deviation by key.
        """
        outputs = dict(outputs)
        for row in self.get("statistics", []):
            if row["key"] not in outputs:
                outputs[row["key"]] = statistics(_array(outputs[row["of"]]), row["stats"], row.get("ddof", 0))
        tolerance = self["tolerance"]
        missing = sorted(set(tolerance) - set(outputs))
        assert not missing, f"{self.name}: not computed: {missing}"
        found, wrong = {}, []
        for key, limit in tolerance.items():
            expected = stored[key] if stored is not None else self.stored(key)
            found[key], problem = deviation(self.cut(key, outputs[key]), expected, limit)
            wrong += [f"{key}: {problem}"] if problem else []
        assert not wrong, f"{self.name}:\n" + "\n".join(wrong)
        return found

    def cut(self, key: str, value: Any) -> Any:
        """The part of a full output that is stored."""
        steps = self.get("slices", {}).get(key)
        return value if steps is None else _array(value)[tuple(slice(*s) for s in steps)]


def _draw(rng: np.random.Generator, draw: Mapping[str, Any]) -> np.ndarray:
    shape, kind = tuple(draw["shape"]), draw["dist"]
    if kind == "standard_normal":
        values = rng.standard_normal(shape)
    elif kind == "random":
        values = rng.random(shape)
    elif kind == "integers":
        values = rng.integers(draw["low"], draw["high"], shape)
    else:
        raise ValueError(f"unknown distribution {kind}")
    return values.astype(draw["dtype"])


def _filled(name: str, tensor: torch.Tensor, gain: float) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8")))
    shape = tuple(tensor.shape)
    if len(shape) >= 2:
        return gain * rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + 0.1 * rng.standard_normal(shape)
    return np.asarray(0.1 * rng.standard_normal(shape))


def statistics(array: np.ndarray, names: list[str], ddof: int = 0) -> list[float]:
    """Summary values of one array."""
    return [STATISTICS[name](array, ddof) for name in names]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def deviation(mine: Any, stored: Any, limit: Mapping[str, float]) -> tuple[float, str]:
    """Largest |mine - stored|, and what is wrong if above ``atol + rtol |stored| + of_max max |stored|``."""
    flat_mine, flat_stored = _flatten(mine), _flatten(stored)
    if [p for p, _ in flat_mine] != [p for p, _ in flat_stored]:
        return math.inf, f"structure {_shape(mine)} instead of {_shape(stored)}"
    pairs = list(zip(flat_mine, flat_stored, strict=True))
    words = [f"{p}: {a} instead of {b}" for (p, a), (_, b) in pairs if isinstance(b, str) and a != b]
    if words:
        return math.inf, words[0]
    numbers = [(a, b) for (_, a), (_, b) in pairs if not isinstance(b, str)]
    if not numbers:
        return 0.0, ""
    a, b = (
        np.concatenate([np.ravel(x) for x in side]).astype(np.float64) for side in zip(*numbers, strict=True)
    )
    if a.shape != b.shape:
        return math.inf, f"shape {_shape(mine)} instead of {_shape(stored)}"
    if not a.size:
        return 0.0, ""
    gap = np.abs(a - b)
    allowed = limit["atol"] + limit["rtol"] * np.abs(b) + limit.get("of_max", 0.0) * np.abs(b).max()
    bad = ~(gap <= allowed)
    text = f"{bad.sum()} of {bad.size} values beyond {limit}, worst {np.nanmax(gap):.3g}" if bad.any() else ""
    return float(np.nanmax(gap)), text


def _flatten(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for k in sorted(value) for leaf in _flatten(value[k], f"{path}/{k}")]
    if isinstance(value, list | tuple):
        return [leaf for i, v in enumerate(value) for leaf in _flatten(v, f"{path}/{i}")]
    if isinstance(value, str):
        return [(path, value)]
    array = _array(value)
    if array.ndim == 1:
        return [(f"{path}/{i}", v) for i, v in enumerate(array)]
    return [(f"{path}{array.shape}" if array.ndim else path, array)]


def _shape(value: Any) -> Any:
    return list(getattr(value, "shape", ())) or type(value).__name__


def entries(folder: Path, method: str, kind: str | None = None) -> list[Golden]:
    """Files of one method (and kind), in manifest order; none if the folder has no such method."""
    path = folder / method / "manifest.json"
    if not path.is_file():
        return []
    manifest = json.loads(path.read_text())
    assert (manifest["format"], manifest["method"]) == (FORMAT, method), path
    files = manifest["files"].items()
    return [Golden(path.parent, name, spec) for name, spec in files if kind in (None, spec["kind"])]
