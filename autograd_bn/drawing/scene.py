"""What is to be drawn: a graph, a part of it, or the forward pass of a model, whose fused nodes can be opened."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..batch_norm.definition import body
from ..batch_norm.fusion import norms
from ..engine import Graph, Leaf, Node, Tensor, as_tensor
from ..engine.backward import propagate
from ..engine.node import Array, no_update, recording, topological_order
from .options import Options

SEARCHED = 2**19  # elements of an array up to which batch norm is looked for: it takes a second there


class Call(NamedTuple):
    """One forward pass of a module."""

    path: str
    title: str
    result: Node
    kind: str  # "box" for one shape in a picture, "fused" for a fused node alone that is opened there, else "module"


@dataclass(frozen=True)
class Scene:
    """Of a graph all nodes, or those that come from `only`, with dots where it goes on.

    `calls` are those of modules that a node was recorded in, outermost first, `names` the parameters' full ones.
    `origins` has the node that another is a copy or a part of, where fused nodes are opened.
    """

    graph: Graph
    only: Collection[Node] | None = None
    calls: Mapping[Node, list[Call]] = field(default_factory=dict)
    names: Mapping[Node, str] = field(default_factory=dict)
    origins: Mapping[Node, Node] = field(default_factory=dict)

    @property
    def shown(self) -> list[Node]:
        """The nodes to draw, inputs first."""
        return [node for node in self.graph.nodes if self.only is None or self.origin(node) in self.only]

    @cached_property
    def norms(self) -> list[dict[Node, str]]:
        """The nodes of every spelled-out batch norm, each with what it stands for."""
        small = all(math.prod(node.shape) <= SEARCHED for node in self.graph.nodes)
        return norms(self.graph.outputs) if small else []

    def origin(self, node: Node) -> Node:
        """The node of the graph that was asked for."""
        return self.origins.get(node, node)

    def calls_of(self, node: Node) -> list[Call]:
        """The calls of modules that a node was recorded in, outermost first."""
        return self.calls.get(self.origin(node), [])

    def opened(self, fused: Container[Node], values: Mapping[Node, Any] | None) -> Scene:
        """The same with the nodes in `fused` opened, on a copy of the graph.

        What reads no opened node is shared, the rest are copies. Without `values` the bodies have their structure only,
        recorded on zeros. With them a body that spans the ranks of an MPI job talks to the other ranks.
        """
        twins: dict[Node, Node] = {}
        for node in self.graph.nodes:
            if node in fused or any(parent in twins for parent in node.inputs):
                twin = twins[node] = copy(node)
                twin.args = tuple([twins.get(arg, arg) if isinstance(arg, Node) else arg for arg in node.args])
            if node in fused:
                norm = node.params["norm"]
                if values is None and norm.comm is not None:
                    twin.params = {"norm": replace(norm, comm=_Echo(norm.comm.size))}
                known = {
                    twins.get(p, p): np.zeros(p.shape, p.dtype) if values is None else values[p] for p in node.inputs
                }
                with recording(True):
                    twin.take_over(body(twin, known))
        made = copy(self.graph)
        made.outputs = tuple([twins.get(node, node) for node in self.graph.outputs])
        made.nodes = topological_order(made.outputs)
        origins = {twins.get(node, node): node for node in self.graph.nodes}
        for node in reversed(made.nodes):
            for parent in node.inputs:
                origins.setdefault(parent, origins[node])
        return replace(self, graph=made, origins=origins)


class _Echo:
    """A communicator whose ranks all say what this one does: what is recorded with it sends no message."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Allgather(self, part: bytes, everyone: Array) -> None:
        everyone[:] = np.frombuffer(part, everyone.dtype)

    def Allreduce(self, part: Array, total: Array) -> None:
        total[...] = part


def scene_of(outputs: Any, options: Options, opened: bool) -> Scene:
    """What is to be drawn of tensors, a graph, or a model, whose small layers are one box each unless `opened`."""
    calls, names = dict[Node, list[Call]](), dict[Node, str]()
    inputs, around = options["inputs"], options["around"]
    if any(kind.__module__.partition(".")[0] == "torch" for kind in type(outputs).__mro__):
        raise TypeError(f"outputs is a {type(outputs).__name__} of PyTorch, expected a tensor or model of this package")
    if isinstance(outputs, type):
        raise TypeError(f"outputs is the class {outputs.__name__}, expected a tensor or a model: an instance of it")
    if hasattr(outputs, "named_parameters"):
        if inputs is None:
            raise TypeError("inputs is None, expected what the model is to be called with")
        names = {parameter.node: name for name, parameter in outputs.named_parameters()}
        outputs = _run(outputs, inputs, opened, calls)
    elif inputs is not None:
        raise TypeError(f"inputs is for a model, but outputs is a {type(outputs).__name__}")
    graph = outputs if isinstance(outputs, Graph) else _graph(outputs, "outputs")
    if around is None:
        return Scene(graph, None, calls, names)
    centre = _graph(around, "around").outputs
    for node in centre:
        if node not in graph.nodes:
            raise ValueError(f"around has {node!r}, which is not below outputs")
    return Scene(graph, _neighbourhood(graph, centre, options["hops"]), calls, names)


def _graph(ends: Any, name: str) -> Graph:
    if not isinstance(ends, Tensor | list | tuple):
        raise TypeError(f"{name} is a {type(ends).__name__}, expected a tensor or a sequence of tensors")
    return Graph(*([ends] if isinstance(ends, Tensor) else ends))


def _run(model: Any, inputs: Any, opened: bool, calls: dict[Node, list[Call]]) -> Any:
    """The result of `model(*inputs)`, recorded; `calls` gets those of its modules.

    Running statistics and generators stay as they are.
    """
    values = inputs if isinstance(inputs, list | tuple) else [inputs]
    names = list(inspect.signature(model.forward).parameters)
    names += [f"input {i}" for i in range(len(names), len(values))]
    tensors = list[Tensor]()
    for i, (x, name) in enumerate(zip(values, names, strict=False)):
        try:
            tensors.append(x if isinstance(x, Tensor) else as_tensor(x, name=name))
        except TypeError as error:
            raise TypeError(f"inputs[{i}]: {error}") from None

    def seen(path: str, module: Any, args: tuple[Any, ...], result: Any) -> None:
        path = "" if module is model else path
        known, recorded = {tensor.node for tensor in _tensors(args)}, list[Node]()
        reached = [tensor.node for tensor in _tensors([result])]
        for node in reached:  # which grows
            elsewhere = path and node in calls and not calls[node][0].path.startswith(f"{path}.")
            if node.op and node not in known and not elsewhere:
                known.add(node)
                recorded.append(node)
                reached += node.inputs
        if recorded:
            small = len(recorded) == 1 or (not opened and getattr(module, "one_box", False))
            fused = opened and len(recorded) == 1 and recorded[0].own_op == "batch_norm"
            call = Call(path, _title(path, module), recorded[0], "fused" if fused else "box" if small else "module")
            for node in recorded:
                calls.setdefault(node, []).insert(0, call)

    with recording(True), no_update(), model.watching(seen):
        return model(*tensors)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for item in values:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)


def _title(path: str, module: Any) -> str:
    """Where a module stands and what it is, with what is said first of it: "1: BatchNorm(32)"."""
    kind = re.sub(r",? ?\w+=(\([^)]*\)|[^,()]*)", "", repr(module).split("\n")[0]).removesuffix("(").removesuffix("()")
    return f"{path}: {kind}" if path else kind


def _neighbourhood(graph: Graph, around: Iterable[Node], hops: int) -> set[Node]:
    """The nodes at most `hops` edges away from `around`, either way, and the leaves that these read.

    A leaf is no way through: what else reads a shared weight is not near.
    """
    near = set(around)
    for hop in range(min(hops, len(graph))):
        ways = {node for node in near if node.primitive or not hop}
        parents = {parent for node in near for parent in node.inputs}
        near = near | parents | {node for node in graph.nodes if not ways.isdisjoint(node.inputs)}
    return near | {parent for node in near for parent in node.inputs if isinstance(parent, Leaf)}


def seeds(graph: Graph, grads: Any) -> list[Any] | None:
    """The gradient of each output that a backward pass begins with; None where there is none to draw."""
    outputs = graph.outputs
    if grads is None or grads is False:
        return None
    if grads is True:
        return None if any(math.prod(n.shape) != 1 for n in outputs) else [np.ones(n.shape, n.dtype) for n in outputs]
    array = np.asarray(grads)
    if len(outputs) != 1 or array.shape != outputs[0].shape or array.dtype.kind not in "fiuO":
        raise ValueError(
            f"grads is {type(grads).__name__} of shape {array.shape}, expected True, False or the gradient of "
            f"a single output, of its shape {outputs[0].shape}; there are {len(outputs)} outputs"
        )
    return [array.astype(outputs[0].dtype)]


def gradients_of(graph: Graph, start: Sequence[Any] | None, visits: list[Any] | None = None) -> dict[Node, Any]:
    """The gradient of every node that has one, where those of the outputs begin with `start`."""
    begin = list(zip(graph.outputs, start or (), strict=False))
    return propagate(begin, {node for node in graph.nodes if node.requires_grad}, False, visits)
