"""`Graph`: the recorded graph as something to look at."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .node import Leaf, Node, owner_of, topological_order
from .tensor import Tensor, tensors_of


class Graph:
    """The graph below some tensors.

    `nodes` are in topological order, each with `op` (`None` for a leaf), `name`, `inputs`, `shape`, `dtype`
    and `params`; `len` counts them. `ops` counts the operations by name.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True)
    >>> graph = ag.Graph((x * x).sum())
    >>> [node.op for node in graph.nodes], graph.saved_bytes
    ([None, 'multiply', 'sum'], 0)
    """

    def __init__(self, *outputs: Tensor) -> None:
        if not outputs:
            raise ValueError("Graph needs at least one output tensor, got none")
        self.outputs = tuple([output.node for output in tensors_of(outputs, "outputs")])
        self.nodes = topological_order(self.outputs)

    @property
    def ops(self) -> Counter[str]:
        """How often each operation occurs; leaves aren't operations."""
        return Counter(node.op for node in self.nodes if node.op is not None)

    @property
    def saved_bytes(self) -> int:
        """The bytes of memory that the graph holds for backward, each buffer once.

        The leaves' own data are not among them: they live as long as their tensors, with or without a
        backward pass.
        """
        held: dict[int, int] = {}
        own = {id(owner_of(node.data)) for node in self.nodes if isinstance(node, Leaf)}
        for node in self.nodes:
            for array in _arrays(node.saved):
                owner = owner_of(array)
                if id(owner) not in own:
                    held[id(owner)] = owner.nbytes
        return sum(held.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<Graph of {len(self)} nodes: {dict(self.ops)}>"

    def values(self) -> dict[Node, Any]:
        """The value of every node, to the bit: the leaves' own, what was saved, and the rest computed anew.

        `RuntimeError` where a leaf was assigned to since a node read it.
        """
        values = Values(self.nodes)
        return {node: values[node] for node in self.nodes}


class Values(dict[Node, Any]):
    """The values of nodes, to the bit, each computed when it is first asked for.

    `nodes` are in topological order. `RuntimeError` where a leaf was assigned to since a node read it.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__()
        for node in nodes:
            node.check_unchanged(all_operands=True)
            if isinstance(node, Leaf):
                self[node] = node.data
            for source, value in zip((*node.args, node), node.saved, strict=False):
                if value is not None and isinstance(source, Node):
                    self[source] = value

    def __missing__(self, node: Node) -> Any:
        stack = [node]
        while stack:
            last = stack[-1]
            missing = [] if last in self else [parent for parent in last.inputs if parent not in self]
            stack += missing
            if not missing:
                stack.pop()
                if last not in self:
                    self[last] = compute(last, [self[arg] if isinstance(arg, Node) else arg for arg in last.args])
        return self[node]


def compute(node: Node, args: list[Any]) -> Any:
    """Run a node's operation again on the values of its arguments."""
    # A tensor without axes is computed with as a scalar, whose power may differ in the last bit from an array's.
    args = [arg[()] if type(arg) is np.ndarray and not arg.shape and arg.dtype != object else arg for arg in args]
    out = node.primitive.forward(*args, **node.params)  # type: ignore[union-attr]
    out = out[0] if node.primitive.joint else out  # type: ignore[union-attr]
    return out if hasattr(out, "dtype") else np.asarray(out, object)  # NumPy hands out the bare element of an array


def _arrays(read: Any) -> Iterator[np.ndarray[Any, Any]]:
    for value in read:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, tuple | list):
            yield from _arrays(value)
