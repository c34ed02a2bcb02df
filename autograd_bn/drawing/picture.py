"""`render` and `to_dot`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Graph, Leaf, Node, Tensor
from ..engine.derivatives import propagate
from .expansion import expansion
from .layout import draw
from .records import picture

if TYPE_CHECKING:
    import graphviz

SUFFIXES = (".svg", ".png", ".pdf", ".dot", ".gv")


def render(
    outputs: Any,
    path: str | os.PathLike[str],
    *,
    values: bool = False,
    grads: Any = False,
    expand: bool = False,
    direction: str | None = None,
) -> Path:
    """Draw the graph below `outputs`, a tensor or a sequence of tensors, to a file, and return its path.

    The suffix picks the format: svg, png, pdf, or dot (also gv), the text that Graphviz draws from.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path {str(path)!r} ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    graph = to_dot(outputs, values=values, grads=grads, expand=expand, direction=direction)
    if path.suffix.lower() in (".dot", ".gv"):
        content = graph.source.encode()
    else:
        content = draw(graph.source, path.suffix.lower()[1:])
    _replace(path, content)
    return path


def to_dot(
    outputs: Any,
    *,
    values: bool = False,
    grads: Any = False,
    expand: bool = False,
    direction: str | None = None,
) -> graphviz.Digraph:
    """The picture that `render` draws, with the same options, as a `graphviz.Digraph`."""
    from .dot import digraph

    if direction not in (None, "LR", "TB"):
        raise ValueError(f'direction is {direction!r}, expected "LR", "TB" or None')
    graph = Graph(*_tensors(outputs))
    # Zeros stand in for the values that only a fused node's structure needs, but not among exact numbers.
    exact = any(node.dtype == object for node in graph.nodes)
    known = graph.values() if values or (expand and (grads is not False or exact)) else None
    gradients = None if grads is False else _gradients(graph, grads)
    expansions = {node: expansion(node, known) for node in graph.nodes if expand and node.op == "batch_norm"}
    for node, opened in expansions.items():
        if known is not None:
            known.update(opened.values(known))
        if gradients is not None and node in gradients:
            gradients.update(opened.gradients(gradients[node]))
    records = picture(graph, expansions=expansions, values=known if values else None, gradients=gradients)
    return digraph(records, direction)


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if not isinstance(outputs, list | tuple):
        raise TypeError(f"outputs is a {type(outputs).__name__}, expected a tensor or a sequence of tensors")
    return list(outputs)


def _gradients(graph: Graph, cotangent: Any) -> dict[Node, Any]:
    """The gradient of every node that has one; no `.grad` is touched."""
    outputs = graph.outputs
    if cotangent is True:
        if any(np.prod(node.shape) != 1 for node in outputs):
            return {node: node.grad for node in graph.nodes if isinstance(node, Leaf) and node.grad is not None}
        seeds = [(node, np.ones(node.shape, node.dtype)) for node in outputs if node.requires_grad]
    else:
        array = np.asarray(cotangent)
        if len(outputs) != 1 or array.shape != outputs[0].shape:
            raise ValueError(
                f"grads has shape {array.shape}, expected True, False or the gradient of a single output, "
                f"of its shape {outputs[0].shape}"
            )
        seeds = [(outputs[0], array.astype(outputs[0].dtype))]
    return propagate(seeds, {node for node in graph.nodes if node.requires_grad}, create_graph=False)


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, f"path can't be written: {error.strerror}", str(path)) from None
