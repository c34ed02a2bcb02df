"""`render` and `to_dot`."""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..engine import Graph, Leaf
from ..engine.graph import Values
from ..files import ending, path_of
from ..verify.table import PRE
from .options import Options, named, settled
from .picture import Picture
from .repeats import repeats_of
from .run_graphviz import draw, write
from .scene import gradients_of, scene_of, seeds

if TYPE_CHECKING:
    import graphviz

UNASKED = 200  # nodes of a graph that a notebook draws without being asked
SUFFIXES = (".svg", ".png", ".pdf", ".dot", ".gv", ".html")


@named
def render(outputs: Any, path: str | os.PathLike[str], **options: Unpack[Options]) -> Path:
    """Draw the graph below `outputs`, a tensor, several or a `Graph`, to a file, and return its path.

    The suffix picks the format: `.svg`, `.png`, `.pdf`, `.dot` (also `.gv`), which needs no Graphviz, or `.html`, the
    page of `ag.page`, on which values and gradients are shown unless False. Ovals are tensors, boxes operations, notes
    arrays among their operands; edges show shapes, and a dtype where it is not the first output's. The mean, var, 1/σ
    and x̂ of a batch norm have their names and the statistics a frame, however it is spelled, in graphs whose arrays
    have up to 524,288 elements; `expand=True` opens fused ones.

    `values=True` shows every value: up to six numbers in full, of more their mean and range. `grads=True` shows
    every gradient, and a lane beside each edge that it flows along: that of the sum of outputs of one element,
    computed here. For other outputs leaves show their `.grad`; or an array as `grads`, of the only output's shape,
    weighs its elements.

    `outputs` may also be a model, called with `inputs` (an array, a tensor, or a sequence of them): its modules are
    frames, and a layer of few nodes is one box, which `expand=True` opens. `around`, a tensor of the graph or several,
    cuts out what is at most `hops` edges away. A leaf that is read far away is drawn again there. Equal blocks or time
    steps in a row are one with "× 20", with the values and gradients of the first and the last; `expand=True` opens
    them. `direction` is "LR" (left to right) or "TB" (top to bottom), by default what keeps to a page's 900 pixels.

    Where there are `allreduce` nodes, values, gradients and exact rationals are computed anew on every rank. The file
    is written whole or not at all. `TypeError` for outputs that aren't tensors; `ValueError` for an unknown suffix or
    direction, a gradient of another shape or an `around` that is not in the graph; `RuntimeError` where Graphviz is
    missing, fails or needs more than a minute, or a value was overwritten by `assign`; `OSError` for the file.

    >>> import autograd_bn as ag, tempfile
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ag.render((x * x).sum(), folder + "/picture.dot", values=True).name
    'picture.dot'
    """
    path = path_of(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path {str(path)!r} {ending(path)}, expected one of {', '.join(SUFFIXES)}")
    if suffix == ".html":
        from .page import page

        return page(outputs, **options).save(path)
    source = to_dot(outputs, **options).source
    return write(path, source.encode() if suffix in (".dot", ".gv") else draw(source, suffix[1:]))


@named
def to_dot(outputs: Any, **options: Unpack[Options]) -> graphviz.Digraph:
    """The picture that `render` draws, with the same options, as a `graphviz.Digraph`.

    A notebook shows it as svg, with a `dot` program or with the Graphviz in the pygraphviz wheel.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], name="x")
    >>> print(ag.to_dot(ag.exp(x)).source[:9])
    digraph {
    """
    from .dot import digraph

    options = settled(options)
    values = options["values"]
    scene = scene_of(outputs, options, opened=options["expand"])
    start = seeds(scene.graph, options["grads"])
    stored = options["grads"] is True and start is None
    if options["expand"]:
        fused = {node for node in scene.graph.nodes if node.own_op == "batch_norm"}
        # Zeros stand in for the values that only a fused node's structure needs, but not among exact numbers.
        needed = values or start or any(node.dtype == object for node in scene.graph.nodes)
        scene = scene.opened(fused, Values(scene.graph.nodes) if needed else None)
    gradients = gradients_of(scene.graph, start) if start is not None else None
    if stored:
        gradients = {n: n.grad for n in scene.graph.nodes if isinstance(n, Leaf) and n.grad is not None}
    shown = scene.graph.values() if values else None
    repeats = [] if options["expand"] else repeats_of(scene, gradients or ())
    picture = Picture(scene, shown, gradients, stored, repeats=repeats)
    return digraph(picture, options["direction"])


def html(shown: Any) -> str | None:
    """What a notebook shows of a graph or a tensor that has one: its text and below it the picture, or None."""
    from .dot import CARD  # which loads graphviz

    graph = shown if isinstance(shown, Graph) else Graph(shown)
    if len(graph) > UNASKED or not graph.ops:
        return None
    try:
        picture = base64.b64encode(draw(to_dot(graph).source, "svg")).decode()
    except RuntimeError:  # there is no Graphviz, or it needs too long
        return None
    text = escape(repr(shown), quote=True)  # the image survives in a notebook that isn't trusted, too
    return f'{PRE}{text}</pre><img alt="{text}" style="{CARD}" src="data:image/svg+xml;base64,{picture}">'
