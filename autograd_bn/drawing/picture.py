"""`render` and `to_dot`."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from ..engine import Graph, Leaf, Node, Tensor
from ..engine.backward import propagate
from . import modules
from .expansion import expansion
from .layout import draw
from .records import picture
from .structure import neighbourhood

if TYPE_CHECKING:
    import graphviz

SUFFIXES = (".svg", ".png", ".pdf", ".dot", ".gv", ".html")


def render(
    outputs: Any,
    path: str | os.PathLike[str],
    *,
    values: bool | None = None,
    grads: Any = None,
    expand: bool = False,
    direction: str | None = None,
    around: Any = None,
    hops: int = 3,
    inputs: Any = None,
) -> Path:
    """Draw the graph below `outputs`, a tensor, a sequence of tensors or a `Graph`, to a file, and return its path.

    The suffix picks the format: `.svg`, `.png`, `.pdf`, `.dot` (also `.gv`), the text that Graphviz draws
    from, or `.html`, the page of `ag.page`, on which values and gradients are shown unless False. Ovals are
    tensors: inputs (with a double outline where they require a gradient), parameters and outputs (dark). Boxes
    are operations, with their scalar constants and options; arrays among their operands are notes. Edges show
    shapes, and a dtype where it is not the first output's. A fused batch norm is a cluster, which `expand=True`
    opens into its composed body; the graph itself stays as it is. The mean, var, 1/σ and x̂ of a batch norm have
    their names, and what computes the statistics a frame, however it is spelled, in graphs whose arrays have up
    to 524,288 elements.
    `stop_gradient` is an octagon behind a bar, `allreduce` a hexagon.

    `values=True` shows the value of every node: up to six numbers in full, of more their mean and range.

    `grads=True` shows the gradient of every node, and dashed edges against the arrows where it flows. Where
    all outputs have one element it is the gradient of their sum, computed here; no `.grad` is read or changed.
    For other outputs the leaves show what they hold in `.grad`, from whatever pass it came. An array as `grads`,
    of the shape of the only output, weighs its elements as in `backward`. Leaves that require a gradient and get
    none say so.

    `outputs` may also be a model: it is called with `inputs` (an array, a tensor, or a sequence of them), and its
    modules are frames with their paths, its parameters have their full names. A layer of few nodes, such as a
    convolution, is one box, which `expand=True` opens.

    `around`, a tensor of the graph or a sequence of them, cuts out what is at most `hops` edges away, so that a
    part of a graph of any size can be looked at; dots stand where it goes on. A leaf that is read far away is
    drawn again, dashed, beside its readers there.

    `direction` is "LR" (left to right) or "TB" (top to bottom); by default what keeps to the width of a
    page, 900 pixels. Values, gradients and exact rationals are computed anew: a graph with `allreduce` nodes
    then needs the call on every rank.

    A `dot` program on PATH draws, else the Graphviz in the pygraphviz wheel; `.dot` and `.gv` need neither.
    The file is written whole or not at all. `TypeError` for outputs that aren't tensors, `ValueError` for an
    unknown suffix or direction, a gradient of another shape or an `around` that is not in the graph,
    `RuntimeError` where there is no Graphviz, where it fails or needs more than a minute, or where a value was
    overwritten by `assign`, `OSError` where the file can't be written.

    >>> import autograd_bn as ag, tempfile
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ag.render((x * x).sum(), folder + "/picture.dot", values=True).name
    'picture.dot'
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path {str(path)!r} ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    options: dict[str, Any] = {"direction": direction, "around": around, "hops": hops}
    if path.suffix.lower() == ".html":
        from .page import page

        return page(outputs, values=values, grads=grads, expand=expand, inputs=inputs, **options).save(path)
    graph = to_dot(outputs, values=values, grads=grads, expand=expand, inputs=inputs, **options)
    if path.suffix.lower() in (".dot", ".gv"):
        content = graph.source.encode()
    else:
        content = draw(graph.source, path.suffix.lower()[1:])
    _replace(path, content)
    return path


def to_dot(
    outputs: Any,
    *,
    values: bool | None = None,
    grads: Any = None,
    expand: bool = False,
    direction: str | None = None,
    around: Any = None,
    hops: int = 3,
    inputs: Any = None,
) -> graphviz.Digraph:
    """The picture that `render` draws, with the same options, as a `graphviz.Digraph`.

    A notebook shows it as svg, with a `dot` program or with the Graphviz in the pygraphviz wheel.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], name="x")
    >>> print(ag.to_dot(ag.exp(x)).source[:9])
    digraph {
    """
    from .dot import digraph

    if direction not in (None, "LR", "TB"):
        raise ValueError(f'direction is {direction!r}, expected "LR", "TB" or None')
    outputs, calls = _called(outputs, inputs, expand)
    graph = outputs if isinstance(outputs, Graph) else Graph(*_tensors(outputs, "outputs"))
    only = None if around is None else _near(graph, around, hops)
    bare = grads is None or grads is False
    # Zeros stand in for the values that only a fused node's structure needs, but not among exact numbers.
    exact = any(node.dtype == object for node in graph.nodes)
    known = graph.values() if values or (expand and (not bare or exact)) else None
    gradients = None if bare else _gradients(graph, grads)
    expansions = {node: expansion(node, known) for node in graph.nodes if expand and node.op == "batch_norm"}
    for node, opened in expansions.items():
        if known is not None:
            known.update(opened.values(known))
        if gradients is not None and node in gradients:
            gradients.update(opened.gradients(gradients[node]))
    records = picture(
        graph,
        expansions=expansions,
        values=known if values else None,
        gradients=gradients,
        stored=grads is True and any(math.prod(node.shape) != 1 for node in graph.outputs),
        only=only,
        calls=calls,
    )
    return digraph(records, direction)


def _called(outputs: Any, inputs: Any, opened: bool) -> tuple[Any, modules.Calls]:
    """`outputs`, or if it is a model what it gives for `inputs`; and the calls of its modules."""
    if not hasattr(outputs, "named_parameters"):
        if inputs is not None:
            raise TypeError(f"inputs is for a model, but outputs is a {type(outputs).__name__}")
        return outputs, modules.Calls()
    if inputs is None:
        raise TypeError("inputs is None, expected what the model is to be called with")
    return modules.run(outputs, inputs, opened)


def _tensors(given: Any, name: str) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a tensor or a sequence of tensors")
    return list(given)


def _near(graph: Graph, around: Any, hops: int) -> set[Node]:
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise ValueError(f"hops is {hops!r}, expected 0 or a positive integer")
    centre = Graph(*_tensors(around, "around")).outputs
    for node in centre:
        if node not in graph.nodes:
            raise ValueError(f"around has {node!r}, which is not below outputs")
    return neighbourhood(graph, centre, hops)


def _gradients(graph: Graph, weights: Any) -> dict[Node, Any]:
    """The gradient of every node that has one."""
    outputs = graph.outputs
    if weights is True:
        if any(math.prod(node.shape) != 1 for node in outputs):
            return {node: node.grad for node in graph.nodes if isinstance(node, Leaf) and node.grad is not None}
        seeds = [(node, np.ones(node.shape, node.dtype)) for node in outputs if node.requires_grad]
    else:
        seeds = [(outputs[0], _weighed(outputs, weights))]
    return propagate(seeds, {node for node in graph.nodes if node.requires_grad}, create_graph=False)


def _weighed(outputs: Sequence[Node], weights: Any) -> Any:
    """The gradient of the only output, as it was given."""
    array = np.asarray(weights)
    if len(outputs) != 1 or array.shape != outputs[0].shape or array.dtype.kind not in "fiuO":
        raise ValueError(
            f"grads is {type(weights).__name__} of shape {array.shape}, expected True, False or the gradient of "
            f"a single output, of its shape {outputs[0].shape}; there are {len(outputs)} outputs"
        )
    return array.astype(outputs[0].dtype)


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, through links, with the mode that it had."""
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe
            path.write_bytes(content)
            return
        part.write_bytes(content)
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"path can't be written: {error.strerror}", str(path)) from None
    finally:
        with suppress(OSError):
            part.unlink()
