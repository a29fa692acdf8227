"""From a graph to a file: by torch.export, and from there to ONNX. Image sizes stay open.

Example:
    >>> write(graph, inputs, Path("model.onnx"), "onnx")
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.graphs import Graph

Format = Literal["onnx", "torch_export"]
FILES: dict[str, str] = {"onnx": "model.onnx", "torch_export": "model.pt2"}

LARGEST = 1 << 14
"""Longest side of an image in pixels that a graph takes."""

OPEN: dict[str, dict[int, str]] = {
    "image": {1: "height", 2: "width"},
    "mask": {0: "height", 1: "width"},
    "box": {},
    "feature": {0: "items"},
}
"""Axes of the inputs whose sizes are open."""


def write(graph: Graph, inputs: Sequence[Tensor], path: Path, kind: Format) -> None:
    """Write what a graph computes.

    Args:
        graph: What is written; in evaluation mode.
        inputs: An example, with sizes that stand for all others.
        path: The file.
        kind: ``onnx`` or ``torch_export``.

    Raises:
        UserError: A package is missing, or the graph cannot be made.
    """
    if kind == "onnx":
        _require_onnx()
    sizes = {"height": graph.about.least, "width": graph.about.least, "items": 1}
    least = {name: max(2, size) for name, size in sizes.items()}  # sizes 0 and 1 are never open
    shapes: Any = tuple(
        {axis: torch.export.Dim(name, min=least[name], max=LARGEST) for axis, name in OPEN[argument].items()}
        for argument in graph.about.inputs
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # one entry for the tuple of a variadic forward
        dynamic = (shapes,) if _is_variadic(graph) else shapes
        program = torch.export.export(graph, tuple(inputs), dynamic_shapes=dynamic, strict=False)
        if kind == "torch_export":
            torch.export.save(program, path)
        else:
            _to_onnx(program, graph, tuple(inputs), path)


def _is_variadic(graph: Graph) -> bool:
    return bool(graph.forward.__code__.co_flags & 0x04)


def _to_onnx(
    program: torch.export.ExportedProgram, graph: Graph, inputs: tuple[Tensor, ...], path: Path
) -> None:
    chatty = logging.getLogger("onnxscript")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        made = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=list(graph.about.inputs),
            output_names=list(graph.about.outputs),
        )
        assert made is not None, "dynamo=True gives a program"
        made.save(path, external_data=False)
    finally:
        chatty.setLevel(level)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401, PLC0415
        import onnxruntime  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            f"format=onnx needs {error.name}.", "Install it: pip install 'fewspect[export]'"
        ) from error
